"""Read clips: any video that FFmpeg decodes, and still images; a file that is not whole is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError

from loraport.clips.checksums import SliceChecks
from loraport.clips.clip import Clip, is_image_file
from loraport.errors import FileFormatError, InputError, UnreadableError
from loraport.files.disk.user_paths import check_input, expand_home


def read_clip(path: str | Path) -> Clip:
    """Return the frames of a video, or of an image, as they are shown.

    Raises UnreadableError for a file that cannot be opened, FileFormatError for one that is damaged, ends early, or
    holds no pictures.
    """
    place = expand_home(str(path))
    check_input(place)
    try:
        place.open("rb").close()  # the system's own words: FFmpeg's are others
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror or error}; give a clip that is there") from error
    return _read_image(place) if is_image_file(place) else _read_video(place)


def _read_image(path: Path) -> Clip:
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path} is animated; save it as a video (mkv, mp4, webm) to have all its frames read")
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise FileFormatError(f"{path} is not an image, whatever its name says; give the picture itself") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(path, error) from error
    return Clip(np.ascontiguousarray(pixels)[None])


def _read_video(path: Path) -> Clip:
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise FileFormatError(
                    f"{path} holds no video, or is torn, or of an unknown kind; give a whole file with moving pictures"
                )
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "crccheck+explode"}  # damaged frames are not made up
            frames, packets, end = _decode(container, stream, path)
            notes = _notes(path, container, stream)
            missing = _missing_end(container, stream, packets, end, notes)
            fps = stream.average_rate or stream.guessed_rate
    except (FFmpegError, ValueError) as error:
        raise _damaged(path, error) from error
    if missing or not frames:
        raise FileFormatError(f"{path} ends early ({missing or 'no frame in it'}); copy it again, or make it again")
    if not fps:
        raise FileFormatError(f"{path} does not say how fast its frames follow each other; write it again with a rate")
    return Clip(np.stack(frames), float(fps), notes)


def _decode(container: Any, stream: Any, path: Path) -> tuple[list[Any], int, float]:
    """Return the frames as they are shown, how many packets held them, and the second at which the last one ends."""
    frames: list[Any] = []
    packets, end, checks = 0, 0.0, SliceChecks()
    for packet in container.demux(stream):
        if packet.size and stream.codec_context.name == "ffv1":
            checks.add(packets, bytes(packet))
        packets += packet.size > 0
        for frame in packet.decode():
            if frame.is_corrupt:
                raise FileFormatError(f"{path}: frame {len(frames)} is damaged; copy the file again, or make it again")
            pixels = frame.to_ndarray(format="rgb24")
            if frame.rotation:  # a phone's, in steps of 90 degrees against the clock
                pixels = np.rot90(pixels, round(frame.rotation / 90))
            if frames and pixels.shape != frames[0].shape:
                raise FileFormatError(f"{path} changes its size at frame {len(frames)}; write it again in one size")
            frames.append(pixels)
            lasts = float(frame.duration * frame.time_base) if frame.duration else 1 / float(stream.average_rate or 1)
            end = max(end, (frame.time or 0.0) + lasts)
    if checks.damaged is not None:
        raise FileFormatError(
            f"{path}: frame {checks.damaged} is damaged, by its checksum; copy the file again, or make it again"
        )
    return frames, packets, end


def _notes(path: Path, container: Any, stream: Any) -> tuple[str, ...]:
    others = [one for one in container.streams if one.index != stream.index]
    sound = sum(one.type == "audio" for one in others)
    videos = sum(one.type == "video" for one in others)
    notes = [f"{path} has a sound track, which is not looked at"] if sound else []
    return (*notes, *([f"{path} holds {videos + 1} videos, of which one is read"] if videos else []))


def _missing_end(container: Any, stream: Any, packets: int, end: float, notes: tuple[str, ...]) -> str:
    """Return what the file lacks by its own account; nothing where it is whole, or does not say how long it is."""
    if packets < stream.frames:
        return f"{packets} of {stream.frames} frames are there"
    if stream.duration is not None:
        length = float(stream.duration * stream.time_base)
    else:  # of the longest track
        length = 0.0 if notes or container.duration is None else container.duration / av.time_base
    late = length - end
    frame = 1 / float(stream.average_rate or 1)
    return f"{end:.3g} of {length:.3g} seconds are there" if end and late > 0.75 * frame else ""


def _damaged(path: Path, error: Exception) -> FileFormatError:
    reason = str(getattr(error, "strerror", None) or error).splitlines()[:1] or [type(error).__name__]
    return FileFormatError(f"{path} is damaged, or no clip: {reason[0]:.200}; copy it again, or make it again")
