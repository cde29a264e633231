"""Speed of one point against the AR model, as raw times: warmed up, synchronised, turn by turn in the same run.

A turn is one request of the AR model and one of the point, so that whatever else the machine does meets both. This file
knows pipelines and clocks. Medians and intervals are the report's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hybrid.sampler import synchronise

from . import machine
from .points import Point, SpeedConfig

Clock = Callable[[], float]
Prompts = Sequence["str | int"]


def measure(
    baseline: tuple[Any, Point],
    own: tuple[Any, Point],
    prompts: Prompts,
    batch: int,
    config: SpeedConfig,
    *,
    clock: Clock = time.perf_counter,
    told: Callable[[str, int, int], Any] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Raw times of a point at one batch size.

    Args:
        baseline: the AR model's pipeline and point. The same as ``own``: it takes both turns.
        own: the point's pipeline and the point.
        prompts: the first ``batch`` are drawn, again and again from the first where they are fewer.
        batch: pictures a request.
        config: turns and warm-up.
        clock: tells seconds.
        told: called with (what, done, total) turns.

    Returns:
        ``ar`` and ``own``: for each turn its seconds, in all and by phase; passes, peak memory, load and threads.
    """
    asked = [prompts[place % len(prompts)] for place in range(batch)]
    lanes = {"ar": baseline, "own": own}
    peaks: dict[str, machine.PeakMemory] = {}
    device = own[0].device
    for lane, (pipeline, point) in lanes.items():
        for turn in range(config.warmup):
            told("warm-up", turn, config.warmup)
            _request(pipeline, point, asked, clock)
        # A request of its own: what resets and reads the peak may cost time.
        with machine.PeakMemory(pipeline.device) as peak:
            _request(pipeline, point, asked, clock)
        peaks[lane] = peak
    before = machine.load()
    turns: dict[str, list[dict[str, Any]]] = {"ar": [], "own": []}
    passes: dict[str, Any] = {}
    for turn in range(config.repeats):
        told(f"batch {batch}", turn, config.repeats)
        for lane, (pipeline, point) in lanes.items():
            seconds, result = _request(pipeline, point, asked, clock)
            phases = {phase: spent for phase, spent in result.phases.seconds.items() if spent}
            turns[lane].append({"seconds": seconds, "phases": phases})
            passes[lane] = {phase: count for phase, count in result.phases.passes.items() if count}
    told(f"batch {batch}", config.repeats, config.repeats)
    return {
        "batch": batch,
        "against": baseline[1].key,
        **turns,
        "passes": passes["own"],
        "ar_passes": passes["ar"],
        "peak_memory_bytes": peaks["own"].bytes,
        "ar_peak_memory_bytes": peaks["ar"].bytes,
        "peak_memory_is": peaks["own"].how,
        "load": [before, machine.load()],
        "threads": torch.get_num_threads(),
        "device": machine.device_name(device),
    }


def _request(pipeline: Any, point: Point, prompts: list[str | int], clock: Clock) -> tuple[float, Any]:
    """Wall-clock seconds of one request, prompts to pixels on the device."""
    synchronise(pipeline.device)
    start = clock()
    result = pipeline(prompts, **point.request(), seed=0, output_type="pt")
    synchronise(pipeline.device)
    return clock() - start, result
