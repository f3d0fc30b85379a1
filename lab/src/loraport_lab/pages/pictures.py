"""Clips as pictures: films and animations for the pages."""

import io

from PIL import Image
from torch import Tensor

from loraport.reports.rendering import data_address

FRAME_MILLISECONDS, LAST_MILLISECONDS = 140, 500
FILM_SIDE, GUTTER = 144, 4
"""Of a film: pixels of a frame's longer side, and of the margin to either side of it."""


def animated_png(frames: Tensor) -> str:
    """Return one clip, uint8 [frames, height, width, 3], as the data address of a looping lossless animation."""
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    pauses = [FRAME_MILLISECONDS] * (len(images) - 1) + [LAST_MILLISECONDS]
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG", save_all=True, append_images=images[1:], duration=pauses, loop=0)
    return data_address("png", buffer.getvalue())


def enlarged(frame: Tensor, side: int) -> Image.Image:
    """Return one frame, uint8 [height, width, 3], drawn smoothly with its longer side that long."""
    height, width, _ = frame.shape
    scale = side / max(height, width)
    return Image.fromarray(frame.numpy()).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
    )


def film(frames: Tensor) -> str:
    """Return the data address of one clip's frames in a row, enlarged smoothly.

    Each has its edge repeated to both sides (GUTTER): a browser that scales the film mixes neighbouring pixels, and
    without it a frame would show a trace of the next one.
    """
    images = [enlarged(frame, FILM_SIDE) for frame in frames]
    width, height = images[0].size
    tile = width + 2 * GUTTER
    row = Image.new("RGB", (tile * len(images), height))
    for index, image in enumerate(images):
        left = index * tile
        row.paste(image.crop((0, 0, 1, height)).resize((GUTTER, height)), (left, 0))
        row.paste(image, (left + GUTTER, 0))
        row.paste(image.crop((width - 1, 0, width, height)).resize((GUTTER, height)), (left + GUTTER + width, 0))
    buffer = io.BytesIO()
    row.save(buffer, format="WEBP", quality=86, method=4)
    return data_address("webp", buffer.getvalue())
