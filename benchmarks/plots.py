"""Plots of a report, told apart without colour: markers, hatches, dashes. Needs matplotlib (extra ``plots``).

One function for each; they read a report and draw a figure. ``draw`` writes those that have something to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from math import cos, dist, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .labels import log_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {
    **{"ar": "*", "hybrid": "o", "masked": "s", "refined": "D", "exact": "^", "relaxed": "v", "jacobi": "<"},
    "zipar": "X",
}
OTHER_MARKER = "P"
PHASES = {
    "condition": ("0.97", ""),
    "prefix": ("0.25", ""),
    "verify": ("0.45", "xx"),
    "score": ("0.45", ".."),
    "align": ("0.9", "--"),
    "fill": ("0.75", "//"),
    "draft": ("0.75", "\\\\"),
    "refill": ("0.75", "oo"),
    "decode": ("1.0", "..."),
}
"""Grey and hatch of each phase: AR phases dark, masked ones light and hatched."""

AXES = {
    "frechet": "Fréchet distance (less is better)",
    "kid": "KID (less is better)",
    "accuracy": "class accuracy (more is better)",
    "retrieval": "retrieval@10 (more is better)",
    "fidelity": "fidelity, 1 is the AR model's (more is better)",
    "fid": "Inception FID (less is better)",
    "clip_score": "CLIP score (more is better)",
}
LESS_IS_BETTER = ("frechet", "kid", "fid")
DPI = 130
ROOM = 11
"""Points that a number takes, with the air around it."""


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write the plots that the report has figures for. Returns the PNG files by name."""
    made = {}
    for name, function in PLOTS.items():
        figure = function(report)
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            made[name] = folder / f"{name}.png"
            figure.savefig(made[name], dpi=DPI)
    return made


def pareto(report: Mapping[str, Any]) -> Figure | None:
    """Speed-up against each fidelity figure, a panel each, with the front."""
    rows = [row for row in _whole(report) if row["speedup"] and row["frechet"] is not None]
    names = [name for name in AXES if any(row[name] is not None for row in rows)]
    if not rows:
        return None
    columns = 2
    figure = _figure(10, 3.6 * -(-len(names) // columns) + 0.25 * len(rows) / 2)
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        shown = [row for row in rows if row[name] is not None]
        sign = -1 if name in LESS_IS_BETTER else 1
        ends = [row for row in front(shown, name) if row in shown]
        axes.plot(
            [row["speedup"] for row in ends], [row[name] for row in ends], "-", color="0.6", linewidth=1.2, zorder=1
        )
        for row in shown:
            _point(axes, row, name)
        axes.set_xlabel(f"speed-up over the AR model (×), batch {rows[0]['batch']}")
        axes.set_ylabel(AXES[name])
        axes.margins(0.12)
        log_axis(axes)
        axes.grid(color="0.92")
        axes.annotate(
            "better", (0.985, 0.03 if sign < 0 else 0.97), xycoords="axes fraction", ha="right",
            va="bottom" if sign < 0 else "top", color="0.45", fontsize=8,
        )  # fmt: skip
    for axes in panels[len(names) :]:
        axes.remove()
    handles, seen = [], []
    for number, row in enumerate(rows, 1):
        handles.append(_line(row["method"]))
        seen.append(f"{number}  {row['label']}")
    figure.legend(handles, seen, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.draw_without_rendering()  # now places on paper are known, so that numbers keep clear of each other
    for axes, name in zip(panels, names, strict=False):
        numbered = [(number, row) for number, row in enumerate(rows, 1) if row[name] is not None]
        _number(axes, {number: (row["speedup"], row[name]) for number, row in numbered})
    return figure


def front(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows that no other beats in both speed-up and the figure, slowest first."""
    sign = -1 if name in LESS_IS_BETTER else 1
    ordered = sorted(rows, key=lambda row: (-row["speedup"], -sign * row[name]))
    kept: list[Mapping[str, Any]] = []
    for row in ordered:
        if not kept or sign * row[name] > sign * kept[-1][name]:
            kept.append(row)
    return kept[::-1]


def phases(report: Mapping[str, Any]) -> Figure | None:
    """Stacked bars of median seconds, a panel for each batch size."""
    rows = [row for row in _whole(report) if row["speed"]]
    if not rows:
        return None
    batches = sorted({times["batch"] for row in rows for times in row["speed"]})
    figure = _figure(10, (0.7 + 0.28 * len(rows)) * len(batches) + 0.6)
    panels = figure.subplots(len(batches), 1, squeeze=False)[:, 0]
    used: dict[str, Any] = {}
    for axes, batch in zip(panels, batches, strict=True):
        timed = [(row, times) for row in rows for times in row["speed"] if times["batch"] == batch]
        for place, (_, times) in enumerate(timed):
            left = 0.0
            for phase, spent in times["phases"].items():
                grey, hatch = PHASES.get(phase, ("0.6", "++"))
                bar = axes.barh(place, spent, left=left, color=grey, hatch=hatch, edgecolor="black", linewidth=0.6)
                left += spent
                if spent > 0.005 * times["median"]:
                    used.setdefault(phase, bar)
            axes.text(left, place, f" {times['median']:.3g} s", va="center", fontsize=8)
        axes.set_yticks(range(len(timed)), [row["label"] for row, _ in timed], fontsize=8)
        axes.set_xlabel(f"seconds of one request of {batch} picture{'s' if batch > 1 else ''}")
        axes.margins(x=0.12)
        axes.set_ylim(len(timed) - 0.4, -0.6)
    order = [phase for phase in PHASES if phase in used] + [phase for phase in used if phase not in PHASES]
    figure.legend(
        [used[phase] for phase in order], order, loc="outside upper center", ncols=len(order), fontsize=9, frameon=False
    )
    return figure


def quality(report: Mapping[str, Any]) -> Figure | None:
    """Fréchet distance against the AR fraction and against the passes."""
    rows = [row for row in _whole(report) if row["frechet"] is not None and row["method"] in ("ar", "hybrid", "masked")]
    panels = (
        ("ar_fraction", "steps", "share of tokens by the AR model", "{} passes"),
        ("steps", "ar_fraction", "masked passes", "AR share {:.4g}"),
    )
    lines = [_lines(rows, along, by) for along, by, _, _ in panels]
    if not any(len(points) > 1 for found in lines for points in found.values()):
        return None
    figure = _figure(10, 5.2)
    for axes, found, (along, _, words, label) in zip(figure.subplots(1, 2), lines, panels, strict=True):
        looks = cycle(zip("osD^vP", ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1))), strict=True))
        places = [row[along] for points in found.values() for row in points]
        step = 0.012 * (max(places) - min(places))
        for line, (value, points) in enumerate(found.items()):
            marker, dash = next(looks)
            aside = step * (line - (len(found) - 1) / 2)  # or the bars of equal places would hide each other
            low, high = ([abs(row["frechet_interval"][end] - row["frechet"]) for row in points] for end in (0, 1))
            axes.errorbar(
                [row[along] + aside for row in points],
                [row["frechet"] for row in points],
                yerr=[low, high],
                color="black",
                marker=marker,
                linestyle=dash,
                markerfacecolor="white",
                linewidth=1,
                elinewidth=0.6,
                capsize=2,
                label=label.format(value),
            )
        for row, dash in zip((row for row in rows if row["method"] == "ar"), cycle(("-", "--", "-.")), strict=False):
            axes.axhline(row["frechet"], color="0.5", linewidth=1.2, linestyle=dash, label=row["label"])
        for (name, floor), dash in zip(report["floors"].items(), (":", (0, (1, 4))), strict=False):
            axes.axhline(floor["frechet"], color="0.5", linewidth=1, linestyle=dash, label=f"{name} (floor)")
        axes.set_xlabel(words)
        if along == "steps":
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(AXES["frechet"])
        axes.set_ylim(bottom=0)
        axes.grid(color="0.92")
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    return figure


def regions(report: Mapping[str, Any]) -> Figure | None:
    """Fréchet distance over the AR model's, by region."""
    found: dict[str, dict[str, Any]] = {}
    for row in report["rows"]:
        if row["frechet"] is not None:
            found.setdefault(row["label"], {})[row["region"]] = row
    found = {label: parts for label, parts in found.items() if len(parts) > 1}
    if not found:
        return None
    looks = {"all": ("0.5", ""), "ar": ("1.0", ""), "masked": ("0.75", "//")}
    figure = _figure(10, 0.62 * len(found) + 1.4)
    axes = figure.subplots()
    for place, parts in enumerate(found.values()):
        for step, (region, (grey, hatch)) in enumerate(looks.items()):
            if region not in parts:
                continue
            row = parts[region]
            value, (low, high) = row["frechet_over_ar"], row["frechet_over_ar_interval"]
            name = "whole picture" if region == "all" else f"{region} part"
            axes.barh(
                place + 0.27 * (step - 1),
                value,
                height=0.25,
                color=grey,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.6,
                xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                error_kw={"elinewidth": 0.8, "capsize": 2},
                label=name if place == 0 else None,
            )
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("Fréchet distance over that of the AR model's own pictures in the same region (1: as good)")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


PLOTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "pareto": pareto,
    "phases": phases,
    "quality": quality,
    "regions": regions,
}


def _lines(rows: Sequence[Any], along: str, by: str) -> dict[Any, list[Any]]:
    """Rows of equal settings but one, sorted along it. Further settings (order, schedule, type) are kept apart by
    leaving out rows that differ in them from the first."""
    plain = [row for row in rows if row["steps"] is not None]
    if not plain:
        return {}
    common = [(row["schedule"], row["order"], row["dtype"], row["compile"]) for row in plain]
    rows = [row for row, kind in zip(plain, common, strict=True) if kind == common[0]]
    found: dict[Any, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row[by], row[along])):
        line = found.setdefault(row[by], [])
        if not line or line[-1][along] != row[along]:
            line.append(row)
    return found


def _number(axes: Any, points: Mapping[int, tuple[float, float]]) -> None:
    """A number beside each point, where the fewest points and numbers are in its way."""
    scale = 72 / axes.figure.dpi
    centres = {number: axes.transData.transform(place) * scale for number, place in points.items()}
    taken = list(centres.values())
    for number, centre in sorted(centres.items(), key=lambda one: one[1][0]):
        spots = [
            centre + np.array((cos(turn), sin(turn))) * reach
            for reach in (ROOM, 1.6 * ROOM, 2.4 * ROOM)
            for turn in (pi / 4 + step * pi / 6 for step in range(12))  # none lies on an error bar
        ]
        crowd = [sum(max(0.0, ROOM - dist(spot, other)) for other in taken) for spot in spots]
        best = spots[min(range(len(spots)), key=lambda place: (round(crowd[place], 3), place))]
        taken.append(best)
        axes.annotate(
            str(number), points[number], xytext=tuple(best - centre), textcoords="offset points", fontsize=9,
            ha="center", va="center", arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 4},
        )  # fmt: skip


def _point(axes: Any, row: Mapping[str, Any], name: str) -> None:
    errors: dict[str, Any] = {}
    for side, value, interval in (
        ("xerr", row["speedup"], row["speedup_interval"]),
        ("yerr", row[name], row.get(f"{name}_interval")),
    ):
        if interval is not None:
            errors[side] = [[max(value - interval[0], 0)], [max(interval[1] - value, 0)]]
    axes.errorbar(
        row["speedup"], row[name], color="black", marker=MARKERS.get(row["method"], OTHER_MARKER), markersize=8,
        markerfacecolor="black" if row["method"] == "ar" else "white", linestyle="none", elinewidth=0.6, capsize=2,
        ecolor="0.55", **errors,
    )  # fmt: skip


def _line(method: str) -> Any:
    from matplotlib.lines import Line2D

    face = "black" if method == "ar" else "white"
    marker = MARKERS.get(method, OTHER_MARKER)
    return Line2D([], [], color="black", marker=marker, markerfacecolor=face, linestyle="none", markersize=7)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _whole(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["region"] == "all"]
