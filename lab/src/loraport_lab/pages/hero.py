"""The demo as one picture for README and documentation: prompts in rows, columns side by side, still and moving."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from loraport.errors import OutputError
from loraport.files.disk.atomic import new_file
from loraport_lab.demo import ColumnResult, DemoResult
from loraport_lab.pages.pictures import FRAME_MILLISECONDS, LAST_MILLISECONDS, enlarged
from loraport_lab.pages.verdict import column_of, compare, mean, signed

_PAPER, _INK, _SOFT, _MARK, _EDGE = "#fbfbfc", "#1b1e24", "#646b77", "#2f5fd0", "#dfe2e8"
_MARGIN, _GAP, _HEAD, _WORDS = 40, 24, 120, 190
"""Pixels: around everything, between columns and rows, of the columns' names, of the prompts."""
_CORNER, _ROUND = 18, 6
HEADINGS = {
    "reference": "Base + LoRA",
    "student": "Student alone",
    "direct": "LoRA as it is",
    "oracle": "Trained on it",
}


def write_still(demo: DemoResult, path: Path, *, rows: int = 4, side: int = 132) -> None:
    """Write a sheet of the clips that come first, the first and the last frame of each, as a PNG."""
    sheet = _sheet(demo, (0, demo.columns[0].frames.shape[1] - 1), rows, side)
    with new_file(path) as file:
        sheet.save(file, format="PNG", optimize=True)


def write_moving(demo: DemoResult, path: Path, *, rows: int = 3, side: int = 216) -> None:
    """Write the same with every clip moving, as an animated WebP."""
    count = demo.columns[0].frames.shape[1]
    sheets = [_sheet(demo, (index,), rows, side) for index in range(count)]
    pauses = [FRAME_MILLISECONDS] * (count - 1) + [LAST_MILLISECONDS]
    with new_file(path) as file:
        sheets[0].save(
            file, format="WEBP", save_all=True, append_images=sheets[1:], duration=pauses, loop=0,
            quality=82, method=4,
        )  # fmt: skip


def _sheet(demo: DemoResult, shown: Sequence[int], rows: int, side: int) -> Image.Image:
    """Draw the columns' names with their numbers, and below them so many of each clip's frames, by number."""
    clips = demo.order[:rows]
    count = len(clips)
    cells = [[_cell(column, clip, shown, side) for column in demo.columns] for clip in clips]
    wide, high = cells[0][0].size
    across, down = wide + _GAP, high + _GAP
    size = (2 * _MARGIN + _WORDS + len(demo.columns) * across - _GAP, _MARGIN + _HEAD + count * down - _GAP + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _over_the_student(draw, demo, _MARGIN + _WORDS, across)
    for index, column in enumerate(demo.columns):
        left = _MARGIN + _WORDS + index * across
        _name(draw, demo, column, left, wide)
        for row in range(count):
            sheet.paste(cells[row][index], (left, _MARGIN + _HEAD + row * down), cells[row][index])
    for row, clip in enumerate(clips):
        words = _lines(demo.prompts[clip], _WORDS - 2 * _ROUND, _font(19))
        draw.multiline_text(
            (_MARGIN, _MARGIN + _HEAD + row * down + high / 2), words, _SOFT, _font(19), "lm", spacing=6
        )
    return _with_corners(sheet, _CORNER)


def _over_the_student(draw: ImageDraw.ImageDraw, demo: DemoResult, left: int, across: int) -> None:
    """Say which columns are made by the student, with a line over them."""
    places = [index for index, column in enumerate(demo.columns) if column.role != "reference"]
    if not places:
        return
    start, end = left + places[0] * across, left + (places[-1] + 1) * across - _GAP
    words = f"on the {demo.student} student"
    draw.text((start, _MARGIN - 8), words, _SOFT, _font(18), "lm")
    draw.line((start + _font(18).getlength(words) + 14, _MARGIN - 8, end, _MARGIN - 8), _EDGE, 2)


def _name(draw: ImageDraw.ImageDraw, demo: DemoResult, column: ColumnResult, left: int, wide: int) -> None:
    colour = _MARK if column.role in ("transfer", "beside") else _INK
    name = HEADINGS.get(column.role, column.label)
    size = next((size for size in range(27, 12, -1) if _font(size).getlength(name) <= wide), 12)
    draw.text((left, _MARGIN + 40), name, colour, _font(size), "ls")
    direct = column_of(demo, "direct")
    lines = [f"effect {mean(column.values['effect']):.0f} %"]
    if "psnr" not in column.values or direct is None:
        lines.append("the look to match")
    elif column is direct:
        lines.append(f"fidelity {mean(column.values['psnr']):.2f} dB")
    else:
        lines.append(f"fidelity {signed(compare(demo, column, direct, 'psnr'), 2)} dB".replace("\N{MINUS SIGN}", "-"))
    draw.multiline_text((left, _MARGIN + 52), "\n".join(lines), _SOFT, _font(18), spacing=5)


def _cell(column: ColumnResult, clip: int, shown: Sequence[int], side: int) -> Image.Image:
    """Draw some frames of a clip side by side, with round corners and a slit between them."""
    images = [_with_corners(enlarged(column.frames[clip, index], side), _ROUND) for index in shown]
    wide, high = images[0].size
    slit = 4
    cell = Image.new("RGBA", (len(images) * (wide + slit) - slit, high))
    for place, image in enumerate(images):
        cell.paste(image, (place * (wide + slit), 0))
    return cell


def _with_corners(image: Image.Image, radius: int) -> Image.Image:
    """Round the corners; drawn four times as large, since Pillow draws no soft edges."""
    wide, high = image.size
    mask = Image.new("L", (4 * wide, 4 * high), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * wide - 1, 4 * high - 1), 4 * radius, fill=255)
    image = image.convert("RGBA")
    image.putalpha(mask.resize((wide, high), Image.Resampling.LANCZOS))
    return image


def _lines(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Break a text so that no line is wider, except a single word that is."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(line for line in lines if line)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is there on every machine; it has few letters beyond ASCII."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OutputError(
            "the pictures cannot be drawn: this Pillow was built without FreeType; install it from a wheel"
        )
    return font
