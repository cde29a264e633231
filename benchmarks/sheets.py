"""Pictures of a sweep's pictures: the same prompts and seeds by every point, and who wrote which token.

Reads the strips that ``sweep`` wrote beside its raw rows; draws with Pillow alone, so it works without extras.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hybrid.types import FROM_AR, FROM_INPUT

CELL = 128
"""Pictures are shown about this large: enlarged by a whole number, or made smaller."""

GAP, MARGIN, LABEL = 6, 14, 190
INK, PALE, EDGE, PAPER = "#1a1a1a", "#6b6b6b", "#b8b8b8", "white"
HEAD = 34
"""Height of the line of prompts above the grid: two lines of text."""


def grid(shown: Mapping[str, Mapping[str, Any]], strips: Mapping[str, Path]) -> Image.Image | None:
    """A row of pictures for each point.

    Args:
        shown: raw rows of pictures, by the point's key.
        strips: their PNG files.
    """
    rows = [(row["point"]["label"], _cells(strips[key], len(row["prompts"]))) for key, row in shown.items()]
    if not rows:
        return None
    count = max(len(cells) for _, cells in rows)
    width, height = rows[0][1][0].size
    page = Image.new(
        "RGB", (2 * MARGIN + LABEL + count * (width + GAP), 2 * MARGIN + HEAD + len(rows) * (height + GAP)), PAPER
    )
    pen, normal, small = ImageDraw.Draw(page), ImageFont.load_default(14), ImageFont.load_default(12)
    names = next(iter(shown.values()))["names"]
    for column, name in enumerate(names):
        left = MARGIN + LABEL + GAP + column * (width + GAP)
        for line, part in enumerate(_lines(name, small, width)[:2]):
            pen.text((left, MARGIN + 15 * line), _cut(part, small, width), fill=PALE, font=small)
    for place, (label, cells) in enumerate(rows):
        top = MARGIN + HEAD + place * (height + GAP)
        for line, part in enumerate(_lines(label, normal, LABEL)):
            pen.text((MARGIN, top + 8 + 18 * line), part, fill=INK, font=normal)
        for column, cell in enumerate(cells):
            left = MARGIN + LABEL + GAP + column * (width + GAP)
            page.paste(cell, (left, top))
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=EDGE)
    return page


def origin(shown: Mapping[str, Mapping[str, Any]], strips: Mapping[str, Path], most: int = 8) -> Image.Image | None:
    """For each point that ran masked passes (``most`` at most): its first picture, and its tokens by who wrote them.

    White with a dot is the AR model, a cross the given input; masked passes go from light (first) to dark (last), with
    their numbers.
    """
    rows = [(key, row) for key, row in shown.items() if max(row["origin"][0]) > FROM_AR][:most]
    if not rows:
        return None
    side = 20
    height, width = rows[0][1]["grid"]
    tall, wide = height * side, width * side
    columns = min(2, len(rows))
    block = (2 * wide + 3 * GAP, tall + 34)
    lines = -(-len(rows) // columns)
    page = Image.new("RGB", (2 * MARGIN + columns * (block[0] + MARGIN) - MARGIN, 2 * MARGIN + lines * block[1]), PAPER)
    pen, normal, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(10)
    for place, (key, row) in enumerate(rows):
        left = MARGIN + place % columns * (block[0] + MARGIN)
        top = MARGIN + place // columns * block[1]
        pen.text((left, top), row["point"]["label"], fill=INK, font=normal)
        top += 24
        with Image.open(strips[key]) as strip:
            picture = strip.convert("RGB").crop((0, 0, strip.width // len(row["prompts"]), strip.height))
        page.paste(picture.resize((wide, tall), Image.Resampling.NEAREST), (left, top))
        pen.rectangle((left - 1, top - 1, left + wide, top + tall), outline=EDGE)
        last = max(row["origin"][0])
        for token, wrote in enumerate(row["origin"][0]):
            x, y = left + wide + 2 * GAP + token % width * side, top + token // width * side
            grey = 255 if wrote in (FROM_AR, FROM_INPUT) else round(225 - 170 * (wrote - 1) / max(last - 1, 1))
            pen.rectangle((x, y, x + side, y + side), fill=(grey,) * 3, outline=(170,) * 3)
            text = "·" if wrote == FROM_AR else "x" if wrote == FROM_INPUT else str(wrote)
            ink = INK if grey > 140 else PAPER
            pen.text((x + side / 2, y + side / 2), text, fill=ink, font=small, anchor="mm")
    return page


def _cells(path: Path, count: int) -> list[Image.Image]:
    """The pictures of a strip, at about ``CELL`` pixels."""
    with Image.open(path) as opened:
        strip = opened.convert("RGB")
    width = strip.width // count
    zoom = CELL // max(width, strip.height)
    size = (width * zoom, strip.height * zoom) if zoom else (CELL, max(1, CELL * strip.height // width))
    how = Image.Resampling.NEAREST if zoom else Image.Resampling.LANCZOS
    cut = (strip.crop((place * width, 0, (place + 1) * width, strip.height)) for place in range(count))
    return [cell.resize(size, how) for cell in cut]


def _cut(text: str, font: Any, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text


def _lines(text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
