"""Labels beside the points of a plot, each where it covers least of the points and of the labels before it."""

from __future__ import annotations

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


def _common(one: BboxBase, other: BboxBase) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0) * max(height, 0)
