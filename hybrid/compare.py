"""The same prompts and seeds by the AR model, by both and by the masked model: timed, and drawn into one picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any
from unicodedata import combining, normalize

from PIL import Image, ImageDraw, ImageFont

from hybrid.request import OWN
from hybrid.types import AR_PHASES, MASKED_PHASES, Generation

if TYPE_CHECKING:
    from hybrid.pipeline import HybridPipeline

METHODS = {
    "ar": "AR",
    "jacobi": "Jacobi",
    "exact": "exact",
    "relaxed": "relaxed",
    "zipar": "ZipAR",
    "refined": "refined",
    "hybrid": "hybrid",
    "masked": "masked",
}
"""Columns, from left to right, and what they are called. The first is the baseline."""

DEFAULT_METHODS = ("ar", "hybrid", "masked")

CELL = 128
"""A picture is enlarged by a whole number until its shorter side has this many pixels."""

ROWS = 16
"""Prompts in one block of a comparison."""

GAP, MARGIN, LABEL = 12, 16, 150
INK, PALE, PAPER = "#1a1a1a", "#6b6b6b", "white"


@dataclass(frozen=True)
class Lane:
    """One method's runs.

    Attributes:
        method: a key of ``METHODS``.
        seconds: of each timed run, for all pictures together.
        result: of the last run.
    """

    method: str
    seconds: tuple[float, ...]
    result: Generation

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    @property
    def passes(self) -> str:
        """Forward passes in words: of the AR model, and of the masked one."""
        passes = self.result.phases.passes
        parts = [sum(passes[phase] for phase in phases) for phases in (AR_PHASES, MASKED_PHASES)]
        return " + ".join(str(count) for count in parts if count) + " passes"


def race(
    pipe: HybridPipeline,
    prompts: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    repeats: int = 3,
    tell: Callable[[str, int, int], Any] = lambda method, done, total: None,
) -> list[Lane]:
    """Draw the prompts by each method: one warm-up run each, then timed runs that take turns.

    Args:
        pipe: has both models.
        prompts: drawn in one batch.
        arguments: of ``pipe``, among them the seed.
        methods: some of ``METHODS``; the baseline runs in any case.
        repeats: timed runs of each method.
        tell: called before each run with its method, the runs done and their total.

    Raises:
        ValueError: an unknown method, an argument that no chosen method takes, a missing model, or arguments that the
            pipeline refuses.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods: {method!r} is none of {', '.join(METHODS)}")
    chosen = [method for place, method in enumerate(METHODS) if method in methods or place == 0]
    for key in arguments:
        if not set(chosen) & set(OWN.get(key, METHODS)):
            raise ValueError(
                f"{key}: belongs to method {' or '.join(OWN[key])}; name it in --methods, or leave {key} out"
            )
    for model, name in ((pipe.ar, "AR"), (pipe.masked, "masked")):
        if model is None:
            raise ValueError(f"--compare needs an AR and a masked model; {pipe.name} has no {name} model")
    seconds: dict[str, list[float]] = {method: [] for method in chosen}
    results: dict[str, Generation] = {}
    for turn in range(repeats + 1):
        for place, method in enumerate(chosen):
            tell(method, turn * len(chosen) + place, (repeats + 1) * len(chosen))
            given = {key: value for key, value in arguments.items() if method in OWN.get(key, METHODS)}
            results[method] = pipe(list(prompts), method=method, **given)
            if turn:
                seconds[method].append(results[method].phases.total_seconds)
    return [Lane(method, tuple(seconds[method]), results[method]) for method in chosen]


def load_note() -> str:
    """How busy the machine is, in words, with a warning where that spoils times."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not hasattr(os, "getloadavg"):
        return f"{cores} cores"
    load = os.getloadavg()[0]
    busy = "; other programs are running, so times are too long and uneven" if load > 0.75 * cores else ""
    return f"load {load:.1f} on {cores} cores{busy}"


def compare_picture(lanes: Sequence[Lane], labels: Sequence[tuple[str, str]], title: str) -> Image.Image:
    """One picture: a column for each method with its time in the header, a row for each prompt.

    More than ``ROWS`` prompts go on in further blocks of columns, side by side.

    Args:
        lanes: as ``race`` gives them, their results with PIL images.
        labels: each row's prompt and, smaller, its seed.
        title: the line at the top.
    """
    first = lanes[0].result.images[0]
    zoom = max(1, -(-CELL // min(first.size)))
    cell_width, cell_height = first.width * zoom, first.height * zoom
    large, normal, small = (ImageFont.load_default(size) for size in (20, 15, 13))
    baseline = lanes[0].median
    headers = [
        (METHODS[lane.method], _seconds(lane.median) + (_speedup(baseline / lane.median) if place else ""), lane.passes)
        for place, lane in enumerate(lanes)
    ]
    texts = [(text, font) for header in headers for text, font in zip(header, (large, normal, small), strict=True)]
    column = max(cell_width, *(int(font.getlength(text)) + 1 for text, font in texts))
    top = MARGIN + 24
    rows_top = top + 72
    blocks = -(-len(labels) // ROWS)
    rows = -(-len(labels) // blocks)
    block = LABEL + len(lanes) * (GAP + column)
    width = 2 * MARGIN + blocks * block + (blocks - 1) * MARGIN
    width = max(width, 2 * MARGIN + int(normal.getlength(title)) + 1)
    page = Image.new("RGB", (width, rows_top + rows * (cell_height + GAP) - GAP + MARGIN), PAPER)

    def corner(entry: int) -> tuple[int, int]:
        """Left edge of an entry's block and top of its row."""
        return MARGIN + entry // rows * (block + MARGIN), rows_top + entry % rows * (cell_height + GAP)

    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, fill=PALE, font=normal, anchor="lt")
    for place, (lane, header) in enumerate(zip(lanes, headers, strict=True)):
        across = LABEL + GAP + place * (column + GAP)
        for start in range(0, len(labels), rows):
            left = corner(start)[0] + across
            for text, font, down, ink in zip(
                header, (large, normal, small), (8, 32, 52), (INK, INK, PALE), strict=True
            ):
                pen.text((left, top + down), text, fill=ink, font=font, anchor="lt")
        for entry, picture in enumerate(lane.result.images):
            left, row_top = corner(entry)
            enlarged = picture.resize((cell_width, cell_height), Image.Resampling.NEAREST)
            page.paste(enlarged, (left + across, row_top))
    for entry, (prompt, seed) in enumerate(labels):
        left, row_top = corner(entry)
        lines = _wrapped(_plain(prompt), normal, LABEL, (cell_height - 20) // 20)
        middle = row_top + (cell_height - 20 * len(lines) - 18) // 2
        for number, text in enumerate(lines):
            pen.text((left + LABEL, middle + 20 * number), text, fill=INK, font=normal, anchor="rt")
        pen.text((left + LABEL, middle + 20 * len(lines) + 2), seed, fill=PALE, font=small, anchor="rt")
    return page


def _plain(text: str) -> str:
    """Letters without accents, which Pillow's built-in font lacks; other writing than Latin shows as boxes."""
    return "".join(letter for letter in normalize("NFKD", text) if not combining(letter))


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _speedup(factor: float) -> str:
    # An x, because Pillow's built-in font has no multiplication sign.
    return f", {factor:.2f}x as fast" if factor < 10 else f", {factor:.1f}x as fast"


def _wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
    """A text in lines that fit the width; "..." where it takes more than ``most`` lines."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    if len(lines) > max(most, 1):
        lines = lines[: max(most, 1)]
        lines[-1] += " ..."
    return lines
