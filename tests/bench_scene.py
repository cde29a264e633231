"""A tiny sweep with planted points: a data folder of the tiny pair's own AR pictures, a clock that only requests move,
one method that is slow and one that draws rubbish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pairs import class_pair

from hybrid.benchmarks.points import Point, Sweep, check_sweep
from hybrid.benchmarks.sweep import Runner, open_pipeline
from hybrid.data.folder import create_images, write_records
from hybrid.pipeline import HybridPipeline

TRAIN, TEST = 100, 90
SECONDS = {"ar": 1.0, "hybrid": 0.5, "masked": 0.25}
SLOW, BAD = {"order": "raster"}, {"order": "halton"}
"""What the planted points ask for: the first takes four seconds, the second draws one token everywhere."""

FIELDS: dict[str, Any] = {
    "data_set": "fashion",
    "pictures": 80,
    "reference": 90,
    "points": [
        {"method": "hybrid", "ar_fraction": 0.5, "steps": 2},
        {"method": "hybrid", "ar_fraction": 0.5, "steps": 2, **SLOW},
        {"method": "masked", "steps": 4, **BAD},
    ],
    "speed": {"batch_sizes": [1, 2], "repeats": 5},
    "shown": 2,
}


class Coarse:
    """Every fourth pixel: features without a network."""

    name, sha256 = "coarse pixels", "c0a45e0123"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        small = images[:, ::4, ::4].astype(np.float32).reshape(len(images), -1)
        return (small / 8).astype(np.float16)


class Clock:
    """Stands still until a request is made."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Planted:
    """A pipeline whose requests take the seconds that ``SECONDS`` says."""

    def __init__(self, pipeline: HybridPipeline, clock: Clock) -> None:
        self._pipeline, self._clock = pipeline, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __call__(self, prompts: Any, **options: Any) -> Any:
        slow, bad = (planted.items() <= options.items() for planted in (SLOW, BAD))
        self._clock.now += 4.0 if slow else SECONDS[options["method"]]
        result = self._pipeline(prompts, **options)
        return replace(result, tokens=result.tokens * 0 + 7) if bad else result


def write_scene(path: Path) -> tuple[Path, Path]:
    """The pair's folder and a data folder whose pictures it drew itself, so that its AR model is near perfect."""
    pipe, pair, data = class_pair(), path / "tiny", path / "fashion"
    pipe.save_pretrained(pair)
    data.mkdir()
    records = [
        {"label": place % 3, "captions": ["x"], "split": "train" if place < TRAIN else "test"}
        for place in range(TRAIN + TEST)
    ]
    drawn = pipe([record["label"] for record in records], method="ar", seed=10**9, output_type="np").images
    images = create_images(data, (len(records), 1, 8, 8, 3))
    images[:, 0] = (np.asarray(drawn) * 255).round().astype(np.uint8)
    images.flush()
    write_records(data, records, {"name": "fashion", "inputs": "tiny"}, "none\n")
    return pair, data


def tiny_sweep(pair: Path, data: Path, **changes: Any) -> Sweep:
    """The checked sweep."""
    return check_sweep({**FIELDS, "pair": str(pair), "data": str(data), **changes}, "tiny.yaml")


def runner(sweep: Sweep, out: Path, **options: Any) -> Runner:
    """A runner with the coarse network, the planted points and their clock."""
    clock = Clock()

    def opened(pair: str, point: Point, device: Any) -> Any:
        return Planted(open_pipeline(pair, point, device), clock)

    return Runner(sweep, out, network=Coarse(), opened=opened, clock=clock, **options)
