"""A local-window parallel decoder for AR models, after ZipAR (He et al., arXiv 2412.04062).

In raster order a token waits for the whole row above it. Pictures are local, so here it waits only until that row is
``window`` columns ahead: rows are written side by side, one token of each in one pass. Token (row i, column j) is drawn
in pass i · window + j, and h rows of w take (h - 1) · window + w passes instead of h · w.

This changes the distribution: a token does not see what the rows above it lack. Where a row begins before the one above
has ended, the last token of that row, from which the model would go on, is not known; the last one that is stands in
for it in that one pass, and is seen by no other token. With a window as wide as the grid nothing changes. This file
knows protocols and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hybrid.phases import Callback, Sampling, Step, guide_places, place_scales, report
from hybrid.types import MASK, ARModel, Condition, Grid


@dataclass(frozen=True)
class ZipAR:
    """How rows are written side by side.

    Attributes:
        window: columns by which a row is ahead of the next; None is a quarter of the grid's width.

    Raises:
        ValueError: a window below 1.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window {self.window}: must be at least 1 column")

    def columns(self, grid: Grid) -> int:
        """The window on a grid.

        Raises:
            ValueError: wider than the grid.
        """
        if self.window is None:
            return max(1, grid.width // 4)
        if self.window > grid.width:
            raise ValueError(f"window {self.window}: a {grid} grid has {grid.width} columns; use at most as many")
        return self.window

    def lossy(self, grid: Grid) -> str | None:
        """What a result says of the approximation; None where there is none."""
        window = self.columns(grid)
        if window == grid.width:
            return None
        return f"the AR model's rows are written side by side, each {window} of {grid.width} columns ahead of the next"


@runtime_checkable
class ScatteredModel(Protocol):
    """What an ``ARModel`` has beside ``decode`` where tokens may be fed in any order."""

    def decode_at(self, tokens_bw: Tensor, places: Sequence[int], known_n: Tensor, state: Any) -> Tensor:
        """Feed tokens at these places of every image. Returns logits_bwk of the place after each.

        A token sees itself and those at and before its place where ``known_n`` is True: all that were fed, these
        included. A place may be fed again, with another token.
        """
        ...


def wavefront(grid: Grid, window: int, length: int) -> list[list[int]]:
    """The places that each pass draws, of the first ``length`` in raster order; from the top row down."""
    passes: list[list[int]] = []
    for place in range(length):
        row, column = divmod(place, grid.width)
        number = row * window + column
        passes.extend([] for _ in range(len(passes), number + 1))
        passes[number].append(place)
    return passes


def require_scattered(model: object) -> None:
    """Raise ValueError where a model takes tokens in raster order only."""
    if not isinstance(model, ScatteredModel):
        name = type(model).__name__
        raise ValueError(f"method zipar: a {name} takes tokens in raster order only; use method ar or jacobi")


def zipar_prefix(
    model: ARModel,
    condition: Condition,
    null: Condition,
    length: int,
    uniforms_bn: Tensor,
    sampling: Sampling,
    zipar: ZipAR,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Write the first ``length`` tokens, rows side by side. Arguments and results are those of ``phases.ar_prefix``.

    Raises:
        ValueError: a model that takes tokens in raster order only; a window that does not fit the grid.
    """
    require_scattered(model)
    grid, batch, device = condition.grid, len(condition), uniforms_bn.device
    width, window = grid.width, zipar.columns(grid)
    tokens_bn = torch.full((batch, grid.places), MASK, dtype=torch.long, device=device)
    if length == 0:
        return tokens_bn, 0
    scales_n = place_scales(sampling, grid).to(device)
    guided = bool((scales_n[:length] != 1).any())
    scattered: Any = model
    logits_bk, state = model.prefill(condition.cat(null) if guided else condition, length)
    logits_bwk, fed = logits_bk[:, None], [-1]
    known_n = torch.zeros(length, dtype=torch.bool, device=device)
    passes = wavefront(grid, window, length)
    done = 0
    for number, drawn in enumerate(passes):
        if number:
            # What was drawn last goes on; a row that begins here goes on from the row above, as far as that is.
            fed = [place for place in passes[number - 1] if place + 1 < length]
            known_n[fed] = True
            tokens_bw = tokens_bn[:, fed]
            starting = [place for place in drawn if place % width == 0 and place - 1 not in fed]
            if starting:
                stand_in_bw = tokens_bn[:, [place - width + window - 1 for place in starting]]
                fed, tokens_bw = fed + [place - 1 for place in starting], torch.cat((tokens_bw, stand_in_bw), dim=1)
            logits_bwk = scattered.decode_at(tokens_bw.repeat(2 if guided else 1, 1), fed, known_n, state)
        asked_bmk = logits_bwk[:, [fed.index(place - 1) for place in drawn]]
        guided_bmk = guide_places(asked_bmk, scales_n[drawn].expand(batch, -1), sampling.guidance.floor)
        tokens_bn[:, drawn], _ = sampling.tokens(guided_bmk, uniforms_bn[:, drawn])
        ended = sum((place + 1) % width == 0 or place + 1 == length for place in drawn)
        done += ended
        if ended:
            report(callback, Step("prefix", done, -(-length // width), tokens_bn.clone(), grid))
    return tokens_bn, len(passes)
