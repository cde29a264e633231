"""How many places each pass of the masked model reveals.

Pure functions of numbers: this file knows no tensor, no model and no order of places.

Five schedules are MaskGIL's (arXiv 2507.13032 and its released code): a function f says how large each pass is
relative to the others. ``halton`` is Halton-MaskGIT's (its released sampler): a cumulative curve F says how much is
known after each pass. For ``continue_counts`` every schedule has its F, the normalised integral of f.
"""

from __future__ import annotations

import difflib
import heapq
import math
from collections.abc import Callable

SCHEDULES: tuple[str, ...] = ("root", "linear", "square", "cosine", "arccos", "halton")
"""Names of the schedules."""

RESUMES: tuple[str, ...] = ("remaining", "continue")
"""How a schedule treats places that are known before the first pass."""

_INCREMENTS: dict[str, Callable[[float], float]] = {
    "root": lambda r: 1 - math.sqrt(r),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r * r,
    "cosine": lambda r: math.cos(r * math.pi / 2),
    "arccos": lambda r: math.acos(r) * 2 / math.pi,
}
"""MaskGIL's f of r, which falls from 1 at the first pass to 0 at the last one."""

_CURVES: dict[str, Callable[[float], float]] = {
    "root": lambda t: 3 * t - 2 + 2 * (1 - t) ** 1.5,
    "linear": lambda t: t * t,
    "square": lambda t: t * t * (3 - t) / 2,
    "cosine": lambda t: 1 - math.cos(t * math.pi / 2),
    "arccos": lambda t: math.sqrt(t * (2 - t)) - (1 - t) * math.acos(1 - t),
    "halton": lambda t: 1 - math.acos(t) * 2 / math.pi,
}
"""F of the time t in [0, 1], rising from 0 to 1. All but halton's are the integral of f(1 - t) divided by its total."""


def reveal_counts(schedule: str, steps: int, places: int) -> list[int]:
    """How many of ``places`` each of ``steps`` passes reveals: whole numbers, each at least 1, that sum to ``places``.

    MaskGIL's schedules: pass i gets round(places * f_i / sum f) with f over linspace(1, 0, steps); a zero becomes 1 and
    the last pass takes the remainder. Where that would leave it less than 1, the largest passes give one place each,
    the earliest of equals first. Halton: pass i reveals up to max(i + 1, floor(places * F((i + 1) / steps))).

    Args:
        schedule: one of SCHEDULES.
        steps: number of passes, 1 to ``places``. One pass reveals everything.
        places: number of places to reveal, at least 1.

    Raises:
        ValueError: an unknown schedule, fewer than 1 place or step, more steps than places.
    """
    _check(schedule, steps)
    if places < 1:
        raise ValueError(f"{places} places: a schedule needs at least 1 place to reveal")
    _check_fits(steps, places)
    if schedule == "halton":
        curve = _CURVES[schedule]
        return _steps_of([math.floor(places * curve((i + 1) / steps)) for i in range(steps)], places)
    if steps == 1:
        return [places]
    sizes = [_INCREMENTS[schedule](1 - i / (steps - 1)) for i in range(steps)]
    total = sum(sizes)
    counts = [max(1, round(places * size / total)) for size in sizes]
    counts[-1] += places - sum(counts)
    if counts[-1] < 1:
        deficit = 1 - counts[-1]
        counts[-1] = 1
        _take_from_largest(counts, deficit)
    return counts


def continue_counts(schedule: str, steps: int, places: int, known: int) -> list[int]:
    """Reveal counts that enter the full grid's curve F where ``known`` places have left it.

    With t0 = F^-1(known / places), pass k of ``steps`` (from 1) reveals until
    floor(places * F(t0 + (1 - t0) k / steps)) places are known, and always at least one.

    Args:
        schedule: one of SCHEDULES.
        steps: number of passes, 1 to ``places - known``.
        places: places of the whole grid, at least 1.
        known: places that are known before the first pass, 0 to ``places``.

    Returns:
        ``steps`` counts that sum to ``places - known``, or an empty list where nothing remains.

    Raises:
        ValueError: an unknown schedule, fewer than 1 place or step, ``known`` outside [0, places], more steps than
            remaining places.
    """
    _check(schedule, steps)
    _check_known(known, places)
    if known == places:
        return []
    remaining = places - known
    _check_fits(steps, remaining)
    curve = _CURVES[schedule]
    start = _inverse(curve, known / places)
    times = [start + (1 - start) * k / steps for k in range(1, steps)] + [1.0]
    return _steps_of([math.floor(places * curve(t)) - known for t in times], remaining)


def counts(schedule: str, steps: int, places: int, known: int = 0, resume: str = "remaining") -> list[int]:
    """The reveal counts of a grid of which ``known`` places are already written.

    Args:
        schedule: one of SCHEDULES.
        steps: number of passes, 1 to ``places - known``; any number from 1 where nothing remains.
        places: places of the whole grid, at least 1.
        known: places that are known before the first pass, 0 to ``places``.
        resume: ``remaining`` spreads the whole schedule over the remaining places (``reveal_counts``); ``continue``
            enters the curve where the known places left it (``continue_counts``).

    Returns:
        ``steps`` counts, each at least 1, that sum to ``places - known``; an empty list where nothing remains.

    Raises:
        ValueError: as the two functions, and for an unknown ``resume``.
    """
    if resume not in RESUMES:
        raise ValueError(f"resume {resume!r}: unknown; choose one of {', '.join(RESUMES)}")
    if resume == "continue":
        return continue_counts(schedule, steps, places, known)
    _check(schedule, steps)
    _check_known(known, places)
    return reveal_counts(schedule, steps, places - known) if known < places else []


def progress_of(step: int, steps: int) -> float:
    """How far along pass ``step`` (from 0) of ``steps`` is: step / (steps - 1), from 0 to 1, and 0 for a single pass.

    Raises:
        ValueError: ``step`` outside 0..steps - 1.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step}: must be from 0 to {steps - 1} where there are {steps} steps")
    return step / (steps - 1) if steps > 1 else 0.0


def _check(schedule: str, steps: int) -> None:
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"schedule {schedule!r}: unknown; {hint}choose one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"{steps} steps: use at least 1 step")


def _check_known(known: int, places: int) -> None:
    if places < 1:
        raise ValueError(f"{places} places: a grid has at least 1 place")
    if not 0 <= known <= places:
        raise ValueError(f"{known} known places: must be from 0 to the {places} places of the grid")


def _check_fits(steps: int, places: int) -> None:
    if steps > places:
        remedy = f"use at most {places} step{'s' if places > 1 else ''}"
        raise ValueError(f"{steps} steps for {places} place{'s' if places > 1 else ''}: {remedy}")


def _steps_of(totals: list[int], places: int) -> list[int]:
    """Counts that follow the running totals as closely as at least one place a pass allows, and end at ``places``."""
    counts: list[int] = []
    done = 0
    for i, total in enumerate(totals):
        after = len(totals) - 1 - i
        until = min(max(total, done + 1), places - after) if after else places
        counts.append(until - done)
        done = until
    return counts


def _take_from_largest(counts: list[int], deficit: int) -> None:
    """Lower the largest counts, one place at a time, by ``deficit`` in all; in place."""
    heap = [(-count, i) for i, count in enumerate(counts)]
    heapq.heapify(heap)
    for _ in range(deficit):
        negated, i = heap[0]
        heapq.heapreplace(heap, (negated + 1, i))
        counts[i] -= 1


def _inverse(curve: Callable[[float], float], value: float) -> float:
    """The time in [0, 1] at which a rising curve reaches ``value``, by bisection to the last bits of a double."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if curve(middle) < value:
            low = middle
        else:
            high = middle
    return high
