"""Labels beside the points of a plot, each where it covers least of the points and of the labels before it; and round
numbers on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

AROUND = (
    (7, 6, "left"),
    (-7, 6, "right"),
    (7, -13, "left"),
    (-7, -13, "right"),
    (0, 9, "center"),
    (0, -17, "center"),
    (11, -3, "left"),
    (-11, -3, "right"),
)
"""Where a label may stand from its point, in points of print, the best first."""

HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
MARKER = 6
"""Half the side of the square that a point takes, in points of print."""


def write_beside(axes: Axes, marks: Sequence[tuple[float, float, str]], *, size: float = 9) -> None:
    """Write a label beside each point (x, y, text), in data coordinates; limits and scales must be set."""
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()  # the layout is known only now
    half = MARKER * figure.dpi / 72
    taken: list[BboxBase] = []
    for x, y in axes.transData.transform([(x, y) for x, y, _ in marks]) if marks else ():
        taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    inside = axes.get_window_extent()
    for x, y, text in marks:
        tried = []
        for dx, dy, side in AROUND:
            note = axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=size, bbox=HALO)
            box = note.get_window_extent()
            outside = box.width * box.height - _common(box, inside)
            tried.append((outside + sum(_common(box, other) for other in taken), note, box))
            note.remove()
        _, note, box = min(tried, key=lambda one: one[0])
        axes.add_artist(note)
        taken.append(box)


def log_axis(axes: Axes) -> None:
    """Make x logarithmic, with round numbers along it however little it spans. To be called when the data are drawn."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    limits = axes.get_xlim()
    axes.set_xticks(round_numbers(*limits))
    axes.set_xlim(limits)


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, the closer together the less the span."""
    steps: tuple[float, ...] = (1.0, 2.0, 5.0)
    if high < 12 * low:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    if high < 3 * low:
        steps = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [round(step * 10.0**power, 12) for power in powers for step in steps]
    return [number for number in every if low <= number <= high]


def _common(one: BboxBase, other: BboxBase) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0) * max(height, 0)
