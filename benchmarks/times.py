"""Times and costs of a report's rows, from raw turns and counts. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.types import AR_PHASES, MASKED_PHASES

from .statistics import Estimate, estimate

SEED = 0
DRAWS = 2000
PHASES_OF = {"ar": AR_PHASES, "masked": MASKED_PHASES}
"""Phases in which each part runs."""


def times_of(
    batch: Mapping[str, Any],
    shown: Mapping[str, Any] | None,
    limits: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A point's times at one batch size."""
    own, ar = (np.asarray([turn["seconds"] for turn in batch[lane]]) for lane in ("own", "ar"))
    p10, median, p90 = (float(value) for value in np.quantile(own, (0.1, 0.5, 0.9)))
    speedup = speedup_of(own, ar)
    # Of the turn in the middle, so that they add up to a time that was measured.
    phases = batch["own"][int(np.argsort(own, kind="stable")[(len(own) - 1) // 2])]["phases"]
    return {
        "batch": batch["batch"],
        "median": median,
        "median_interval": list(median_of(own)[1]),
        "p10": p10,
        "p90": p90,
        "images_per_second": batch["batch"] / median,
        "speedup": speedup.value,
        "speedup_interval": list(speedup.interval),
        "ar_median": float(np.median(ar)),
        "turns": len(own),
        "phases": phases,
        "passes": batch["passes"],
        "peak_memory_bytes": batch["peak_memory_bytes"],
        "peak_memory_is": batch["peak_memory_is"],
        "load": batch["load"],
        "against": batch["against"],
        **limit_shares(batch["batch"], phases, shown, limits),
    }


def speedup_of(own: NDArray[np.float64], ar: NDArray[np.float64]) -> Estimate:
    """Median over median, turns resampled together."""
    chosen = np.random.default_rng(SEED).integers(len(own), size=(DRAWS, len(own)))
    draws = np.median(ar[chosen], axis=1) / np.median(own[chosen], axis=1)
    return estimate(float(np.median(ar) / np.median(own)), draws)


def median_of(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """A median and its interval between two order statistics, which holds whatever the distribution is.

    The k-th smallest and the k-th largest of n values miss the true median with probability 2 · P(fewer than k heads in
    n tosses); k is the largest for which that is 5 % at most. Fewer than six values have none, and get their extremes
    (five hold 94 % of the time). A bootstrap of the median holds 88 % of the time with seven values.
    """
    ordered, outside, inner = np.sort(values), 0.0, 0
    for k in range((len(ordered) - 1) // 2 + 1):
        outside += 2 * math.comb(len(ordered), k) / 2 ** len(ordered)
        if outside <= 0.05:
            inner = k
    return float(np.median(ordered)), (float(ordered[inner]), float(ordered[-1 - inner]))


def mean_of(values: Any, groups: NDArray[Any] | None = None) -> Estimate:
    """A mean over pictures with its bootstrap interval.

    Args:
        values: of each picture.
        groups: of each picture what is resampled, such as the concept that it and others were asked to show; None
            resamples pictures.
    """
    array = np.asarray(values, dtype=np.float64)
    sums, counts = (sums_of(each, groups) for each in (array, np.ones(len(array))))
    chosen = np.random.default_rng(SEED).integers(len(sums), size=(DRAWS, len(sums)))
    return estimate(float(array.mean()), sums[chosen].sum(1) / counts[chosen].sum(1))


def sums_of(values: Any, groups: NDArray[Any] | None) -> NDArray[np.float64]:
    """Values summed by group, or as they are."""
    array = np.asarray(values, dtype=np.float64)
    if groups is None:
        return array
    return np.bincount(np.unique(groups, return_inverse=True)[1], weights=array).astype(np.float64)


def costs(shown: Mapping[str, Any] | None) -> dict[str, Any]:
    """Operations a picture, and bytes of weights a request, by part and in all."""
    if shown is None:
        return {"flops": None, "weight_bytes": None}
    pictures = len(shown["prompts"])
    flops = {part: cost["flops"] / pictures for part, cost in shown["cost"].items()}
    read = {part: cost["weight_bytes"] for part, cost in shown["cost"].items()}
    return {
        "flops": {**flops, "total": sum(flops.values())},
        "weight_bytes": {**read, "total": sum(read.values())},
    }


def limit_shares(
    batch: int, phases: Mapping[str, float], shown: Mapping[str, Any] | None, limits: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How near the AR phase comes to the memory's limit, and the masked passes to the arithmetic's."""
    found: dict[str, Any] = {"bandwidth_share": None, "compute_share": None}
    if shown is None or limits is None:
        return found
    pictures, cost = len(shown["prompts"]), shown["cost"]
    seconds = {part: sum(phases.get(phase, 0.0) for phase in names) for part, names in PHASES_OF.items()}
    if "ar" in cost and seconds["ar"]:
        read = cost["ar"]["weight_bytes"] + cost["ar"]["cache_bytes"] * batch / pictures
        found["bandwidth_share"] = read / seconds["ar"] / limits["weights_bytes_per_second"]
    peak = limits["flops_per_second"].get(shown["settings"]["dtype"])
    if "masked" in cost and seconds["masked"] and peak:
        found["compute_share"] = cost["masked"]["flops"] * batch / pictures / seconds["masked"] / peak
    return found
