"""Decoding a large picture in tiles, so that memory follows the tile and not the picture. Off unless asked for.

Neighbouring tiles share some rows or columns of tokens. The outer quarter of what is shared is context only; in the
half between, one tile fades into the next. A decoder that is convolutional all through, and sees no further than that
quarter, gives the whole picture's pixels exactly. Those of the VQ family are not: their norms and their attention look
at everything they are given, so that a tile's colours may shift. ``hybrid.benchmarks.tiling`` measures by how much.
This file knows the tokenizer's protocol and no network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid.types import Grid, ImageTokenizer

LEAST = 8
"""Tokens along a side of the smallest tile."""


def decode(tokenizer: ImageTokenizer, tokens_bn: Tensor, grid: Grid, *, tile: int | None = None) -> Tensor:
    """Tokens to images_bchw, whole or in tiles.

    Args:
        tokenizer: decodes; with a tile, its ``factor`` is the pixels of a token along a side.
        tokens_bn: codes.
        grid: of the whole picture.
        tile: side of a tile in pixels, at least ``LEAST`` tokens; None decodes the picture whole. A quarter of it is
            shared with the next tile.

    Raises:
        ValueError: a tile that is too small or no whole number of tokens; tokens that the tokenizer refuses.
    """
    if tile is None:
        return tokenizer.decode(tokens_bn, grid)
    factor = check_tile(tokenizer, tile)
    tile //= factor
    if tile >= grid.height and tile >= grid.width:
        return tokenizer.decode(tokens_bn, grid)
    shared = tile // 4
    tokens_bhw = tokens_bn.unflatten(1, (grid.height, grid.width))
    images: Tensor | None = None
    for top, bottom in spans(grid.height, tile, shared):
        for left, right in spans(grid.width, tile, shared):
            part = Grid(bottom - top, right - left)
            pixels = tokenizer.decode(tokens_bhw[:, top:bottom, left:right].flatten(1), part).float()
            if images is None:
                images = pixels.new_zeros(*pixels.shape[:2], grid.height * factor, grid.width * factor)
            down = fade(top, bottom, grid.height, tile, shared, factor, device=pixels.device)
            across = fade(left, right, grid.width, tile, shared, factor, device=pixels.device)
            where = images[..., top * factor : bottom * factor, left * factor : right * factor]
            where += pixels * down[:, None] * across
    assert images is not None  # a grid has at least one tile
    return images


def check_tile(tokenizer: ImageTokenizer, tile: int) -> int:
    """The tokenizer's pixels for each token along a side.

    Raises:
        ValueError: a tile that is too small or no whole number of tokens.
    """
    factor: int = tokenizer.factor  # type: ignore[attr-defined]
    if tile % factor or tile < LEAST * factor:
        raise ValueError(f"tile {tile}: must be a multiple of {factor} pixels, from {LEAST * factor}")
    return factor


def spans(length: int, tile: int, shared: int) -> list[tuple[int, int]]:
    """First and past-the-last token of each tile along a side, as few as share at least ``shared`` with the next, and
    spread evenly: spans(20, 8, 2) is (0, 8), (6, 14), (12, 20)."""
    if length <= tile:
        return [(0, length)]
    gaps = -(-(length - tile) // (tile - shared))
    starts = [round(place * (length - tile) / gaps) for place in range(gaps + 1)]
    return [(start, start + tile) for start in starts]


def fade(
    start: int, end: int, length: int, tile: int, shared: int, factor: int, *, device: torch.device | None = None
) -> Tensor:
    """Weights of a tile's pixels along a side; those of all tiles sum to 1 at every pixel of the picture."""
    own = spans(length, tile, shared)
    place = own.index((start, end))
    pixel = torch.arange(start * factor, end * factor, device=device) + 0.5
    weights = torch.ones_like(pixel)
    if place:
        weights = weights * _rise(pixel, start * factor, own[place - 1][1] * factor)
    if place + 1 < len(own):
        weights = weights * (1 - _rise(pixel, own[place + 1][0] * factor, end * factor))
    return weights


def _rise(pixel: Tensor, start: int, end: int) -> Tensor:
    """From 0 to 1 across the middle half of what two tiles share."""
    quarter = (end - start) / 4
    return ((pixel - start - quarter) / (2 * quarter)).clamp(0, 1)
