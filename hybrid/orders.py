"""Which places of a token grid come next.

Pure functions of tensors: this file knows no model. A priority says how early each place is revealed
(higher is earlier); ``reveal`` picks places by it. Noise comes from uniforms that the caller drew.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hybrid.schedules import progress_of
from hybrid.types import Grid

ORDERS: tuple[str, ...] = ("confidence", "spread", "halton", "random", "raster")
"""Names of the orders."""

NOISY = ("confidence", "spread")
"""Orders by the likelihood of what was drawn, which noise loosens."""

LASTING = ("spread", "random")
"""Orders whose uniforms are the same ones in every pass of a picture."""


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(u)) of any shape from uniforms in [0, 1]; finite at both ends."""
    limits = torch.finfo(uniforms.dtype)
    return -torch.log(-torch.log(uniforms.clamp(limits.tiny, 1 - limits.eps / 2)))


def halton_order(height: int, width: int) -> Tensor:
    """The raster places (n,) of a grid in the order in which Halton-MaskGIT reveals them.

    Points of the Halton sequence, base 2 for the row and base 3 for the column, are drawn until every cell of the grid
    holds one; a cell's turn is that of its first point (the released sampler of Halton-MaskGIT).

    Raises:
        ValueError: a side shorter than 1.
    """
    grid = Grid(height, width)
    return torch.from_numpy(_halton_places(grid.height, grid.width).copy())


def spread_uniforms(uniforms_bn: Tensor, grid: Grid) -> Tensor:
    """Uniforms (b, n) that are great at places far apart: the Halton order, moved around the grid's edges by as many
    rows and columns as the first and the last of ``uniforms_bn`` say.

    The place whose turn is r of n, from 0, has 1 - (r + 1/2) / n.
    """
    device = uniforms_bn.device
    down_b1, right_b1 = (uniforms_bn[:, :1] * grid.height).long(), (uniforms_bn[:, -1:] * grid.width).long()
    rows_bh = (torch.arange(grid.height, device=device) - down_b1) % grid.height
    columns_bw = (torch.arange(grid.width, device=device) - right_b1) % grid.width
    rank_hw = _halton_ranks(grid).to(device).view(grid.height, grid.width)
    rank_bn = rank_hw[rows_bh[:, :, None], columns_bw[:, None, :]].flatten(1)
    return 1 - (rank_bn.to(uniforms_bn.dtype) + 0.5) / grid.places


def priority(
    order: str,
    *,
    grid: Grid,
    confidence_bn: Tensor | None = None,
    uniforms_bn: Tensor | None = None,
    noise: float = 0.0,
    left: float = 1.0,
) -> Tensor:
    """How early each place is revealed, higher first: (1, n) for halton and raster, (b, n) for the others.

    Args:
        order: ``confidence`` is the log-probability of the token drawn at a place plus Gumbel noise that fades,
            noise * left * gumbel(u) (MaskGIT, and MaskGIL's released code); ``spread`` is the same with the
            uniforms of ``spread_uniforms``, so that the tokens of the first passes, which know nothing of each other,
            lie far apart; ``random`` is the uniforms themselves; ``halton`` and ``raster`` are minus the rank.
        grid: the token grid, n places.
        confidence_bn: log-probabilities, for ``confidence`` and ``spread``.
        uniforms_bn: uniforms in [0, 1], for ``random``, and for ``confidence`` and ``spread`` while there is noise;
            for ``LASTING`` orders the same ones in every pass.
        noise: scale of the Gumbel noise, at least 0.
        left: how much of the noise the pass has, see ``noise_left``.

    Raises:
        ValueError: an unknown order, a missing tensor or one of another shape, a negative noise.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r}: unknown; choose one of {', '.join(ORDERS)}")
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise {noise:g}: must be 0 (none) or above")
    if order in NOISY:
        confidence_bn = _checked("confidence_bn", confidence_bn, order, grid)
        if noise == 0:
            return confidence_bn
        uniforms_bn = _checked("uniforms_bn", uniforms_bn, f"{order} with noise", grid)
        if order == "spread":
            uniforms_bn = spread_uniforms(uniforms_bn, grid)
        return confidence_bn + noise * left * gumbel(uniforms_bn).to(confidence_bn.device)
    if order == "random":
        return _checked("uniforms_bn", uniforms_bn, order, grid)
    rank_n = _halton_ranks(grid) if order == "halton" else torch.arange(grid.places)
    given = confidence_bn if confidence_bn is not None else uniforms_bn
    return -rank_n[None].float().to(given.device if given is not None else rank_n.device)


def noise_left(order: str, step: int, steps: int) -> float:
    """How much of an order's noise pass ``step`` (from 0) of ``steps`` has.

    ``confidence``: 1 at the first pass, falling evenly to 0 at the last one; a single pass has 1. ``spread``: the
    number of passes that follow. Each pass that chooses by confidence takes some variety away, so more passes need
    looser choices (chosen with networks of ``fashion``, whose card has the table).

    Args:
        order: one of ORDERS.
        step, steps: the pass, and how many there are.

    Raises:
        ValueError: ``step`` outside 0..steps - 1.
    """
    progress = progress_of(step, steps)
    return steps - 1 - step if order == "spread" else 1 - progress


def reveal(priority_bn: Tensor, masked_bn: Tensor, counts_b: Tensor | int) -> Tensor:
    """Which places to reveal: in each row the ``counts_b`` masked places of highest priority; bool (b, n).

    Equal priorities go to the lowest place. A row's choice does not depend on the other rows.

    Args:
        priority_bn: (b, n), or (1, n) for all rows alike.
        masked_bn: bool (b, n), True where no code is written yet.
        counts_b: places to reveal, one number for all rows or (b,).

    Raises:
        ValueError: a priority of another shape or holding NaN, a negative count, a row with fewer masked places than
            its count.
    """
    if priority_bn.shape[-1:] != masked_bn.shape[-1:] or priority_bn.shape[0] not in (1, masked_bn.shape[0]):
        raise ValueError(f"priority {tuple(priority_bn.shape)}: does not fit the places {tuple(masked_bn.shape)}")
    if torch.isnan(priority_bn).any():
        raise ValueError("priority: holds NaN; the model's logits are broken")
    masked_bn = masked_bn.bool()
    priority_bn = priority_bn.to(masked_bn.device).expand_as(masked_bn)
    counts_b = torch.as_tensor(counts_b, device=masked_bn.device).expand(masked_bn.shape[0])
    available_b = masked_bn.sum(1)
    wrong_b = (counts_b < 0) | (counts_b > available_b)
    if wrong_b.any():
        row = int(wrong_b.nonzero()[0, 0])
        count, available = int(counts_b[row]), int(available_b[row])
        raise ValueError(f"row {row}: asked to reveal {count} places, {available} are masked; ask for 0 to {available}")
    sorted_bn = torch.argsort(priority_bn, dim=1, descending=True, stable=True)
    masked_sorted_bn = masked_bn.gather(1, sorted_bn)
    # Counting only masked places keeps a masked place of priority -inf ahead of one that is already known.
    chosen_sorted_bn = masked_sorted_bn & (masked_sorted_bn.cumsum(1) <= counts_b[:, None])
    return torch.zeros_like(masked_bn).scatter_(1, sorted_bn, chosen_sorted_bn)


def _checked(name: str, values_bn: Tensor | None, order: str, grid: Grid) -> Tensor:
    if values_bn is None:
        raise ValueError(f"order {order}: needs {name}")
    if values_bn.ndim != 2 or values_bn.shape[1] != grid.places:
        raise ValueError(f"{name}: expected (b, {grid.places}) for grid {grid}, got {tuple(values_bn.shape)}")
    return values_bn


@lru_cache(maxsize=16)
def _halton_ranks(grid: Grid) -> Tensor:
    """The turn of each place (n,) in the Halton order, from 0; shared, not to be written."""
    return halton_order(grid.height, grid.width).argsort()


@lru_cache(maxsize=16)
def _halton_places(height: int, width: int) -> np.ndarray:
    """Places in order of their first Halton point; whole-number arithmetic, so no cell is missed by rounding."""
    points = 4 * height * width
    while True:
        index = np.arange(1, points + 1)
        cells = _halton_cells(index, 2, height) * width + _halton_cells(index, 3, width)
        places, first = np.unique(cells, return_index=True)
        if len(places) == height * width:
            return places[np.argsort(first)]
        points *= 2


def _halton_cells(index: np.ndarray, base: int, size: int) -> np.ndarray:
    """floor(size * x), where x is the index with its digits mirrored behind the point."""
    mirrored, scale = np.zeros_like(index), 1
    rest = index.copy()
    while rest.any():
        rest, digit = np.divmod(rest, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * size // scale
