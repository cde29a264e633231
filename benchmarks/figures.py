"""``figures.json``: the fidelity of a shipped pair, recomputed from its weights.

This file knows what every pair's figures share: comparison with real pictures, the header, the file. What is drawn and
which figures come of it is in ``fashion`` and ``emoji``.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hybrid
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.pairing import find_pair
from hybrid.pipeline import HybridPipeline
from hybrid.whole_files import replacing

from .artist import Artist, Drawn, Method, Told, pair_weights
from .features import FeatureNetwork, Features
from .statistics import (
    BLOCKS,
    COMPONENTS,
    Array,
    Components,
    Estimate,
    estimate,
    fit_components,
    frechet_distance,
    frechet_draws,
    kid_blocks,
    kid_estimate,
    precision_recall,
)

REQUIRED = {"fashion": 10_000, "emoji": 4_000}
"""Pictures of each method below which figures are preliminary."""

LEAST = 4 * BLOCKS
RECIPES = {"fashion": "hybrid.benchmarks.fashion", "emoji": "hybrid.benchmarks.emoji"}
FEW = 200
"""Pictures whose scatter is written beside a figure's interval, for a quick recomputation to be held against."""


@dataclass(frozen=True)
class Compared:
    """A set of pictures against real ones.

    Attributes:
        frechet: on the components of the reference.
        draws: bootstrap draws of it, paired between methods that drew the same prompts.
        details: everything that goes into the file.
    """

    frechet: float
    draws: Array
    details: dict[str, Any]

    def over(self, other: Compared) -> Estimate:
        """This Fréchet distance over the other one, resampled together."""
        return estimate(self.frechet / other.frechet, self.draws / other.draws)


class Reference:
    """Real pictures that others are compared with.

    Args:
        features_md: their features.
        seed: of every resampling.
    """

    def __init__(self, features_md: NDArray[np.float16], seed: int) -> None:
        self.seed, self.features_md = seed, features_md.astype(np.float32)
        count = min(COMPONENTS, len(features_md) - 1, features_md.shape[1])
        self.components: Components = fit_components(self.features_md, count)
        self.projected_mk = self.components(self.features_md)

    def compare(self, features_nd: NDArray[np.float16]) -> Compared:
        """Fréchet distance, KID, precision and recall of other pictures."""
        features = features_nd.astype(np.float32)
        projected = self.components(features)
        frechet = frechet_distance(projected, self.projected_mk)
        draws = frechet_draws(projected, self.projected_mk, seed=self.seed)
        kid = kid_estimate(kid_blocks(features, self.features_md, seed=self.seed), seed=self.seed)
        precision, recall = precision_recall(projected, self.projected_mk)
        details = {
            "pictures": len(features),
            "frechet": frechet,
            "frechet_interval": list(estimate(frechet, draws).interval),
            "frechet_components": projected.shape[1],
            "kid": kid.value,
            "kid_interval": list(kid.interval),
            "precision": precision,
            "recall": recall,
        }
        return Compared(frechet, draws, details)


@dataclass
class Sheet:
    """What becomes ``figures.json``: the named figures flat, their intervals and the details beside them."""

    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    lower_95: dict[str, float] = field(default_factory=dict)
    upper_95: dict[str, float] = field(default_factory=dict)
    intervals_200: dict[str, list[float]] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Estimate | float, few: Estimate | None = None) -> None:
        """A figure, with its interval and the interval of ``FEW`` pictures where there are some."""
        if not isinstance(value, Estimate):
            self.figures[name] = float(value)
            return
        self.figures[name] = value.value
        self.intervals[name] = list(value.interval)
        self.lower_95[name], self.upper_95[name] = value.lower, value.upper
        if few is not None:
            self.intervals_200[name] = list(few.interval)


@dataclass(frozen=True)
class Job:
    """What a recipe works on."""

    artist: Artist
    network: Features
    folder: DataFolder
    pictures: int
    seed: int
    out: Path


def make_figures(
    data_set: str,
    *,
    pair: str | Path | None = None,
    data: Path | None = None,
    pictures: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    network: Features | None = None,
    told: Told = lambda what, done, total: None,
    dtype: str = "auto",
    compile: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Recompute a pair's figures and write them.

    Args:
        data_set: ``fashion`` or ``emoji``.
        pair: the pairing; None is the embedded one of the data set's name.
        data: data folder; None is where ``hybrid-data`` writes it.
        pictures: of each method; None is what the figures require, fewer are marked as preliminary.
        seed: of the pictures and of every resampling.
        out: the file; None is ``figures.json`` beside the pair's weights.
        network: makes the features; None is EfficientNet-Lite0.
        told: called with (what, done, total) pictures.
        dtype: of the weights, as ``HybridPipeline.from_pretrained`` takes it.
        compile: whether the networks are compiled.
        options: what the recipe's ``make`` takes besides.

    Returns:
        The file and what is in it.

    Raises:
        ValueError: one line naming what is missing or does not fit.
    """
    required = REQUIRED[data_set]
    count = required if pictures is None else pictures
    if count < LEAST:
        raise ValueError(f"--pictures {count}: the statistics need at least {LEAST}")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or above")
    name = data_set if pair is None else pair
    path = find_pair(name)
    weights = pair_weights(name)
    network = FeatureNetwork() if network is None else network
    try:
        folder = DataFolder.open(data or default_folder(data_set))
    except DataError as error:
        raise ValueError(str(error)) from None
    target = out or path.parent / "figures.json"
    started = time.perf_counter()
    pipeline = HybridPipeline.from_pretrained(name, dtype=dtype, compile=compile)
    artist = Artist(pipeline, weights, network, folder.path / "figures", told=told)
    make = import_module(RECIPES[data_set]).make
    try:
        sheet: Sheet = make(Job(artist, network, folder, count, seed, target), **(options or {}))
    except DataError as error:
        raise ValueError(str(error)) from None
    content = {
        "pair": str(name),
        "data_set": data_set,
        "pictures": count,
        "required_pictures": required,
        "preliminary": count < required,
        **sheet.figures,
        "intervals": sheet.intervals,
        "lower_95": sheet.lower_95,
        "upper_95": sheet.upper_95,
        "intervals_200": sheet.intervals_200,
        "methods": sheet.methods,
        "details": sheet.details,
        "seed": seed,
        "feature_network": network.name,
        "feature_network_sha256": network.sha256,
        "weights_sha256": weights,
        "data": {"folder": folder.path.name, "pictures": len(folder), "inputs": folder.meta.get("inputs")},
        "commit": commit(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": str(artist.pipeline.device),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(target, content)
    return target, content


def method_details(artist: Artist, method: Method, compared: Compared, drawn: Drawn, **more: Any) -> dict[str, Any]:
    """A method's entry in the file."""
    return {
        **compared.details,
        **more,
        "grid": [drawn.grid.height, drawn.grid.width],
        "settings": artist.settings(method),
    }


def versions() -> dict[str, str]:
    """Versions that figures depend on."""
    return {
        "hybrid": hybrid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def commit() -> str | None:
    """The commit of the checkout that runs, with ``+`` where files differ from it; None outside a checkout."""
    where = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=True
        ).stdout
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=where,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changed.strip() else "")


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Write whole or not at all; a number that is none is an error, since JSON has no word for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
