"""Write clips whole or not at all: the same bytes for the same frames, whatever the machine."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from loraport.clips.clip import Clip
from loraport.errors import OutputError, SettingsError
from loraport.files.disk.atomic import new_file

LEAST_SIDE = 128
"""Pixels of the shorter side of a clip to look at: smaller ones are enlarged, which not every player does well."""
_FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "threads": "4", "flags": "+bitexact"}
"""Slices are four whatever the machine has cores: the bytes depend on it; each has a checksum that readers check."""
_X264 = {"crf": "16", "preset": "medium", "threads": "4", "flags": "+bitexact", "x264-params": "mbtree=0"}
"""With its macroblock tree x264 gives other bytes each time on processors with AVX-512, at most widths."""
_BT709 = 1


def write_lossless(path: Path, clip: Clip) -> None:
    """Write a clip to measure: ffv1 in .mkv, or .png for one frame; read again, it is the same to the bit.

    Raises SettingsError for another ending, OutputError where it cannot be written.
    """
    if path.suffix == ".png":
        _write_image(path, _only_frame(path, clip), "PNG")
    elif path.suffix == ".mkv":
        with new_file(path) as file:
            slices = {} if min(clip.frames.shape[1:3]) >= 16 else {"slices": "1"}  # four have no room in fewer pixels
            _encode(file, path, clip.frames, clip, "ffv1", "bgr0", _FFV1 | slices)
    else:
        raise SettingsError(f"{path}: lossless clips are .mkv files, images .png")


def write_for_viewing(path: Path, clip: Clip) -> None:
    """Write a clip to look at: H.264 in .mp4, which every browser and phone plays, or .jpg or .webp for one frame.

    Small clips are enlarged by a whole factor; an odd side gets its last row or column twice, since colours are stored
    for every second pixel. Raises SettingsError for another ending, OutputError where it cannot be written.
    """
    frames = enlarged(clip.frames)
    if path.suffix in (".jpg", ".webp"):
        _write_image(path, _only_frame(path, Clip(frames)), "JPEG" if path.suffix == ".jpg" else "WEBP", quality=92)
    elif path.suffix == ".mp4":
        with new_file(path) as file:
            _encode(file, path, _even(frames), clip, "libx264", "yuv420p", _X264)
    else:
        raise SettingsError(f"{path}: clips to look at are .mp4 files, images .jpg or .webp")


def enlarged(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return frames with every pixel repeated so often that no side is shorter than LEAST_SIDE."""
    times = -(-LEAST_SIDE // min(frames.shape[1:3]))
    return frames if times <= 1 else frames.repeat(times, axis=1).repeat(times, axis=2)


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")


def _encode(
    file: IO[bytes], path: Path, frames: NDArray[np.uint8], clip: Clip, codec: str, pixels: str, options: dict[str, str]
) -> None:
    container_format = "matroska" if codec == "ffv1" else "mp4"
    try:
        with av.open(file, "w", format=container_format, container_options={"fflags": "+bitexact"}) as container:
            stream: Any = container.add_stream(codec, rate=clip.rate, options=dict(options))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            if codec != "ffv1":  # untagged, half of the players would take other colours than were meant
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = 1  # 16 to 235
            for number, one in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")
                if codec != "ffv1":
                    frame = frame.reformat(format=pixels, dst_colorspace="ITU709", dst_color_range="MPEG")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except FFmpegError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing was left behind") from error


def _only_frame(path: Path, clip: Clip) -> NDArray[np.uint8]:
    if len(clip.frames) != 1:
        raise SettingsError(f"{path} is an image, and the clip has {len(clip.frames)} frames; name it .mkv or .mp4")
    return clip.frames[0]


def _write_image(path: Path, pixels: NDArray[np.uint8], kind: str, **options: Any) -> None:
    with new_file(path) as file:
        Image.fromarray(pixels).save(file, kind, **options)
