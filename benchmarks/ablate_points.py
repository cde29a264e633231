"""How one point of an ablation is measured: a short training run, a batch of drawn pictures, or one after the other.

Training is ``hybrid.training``'s own loop on ``hybrid.tasks_build``'s own tasks; drawing and its statistics are those
of the figures. This file adds one measurement, the norm of the last block's output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid.adapters import load
from hybrid.checkpoint import sha256
from hybrid.config import DefaultsConfig, TrainConfig, parse
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.losses import next_token_loss
from hybrid.pairing import find_pair
from hybrid.pipeline import HybridPipeline
from hybrid.run_folder import read_log
from hybrid.tasks_build import build_task
from hybrid.training import train

from .ablate import DrawConfig, Point, SweepConfig, Told
from .artist import Artist, Drawn, Method, pair_weights
from .classifier import FashionClassifier, correct, load_classifier
from .fashion import labels_of, same_labels
from .features import FeatureNetwork, Features, digest, real_features
from .figures import Reference

SEED_STRIDE = 1_000_000
"""Picture i of a point is drawn with seed · SEED_STRIDE + i, so that no two seeds share a picture's noise."""

Curve = list[dict[str, float]]


class OutputNorm:
    """Within the block, the norm of every output of a model's last block: what enters its final normalisation.

    Attributes:
        total: sum of the Euclidean norms over all pictures and image places seen.
        places: how many there were.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.total, self.places = model, 0.0, 0

    def __enter__(self) -> OutputNorm:
        self.hook = self.model.norm.register_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norms = inputs[0].detach().float().norm(dim=-1)
        self.total += float(norms.sum())
        self.places += norms.numel()

    @property
    def mean(self) -> float:
        """Mean norm of a place's vector."""
        return self.total / self.places


class WithNorm:
    """A masked model's task whose evaluation also gives the mean ``output_norm`` over what it showed to the model."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with OutputNorm(model) as norm:
            found = self.task.evaluate(model)
        return {**found, "output_norm": norm.mean}


class Workbench:
    """What the points of a sweep share: data, tokenizer and, where pictures are drawn, real pictures to compare with.

    Args:
        sweep: the sweep.
        data: data folder; None is where ``hybrid-data`` writes it.
        tokenizer: weights for AR and masked training; None is the embedded pair's.
        work: folder of training runs and drawn pictures.
        network: makes the features; None is EfficientNet-Lite0.
        classifier: None is the shipped one.
        source: what messages call the sweep.

    Attributes:
        inputs: what every point depends on: the data and the sha256 of the weights.

    Raises:
        ValueError: one line: data or weights that are missing, or a tokenizer that would not be used.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        *,
        data: Path | None,
        tokenizer: Path | None,
        work: Path,
        network: Features | None,
        classifier: FashionClassifier | None,
        source: str,
    ) -> None:
        self.work, self.source = work, source
        self.draws = sweep.draw
        trained = None if sweep.train is None else sweep.train.task
        name = sweep.train.data if sweep.train is not None else find_pair(sweep.draw.pair).parent.name  # type: ignore[union-attr]
        try:
            self.folder = DataFolder.open(data or default_folder(name))
        except DataError as error:
            raise ValueError(str(error)) from None
        if trained == "ar" and sweep.draw is not None:
            raise ValueError(f"{source}: train.task: pictures are drawn with trained masked models only, got 'ar'")
        self.tokenizer: Path | None = None
        if trained in ("ar", "masked"):
            self.tokenizer = tokenizer or find_pair(name).parent / "tokenizer" / "model.safetensors"
            if not self.tokenizer.is_file():
                raise ValueError(f"--tokenizer {self.tokenizer}: no such file")
        elif tokenizer is not None:
            raise ValueError(f"{source}: trains no model on codes, so --tokenizer would do nothing; leave it out")
        self.inputs: dict[str, Any] = {"data": dict(self.folder.meta)}
        if self.tokenizer is not None:
            self.inputs["tokenizer"] = sha256(self.tokenizer)
        if self.draws is not None:
            self.network = FeatureNetwork() if network is None else network
            self.judge = load_classifier() if classifier is None else classifier
            self.inputs |= {"pair": pair_weights(self.draws.pair), "feature_network": self.network.name}
            self._prepare(self.draws)
            self.inputs["defaults"] = self.pair.defaults.model_dump(mode="json")

    def _prepare(self, draws: DrawConfig) -> None:
        """Real test pictures, their classes, and the pairing."""
        real = self.folder.indices("test")[: max(draws.real, draws.pictures)]
        if len(real) < max(draws.real, draws.pictures):
            raise ValueError(f"{self.source}: draw.real {draws.real}: {self.folder.path} has {len(real)} test pictures")
        self.reference = Reference(real_features(self.folder, real[: draws.real], self.network), 0)
        self.labels = labels_of(self.folder.items, real[: draws.pictures], str(self.folder.path))
        pictures = np.ascontiguousarray(self.folder.images[real[: draws.pictures], 0])
        self.real_accuracy = float(correct(self.judge, pictures, self.labels).mean())
        self.pair = HybridPipeline.from_pretrained(draws.pair, dtype=draws.dtype)

    def references(self) -> dict[str, float]:
        """Of real pictures: the Fréchet distance of as many others through the tokenizer, and the test pictures'
        class accuracy.

        The others are train pictures, which the classifier and the AR model know, so that only the first is of them.
        """
        if self.draws is None:
            return {}
        artist = Artist(self.pair, self.inputs["pair"], self.network, self.work / "figures")
        places = same_labels(self.folder.indices("train"), self.folder.items, self.labels)
        rebuilt = artist.reconstruct(np.ascontiguousarray(self.folder.images[places, 0]))
        return {"frechet": self.reference.compare(rebuilt.features_nd).frechet, "real_accuracy": self.real_accuracy}

    def measure(self, point: Point, told: Told) -> tuple[dict[str, float], Curve]:
        """A point's figures and, where it trained, its log."""
        figures: dict[str, float] = {}
        curve: Curve = []
        weights: Path | None = None
        if point.config.train is not None:
            figures, curve, weights = self._train(point, point.config.train, told)
        if point.config.draw is not None:
            figures |= self._draw(point, point.config.draw, weights)
        return figures, curve

    def _train(self, point: Point, config: TrainConfig, told: Told) -> tuple[dict[str, float], Curve, Path]:
        """Train, or go on; the figures are the last logged ones."""
        task: Any = build_task(config, data=self.folder.path, tokenizer=self.tokenizer, source=self.source)
        if config.task == "masked":
            task = WithNorm(task)
        out = self.work / "runs" / digest(config.model_dump_json(), self.inputs)
        for progress in train(task, config.loop, out):
            told(f"{point.variant}, seed {point.seed}", progress.step, config.loop.steps)
        curve = read_log(out / "log.jsonl")
        figures = {name: value for line in curve for name, value in line.items()}
        figures["parameters"] = sum(value.numel() for value in task.model.parameters())
        if config.task == "tokenizer":
            figures |= bits(task.model, self.folder.images.shape[2:4])
        return figures, curve, out / "model.safetensors"

    def _draw(self, point: Point, config: DrawConfig, weights: Path | None) -> dict[str, float]:
        """Draw with the pairing, or with its AR model and a masked model that was just trained."""
        pipeline, files = copy.copy(self.pair), dict(self.inputs["pair"])
        if weights is not None:
            files["trained"] = sha256(weights)
            pipeline = HybridPipeline(
                load("fsq", self.tokenizer, dtype=self.pair.dtype),
                ar=self.pair.ar,
                masked=load("maskgil", weights, dtype=self.pair.dtype),
                ar_tokenizer=self.pair.tokenizer,
                classes=self.pair.classes,
                grid=self.pair.grid,
            )
        pipeline.defaults = merged(self.pair.defaults, config, self.source)
        artist = Artist(pipeline, files, self.network, self.work / "figures")
        method = Method(_method_name(config), config.ar_fraction, config.steps)
        drawn: Drawn = artist.draw(method, self.labels.tolist(), point.seed * SEED_STRIDE)
        compared = self.reference.compare(drawn.features_nd)
        hits = correct(self.judge, artist.pictures(drawn), self.labels)
        found = {
            "frechet": compared.frechet,
            "kid": float(compared.details["kid"]),
            "recall": float(compared.details["recall"]),
            "accuracy_share": float(hits.mean()) / self.real_accuracy,
        }
        return found if self.pair.ar is None else {**found, "ar_nats": self._ar_nats(drawn.tokens_nk)}

    @torch.inference_mode()
    def _ar_nats(self, tokens_nk: NDArray[np.uint16], batch: int = 64) -> float:
        """Nats per token that the pairing's AR model gives these tokens under their classes, without guidance."""
        total = 0.0
        for start in range(0, len(tokens_nk), batch):
            tokens = torch.from_numpy(tokens_nk[start : start + batch].astype(np.int64)).to(self.pair.device)
            condition = self.pair.ar.condition(self.labels[start : start + batch].tolist())
            total += float(next_token_loss(self.pair.ar.score(tokens, condition), tokens)) * len(tokens)
        return total / len(tokens_nk)


def merged(defaults: DefaultsConfig, config: DrawConfig, source: str) -> DefaultsConfig:
    """A pairing's defaults with the sweep's in place of them, field by field."""
    fields = defaults.model_dump()
    for key, value in config.defaults.items():
        before = fields.get(key)
        fields[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return parse(DefaultsConfig, fields, f"{source}: draw.defaults")


def bits(tokenizer: Any, sides: Sequence[int]) -> dict[str, float]:
    """Size of a tokenizer's codebook and what a picture of these sides costs in codes of fixed length."""
    places = math.prod(side // tokenizer.factor for side in sides)
    per_token = math.log2(tokenizer.codebook_size)
    return {"codes": tokenizer.codebook_size, "bits_per_token": per_token, "bits_per_picture": places * per_token}


def _method_name(config: DrawConfig) -> str:
    return f"share{round(100 * config.ar_fraction)}-steps{config.steps}"
