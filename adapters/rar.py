"""RAR (Yu et al., arXiv 2411.00776): a class-conditional autoregressive transformer on MaskGIT-VQ's 1024 codes.

A sequence is [cls token, class, image tokens in raster order]. A token's input is its embedding plus a learned one of
its own position and a learned one of the place that it predicts (target-aware: what lets training permute the order;
the released models end in raster order and sample in it). The blocks are DiT's, shifted, scaled and gated by the class
plus a learned embedding of the position. Positions are learned, so that a checkpoint knows its own square grid only.

One embedding table holds codes 0..K−1, the mask K (training only), the classes and the null class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hybrid.types import Grid, Prompts

from .any_order import own_grid
from .conditions import ClassCondition, class_condition
from .halton import modulation
from .llama import KVCache, LayerCache, Window, devices_of, require_fed, window_at
from .loading import load_network, shape_of

EPS = 1e-6
PREFIX = 2
"""Tokens before the image: the cls token and the class."""
SPARE_POSITIONS, SPARE_STEPS = 1024, 100
"""Rows that the tables of positions and of steps have beyond the image's places."""


class RARConfig(BaseModel):
    """Fields of the original's ``model.generator``, by their names there, and ``codebook_size`` of its ``vq_model``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(default=768, gt=0)
    num_hidden_layers: int = Field(default=24, gt=0)
    num_attention_heads: int = Field(default=16, gt=0)
    intermediate_size: int = Field(default=3072, gt=0)
    image_seq_len: int = Field(default=256, gt=0)
    condition_num_classes: int = Field(default=1000, gt=0)
    codebook_size: int = Field(default=1024, gt=0)


CONFIGS: dict[str, dict[str, Any]] = {
    size: {"hidden_size": dim, "num_hidden_layers": layers, "intermediate_size": hidden}
    for size, (dim, layers, hidden) in {
        "B": (768, 24, 3072),
        "L": (1024, 24, 4096),
        "XL": (1280, 32, 5120),
        "XXL": (1408, 40, 6144),
    }.items()
}


class Attention(nn.Module):
    """Multi-head attention whose query and key heads pass a LayerNorm each."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads, eps=EPS)
        self.k_norm = nn.LayerNorm(dim // heads, eps=EPS)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_bld: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        query, key, value = self.qkv(x_bld).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(dim=2)
        query, key = self.q_norm(query), self.k_norm(key)
        if cache is not None:
            key, value = cache.write(key, value)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and feed-forward, each shifted and scaled before and gated after, position by position."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim, hidden)
        self.adaLN_modulation = modulation(dim, 6 * dim)

    def forward(self, x_bld: Tensor, asked_bld: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(asked_bld).chunk(6, dim=-1)
        x_bld = x_bld + gate1 * self.attn(self.norm1(x_bld) * (1 + scale1) + shift1, mask, cache)
        return x_bld + gate2 * self.mlp(self.norm2(x_bld) * (1 + scale2) + shift2)


class FinalNorm(nn.Module):
    """The norm before the output, scaled and shifted like the blocks'."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=EPS, elementwise_affine=False)
        self.adaLN_modulation = modulation(dim, 2 * dim)

    def forward(self, x_bld: Tensor, asked_bld: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(asked_bld).chunk(2, dim=-1)
        return self.norm_final(x_bld) * (1 + scale) + shift


@dataclass
class RARState:
    """The cache of one batch.

    Attributes:
        cache: keys and values of [cls token, class, image tokens].
        class_bd: embedding of each row's class.
        filled_b: image tokens that each row holds, on the CPU.
    """

    cache: KVCache
    class_bd: Tensor
    filled_b: Tensor

    def truncate(self, places_b: Tensor) -> None:
        """Forget everything fed at or after each row's given place."""
        self.filled_b = torch.minimum(self.filled_b, places_b.to(self.filled_b))


class RAR(nn.Module):
    """The AR model. Implements ``hybrid.types.ARModel``.

    Attributes:
        codebook_size: number of image codes.
        grid: the only grid that its positions know.
        classes: number of classes; the null class comes after them.
    """

    config: dict[str, Any]

    def __init__(self, *, dim: int, layers: int, heads: int, hidden: int, codes: int, side: int, classes: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"hidden_size {dim} is not a multiple of num_attention_heads {heads}")
        self.codebook_size, self.grid, self.classes = codes, Grid(side, side), classes
        self.heads, self.head_dim = heads, dim // heads
        places = side * side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.embeddings = nn.Embedding(codes + 1 + classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, places + SPARE_POSITIONS, dim))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, places + SPARE_POSITIONS, dim))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, places + SPARE_STEPS, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.adaln_before_head = FinalNorm(dim)
        self.lm_head = nn.Linear(dim, codes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm_head.weight.device

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> ClassCondition:
        """Class labels as a condition; see ``conditions.class_condition``.

        Raises:
            ValueError: prompts that are no labels of the model, or a grid that its positions do not know.
        """
        return class_condition(prompts, self.classes, own_grid(grid, self.grid, "RAR"), self.device)

    def prefill(self, condition: Any, capacity: int) -> tuple[Tensor, RARState]:
        """Read the class into a cache for ``capacity`` image tokens. Returns logits_bk of place 0 and the cache.

        Raises:
            ValueError: more capacity than the grid has places.
        """
        if capacity > self.grid.places:
            raise ValueError(
                f"a cache for {capacity} image tokens, but a {self.grid} grid has {self.grid.places} places"
            )
        class_bd = self._class(condition)
        batch = len(class_bd)
        cache = KVCache(
            len(self.blocks),
            batch,
            self.heads,
            PREFIX + capacity,
            self.head_dim,
            dtype=class_bd.dtype,
            device=devices_of(self.blocks),
        )
        state = RARState(cache, class_bd, torch.zeros(batch, dtype=torch.long))
        indices_bl = torch.arange(PREFIX, device=class_bd.device).expand(batch, PREFIX)
        x_bld = self._run(self._prefix(class_bd), indices_bl, class_bd, cache, Window(indices_bl, 0, PREFIX))
        return x_bld[:, -1], state

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: RARState) -> Tensor:
        """Feed w tokens standing at each row's place and after it. Returns logits_bwk of the place after each.

        Raises:
            ValueError: a row would skip a place, or the cache is full.
        """
        places = places_b.tolist()
        require_fed(places, state.filled_b)
        return self._decode(tokens_bw, places, state)

    def advance(self, tokens_b: Tensor, state: RARState) -> Tensor:
        """Feed each row its next token. Returns logits_bk of the place after it; waits for no device.

        Raises:
            ValueError: the cache is full.
        """
        return self._decode(tokens_b[:, None], state.filled_b.tolist(), state)[:, -1]

    def _decode(self, tokens_bw: Tensor, places: list[int], state: RARState) -> Tensor:
        width, last = tokens_bw.shape[1], max(places)
        capacity = state.cache.capacity - PREFIX
        if last + width > capacity:
            raise ValueError(f"the cache holds {capacity} image tokens, {last + width} are needed")
        window = window_at(tokens_bw, places, PREFIX)
        logits_bwk = self._run(self.embeddings(tokens_bw), window.indices_bw, state.class_bd, state.cache, window)
        state.filled_b = torch.tensor(places) + width
        return logits_bwk

    def score(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """Teacher-forced logits_bnk of every place, in one parallel pass. Fewer tokens than places are a prefix.

        Raises:
            ValueError: more tokens than the grid has places.
        """
        if tokens_bn.shape[1] > self.grid.places:
            raise ValueError(f"{tokens_bn.shape[1]} tokens are too many for a {self.grid} grid")
        class_bd = self._class(condition)
        x_bld = torch.cat((self._prefix(class_bd), self.embeddings(tokens_bn[:, :-1])), dim=1)
        indices_bl = torch.arange(x_bld.shape[1], device=x_bld.device).expand(len(x_bld), -1)
        return self._run(x_bld, indices_bl, class_bd)[:, PREFIX - 1 :]

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """``score``, under the name that training wrappers call."""
        return self.score(tokens_bn, condition)

    def _class(self, condition: ClassCondition) -> Tensor:
        return self.embeddings(condition.labels_b + self.codebook_size + 1)

    def _prefix(self, class_bd: Tensor) -> Tensor:
        return torch.cat((self.cls_token.expand(len(class_bd), -1, -1), class_bd[:, None]), dim=1)

    def _run(
        self,
        embedded_bld: Tensor,
        indices_bl: Tensor,
        class_bd: Tensor,
        cache: KVCache | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """Logits (b, l, k) behind embeddings that stand at the given indices of the sequence."""
        # Index i ≥ 1 predicts place i − 1, whose own index is i + 1; the cls token, at index 0, predicts nothing.
        target_bld = self.target_aware_pos_embed[0, indices_bl + 1] * (indices_bl > 0)[..., None]
        x_bld = embedded_bld + self.pos_embed[0, indices_bl] + target_bld
        asked_bld = class_bd[:, None] + self.timesteps_embeddings[0, indices_bl]
        end = window.end if window is not None else x_bld.shape[1]
        mask = None
        if x_bld.shape[1] > 1 or (window is not None and window.start is None):
            mask = (torch.arange(end, device=x_bld.device) <= indices_bl[..., None])[:, None]
        for layer, block in enumerate(self.blocks):
            own = cache.layer(layer, window) if cache is not None and window is not None else None
            x_bld = block(x_bld, asked_bld, mask, own)
        return self.lm_head(self.adaln_before_head(x_bld, asked_bld)).float()


def build(config: RARConfig) -> RAR:
    """The model of a configuration, with uninitialised weights.

    Raises:
        ValueError: places that are no square grid, or a width that is no multiple of the heads.
    """
    side = isqrt(config.image_seq_len)
    if side * side != config.image_seq_len:
        raise ValueError(f"image_seq_len {config.image_seq_len} is no square grid")
    return RAR(
        dim=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.intermediate_size,
        codes=config.codebook_size,
        side=side,
        classes=config.condition_num_classes,
    )


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The configuration, which a state dict's shapes tell completely.

    Raises:
        ValueError: a weight that tells one of the fields is missing.
    """
    codes, dim = shape_of(state, "lm_head.weight", source)
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    return {
        "hidden_size": dim,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": dim // shape_of(state, "blocks.0.attn.q_norm.weight", source)[0],
        "intermediate_size": shape_of(state, "blocks.0.mlp.fc1.weight", source)[0],
        "image_seq_len": shape_of(state, "pos_embed", source)[1] - SPARE_POSITIONS,
        "condition_num_classes": shape_of(state, "embeddings.weight", source)[0] - codes - 2,
        "codebook_size": codes,
    }


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> RAR:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "rar",
        weights,
        config,
        sizes=CONFIGS,
        fields=RARConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
