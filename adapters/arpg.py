"""ARPG (Li et al., arXiv 2503.10568) as a masked model: known tokens guide queries for any other places.

Half of its layers are a causal decoder over [class, known tokens]; one projection of its output gives the keys and
values of all the other layers, in which every query, the mask's embedding turned by the rotary row of its target place,
looks at them and at no other query. Released class-conditional at 256² on LlamaGen's VQ-16 codes.

One embedding table holds codes 0..K−1, the mask K, the classes, the null class and a last row that sampling never uses.

Two things differ from the original's loop. Known tokens stand in Halton order under the causal mask of training, where
there the tokens of one pass see each other both ways (with one place a pass, in that order, the loops agree token for
token). And no cache is kept between passes, so each one runs the first half over all known tokens anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.types import Grid, Prompts

from .any_order import AnyOrderConfig, opened, own_grid
from .conditions import ClassCondition, class_condition
from .llama import FeedForward, RMSNorm, rotate
from .loading import load_network, shape_of
from .transformer_config import WIDTHS, infer_heads

CONFIGS: dict[str, dict[str, Any]] = {size: dict(WIDTHS[size]) for size in ("L", "XL", "XXL")}
SPECIAL = 3
"""Rows of the embedding table beside codes and classes: mask, null class, dropped token."""


class Attention(nn.Module):
    """Attention of x to itself, or, without projections of its own for them, to given keys and values."""

    def __init__(self, dim: int, heads: int, *, own_keys: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        if own_keys:
            self.to_k = nn.Linear(dim, dim, bias=False)
            self.to_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x_bnd: Tensor, rope: Tensor, keys_values: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        query = rotate(self.to_q(x_bnd).unflatten(-1, (self.heads, -1)), rope).transpose(1, 2)
        if keys_values is None:
            keys_values = project(x_bnd, self.to_k, self.to_v, self.heads, rope)
        out = F.scaled_dot_product_attention(query, *keys_values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


def project(x_bnd: Tensor, to_k: nn.Module, to_v: nn.Module, heads: int, rope: Tensor) -> tuple[Tensor, Tensor]:
    """Keys, turned by the table, and values, both (b, heads, n, head_dim)."""
    key, value = (part(x_bnd).unflatten(-1, (heads, -1)) for part in (to_k, to_v))
    return rotate(key, rope).transpose(1, 2), value.transpose(1, 2)


class Block(nn.Module):
    """Attention and SwiGLU, each normalised before it (LLaMA)."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float, *, own_keys: bool) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, own_keys=own_keys)
        self.ffn = FeedForward(dim, hidden)
        self.attn_norm = RMSNorm(dim, eps)
        self.ffn_norm = RMSNorm(dim, eps)

    def forward(self, x_bnd: Tensor, rope: Tensor, keys_values: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        x_bnd = x_bnd + self.attn(self.attn_norm(x_bnd), rope, keys_values, mask)
        return x_bnd + self.ffn(self.ffn_norm(x_bnd))


class TwoDecoders(nn.Module):
    """The decoder over known tokens and the one over queries, under the original's key names; iterates all blocks."""

    def __init__(self, layers: int, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_dec = nn.ModuleList(Block(dim, heads, hidden, eps, own_keys=True) for _ in range(layers // 2))
        self.cross_dec = nn.ModuleList(Block(dim, heads, hidden, eps, own_keys=False) for _ in range(layers // 2))
        self.norm = RMSNorm(dim, eps)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self.self_dec
        yield from self.cross_dec

    def forward(
        self, prefix_bld: Tensor, prefix_rope: Tensor, queries_bmd: Tensor, query_rope: Tensor, visible_b: Tensor
    ) -> Tensor:
        """Queries after both decoders; each row's queries see the first ``visible_b`` tokens of its prefix."""
        index_l = torch.arange(prefix_bld.shape[1], device=visible_b.device)
        for block in self.self_dec:
            prefix_bld = block(prefix_bld, prefix_rope, None, index_l <= index_l[:, None])
        keys_values = project(self.norm(prefix_bld), self.to_k, self.to_v, self.heads, prefix_rope)
        for block in self.cross_dec:
            queries_bmd = block(queries_bmd, query_rope, keys_values, (index_l < visible_b[:, None])[:, None, None])
        return queries_bmd


class ARPG(nn.Module):
    """The masked model. Implements ``hybrid.types.MaskedModel``.

    Attributes:
        codebook_size: number of image codes.
        grid: the grid that it was trained on.
        classes: number of classes; the null class comes after them.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        codes: int,
        grid: Grid,
        classes: int,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.codebook_size, self.grid, self.classes = codes, grid, classes
        self.head_dim, self.rope_base = dim // heads, rope_base
        self.embeddings = nn.Embedding(codes + classes + SPECIAL, dim)
        self.layers = TwoDecoders(layers, dim, heads, hidden, eps)
        self.norm = RMSNorm(dim, eps)
        self.head = nn.Linear(dim, codes, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> ClassCondition:
        """Class labels as a condition; see ``conditions.class_condition``.

        Raises:
            ValueError: prompts that are no labels of the model, or a grid that it was not trained on.
        """
        return class_condition(prompts, self.classes, own_grid(grid, self.grid, "ARPG"), self.device)

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the codes at all places (b, n, k), or at ``places_bm`` (b, m, k). Tokens may hold MASK.

        An unknown place gets p(token | every known token, class). A known place is answered too, but with its own
        token in sight, which is no use.

        Raises:
            ValueError: the tokens do not fill the grid.
        """
        known, places_bm, table = opened(tokens_bn, places_bm, condition.grid, self.head_dim, self.rope_base)
        class_bn = condition.labels_b[:, None] + self.codebook_size + 1
        prefix_bld = self.embeddings(torch.cat((class_bn, known.tokens_bk), dim=1))
        prefix_rope = torch.cat((table[:1].expand(len(tokens_bn), -1, -1, -1), table[1 + known.places_bk]), dim=1)
        queries_bmd = self.embeddings.weight[self.codebook_size].expand(*places_bm.shape, -1)
        x_bmd = self.layers(prefix_bld, prefix_rope, queries_bmd, table[1 + places_bm], 1 + known.counts_b)
        return self.head(self.norm(x_bmd)).float()


def build(config: AnyOrderConfig) -> ARPG:
    """The model of a configuration, with uninitialised weights."""
    if config.n_layer % 2:
        raise ValueError(f"n_layer {config.n_layer}: half of ARPG's layers go to each decoder; use an even number")
    return ARPG(**config.network())


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields that a state dict's shapes tell; heads are assumed 64 wide and the grid 16×16.

    Raises:
        ValueError: a weight that tells one of them is missing, or the width is no multiple of 64.
    """
    codes, dim = shape_of(state, "head.weight", source)
    blocks = {key.split(".")[2] for key in state if key.startswith("layers.self_dec.")}
    return {
        "dim": dim,
        "vocab_size": codes,
        "n_layer": 2 * len(blocks),
        "n_head": infer_heads(dim, source),
        "ffn_hidden": shape_of(state, "layers.self_dec.0.ffn.w1.weight", source)[0],
        "num_classes": shape_of(state, "embeddings.weight", source)[0] - codes - SPECIAL,
    }


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> ARPG:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "arpg",
        weights,
        config,
        sizes=CONFIGS,
        fields=AnyOrderConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
