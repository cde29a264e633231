"""How LlamaGen's transformer and its relatives are configured: fields, released sizes, and what a state dict tells.

MaskGIL, ARPG, RandAR and the unified network share it; none of them is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from hybrid.types import Grid

from .llama import ffn_width
from .loading import shape_of


class TransformerConfig(BaseModel):
    """Fields that LlamaGen and MaskGIL share, by their original names.

    ``qk_norm``, ``post_norm`` and ``condition_rope`` are ours; their defaults are the released behaviour. Dropout
    fields matter only in training, and ``class_dropout_prob`` only to the trainer, which has its own setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: Literal["c2i", "t2i"] = "c2i"
    dim: int = Field(default=768, gt=0)
    n_layer: int = Field(default=12, gt=0)
    n_head: int = Field(default=12, gt=0)
    multiple_of: int = Field(default=256, gt=0)
    ffn_hidden: int | None = Field(default=None, gt=0)
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    vocab_size: int = Field(default=16384, gt=0)
    block_size: int = Field(default=256, gt=0)
    num_classes: int = Field(default=1000, gt=0)
    cls_token_num: int = Field(default=1, gt=0)
    caption_dim: int = Field(default=2048, gt=0)
    qk_norm: bool = False
    post_norm: bool = False
    condition_rope: Literal["zero", "keep"] = "zero"
    resid_dropout_p: float = 0.0
    class_dropout_prob: float = 0.1

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerConfig:
        if self.dim % (4 * self.n_head):
            raise ValueError(f"dim {self.dim}: must be a multiple of 4 for each of n_head {self.n_head}")
        return self

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden or ffn_width(self.dim, self.multiple_of)

    @property
    def grid(self) -> Grid | None:
        """The checkpoint's own square grid, None where ``block_size`` is no square."""
        side = isqrt(self.block_size)
        return Grid(side, side) if side * side == self.block_size else None


WIDTHS = {
    "B": {"dim": 768, "n_layer": 12, "n_head": 12},
    "L": {"dim": 1024, "n_layer": 24, "n_head": 16},
    "XL": {"dim": 1280, "n_layer": 36, "n_head": 20},
    "XXL": {"dim": 1536, "n_layer": 48, "n_head": 24},
    "3B": {"dim": 3200, "n_layer": 24, "n_head": 32},
}
_TEXT = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 2048}
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"c2i-{size}-256": {**fields, "block_size": 256} for size, fields in WIDTHS.items()},
    **{f"c2i-{size}-384": {**fields, "block_size": 576} for size, fields in WIDTHS.items()},
    **WIDTHS,
    "t2i-XL-256": {**WIDTHS["XL"], **_TEXT, "block_size": 256},
    "t2i-XL-512": {**WIDTHS["XL"], **_TEXT, "block_size": 1024},
}


def arguments(config: TransformerConfig) -> dict[str, Any]:
    """What a network of the family is built with: ``LlamaGen``'s arguments, which its relatives share."""
    text = config.model_type == "t2i"
    return {
        "dim": config.dim,
        "layers": config.n_layer,
        "heads": config.n_head,
        "hidden": config.hidden,
        "codes": config.vocab_size,
        "grid": config.grid,
        "classes": None if text else config.num_classes,
        "text_tokens": config.cls_token_num,
        "text_width": config.caption_dim,
        "qk_norm": config.qk_norm,
        "post_norm": config.post_norm,
        "keep_condition_rope": config.condition_rope == "keep",
        "rope_base": config.rope_base,
        "eps": config.norm_eps,
        "dropout": config.resid_dropout_p,
    }


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields that a state dict's shapes tell; heads are assumed 64 wide (100 in the 3B model).

    Raises:
        ValueError: a weight that tells one of them is missing, or the width is no multiple of 64.
    """
    codes, dim = shape_of(state, "tok_embeddings.weight", source)
    fields = infer_blocks(state, dim, codes, source)
    fields["qk_norm"] = "layers.0.attention.q_norm.weight" in state
    if text := infer_text(state):
        return fields | text
    return fields | {"num_classes": shape_of(state, "cls_embedding.embedding_table.weight", source)[0] - 1}


def infer_blocks(state: Mapping[str, Tensor], dim: int, codes: int, source: str) -> dict[str, Any]:
    """What every relative's state dict tells of its blocks, beside the sizes that its embedding tells.

    Raises:
        ValueError: a weight that tells a field is missing, or the width is no multiple of 64.
    """
    return {
        "dim": dim,
        "vocab_size": codes,
        "n_layer": count_layers(state),
        "n_head": infer_heads(dim, source),
        "ffn_hidden": shape_of(state, "layers.0.feed_forward.w1.weight", source)[0],
    }


def infer_text(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a text model's caption embedding; none of a class model."""
    if "cls_embedding.uncond_embedding" not in state:
        return {}
    tokens, width = state["cls_embedding.uncond_embedding"].shape
    return {"model_type": "t2i", "cls_token_num": tokens, "caption_dim": width}


def count_layers(state: Mapping[str, Tensor]) -> int:
    """Number of blocks in a state dict."""
    return 1 + max((int(key.split(".")[1]) for key in state if key.startswith("layers.")), default=-1)


def infer_heads(dim: int, source: str) -> int:
    """Number of heads of the released sizes.

    Raises:
        ValueError: a width that none of them has.
    """
    if dim == 3200:
        return 32
    if dim % 64:
        raise ValueError(f"{source}: the number of heads cannot be told from width {dim}; pass its whole config")
    return dim // 64
