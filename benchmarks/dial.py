"""The dial: one figure of a sweep's times against its fidelity, from the masked model alone to the exact AR model.

``python -m hybrid.benchmarks.dial RUN --out DIR`` reads the folder of ``hybrid-bench run`` and writes ``report.json``,
``report.md`` and ``dial.png``. Points of one method are joined along the setting that they differ in; methods are told
apart without colour. This file knows reports and draws nothing but the figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.loss_plot import can_plot

from .figures import write_json
from .labels import log_axis, write_beside
from .report import make_report, read_raw
from .tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
Mark = tuple[float, float, str]
"""A point and its label."""


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: in the legend.
        method: of the points.
        marker: of matplotlib.
        along: the setting that they are joined along; None leaves them apart.
        label: beside a point, a format of its settings.
        dash: of the line that joins them.
        filled: whether markers are black inside.
        compiled: whether the points are those with compiled networks.
        reuse: of the points.
    """

    name: str
    method: str
    marker: str
    along: str | None = None
    label: str = ""
    dash: str = "-"
    filled: bool = False
    compiled: bool = False
    reuse: int = 1


DIAL = (
    Series("masked, passes", "masked", "s", "steps", "{steps}"),
    Series("hybrid, share of the AR model", "hybrid", "o", "ar_fraction", "{ar_fraction:.3g}", "--"),
    Series("hybrid, compiled", "hybrid", "h", "ar_fraction", "{ar_fraction:.3g}", filled=True, compiled=True),
    Series("hybrid, reuse 8", "hybrid", "p", "ar_fraction", "{ar_fraction:.3g}", filled=True, reuse=8),
    Series("ZipAR, columns ahead", "zipar", "d", "window", "{window}", filled=True),
    Series("refined: hybrid, then scored and redrawn", "refined", "D"),
    Series("relaxed, drafts of the AR model, bound on each token", "relaxed", "v", "relax", "{relax:.2g}", ":"),
    Series("Jacobi: exact, drafts of the AR model", "jacobi", "X", filled=True),
    Series("exact, drafts of the masked model", "exact", "^", filled=True),
    Series("AR, token by token", "ar", "*", filled=True),
    Series("AR, compiled", "ar", "P", filled=True, compiled=True),
)
"""The methods of the dial, from instant to exact."""


def dial(report: Mapping[str, Any], series: Sequence[Series] = DIAL) -> Figure:
    """Median seconds against Fréchet distance over the AR model's and, where there is a score, its share of real
    pictures'. Bars are 95 % intervals and, of times, the 10th to the 90th percentile.

    Raises:
        ValueError: no point of these series has both a time and a fidelity.
    """
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row["region"] == "all" and row["median"] and row["frechet"] is not None]
    found = [(one, sorted_rows(rows, one)) for one in series]
    if not any(points for _, points in found):
        raise ValueError("no point has both times and fidelity; run both stages of the sweep")
    header = report["header"]
    score, real = header["score"], header["real_score"]
    figure = Figure(figsize=(7.6, 7.4 if score else 4.6), layout="constrained")
    panels = figure.subplots(2 if score else 1, 1, sharex=True, squeeze=False)[:, 0]
    drawn = [(panels[0], "frechet_over_ar", 1.0)] + ([(panels[1], score, 1 / real)] if score else [])
    marks = [
        [mark for one, points in found if points for mark in _line(axes, one, points, name, factor)]
        for axes, name, factor in drawn
    ]
    panels[0].axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    panels[0].set_ylabel("Fréchet distance over the AR model's\n(1: as good; less is better)")
    panels[0].set_ylim(bottom=min(0.5, *panels[0].get_ylim()))
    if score:
        panels[1].set_ylabel(f"{score} over real pictures'\n(more is better)")
    last = panels[-1]
    log_axis(last)
    last.set_xlabel(
        f"seconds of one request of {rows[0]['batch']} picture{'s' if rows[0]['batch'] > 1 else ''}, median"
    )
    for axes in panels:
        axes.grid(color="0.93")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    for (axes, _, _), beside in zip(drawn, marks, strict=True):
        write_beside(axes, beside)
    return figure


def sorted_rows(rows: Sequence[Mapping[str, Any]], one: Series) -> list[Mapping[str, Any]]:
    """A series' rows along its setting."""
    own = [
        row
        for row in rows
        if row["method"] == one.method
        and bool(row.get("compile")) == one.compiled
        and row["settings"].get("reuse", 1) == one.reuse
    ]
    along = one.along
    return own if along is None else sorted(own, key=lambda row: row["settings"][along])


def _line(axes: Any, one: Series, rows: Sequence[Mapping[str, Any]], name: str, factor: float) -> list[Mark]:
    x = [(row["p10"], row["median"], row["p90"]) for row in rows]
    y = [tuple(factor * value for value in _around(row, name)) for row in rows]
    axes.errorbar(
        [at for _, at, _ in x], [value for _, value, _ in y], xerr=_bars(x), yerr=_bars(y),
        color="black", marker=one.marker, markersize=10 if one.marker == "*" else 7, linewidth=1,
        linestyle=one.dash if one.along else "none", markerfacecolor="black" if one.filled else "white",
        elinewidth=0.6, capsize=2, ecolor="0.45", label=one.name,
    )  # fmt: skip
    texts = [one.label.format(**row["settings"]) for row in rows]
    return [(at, value, text) for (_, at, _), (_, value, _), text in zip(x, y, texts, strict=True)]


def _around(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    low, high = row[f"{name}_interval"]
    return low, row[name], high


def _bars(values: Sequence[tuple[float, ...]]) -> list[list[float]]:
    """Lengths of error bars to both sides of (low, value, high)."""
    return [[max(value - low, 0) for low, value, _ in values], [max(high - value, 0) for _, value, high in values]]


def write(run: Path, out: Path, *, name: str = "dial", series: Sequence[Series] = DIAL) -> dict[str, Any]:
    """Write ``report.json`` and the figure of a sweep's folder. Returns the report.

    Raises:
        ValueError: no sweep there, nothing measured, or no matplotlib.
    """
    if not can_plot():
        raise ValueError('the figure needs matplotlib: pip install "hybrid-imagegen[plots]"')
    report = make_report(read_raw(run))
    figure = dial(report, series)
    write_json(out / "report.json", report)
    figure.savefig(out / f"{name}.png", dpi=DPI)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.dial", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of hybrid-bench run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report and the figure")
    arguments = parser.parse_args(argv)
    try:
        report = write(arguments.run, arguments.out)
    except ValueError as error:
        print(f"dial: {error}", file=sys.stderr)
        return 2
    text = f"![Time against fidelity](dial.png)\n\n{markdown(report, [])}"
    (arguments.out / "report.md").write_text(text, encoding="utf-8")
    print(arguments.out / "dial.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
