"""Clips in files: the same to the bit where they are measured, close where they are looked at, refused where torn."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("av")

import av
from PIL import Image

from loraport.clips.clip import Clip, is_clip_file, is_image_file
from loraport.clips.read import read_clip
from loraport.clips.write import write_for_viewing, write_lossless
from loraport.errors import FileFormatError, InputError, OutputError, SettingsError, UnreadableError


def scene(frames=6, height=37, width=35):
    """A ramp of colours that moves, and noise on it."""
    y, x = np.mgrid[:height, :width]
    clean = np.stack([np.stack([x * 3 + i, y * 3, np.full_like(x, 20 * i)], -1) for i in range(frames)])
    return (clean + np.random.default_rng(0).integers(0, 9, clean.shape)).clip(0, 255).astype(np.uint8)


def encoded(path, frames, codec, pixels, *, sound=False, form=None, **options):
    """A file as another program writes it."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        audio = container.add_stream("aac", rate=8000) if sound else None
        for one in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize("fps", [8.0, 24.0, 30000 / 1001, 12.5])
@pytest.mark.parametrize("shape", [(6, 37, 35), (1, 16, 16), (5, 2, 1), (3, 64, 48)])
def test_a_lossless_clip_comes_back_to_the_bit(tmp_path, shape, fps):
    clip, path = Clip(scene(*shape), fps), tmp_path / "clip.mkv"
    write_lossless(path, clip)
    back = read_clip(path)
    assert np.array_equal(back.frames, clip.frames) and back.fps == pytest.approx(fps) and back.notes == ()
    assert (back.height, back.width, back.seconds) == (shape[1], shape[2], pytest.approx(shape[0] / fps))


def test_the_same_frames_are_the_same_bytes_and_others_are_not(tmp_path):
    digests, size = [], (6, 48, 36)  # enlarged to 144 columns, at which x264's macroblock tree is not repeatable
    for number, frames in enumerate((*(scene(*size) for _ in range(6)), scene(*size) ^ 1)):
        paths = [tmp_path / f"{number}.mkv", tmp_path / f"{number}.mp4"]
        write_lossless(paths[0], Clip(frames))
        write_for_viewing(paths[1], Clip(frames))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    assert all(one == digests[0] for one in digests[:-1])
    assert all(one != other for one, other in zip(digests[0], digests[-1], strict=True))


@pytest.mark.parametrize("shape", [(6, 37, 35), (6, 131, 150), (2, 128, 128)])
def test_a_clip_to_look_at_is_close_and_no_odd_side_is_lost(tmp_path, shape):
    clip, path = Clip(scene(*shape), 8), tmp_path / "clip.mp4"
    write_for_viewing(path, clip)
    back = read_clip(path)
    times = max(1, -(-128 // min(shape[1:])))
    assert len(back.frames) == shape[0] and back.fps == 8
    assert back.height in (shape[1] * times, shape[1] * times + 1) and back.height % 2 == back.width % 2 == 0
    seen = back.frames[:, ::times, ::times][:, : shape[1], : shape[2]].astype(int)
    error = np.abs(seen - clip.frames).mean(axis=(0, 1, 2))
    assert error.max() < 5  # of 255 levels; a wrong matrix of colours is off by twice that
    assert np.abs(seen[..., ::-1] - clip.frames).mean() > 5 * error.max()


def test_images_are_clips_of_one_frame(tmp_path):
    clip = Clip(scene(1))
    write_lossless(tmp_path / "a.png", clip)
    assert np.array_equal(read_clip(tmp_path / "a.png").frames, clip.frames)
    for ending in ("jpg", "webp"):
        write_for_viewing(tmp_path / f"a.{ending}", clip)
        back = read_clip(tmp_path / f"a.{ending}").frames
        assert np.abs(back[:, ::4, ::4].astype(int) - clip.frames).mean() < 12
    turned = Image.fromarray(clip.frames[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read_clip(tmp_path / "turned.png").frames.shape[1:3] == (35, 37)
    assert is_clip_file(tmp_path / "a.PNG") and is_image_file(tmp_path / "a.jpeg")
    assert is_clip_file(tmp_path / "a.mkv") and not is_image_file(tmp_path / "a.mkv")
    assert not is_clip_file(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("codec", "pixels", "name", "options"),
    [
        ("ffv1", "bgr0", "plain.mkv", {"level": "3", "slicecrc": "0"}),  # no checksums to compare
        ("ffv1", "bgr0", "old.avi", {"level": "1"}),
        ("libx264", "yuv444p", "other.mov", {}),
        ("libvpx-vp9", "yuv420p", "web.webm", {}),
        ("mpeg4", "yuv420p", "older.avi", {}),
    ],
)
def test_what_others_write_is_read(tmp_path, codec, pixels, name, options):
    frames = scene(6, 64, 48)
    back = read_clip(encoded(tmp_path / name, frames, codec, pixels, **options))
    assert back.frames.shape == frames.shape and np.abs(back.frames.astype(int) - frames).mean() < 12
    assert back.fps == pytest.approx(8) and back.notes == ()


def test_an_animated_gif_is_a_clip_and_other_animated_images_say_what_to_do(tmp_path):
    images = [Image.fromarray(one) for one in scene(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    assert len(read_clip(tmp_path / "a.gif").frames) == 4
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100)
    with pytest.raises(InputError, match="animated; save it as a video"):
        read_clip(tmp_path / "a.webp")


def test_a_sound_track_is_said_and_not_looked_at(tmp_path):
    frames = scene(6, 64, 48)
    clip = read_clip(encoded(tmp_path / "a.mp4", frames, "libx264", "yuv444p", sound=True))
    assert len(clip.frames) == 6 and clip.notes == (f"{tmp_path / 'a.mp4'} has a sound track, which is not looked at",)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "png"])
def test_a_torn_clip_is_one_sentence_wherever_it_ends(tmp_path, ending):
    """And a lossless one notices a single wrong byte of its pictures."""
    path, torn = tmp_path / f"whole.{ending}", tmp_path / f"torn.{ending}"
    (write_for_viewing if ending == "mp4" else write_lossless)(path, Clip(scene(1 if ending == "png" else 6, 130, 140)))
    content, whole = path.read_bytes(), read_clip(path).frames
    for share in (0.0, 0.01, 0.2, 0.5, 0.8, 0.9, 0.98):
        torn.write_bytes(content[: int(share * len(content))])
        with pytest.raises(FileFormatError, match=r"damaged|ends early|not an image|torn") as caught:
            read_clip(torn)
        assert str(torn) in str(caught.value) and "\n" not in str(caught.value)
    for place in range(len(content) // 10, len(content) - len(content) // 10, len(content) // 7):
        if ending == "mp4":  # H.264 has no checksums
            break
        torn.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with pytest.raises(FileFormatError, match="damaged"):
            read_clip(torn)
    torn.write_bytes(content)
    assert np.array_equal(read_clip(torn).frames, whole)


def test_what_is_no_clip_is_one_sentence(tmp_path):
    for name in ("a.mp4", "a.png", "a.mkv"):
        (tmp_path / name).write_bytes(b"not a clip at all" * 9)
        with pytest.raises(FileFormatError, match=r"damaged|not an image"):
            read_clip(tmp_path / name)
    with pytest.raises(UnreadableError, match="No such file"):
        read_clip(tmp_path / "none.mkv")
    (tmp_path / "folder.mkv").mkdir()
    with pytest.raises(UnreadableError, match="directory"):
        read_clip(tmp_path / "folder.mkv")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        audio = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(audio.encode(silence))
        container.mux(audio.encode())
    with pytest.raises(FileFormatError, match="holds no video"):
        read_clip(tmp_path / "sound.mkv")


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(SettingsError, match="6 frames"):
        write_lossless(tmp_path / "a.png", Clip(scene()))
    for write, name in ((write_lossless, "a.mp4"), (write_for_viewing, "a.mkv")):
        with pytest.raises(SettingsError, match="clips"):
            write(tmp_path / name, Clip(scene()))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_lossless(tmp_path / "file" / "a.mkv", Clip(scene()))
    for frames in (scene().astype(np.float32), scene()[..., :2], scene()[:0], scene()[0]):
        with pytest.raises(SettingsError, match="a clip is"):
            Clip(frames)
    for fps in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(SettingsError, match="frames a second"):
            Clip(scene(), fps)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
