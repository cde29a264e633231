"""The engine benchmark's report on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 120
"""Columns where the output is no terminal."""


def show(report: Mapping[str, Any]) -> None:
    """Print machine, limits, lanes and what was to be reached."""
    from rich.console import Console
    from rich.table import Table

    console, header, limits = Console(), report["header"], report["limits"]
    if not console.is_terminal:
        console = Console(width=WIDTH)
    versions = " ".join(f"{name} {version}" for name, version in header["versions"].items() if version)
    speeds = ", ".join(f"{kind} {speed / 1e9:.0f} GFLOP/s" for kind, speed in limits["flops_per_second"].items())
    console.print(
        f"{header['device']}, {header['cores']} cores, {header['threads']} threads, load {header['load']} to "
        f"{report['load_after']}, commit {header['commit']}, {header['time']}\n{versions}\n"
        f"limits: memory {limits['memory_bytes_per_second'] / 1e9:.1f} GB/s (triad), matrix products {speeds}",
        highlight=False,
        markup=False,
    )
    if report["quick"]:
        console.print(
            f"quick: a grid of {' × '.join(map(str, report['grid']))} tokens, networks uncompiled", highlight=False
        )
    lanes = Table(title="One picture with guidance, seconds: median (p10–p90)")
    for column in ("lane", "tokens only", "end to end", "ms/token", "of the bandwidth"):
        lanes.add_column(column, justify="left" if column == "lane" else "right")
    for name, lane in report["lanes"].items():
        share = lane["bandwidth_share"]
        cells = [_spread(lane["tokens_seconds"]), _spread(lane["whole_seconds"]), f"{lane['ms_per_token']:.2f}"]
        lanes.add_row(name, *cells, "" if share is None else f"{share:.0%}")
    reach = Table(title="Reach")
    for column in ("what", "reach", "measured", ""):
        reach.add_column(column, justify="right" if column == "measured" else "left")
    for row in report["reach"]:
        mark = "" if row["met"] is None else "reached" if row["met"] else "missed"
        reach.add_row(row["what"], row["least"], shown(row), mark)
    console.print(lanes, reach)


def shown(row: Mapping[str, Any]) -> str:
    """A figure in the unit of what it should reach, or why there is none."""
    value = row["value"]
    if value is None:
        return str(row["note"])
    if row["least"].endswith("%"):
        return f"{value:.0%}"
    return f"{value:.2f}" + ("×" if row["least"].endswith("×") else " s")


def _spread(times: Mapping[str, float]) -> str:
    return f"{times['median']:.3f} ({times['p10']:.3f}–{times['p90']:.3f})"
