"""Draws the pictures that figures are made of, and remembers them: tokens and features, one file a batch.

A file's name holds the weights, the settings, the prompts and the seeds, so another pair never reuses it, a killed run
loses one batch at most, and a longer run takes over what a shorter one drew (picture i always has seed + i), as figures
and reports take over each other's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.checkpoint import sha256
from hybrid.data.codes import to_images
from hybrid.pairing import COMPONENTS, find_pair, read_pair
from hybrid.pipeline import HybridPipeline
from hybrid.types import Grid

from .features import Features, cached, digest

BATCH, CPU_BATCH = 64, 32
"""Pictures drawn at a time. On a CPU few are as fast, and malloc maps the arrays of more pictures anew for every layer
(fashion, compiled bf16, one core with matrix units, at 16, 32 and 64 pictures: 16 masked passes 205, 176 and 263 ms a
picture, AR 152, 72 and 65 ms)."""

ALONE = {"ar": 1.0, "masked": 0.0}
"""The AR fraction of the methods that are one phase alone."""

ARGUMENTS = inspect.signature(HybridPipeline.__call__).parameters
FLOATS = {name for name, argument in ARGUMENTS.items() if "float" in str(argument.annotation)}
"""The arguments of a pipeline that are no whole numbers, so that a YAML's 3 is 3.0."""

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Method:
    """One way to draw; everything that is not here comes from the pair's own defaults.

    Attributes:
        name: what figures call it.
        ar_fraction: share of the tokens that the AR model writes.
        steps: masked passes; None with the AR model alone.
        options: further arguments of ``HybridPipeline``.
    """

    name: str
    ar_fraction: float
    steps: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def identity(self) -> dict[str, Any]:
        """What tells this way from others."""
        named = {"name": self.name, "ar_fraction": self.ar_fraction, "steps": self.steps}
        return {**named, "options": dict(self.options)} if self.options else named

    def request(self) -> dict[str, Any]:
        """Arguments of ``HybridPipeline``."""
        return {"ar_fraction": self.ar_fraction, "steps": self.steps, "method": "hybrid", **dict(self.options)}


class Way(Protocol):
    """A way to draw: ``Method``, or a sweep's ``Point``."""

    @property
    def name(self) -> str:
        """What progress is told under."""
        ...

    def request(self) -> dict[str, Any]:
        """Arguments of ``HybridPipeline``, without prompt and seed."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Pictures as tokens and features, in the order of their prompts."""

    tokens_nk: NDArray[np.uint16]
    features_nd: NDArray[np.float16]
    grid: Grid

    def take(self, rows: Sequence[int] | slice) -> Drawn:
        """Some of the pictures."""
        return Drawn(self.tokens_nk[rows], self.features_nd[rows], self.grid)

    def __len__(self) -> int:
        return len(self.tokens_nk)


def pair_weights(name: str | Path) -> dict[str, str]:
    """sha256 of each weight file of a pairing, by its path from the file that describes the pairing.

    Raises:
        ValueError: no such pairing, or weights that are missing.
    """
    path = find_pair(name)
    pair, found = read_pair(path), {}
    for component in COMPONENTS:
        spec = getattr(pair, component)
        if spec is None or spec.weights is None:
            continue
        target = path.parent / Path(spec.weights).expanduser()
        if not target.exists():
            raise ValueError(f"{path}: {component}: no weights at {target}")
        parts = sorted(target.glob("*.safetensors")) if target.is_dir() else [target]
        for part in parts:
            inside = part.is_relative_to(path.parent)
            found[str(part.relative_to(path.parent) if inside else part)] = sha256(part)
    return found


def grid_of(pipeline: HybridPipeline, places: int) -> Grid:
    """A pairing's token grid: its own, or a square one.

    Raises:
        ValueError: it has another number of places.
    """
    side = round(places**0.5)
    grid = pipeline.grid or Grid(side, side)
    if grid.places != places:
        raise ValueError(f"{places} tokens do not fill a {grid} grid; set the pair's grid")
    return grid


class Artist:
    """Draws with a pairing and reads features off the pictures.

    Args:
        pipeline: the pairing.
        weights: sha256 of its files, see ``pair_weights``.
        network: makes the features.
        cache: folder of the batch files.
        told: called with (what, done, total) after each batch.

    Raises:
        ValueError: an AR model with codes of its own, which figures would take for the masked model's.
    """

    def __init__(
        self,
        pipeline: HybridPipeline,
        weights: dict[str, str],
        network: Features,
        cache: Path,
        *,
        told: Told = lambda what, done, total: None,
    ) -> None:
        alignment = pipeline.sampler.alignment
        if pipeline.ar_tokenizer is not None and (alignment is None or alignment.kind != "identity"):
            raise ValueError(
                f"{pipeline.name}: its AR model has codes of its own (ar_tokenizer), which figures cannot compare; "
                "draw with hybrid-bench sample and score with hybrid-bench fid"
            )
        self.pipeline, self.network, self.cache, self.told = pipeline, network, cache, told
        self._weights = tuple(sorted(weights.items()))

    def settings(self, method: Method) -> dict[str, Any]:
        """What a method's pictures depend on beside weights, prompts and seeds, for the file of figures."""
        computed = {"dtype": self.pipeline.types.name, "compile": self.pipeline.compiled}
        return {**method.identity(), **computed, "defaults": self.pipeline.defaults.model_dump()}

    def draw(self, method: Way, prompts: Sequence[str | int], seed: int) -> Drawn:
        """One picture of each prompt, picture i with seed + i, in batches."""
        parts, inputs = [], self._inputs(method)
        step = min(BATCH, CPU_BATCH) if self.pipeline.device.type == "cpu" else BATCH
        for start in range(0, len(prompts), step):
            asked = list(prompts[start : start + step])
            path = self.cache / f"drawn-{digest(*inputs, asked, seed + start)}.npy"
            tokens = cached(path, lambda asked=asked, first=seed + start: self._tokens(method, asked, first))  # type: ignore[misc]
            parts.append(self._with_features(path, tokens))
            self.told(method.name, min(start + step, len(prompts)), len(prompts))
        return self._joined(parts)

    def _inputs(self, method: Way) -> tuple[Any, ...]:
        """What pictures depend on beside prompts and seeds, whatever the method is called."""
        given = method.request().items()
        request = {name: float(value) if name in FLOATS else value for name, value in given if value is not None}
        if (fraction := ALONE.get(str(request.get("method")))) is not None:
            request |= {"method": "hybrid", "ar_fraction": fraction}
        computed, defaults = self._computed, self.pipeline.defaults.model_dump()
        if request.get("ar_fraction") == 1:  # no masked phase, whose defaults mean nothing then
            defaults = {name: defaults[name] for name in ("ar", "tile")}
        return self._weights, sorted(request.items()), computed, sorted(defaults.items())

    @property
    def _computed(self) -> tuple[str, bool, str]:
        """What rounding depends on."""
        pipeline = self.pipeline
        return pipeline.types.name, pipeline.compiled, pipeline.device.type

    def reconstruct(self, images: NDArray[np.uint8]) -> Drawn:
        """Real pictures, uint8 (n, h, w, 1 or 3), through the tokenizer and back."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = np.ascontiguousarray(images[start : start + BATCH])
            named = digest(self._weights, self._computed, batch.shape, batch.tobytes())
            path = self.cache / f"reconstruction-{named}.npy"
            tokens = cached(path, lambda batch=batch: self._encode(batch))  # type: ignore[misc]
            parts.append(self._with_features(path, tokens))
            self.told("reconstruction", min(start + BATCH, len(images)), len(images))
        return self._joined(parts)

    @torch.inference_mode()
    def pictures(self, drawn: Drawn) -> NDArray[np.uint8]:
        """Drawn pictures as 8-bit pixels (n, h, w, 3), as they would be saved."""
        return self._decode(drawn.tokens_nk, drawn.grid)

    def _tokens(self, method: Way, prompts: list[str | int], seed: int) -> NDArray[np.uint16]:
        drawn = self.pipeline(prompts, **method.request(), seed=seed, output_type="tokens")
        return drawn.tokens.cpu().numpy().astype(np.uint16)

    @torch.inference_mode()
    def _encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        pixels = to_images(images).to(self.pipeline.device, self.pipeline.dtype)
        return self.pipeline.tokenizer.encode(pixels).cpu().numpy().astype(np.uint16)

    def _with_features(self, path: Path, tokens_nk: NDArray[np.uint16]) -> Drawn:
        grid = self.grid_of(tokens_nk.shape[1])
        beside = path.with_name(f"{path.stem}-{self.network.sha256[:8]}.npy")
        return Drawn(tokens_nk, cached(beside, lambda: self.network(self._decode(tokens_nk, grid))), grid)

    def grid_of(self, places: int) -> Grid:
        """See ``grid_of``."""
        return grid_of(self.pipeline, places)

    @torch.inference_mode()
    def _decode(self, tokens_nk: NDArray[np.uint16], grid: Grid) -> NDArray[np.uint8]:
        device, parts = self.pipeline.device, []
        for start in range(0, len(tokens_nk), BATCH):
            tokens = torch.from_numpy(tokens_nk[start : start + BATCH].astype(np.int64)).to(device)
            images = self.pipeline.tokenizer.decode(tokens, grid).float()
            parts.append(((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(parts).numpy()

    @staticmethod
    def _joined(parts: list[Drawn]) -> Drawn:
        tokens = np.concatenate([part.tokens_nk for part in parts])
        return Drawn(tokens, np.concatenate([part.features_nd for part in parts]), parts[0].grid)
