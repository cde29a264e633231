"""What RandAR and ARPG share: decoders trained to write an image in any order, asked here as masked models.

Both learn p(next token | the tokens so far) with the tokens in a random order and the next token's place told. A grid
with unknown places is therefore a prefix of known tokens, and every unknown place is one query that sees this prefix
and no other query: exactly what was trained, in one forward pass. A causal model's answer depends a little on the
order of its prefix; the Halton order is used here, which scatters over the grid as the random orders of training do.

Both published families have LlamaGen's fields and its rotary table, whose row of the class token is zero. This file
knows orders, masks and these fields. It knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hybrid.orders import halton_order
from hybrid.types import MASK, Grid

from .llama import ffn_width, grid_rope


class AnyOrderConfig(BaseModel):
    """The fields of RandAR and ARPG that shape the network, by their original names.

    ``ffn_hidden`` is ours: the feed-forward layer's width where it is not what ``multiple_of`` gives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=1024, gt=0)
    n_layer: int = Field(default=24, gt=0)
    n_head: int = Field(default=16, gt=0)
    multiple_of: int = Field(default=256, gt=0)
    ffn_hidden: int | None = Field(default=None, gt=0)
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    vocab_size: int = Field(default=16384, gt=0)
    block_size: int = Field(default=256, gt=0)
    num_classes: int = Field(default=1000, gt=0)

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden or ffn_width(self.dim, self.multiple_of)

    def network(self) -> dict[str, Any]:
        """The arguments of either network.

        Raises:
            ValueError: a grid that is no square, or heads whose width the 2-D rotary table cannot halve twice.
        """
        side = isqrt(self.block_size)
        if side * side != self.block_size:
            raise ValueError(f"block_size {self.block_size} is no square grid")
        if self.dim % (4 * self.n_head):
            raise ValueError(f"dim {self.dim} does not give {self.n_head} heads a width that is a multiple of 4")
        return {
            "dim": self.dim,
            "layers": self.n_layer,
            "heads": self.n_head,
            "hidden": self.hidden,
            "codes": self.vocab_size,
            "grid": Grid(side, side),
            "classes": self.num_classes,
            "rope_base": self.rope_base,
            "eps": self.norm_eps,
        }


def own_grid(grid: Grid | None, own: Grid, model: str) -> Grid:
    """The model's own grid.

    Raises:
        ValueError: another one is asked for.
    """
    if grid is not None and grid != own:
        raise ValueError(f"grid {grid}: {model} was trained on {own} only")
    return own


@dataclass(frozen=True)
class Known:
    """The known tokens of each row in Halton order.

    Attributes:
        places_bk: their places; rows with fewer than the longest end in unknown places.
        tokens_bk: their codes, 0 in that padding.
        counts_b: how many there are.
    """

    places_bk: Tensor
    tokens_bk: Tensor
    counts_b: Tensor


def known_tokens(tokens_bn: Tensor, grid: Grid) -> Known:
    """What is known of tokens that may hold MASK.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    if tokens_bn.shape[1] != grid.places:
        raise ValueError(f"{tokens_bn.shape[1]} tokens do not fill the condition's {grid} grid")
    order_n = halton_order(grid.height, grid.width).to(tokens_bn.device)
    known_bn = tokens_bn[:, order_n] != MASK
    counts_b = known_bn.sum(1)
    # Shapes without values (``hybrid.memory``) stand for the most that can be known.
    most = tokens_bn.shape[1] if tokens_bn.is_meta else int(counts_b.max())
    ranks_bk = known_bn.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    places_bk = order_n[ranks_bk]
    tokens_bk = tokens_bn.gather(1, places_bk)
    return Known(places_bk, torch.where(tokens_bk == MASK, 0, tokens_bk), counts_b)


def asked_places(tokens_bn: Tensor, places_bm: Tensor | None) -> Tensor:
    """The places whose logits are asked for; None means all."""
    if places_bm is not None:
        return places_bm
    return torch.arange(tokens_bn.shape[1], device=tokens_bn.device).expand(len(tokens_bn), -1)


def opened(
    tokens_bn: Tensor, places_bm: Tensor | None, grid: Grid, head_dim: int, rope_base: float
) -> tuple[Known, Tensor, Tensor]:
    """What a pass begins with: the known tokens, the places that are asked for, and the rotary table with the class
    token's row in front.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    table = grid_rope(grid, 1, head_dim, keep_condition=False, base=rope_base, device=tokens_bn.device)
    return known_tokens(tokens_bn, grid), asked_places(tokens_bn, places_bm), table


def prefix_and_queries_mask(prefix: int, queries: int, visible_b: Tensor) -> Tensor:
    """Attention (b, 1, l, l) of l = ``prefix`` tokens and ``queries``; True where a row may look at a column.

    The prefix is causal. A query looks at the first ``visible_b`` tokens of the prefix and at itself.
    """
    index_l = torch.arange(prefix + queries, device=visible_b.device)
    row, column = index_l[:, None], index_l[None, :]
    causal = (column <= row) & (row < prefix)
    sees = (column < visible_b[:, None, None]) & (row >= prefix)
    return (causal | sees | (row == column))[:, None]
