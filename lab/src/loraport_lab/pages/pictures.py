"""Clips as pictures: animated PNG for the page, a contact sheet for the README."""

import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from loraport.files.disk.atomic import new_file
from loraport.reports.rendering import data_address
from loraport_lab.demo import DemoResult

FRAME_MILLISECONDS, LAST_MILLISECONDS = 140, 500


def animated_png(frames: Tensor) -> str:
    """Return one clip, uint8 [frames, height, width, 3], as the data address of a looping lossless animation."""
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    pauses = [FRAME_MILLISECONDS] * (len(images) - 1) + [LAST_MILLISECONDS]
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG", save_all=True, append_images=images[1:], duration=pauses, loop=0)
    return data_address("png", buffer.getvalue())


def write_contact_sheet(demo: DemoResult, path: Path, *, clips: int = 8, zoom: int = 3) -> None:
    """Write a still picture: a row per column of the demo, per clip its first and last frame side by side."""
    text_width, gap = 190, 6
    count = min(clips, len(demo.prompts))
    rows: list[Tensor] = []
    for column in demo.columns:
        pairs = [torch.cat([column.frames[i, 0], column.frames[i, -1]], dim=1) for i in range(count)]
        large = [pair.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1) for pair in pairs]
        space = torch.full((large[0].shape[0], gap, 3), 255, dtype=torch.uint8)
        rows.append(torch.cat([part for pair in large for part in (pair, space)], dim=1))
    height, width, _ = rows[0].shape
    sheet = Image.new("RGB", (text_width + width, len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (column, row) in enumerate(zip(demo.columns, rows, strict=True)):
        top = index * (height + gap)
        draw.text((4, top + height // 2), column.label, fill="black", anchor="lm", font_size=15)
        sheet.paste(Image.fromarray(row.numpy()), (text_width, top))
    with new_file(path) as file:
        sheet.save(file, format="PNG", optimize=True)
