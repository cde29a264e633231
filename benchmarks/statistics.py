"""Statistics that compare drawn pictures with real ones. Pure functions of feature arrays and seeds.

Shapes: n, m pictures; d features; ``x_nd`` drawn pictures, ``y_md`` real ones. Arrays are numpy; sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
COMPONENTS = 64
BLOCKS = 20


@dataclass(frozen=True)
class Estimate:
    """A figure with what resampling says of it.

    Attributes:
        value: the figure.
        interval: two-sided 95 % interval.
        lower: one-sided lower 95 % bound.
        upper: one-sided upper 95 % bound.
    """

    value: float
    interval: tuple[float, float]
    lower: float
    upper: float

    def told(self) -> dict[str, Any]:
        """Value and interval, as reports write them."""
        return {"value": self.value, "interval": list(self.interval)}


def estimate(value: float, draws: Array) -> Estimate:
    """An estimate from its value and its bootstrap draws: percentile interval (Efron and Tibshirani 1993, 13.3)."""
    low, lower, upper, high = np.quantile(draws, (0.025, 0.05, 0.95, 0.975)).tolist()
    return Estimate(float(value), (low, high), lower, upper)


# Fréchet distance


@dataclass(frozen=True)
class Components:
    """Principal components of real features; features are projected, not whitened."""

    mean_d: Array
    axes_dk: Array

    def __call__(self, x_nd: Array) -> Array:
        """Features (n, d) on the components (n, k)."""
        return (np.asarray(x_nd, dtype=np.float64) - self.mean_d) @ self.axes_dk


def fit_components(y_md: Array, count: int = COMPONENTS) -> Components:
    """The first ``count`` principal components of real features.

    Raises:
        ValueError: too few pictures for that many components.
    """
    real = np.asarray(y_md, dtype=np.float64)
    if not 0 < count < len(real) or count > real.shape[1]:
        raise ValueError(f"{count} components need more than {count} pictures and features, got {real.shape}")
    mean = real.mean(0)
    _, axes = np.linalg.eigh(np.cov(real - mean, rowvar=False))
    return Components(mean, axes[:, ::-1][:, :count])


def frechet_distance(x_nd: Array, y_md: Array) -> float:
    """Fréchet distance between Gaussians of two feature sets (Dowson and Landau 1982; Heusel et al., arXiv 1706.08500).

    |μx − μy|² + tr(Σx + Σy − 2 (Σx^½ Σy Σx^½)^½), with unbiased covariances.
    """
    return gaussian_distance(*_moments(x_nd), *_moments(y_md))


def gaussian_distance(mean_x: Array, cov_x: Array, mean_y: Array, cov_y: Array) -> float:
    """The same from means (d) and covariances (d, d)."""
    values, axes = np.linalg.eigh(cov_x)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    # Rounding may leave eigenvalues of order −1e-17 where the covariance is singular; their roots are zero.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    return float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def _moments(x_nd: Array) -> tuple[Array, Array]:
    x = np.asarray(x_nd, dtype=np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_draws(x_nd: Array, y_md: Array, *, seed: int, draws: int = 200) -> Array:
    """Bootstrap draws of the Fréchet distance, moved so that their mean is the distance itself.

    Resampled sets hold duplicates, which raises the distance; the shift takes that bias out again. The same seed and
    sizes give the same resamples, so draws of two methods over the same prompts are paired.
    """
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        x, y = x_nd[rng.integers(len(x_nd), size=len(x_nd))], y_md[rng.integers(len(y_md), size=len(y_md))]
        found[draw] = frechet_distance(x, y)
    return found - found.mean() + frechet_distance(x_nd, y_md)


# Kernel distance


def kid(x_nd: Array, y_md: Array) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)³ (Bińkowski et al., arXiv 1801.01401).

    It may be negative; its expectation is zero where both sets come from one distribution.
    """
    x, y = np.asarray(x_nd, dtype=np.float64), np.asarray(y_md, dtype=np.float64)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"KID needs at least 2 pictures of each kind, got {n} and {m}")

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def kid_blocks(x_nd: Array, y_md: Array, *, seed: int, blocks: int = BLOCKS) -> Array:
    """KID of ``blocks`` disjoint random blocks; the same seed and sizes give the same blocks, hence pairs."""
    if min(len(x_nd), len(y_md)) < 2 * blocks:
        raise ValueError(f"{blocks} KID blocks need {2 * blocks} pictures of each kind, got {len(x_nd)}, {len(y_md)}")
    rng = np.random.default_rng(seed)
    parts = [np.array_split(rng.permutation(len(side)), blocks) for side in (x_nd, y_md)]
    return np.asarray([kid(x_nd[x], y_md[y]) for x, y in zip(*parts, strict=True)])


def kid_estimate(blocks_b: Array, *, seed: int, draws: int = 2000) -> Estimate:
    """Mean of block KIDs (itself unbiased) with its bootstrap interval over blocks."""
    rng = np.random.default_rng(seed)
    resampled = blocks_b[rng.integers(len(blocks_b), size=(draws, len(blocks_b)))].mean(1)
    return estimate(float(blocks_b.mean()), resampled)


# Precision and recall


def precision_recall(x_nd: Array, y_md: Array, *, neighbours: int = 3) -> tuple[float, float]:
    """Share of drawn pictures inside the real manifold, and the reverse (Kynkäänniemi et al., arXiv 1904.06991).

    A picture is inside a set's manifold if it is within the distance of any member to its k-th nearest fellow.
    """
    for name, side in (("drawn", x_nd), ("real", y_md)):
        if len(side) <= neighbours:
            raise ValueError(f"precision and recall with {neighbours} neighbours: only {len(side)} {name} pictures")
    x, y = np.asarray(x_nd, dtype=np.float64), np.asarray(y_md, dtype=np.float64)
    return _inside(x, y, neighbours), _inside(y, x, neighbours)


def _inside(x_nd: Array, y_md: Array, neighbours: int) -> float:
    # Position 0 of the sorted distances is the picture itself.
    radius_m = np.concatenate(
        [np.partition(part, neighbours, axis=1)[:, neighbours] for part in _squared_distances(y_md, y_md)]
    )
    hits = [(part <= radius_m).any(1) for part in _squared_distances(x_nd, y_md)]
    return float(np.concatenate(hits).mean())


def _squared_distances(x_nd: Array, y_md: Array, chunk: int = 1024) -> Iterator[Array]:
    norms = (y_md**2).sum(1)
    for start in range(0, len(x_nd), chunk):
        part = x_nd[start : start + chunk]
        yield np.maximum((part**2).sum(1)[:, None] + norms - 2 * part @ y_md.T, 0)


# Shares of paired scores


def share_draws(scores_g: Array, reference_g: Array, *, seed: int, size: int | None = None, draws: int = 2000) -> Array:
    """Bootstrap draws of mean(scores) / mean(reference), both resampled by the same names (or pictures).

    Args:
        scores_g: a score of each name.
        reference_g: the reference's score of the same name.
        seed: of the resamples.
        size: names in a resample; None is all. A smaller one tells what as few names would have shown.
        draws: number of resamples.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(scores_g), size=(draws, size or len(scores_g)))
    below = np.asarray(reference_g, dtype=np.float64)[chosen].mean(1)
    # A resample whose reference never hits has no share; it counts as zero, the cautious side of a lower bound.
    return np.divide(
        np.asarray(scores_g, dtype=np.float64)[chosen].mean(1), below, out=np.zeros(draws), where=below > 0
    )


def share(scores_g: Array, reference_g: Array, *, seed: int, size: int | None = None, draws: int = 2000) -> Estimate:
    """mean(scores) / mean(reference) with its paired bootstrap; see ``share_draws``.

    Raises:
        ValueError: lists of different lengths, or a reference that is zero everywhere.
    """
    scores, reference = np.asarray(scores_g, dtype=np.float64), np.asarray(reference_g, dtype=np.float64)
    if scores.shape != reference.shape:
        raise ValueError(f"a paired share needs equally many scores, got {scores.shape} and {reference.shape}")
    if not reference.mean():
        raise ValueError("share: the reference scores zero everywhere, so there is nothing to take a share of")
    return estimate(scores.mean() / reference.mean(), share_draws(scores, reference, seed=seed, size=size, draws=draws))
