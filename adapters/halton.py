"""Halton-MaskGIT (Besnier et al., arXiv 2503.17076): a class-conditional masked transformer on LlamaGen's VQ-16 codes.

The blocks are DiT's with AdaLN-zero: each shifts, scales and gates by the class. A sequence is [image tokens, register
tokens], positions are a learned table, so that a checkpoint knows its own square grid only. The output is tied to the
token table and has K + 1 columns; the mask's is dropped here, so that it can never be drawn.

In the core's dialect the original's guidance weight w is a scale of 1 + w, and its temperature, which multiplies, is
the reciprocal. Its order and counts are ``order: halton`` and ``schedule: halton``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hybrid.types import MASK, Grid, Prompts

from .conditions import ClassCondition, class_condition
from .llama import FeedForward, RMSNorm, at_places, spread_codes
from .loading import load_network, resolve, shape_of

EPS = 1e-5
LAYERS = "transformer.layers."


class HaltonConfig(BaseModel):
    """Fields of the original's ``Transformer``, by their names there; ``proj`` 2 halves the grid inside.

    ``register`` needs an alias, since pydantic's own classes have an attribute of that name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    input_size: int = Field(default=16, gt=0)
    hidden_dim: int = Field(default=768, gt=0)
    codebook_size: int = Field(default=16384, gt=0)
    depth: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    mlp_dim: int = Field(default=3072, gt=0)
    nclass: int = Field(default=1000, gt=0)
    register_: int = Field(default=1, ge=0, alias="register")
    proj: Literal[1, 2] = 1

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer: two thirds of ``mlp_dim``, rounded up to a multiple of 256."""
        return -(-int(2 * self.mlp_dim / 3) // 256) * 256


_WIDTHS = {
    "tiny": (384, 6, 6),
    "small": (512, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xlarge": (1152, 28, 16),
}
_HEADS = {dim: heads for dim, _, heads in _WIDTHS.values()}
CONFIGS: dict[str, dict[str, Any]] = {
    f"{size}-{pixels}": {
        "input_size": pixels // 16,
        "hidden_dim": dim,
        "codebook_size": 16384,
        "depth": depth,
        "heads": heads,
        "mlp_dim": 4 * dim,
        "nclass": 1000,
        "register": 1,
        "proj": 1,
    }
    for pixels in (256, 384)
    for size, (dim, depth, heads) in _WIDTHS.items()
}


def rms(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).type_as(x)


def modulation(inputs: int, outputs: int) -> nn.Sequential:
    """The layer that turns the class into shifts, scales and gates."""
    return nn.Sequential(nn.SiLU(), nn.Linear(inputs, outputs))


class Attention(nn.Module):
    """Attention whose queries and keys are RMS-normalised over all heads together, without parameters."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (dim // heads)  # 510 of 512 in the small model
        self.wq = nn.Linear(dim, inner, bias=False)
        self.wk = nn.Linear(dim, inner, bias=False)
        self.wv = nn.Linear(dim, inner, bias=False)
        self.wo = nn.Linear(inner, dim, bias=False)

    def forward(self, x_bnd: Tensor) -> Tensor:
        queries_keys_values = (rms(self.wq(x_bnd)), rms(self.wk(x_bnd)), self.wv(x_bnd))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in queries_keys_values)
        return self.wo(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and SwiGLU, each shifted and scaled before and gated after by the class (DiT's AdaLN-zero)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.mlp = modulation(dim, 6 * dim)
        self.ln1 = RMSNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.ln2 = RMSNorm(dim, EPS)
        self.ff = FeedForward(dim, hidden)

    def forward(self, x_bnd: Tensor, asked_bd: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mlp(asked_bd)[:, None].chunk(6, dim=-1)
        x_bnd = x_bnd + gate1 * self.attn(self.ln1(x_bnd) * (1 + scale1) + shift1)
        return x_bnd + gate2 * self.ff(self.ln2(x_bnd) * (1 + scale2) + shift2)


class Stack(nn.Module):
    """The blocks, under the original's key names."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))

    def forward(self, x_bnd: Tensor, asked_bd: Tensor) -> Tensor:
        for layer in self.layers:
            x_bnd = layer(x_bnd, asked_bd)
        return x_bnd


class BiasedRMSNorm(RMSNorm):
    """RMSNorm with a bias."""

    def __init__(self, dim: int, eps: float = EPS) -> None:
        super().__init__(dim, eps)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class FinalNorm(nn.Module):
    """The norm before the output, shifted and scaled by the class."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = BiasedRMSNorm(dim)
        self.mlp = modulation(dim, 2 * dim)

    def forward(self, x_bnd: Tensor, asked_bd: Tensor) -> Tensor:
        shift, scale = self.mlp(asked_bd)[:, None].chunk(2, dim=-1)
        return self.norm_final(x_bnd) * (1 + scale) + shift


class HaltonMaskGIT(nn.Module):
    """The masked model. Implements ``hybrid.types.MaskedModel``.

    Attributes:
        codebook_size: number of image codes.
        grid: the only grid that its positions know.
        classes: number of classes; the null class comes after them.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        codes: int,
        side: int,
        classes: int,
        registers: int = 1,
        downsample: bool = False,
    ) -> None:
        super().__init__()
        if dim < heads:
            raise ValueError(f"hidden_dim {dim} is narrower than {heads} heads")
        if downsample and side % 2:
            raise ValueError(f"proj 2 halves the grid, and input_size {side} is odd")
        self.codebook_size, self.grid, self.classes = codes, Grid(side, side), classes
        self.registers, self.downsample = registers, downsample
        self.cls_emb = nn.Embedding(classes + 1, dim)
        self.tok_emb = nn.Embedding(codes + 1, dim)
        self.pos_emb = nn.Embedding(side * side, dim)
        if downsample:
            self.in_proj = nn.Conv2d(dim, dim, kernel_size=2, stride=2, bias=False)
            self.out_proj = nn.Conv2d(dim, 4 * dim, kernel_size=1, bias=False)
        self.transformer = Stack(depth, dim, heads, hidden)
        self.last_norm = FinalNorm(dim)
        self.head = nn.Linear(dim, codes + 1)
        self.head.weight = self.tok_emb.weight
        if registers:
            self.reg_tokens = nn.Embedding(registers, dim)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.tok_emb.weight.device

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.transformer.layers

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> ClassCondition:
        """Class labels as a condition; see ``conditions.class_condition``.

        Raises:
            ValueError: prompts that are no labels of the model, or a grid that its positions do not know.
        """
        if grid is not None and grid != self.grid:
            raise ValueError(f"grid {grid}: Halton-MaskGIT has learned positions and knows only {self.grid}")
        return class_condition(prompts, self.classes, self.grid, self.device)

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the real codes at all places (b, n, k), or at ``places_bm`` (b, m, k). Tokens may hold MASK.

        Raises:
            ValueError: the tokens do not fill the grid.
        """
        places = tokens_bn.shape[1]
        if places != self.grid.places:
            raise ValueError(f"{places} tokens do not fill the condition's {self.grid} grid")
        asked_bd = self.cls_emb(condition.labels_b)
        x_bnd = self.tok_emb(torch.where(tokens_bn == MASK, self.codebook_size, tokens_bn)) + self.pos_emb.weight
        if self.downsample:
            x_bdhw = x_bnd.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width))
            x_bnd = self.in_proj(x_bdhw).flatten(2).transpose(1, 2)
        inner = x_bnd.shape[1]
        if self.registers:
            x_bnd = torch.cat((x_bnd, self.reg_tokens.weight.expand(len(x_bnd), -1, -1)), dim=1)
        x_bnd = self.transformer(x_bnd, asked_bd)[:, :inner]
        if self.downsample:
            x_bdhw = x_bnd.transpose(1, 2).unflatten(2, (self.grid.height // 2, self.grid.width // 2))
            x_bnd = F.pixel_shuffle(self.out_proj(x_bdhw), 2).flatten(2).transpose(1, 2)
        return self.head(self.last_norm(at_places(x_bnd, places_bm), asked_bd))[..., : self.codebook_size].float()

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """``logits`` at all places, under the name that training wrappers call."""
        return self.logits(tokens_bn, condition)

    @torch.no_grad()
    def start_from_codebook(self, codebook_kd: Tensor) -> None:
        """Before training: embed codes so that near code vectors start near each other."""
        spread_codes(self.tok_emb.weight, codebook_kd)


def build(config: HaltonConfig) -> HaltonMaskGIT:
    """The model of a configuration, with uninitialised weights."""
    return HaltonMaskGIT(
        dim=config.hidden_dim,
        depth=config.depth,
        heads=config.heads,
        hidden=config.hidden,
        codes=config.codebook_size,
        side=config.input_size,
        classes=config.nclass,
        registers=config.register_,
        downsample=config.proj == 2,
    )


def create(config: str | Mapping[str, Any]) -> tuple[HaltonMaskGIT, dict[str, Any]]:
    """A freshly initialised model for training, and its configuration in full.

    As the original starts: linear layers Xavier-uniform, embeddings normal of deviation 0.02, the blocks' modulation
    zero, so that each block is the identity at first (AdaLN-zero).
    """
    fields = resolve(config, CONFIGS, {}, "halton", HaltonConfig)
    model = build(fields)
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)) and part is not model.head:
            nn.init.xavier_uniform_(part.weight)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
    for block in model.layers:
        nn.init.zeros_(block.get_parameter("mlp.1.weight"))
    return model, fields.model_dump(by_alias=True)


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields that a state dict's shapes tell; the number of heads is that of the released width.

    Raises:
        ValueError: a weight that tells one of them is missing, a table of positions that is no square, or a width that
            no released size has.
    """
    rows, dim = shape_of(state, "tok_emb.weight", source)
    places = shape_of(state, "pos_emb.weight", source)[0]
    hidden = shape_of(state, f"{LAYERS}0.ff.w1.weight", source)[0]
    if isqrt(places) ** 2 != places:
        raise ValueError(f"{source}: pos_emb.weight has {places} rows, which is no square grid")
    if dim not in _HEADS:
        raise ValueError(f"{source}: the number of heads cannot be told from width {dim}; pass its whole config")
    # Several mlp_dim round to one width; the original's is four times its own width.
    plain = HaltonConfig(hidden_dim=dim, mlp_dim=4 * dim)
    return {
        "input_size": isqrt(places),
        "hidden_dim": dim,
        "codebook_size": rows - 1,
        "depth": 1 + max(int(key.split(".")[2]) for key in state if key.startswith(LAYERS)),
        "heads": _HEADS[dim],
        "mlp_dim": plain.mlp_dim if plain.hidden == hidden else 3 * hidden // 2,
        "nclass": shape_of(state, "cls_emb.weight", source)[0] - 1,
        "register": len(state["reg_tokens.weight"]) if "reg_tokens.weight" in state else 0,
        "proj": 2 if "in_proj.weight" in state else 1,
    }


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> HaltonMaskGIT:
    """See ``hybrid.adapters.load``."""
    model = load_network(
        "halton",
        weights,
        config,
        sizes=CONFIGS,
        fields=HaltonConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
    if model.device.type != "meta" and torch.equal(model.head.weight, model.tok_emb.weight):
        model.head.weight = model.tok_emb.weight
    return model
