"""Carrying a prefix into another tokenizer's codes through pixels: decode its rows, encode them anew.

The lossy way for two models whose tokenizers share nothing. A VQ encoder sees the whole picture, so only whole rows can
be carried over, as a picture of their own; what lies below them is unknown to both encoders. This file knows
tokenizers and grids and no model.
"""

from __future__ import annotations

from math import lcm

import torch
from torch import Tensor

from hybrid.types import MASK, Grid, ImageTokenizer


def same_picture(grid: Grid, factor: int, other: int) -> Grid:
    """The grid that a tokenizer of ``other`` pixels per token has where one of ``factor`` pixels has ``grid``.

    Raises:
        ValueError: the picture's sides are no multiples of ``other``.
    """
    height, width = grid.height * factor, grid.width * factor
    if height % other or width % other:
        raise ValueError(
            f"a picture of {width}x{height} pixels is no whole number of the AR model's tokens of {other} pixels; "
            "choose a size that is a multiple of both models' tokens"
        )
    return Grid(height // other, width // other)


def whole_rows(length: int, grid: Grid, factor: int, other: int) -> int:
    """The prefix length nearest to ``length`` whose rows are whole rows of both tokenizers.

    Args:
        length: tokens in ``grid``.
        grid: of the AR model.
        factor: its pixels per token.
        other: the masked model's.
    """
    step = lcm(factor, other) // factor
    rows = round(length / grid.width / step) * step
    return min(rows, grid.height // step * step) * grid.width


def carry_over(
    tokens_bn: Tensor,
    length: int,
    *,
    source: ImageTokenizer,
    source_grid: Grid,
    target: ImageTokenizer,
    target_grid: Grid,
) -> Tensor:
    """Tokens of the target, (b, target_grid.places), for the first ``length`` tokens of the source; MASK after them.

    Args:
        tokens_bn: the source's tokens, of which the first ``length`` are written: whole rows, see ``whole_rows``.
        length: how many; 0 leaves every place to be drawn.
        source, source_grid: the AR model's tokenizer and grid.
        target, target_grid: the masked model's.
    """
    carried_bn = torch.full((len(tokens_bn), target_grid.places), MASK, dtype=torch.long, device=tokens_bn.device)
    if length:
        rows = Grid(length // source_grid.width, source_grid.width)
        found_bm = target.encode(source.decode(tokens_bn[:, :length], rows).clamp(-1, 1))
        carried_bn[:, : found_bm.shape[1]] = found_bm
    return carried_bn
