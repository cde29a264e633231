"""Fidelity of one point, as raw figures: what the report's numbers are computed from.

The whole picture is one region; where the AR model wrote the first rows and the masked model the rest, each of these is
a region too. A region's features are those of the picture whose other rows are painted mid-grey (the network's zero),
the same in real pictures; its token figures count its places. A row that both wrote belongs to neither in pixels.

The AR model's own pictures of the same prompts and seeds stand beside every region, and the agreement of two of its
seeds beside every agreement with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.types import Grid

from .artist import BATCH, Artist, Drawn, Way
from .best_ar import frechet_of
from .features import cached, digest
from .figures import Reference
from .scenes import Scene, real_of
from .statistics import frechet_distance, frechet_draws, kid_blocks, precision_recall

SEED_STRIDE = 10_000_000
"""Replicate r draws picture i with seed r · SEED_STRIDE + i."""

WHOLE, AR_PART, MASKED_PART = "all", "ar", "masked"
GREY = 127
AGREEMENT_PICTURES = 128
"""Of the AR model's second seed, whose agreement with the first is all that it is drawn for."""


@dataclass(frozen=True)
class Region:
    """Places of the token grid.

    Attributes:
        name: ``all``, ``ar`` or ``masked``.
        first, last: places from first up to last.
        rows: rows of tokens that are wholly inside, from the first up to the last.
    """

    name: str
    first: int
    last: int
    rows: tuple[int, int]


def regions(ar_tokens: int, grid: Grid) -> list[Region]:
    """The whole grid and, where both models wrote, the part of each."""
    found = [Region(WHOLE, 0, grid.places, (0, grid.height))]
    if 0 < ar_tokens < grid.places:
        found.append(Region(AR_PART, 0, ar_tokens, (0, ar_tokens // grid.width)))
        found.append(Region(MASKED_PART, ar_tokens, grid.places, (-(-ar_tokens // grid.width), grid.height)))
    return [region for region in found if region.rows[0] < region.rows[1]]


def only_rows(images: NDArray[np.uint8], region: Region, grid: Grid) -> NDArray[np.uint8]:
    """Pictures (n, h, w, c) whose other rows are mid-grey."""
    factor = images.shape[1] // grid.height
    kept = np.full_like(images, GREY)
    rows = slice(region.rows[0] * factor, region.rows[1] * factor)
    kept[:, rows] = images[:, rows]
    return kept


class Fidelity:
    """Measures points against real pictures and against the AR model.

    Args:
        scene: prompts and real pictures.
        seeds: replicates.
        reference: draws the AR model's pictures.
        baseline: the AR model's point.
    """

    def __init__(self, scene: Scene, seeds: list[int], reference: Artist, baseline: Way) -> None:
        self.scene, self.seeds, self.reference, self.baseline = scene, seeds, reference, baseline
        self._real: dict[tuple[int, int], Reference] = {}

    def measure(self, artist: Artist, point: Way, ar_tokens: int) -> dict[str, Any]:
        """Raw figures of a point.

        Args:
            artist: draws it.
            point: the way to draw.
            ar_tokens: places that the AR model writes.
        """
        own, ar = self._draw(artist, point, self.seeds), self._draw(self.reference, self.baseline, self.seeds)
        few = self.scene.prompts[:AGREEMENT_PICTURES]
        other = self.reference.draw(self.baseline, few, (max(self.seeds) + 1) * SEED_STRIDE)
        same = ar.take(slice(len(few)))
        judge = Judge(self.reference, [*self.scene.prompts] * len(self.seeds))
        pixels = {name: artist.pictures(drawn) for name, drawn in (("own", own), ("ar", ar), ("other", other))}
        found: dict[str, Any] = {"pictures": len(own), "grid": [own.grid.height, own.grid.width], "regions": {}}
        if self.scene.score is not None:
            found["score"] = _short(self.scene.score(pixels["own"], own.features_nd))
            found["ar_score"] = _short(self.scene.score(pixels["ar"], ar.features_nd))
        likelihood = {"own": judge(own.tokens_nk), "ar": judge(ar.tokens_nk)}
        for region in regions(ar_tokens, own.grid):
            real = self._real_reference(region, own.grid)
            parts = {
                "own": self._features(artist, own, pixels["own"], region),
                "ar": self._features(self.reference, ar, pixels["ar"], region),
                "other": self._features(self.reference, other, pixels["other"], region),
            }
            where = slice(region.first, region.last)
            found["regions"][region.name] = {
                "places": region.last - region.first,
                "rows": list(region.rows),
                "own": against_real(parts["own"], real),
                "ar": against_real(parts["ar"], real),
                "log_likelihood": None if likelihood["own"] is None else _short(likelihood["own"][:, where].mean(1)),
                "ar_log_likelihood": None if likelihood["ar"] is None else _short(likelihood["ar"][:, where].mean(1)),
                "agreement": agreement(own, ar, parts["own"], parts["ar"], pixels["own"], pixels["ar"], region),
                "ar_agreement": agreement(
                    other,
                    same,
                    parts["other"],
                    parts["ar"][: len(few)],
                    pixels["other"],
                    pixels["ar"][: len(few)],
                    region,
                ),
            }
        return found

    def floors(self, artist: Artist) -> dict[str, Any]:
        """Real pictures, and real pictures through the tokenizer, against real pictures."""
        network = artist.network
        folder, places = self.scene.folder, self.scene.places[: len(self.scene.prompts)]
        if not len(self.scene.floor):  # no other pictures: their reconstructions lack what sampling adds to a distance
            rebuilt = artist.reconstruct(np.asarray(folder.images[places, 0]))
            return {"reconstruction of the same pictures": against_real(rebuilt.features_nd, self.real)}
        rebuilt = artist.reconstruct(np.asarray(folder.images[self.scene.floor, 0]))
        return {
            "reconstruction": against_real(rebuilt.features_nd, self.real),
            "real": against_real(real_of(self.scene, self.scene.floor, network), self.real),
        }

    def chosen_by(self, artist: Artist, point: Way, pictures: int) -> dict[str, Any]:
        """What the baseline's setting is chosen by, the Fréchet distance of the first few pictures; and their score."""
        prompts, seed = self.scene.prompts[:pictures], self.seeds[0] * SEED_STRIDE
        found = frechet_of(artist, point, prompts, seed, self.real) | {"score": None}
        if self.scene.score is not None:
            drawn = artist.draw(point, prompts, seed)
            found["score"] = float(self.scene.score(artist.pictures(drawn), drawn.features_nd).mean())
        return found

    def draw(self, artist: Artist, point: Way) -> Drawn:
        """The pictures that a point is measured by."""
        return self._draw(artist, point, self.seeds)

    def _draw(self, artist: Artist, point: Way, seeds: list[int]) -> Drawn:
        parts = [artist.draw(point, self.scene.prompts, seed * SEED_STRIDE) for seed in seeds]
        tokens = np.concatenate([part.tokens_nk for part in parts])
        return Drawn(tokens, np.concatenate([part.features_nd for part in parts]), parts[0].grid)

    def _features(self, artist: Artist, drawn: Drawn, images: NDArray[np.uint8], region: Region) -> NDArray[np.float16]:
        if region.name == WHOLE:
            return drawn.features_nd
        parts = []
        for start in range(0, len(images), BATCH):
            batch = only_rows(images[start : start + BATCH], region, drawn.grid)
            parts.append(self._kept(artist, batch))
            artist.told(f"{region.name} part", min(start + BATCH, len(images)), len(images))
        return np.concatenate(parts)

    @cached_property
    def real(self) -> Reference:
        """The real pictures, whole."""
        return Reference(real_of(self.scene, self.scene.places, self.reference.network), 0)

    def _real_reference(self, region: Region, grid: Grid) -> Reference:
        if region.name == WHOLE:
            return self.real
        if region.rows not in self._real:
            scene, artist = self.scene, self.reference
            images = np.asarray(scene.folder.images[scene.places, 0])
            blocks = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
            features = np.concatenate([self._kept(artist, only_rows(block, region, grid)) for block in blocks])
            self._real[region.rows] = Reference(features, 0)
        return self._real[region.rows]

    @staticmethod
    def _kept(artist: Artist, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        name = digest(images.shape, images.tobytes())
        return cached(artist.cache / f"rows-{name}-{artist.network.sha256[:8]}.npy", lambda: artist.network(images))


class Judge:
    """Log-likelihood of tokens by the AR model, in nats a token: its own condition, no guidance, temperature 1."""

    def __init__(self, artist: Artist, prompts: list[str | int]) -> None:
        self.artist, self.prompts = artist, prompts

    @torch.inference_mode()
    def __call__(self, tokens_nk: NDArray[np.uint16]) -> NDArray[np.float64] | None:
        """Log-probability of each token (n, places) given those before it; None where the codebooks differ."""
        pipeline = self.artist.pipeline
        alignment = pipeline.sampler.alignment
        if pipeline.ar is None or (alignment is not None and alignment.kind != "identity"):
            return None
        parts = []
        for rows in _batches(len(tokens_nk)):
            tokens = torch.from_numpy(tokens_nk[rows].astype(np.int64)).to(pipeline.device)
            asked = pipeline.ar.condition(pipeline.encode(self.prompts[rows]), self.artist.grid_of(tokens.shape[1]))
            log_p = pipeline.ar.score(tokens, asked).float().log_softmax(-1)
            parts.append(log_p.gather(-1, tokens[..., None])[..., 0].double().cpu().numpy())
            self.artist.told("log-likelihood", rows.stop, len(tokens_nk))
        return np.concatenate(parts)


def against_real(features_nd: NDArray[np.float16], real: Reference) -> dict[str, Any]:
    """Fréchet distance and its draws, KID's blocks, precision and recall."""
    features = features_nd.astype(np.float32)
    projected = real.components(features)
    precision, recall = precision_recall(projected, real.projected_mk)
    return {
        "frechet": frechet_distance(projected, real.projected_mk),
        "frechet_components": projected.shape[1],
        "frechet_draws": _short(frechet_draws(projected, real.projected_mk, seed=real.seed)),
        "kid_blocks": _short(kid_blocks(features, real.features_md, seed=real.seed)),
        "precision": precision,
        "recall": recall,
    }


def agreement(
    one: Drawn,
    other: Drawn,
    one_nd: NDArray[np.float16],
    other_nd: NDArray[np.float16],
    one_pixels: NDArray[np.uint8],
    other_pixels: NDArray[np.uint8],
    region: Region,
) -> dict[str, list[float]]:
    """Picture by picture: the share of equal tokens, the squared error of pixels in [0, 1], the feature distance."""
    places = slice(region.first, region.last)
    factor = one_pixels.shape[1] // one.grid.height
    rows = slice(region.rows[0] * factor, region.rows[1] * factor)
    error = (one_pixels[:, rows].astype(np.float64) - other_pixels[:, rows]) / 255
    apart = one_nd.astype(np.float64) - other_nd
    return {
        "tokens": _short((one.tokens_nk[:, places] == other.tokens_nk[:, places]).mean(1)),
        "squared_error": _short(np.square(error).mean((1, 2, 3))),
        "feature_distance": _short(np.sqrt(np.square(apart).sum(1))),
    }


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def _short(values: NDArray[Any]) -> list[float]:
    """Six significant digits, so that raw rows stay small."""
    return [float(f"{value:.6g}") for value in values.tolist()]
