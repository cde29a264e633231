"""The picture of a training log. Needs matplotlib (``pip install hybrid-imagegen[plots]``).

Told apart without colour: a training figure is a thin grey line with a thick black mean, evaluations carry markers, and
the lines of a panel differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

MARKERS = ("o", "s", "^", "D", "v", "x")
DASHES = ("-", "--", ":", "-.")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_log(log: Sequence[Mapping[str, float]], units: Mapping[str, str], path: Path) -> None:
    """One panel for each unit, with every logged figure that has it, over steps.

    Args:
        log: lines of ``log.jsonl``.
        units: of each figure's name, without the ``eval_`` that marks held-out data. Other figures are left out.
        path: the PNG.
    """
    from matplotlib.figure import Figure

    logged = sorted({name for line in log for name in line})
    panels: dict[str, list[str]] = {}
    for name, unit in units.items():
        panels.setdefault(unit, []).extend(each for each in (name, f"eval_{name}") if each in logged)
    panels = {unit: names for unit, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    for axes, (unit, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        looks, means = cycle(zip(MARKERS, DASHES * 2, strict=False)), cycle(DASHES)
        for name in names:
            points = [(line["step"], line[name]) for line in log if name in line]
            steps, values = [step for step, _ in points], [value for _, value in points]
            if name.startswith("eval_"):
                marker, dash = next(looks)
                label = f"held-out {name.removeprefix('eval_')}"
                axes.plot(steps, values, dash, color="black", marker=marker, markersize=4, linewidth=1, label=label)
            else:
                axes.plot(steps, values, color="0.7", linewidth=0.7)
                mean = running_mean(values)
                axes.plot(steps, mean, next(means), color="black", linewidth=1.8, label=f"training {name}")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(unit)
        axes.grid(color="0.9")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def running_mean(values: Sequence[float], window: int = 9) -> list[float]:
    """Mean of each value and those before it, ``window`` at most."""
    parts = (values[max(0, place + 1 - window) : place + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in parts]
