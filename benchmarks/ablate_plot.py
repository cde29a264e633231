"""The picture of an ablation: every seed a line or a mark of its own, told apart without colour.

Needs matplotlib (``pip install hybrid-imagegen[plots]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.loss_plot import DASHES, MARKERS, running_mean

from .ablate import label, shown

WIDTH = 7.2
"""Inches; at page width, text of 9 points stays 9 points."""

GREYS = ("black", "0.45")


def plot_sweep(content: Mapping[str, Any], path: Path) -> None:
    """One panel a measure: curves over training, or values over the ``across`` key (the variants where there is none).

    Args:
        content: of the result's JSON.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    measures = content["measures"]
    columns = 2 if len(measures) > 1 else 1
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(WIDTH, 2.7 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axes, (name, settings) in zip(grid, measures.items(), strict=False):
        draw = _curves if settings["curve"] else _values
        handles |= draw(axes, content, name)
        axes.set_title(settings["says"], fontsize=9)
        axes.set_ylabel(settings["unit"], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9")
    for axes in grid[len(measures) :]:
        axes.remove()
    seeds = len(content["seeds"])
    each = f"each of {seeds} seeds a line" if any(m["curve"] for m in measures.values()) else f"bars span {seeds} seeds"
    handles = {text: handle for text, handle in handles.items() if text}
    if handles:
        widest = max(map(len, handles))
        fit = max(1, min(len(handles), 100 // (widest + 8)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=fit, fontsize=8)
    quick = " (quick run: means nothing)" if content["quick"] else ""
    figure.suptitle(f"{content['title']}: {each}{quick}", fontsize=10)
    figure.savefig(path, dpi=150)


def _look(number: int) -> dict[str, Any]:
    return {
        "color": GREYS[(number + number // len(DASHES)) % len(GREYS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _curves(axes: Any, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A line for every point; returns one handle a variant."""
    handles: dict[str, Any] = {}
    order = list(dict.fromkeys(point["variant"] for point in content["points"]))
    for point in content["points"]:
        lines = [(line["step"], line[name]) for line in point["curve"] if name in line]
        steps, values = [step for step, _ in lines], [value for _, value in lines]
        held = name.startswith("eval_")
        look = _look(order.index(point["variant"]))
        every = max(1, len(steps) // 6)
        (handle,) = axes.plot(steps, values if held else running_mean(values, 5), markevery=every, **look)
        handles.setdefault(point["variant"], handle)
    axes.set_xlabel("optimiser step", fontsize=9)
    return handles


def _values(axes: Any, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Means over ``across`` with a bar from the lowest to the highest seed; a line for each of the other settings."""
    names, across = content["names"], content["across"]
    key = across or next(iter(content["vary"]))
    ticks = content["vary"][key]
    series: dict[str, dict[int, list[float]]] = {}
    for point in content["points"]:
        rest = {each: value for each, value in point["values"].items() if each != key}
        places = series.setdefault(label(rest, names), {})
        places.setdefault(ticks.index(point["values"][key]), []).append(point["figures"][name])
    handles: dict[str, Any] = {}
    for number, (text, places) in enumerate(series.items()):
        # Neighbouring series are shifted a little, or their bars would hide each other.
        shift = 0.06 * (number - (len(series) - 1) / 2)
        means = [sum(values) / len(values) for values in places.values()]
        below = [mean - min(values) for mean, values in zip(means, places.values(), strict=True)]
        above = [max(values) - mean for mean, values in zip(means, places.values(), strict=True)]
        at = [place + shift for place in places]
        handles[text] = axes.errorbar(at, means, (below, above), capsize=3, **_look(number))
    if (floor := content["references"].get(name)) is not None:
        handles["real pictures through the tokenizer"] = axes.axhline(floor, color="0.6", linewidth=2.5, zorder=0)
    axes.set_xticks(range(len(ticks)), [shown(value) for value in ticks])
    axes.set_xlabel(names.get(key, key.rpartition(".")[2]).replace("{}", "").strip(), fontsize=9)
    return handles
