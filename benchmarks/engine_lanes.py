"""Lanes of the engine benchmark: what is drawn, how it is timed, what it should reach. This file knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lane:
    """Something that draws one picture.

    Attributes:
        name: what the table calls it.
        draw: draws, and tells the seconds until the tokens were there and in all.
        tokens: of the picture.
        bytes: that each token of an AR model reads, None for a hybrid.
    """

    name: str
    draw: Callable[[], tuple[float, float]]
    tokens: int
    bytes: int | None = None


@dataclass(frozen=True)
class Reach:
    """A figure to reach: ``value`` is None where it was not measured, and ``note`` says why."""

    what: str
    least: str
    value: float | None
    met: bool | None
    note: str = ""


def measure(
    lanes: Sequence[Lane], turns: int, memory: float, told: Callable[[str], Any] = lambda text: None
) -> dict[str, dict[str, Any]]:
    """Times of every lane, turn by turn, after one draw of each to warm up.

    Args:
        memory: bytes a second that the machine reads at best.
    """
    import numpy as np

    for lane in lanes:
        told(f"warming up: {lane.name}")
        lane.draw()
    seen: dict[str, list[tuple[float, float]]] = {lane.name: [] for lane in lanes}
    for turn in range(turns):
        for lane in lanes:
            told(f"turn {turn + 1} of {turns}: {lane.name}")
            seen[lane.name].append(lane.draw())
    found = {}
    for lane in lanes:
        times = np.asarray(seen[lane.name])
        p10, median, p90 = (np.quantile(times, share, axis=0).tolist() for share in (0.1, 0.5, 0.9))
        found[lane.name] = {
            "tokens": lane.tokens,
            "tokens_seconds": {"p10": p10[0], "median": median[0], "p90": p90[0]},
            "whole_seconds": {"p10": p10[1], "median": median[1], "p90": p90[1]},
            "ms_per_token": median[0] / lane.tokens * 1e3,
            "bandwidth_share": None if lane.bytes is None else lane.bytes * lane.tokens / median[0] / memory,
            "turns": times.tolist(),
        }
    return found


def drawn(pipeline: Any, prompt: str | int, **request: Any) -> tuple[float, float]:
    """Seconds of a request's tokens, and in all."""
    seconds = pipeline(prompt, seed=0, output_type="pt", **request).phases.seconds
    whole = sum(seconds.values())
    return whole - seconds["decode"], whole


def best(lanes: Mapping[str, Any], start: str) -> float | None:
    """The least median of the lanes whose names begin so."""
    found = [lane["tokens_seconds"]["median"] for name, lane in lanes.items() if name.startswith(start)]
    return min(found, default=None)


def ratio(what: str, least: float, slow: float | None, fast: float | None, why: str, note: str = "") -> Reach:
    """How many times as fast the second is."""
    if slow is None or fast is None:
        return Reach(what, f"≥ {least:g}×", None, None, why)
    return Reach(what, f"≥ {least:g}×", slow / fast, slow / fast >= least, note)
