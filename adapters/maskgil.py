"""MaskGIL (arXiv 2507.13032): a bidirectional LLaMA that fills masked places.

Two layouts share this file. *Released* (``rope: 1d``, class-conditional): [image tokens, class token], where row 0 of
the rotary table is zero, so image token 0 has no position, image token i ≥ 1 has position i − 1 and the class token
255. *Paper* (``rope: 2d``): [condition tokens, image tokens] on a 2-D rotary table like LlamaGen's, class- or
text-conditional, any grid, with QK-norm and post-norm as switches; with both off its blocks are LlamaGen's.

One embedding table holds codes 0..K−1, the mask token K and, class-conditional, the classes and the null class after
it. The output has K + 1 columns; the mask's is dropped here, so that it can never be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hybrid.types import MASK, Grid, Prompts, TextEncoder

from .conditions import CaptionEmbedding, ClassCondition, TextCondition, class_condition, text_condition
from .llama import (
    KVCache,
    RMSNorm,
    Window,
    at_places,
    blocks,
    devices_of,
    fuse,
    grid_rope,
    init_weights,
    rope_1d,
    run,
    spread,
    spread_codes,
)
from .loading import load_network, resolve, shape_of
from .transformer_config import WIDTHS, TransformerConfig, arguments, infer_blocks, infer_text


class MaskGILConfig(TransformerConfig):
    """LlamaGen's fields and the kind of rotary table."""

    rope: Literal["1d", "2d"] = "1d"


_SIZES = {size: fields for size, fields in WIDTHS.items() if size != "3B"}
_PAPER = {"rope": "2d", "qk_norm": True, "post_norm": True}
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"c2i-{size}-256": fields for size, fields in _SIZES.items()},
    **_SIZES,
    **{f"paper-c2i-{size}": {**fields, **_PAPER} for size, fields in _SIZES.items()},
    "paper-t2i-XL": {
        **_SIZES["XL"],
        **_PAPER,
        "model_type": "t2i",
        "cls_token_num": 120,
        "caption_dim": 2048,
        "condition_rope": "keep",
    },
}


@dataclass(frozen=True)
class Line:
    """What the blocks read: all tokens of a batch in one line.

    Attributes:
        x_bld: embeddings of the condition's and the image's tokens.
        rope: rotary table of the line.
        mask: False at padded condition tokens, (b, 1, 1, l), or None where nothing is padded.
        start: index of the image's first token.
    """

    x_bld: Tensor
    rope: Tensor
    mask: Tensor | None
    start: int


@dataclass(frozen=True)
class Memory:
    """Keys and values of a line as they were last read."""

    cache: KVCache
    line: Line


class MaskGIL(nn.Module):
    """The masked model. Implements ``hybrid.types.MaskedModel`` and ``hybrid.reuse.RecallingModel``.

    Attributes:
        codebook_size: number of image codes.
        text_encoder: embeds captions that are passed as strings; only embeddings are taken without one.
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
        grid: Grid | None,
        classes: int | None,
        text_tokens: int,
        text_width: int,
        rope: Literal["1d", "2d"],
        qk_norm: bool,
        post_norm: bool,
        keep_condition_rope: bool,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if rope == "1d" and classes is None:
            raise ValueError("the released layout (rope: 1d) is class-conditional; text needs rope: 2d")
        self.codebook_size = codes
        self.grid, self.classes, self.text_tokens, self.text_width = grid, classes, text_tokens, text_width
        self.heads, self.head_dim, self.rope, self.rope_base = heads, dim // heads, rope, rope_base
        self.keep_condition_rope = keep_condition_rope
        self.text_encoder: TextEncoder | None = None
        self.tok_emb = nn.Embedding(codes + 1 + (classes + 1 if classes is not None else 0), dim)
        if classes is None:
            self.cls_embedding = CaptionEmbedding(text_tokens, text_width, dim)
        self.layers = blocks(layers, dim, heads, hidden, qk_norm=qk_norm, post_norm=post_norm, eps=eps, dropout=dropout)
        self.norm = RMSNorm(dim, eps)
        self.output = nn.Linear(dim, codes + 1, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.output.weight.device

    def prepare(self) -> None:
        """Before inference: see ``llama.FeedForward.fuse``."""
        fuse(self.layers)

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> ClassCondition | TextCondition:
        """Labels, captions or (embedding_bsd, mask_bs) as a condition; see ``conditions``.

        Raises:
            ValueError: prompts of another kind or shape than the model's, no grid given and none of its own, or a grid
                that the released layout's 1-D positions do not know.
        """
        grid = grid or self.grid
        if grid is None:
            raise ValueError("this checkpoint has no square grid of its own: pass the grid")
        if self.rope == "1d" and self.grid is not None and grid != self.grid:
            raise ValueError(f"grid {grid}: the released layout has 1-D positions and knows only {self.grid}")
        if self.classes is not None:
            return class_condition(prompts, self.classes, grid, self.device)
        return text_condition(prompts, self.text_encoder, self.text_tokens, self.text_width, grid, self.device)

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the real codes at all places (b, n, k), or at ``places_bm`` (b, m, k). Tokens may hold MASK.

        Raises:
            ValueError: the tokens do not fill the condition's grid.
        """
        line = self._line(tokens_bn, condition)
        x_bld = run(self.layers, line.x_bld, line.rope, mask=line.mask)
        return self._head(x_bld[:, line.start : line.start + tokens_bn.shape[1]], places_bm)

    def remember(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> tuple[Tensor, Memory]:
        """``logits`` at the places, and keys and values of the whole line for ``recall``. Carries no gradient.

        Raises:
            ValueError: as ``logits``.
        """
        line = self._line(tokens_bn, condition)
        batch, length = line.x_bld.shape[:2]
        cache = KVCache(
            len(self.layers),
            batch,
            self.heads,
            length,
            self.head_dim,
            dtype=line.x_bld.dtype,
            device=devices_of(self.layers),
        )
        indices = torch.arange(length, device=tokens_bn.device).expand(batch, length)
        window = Window(indices, 0, length)
        x_bld = run(self.layers, line.x_bld, line.rope, mask=line.mask, cache=cache, window=window)
        logits_bmk = self._head(x_bld[:, line.start : line.start + tokens_bn.shape[1]], places_bm)
        return logits_bmk, Memory(cache, line)

    def recall(self, tokens_bn: Tensor, rows_br: Tensor, places_bm: Tensor, memory: Memory) -> Tensor:
        """Logits at the places from the tokens at ``rows_br``; see ``hybrid.reuse.RecallingModel``."""
        line = memory.line
        indices_br = line.start + rows_br
        window = Window(indices_br, None, memory.cache.capacity)
        x_brd = self._embed(tokens_bn.gather(1, rows_br))
        x_brd = run(self.layers, x_brd, line.rope[indices_br], mask=line.mask, cache=memory.cache, window=window)
        return self._head(spread(x_brd, rows_br, tokens_bn.shape[1]), places_bm)

    def _embed(self, tokens_bn: Tensor) -> Tensor:
        return self.tok_emb(torch.where(tokens_bn == MASK, self.codebook_size, tokens_bn))

    def _line(self, tokens_bn: Tensor, condition: Any) -> Line:
        image = self._embed(tokens_bn)
        if self.classes is None:
            asked = self.cls_embedding(condition)
        else:
            asked = self.tok_emb(condition.labels_b + self.codebook_size + 1)[:, None]
        places, offset = image.shape[1], asked.shape[1]
        if places != condition.grid.places:
            raise ValueError(f"{places} tokens do not fill the condition's {condition.grid} grid")
        if self.rope == "1d":
            positions = torch.arange(places, device=image.device)
            table = rope_1d(positions, self.head_dim, self.rope_base)
            table = torch.cat((torch.zeros_like(table[:1]), table))
            return Line(torch.cat((image, asked), dim=1), table, None, 0)
        table = grid_rope(
            condition.grid,
            offset,
            self.head_dim,
            keep_condition=self.keep_condition_rope,
            base=self.rope_base,
            device=image.device,
        )
        mask = None
        if isinstance(condition, TextCondition):
            real = torch.ones(len(image), places, dtype=torch.bool, device=image.device)
            mask = torch.cat((condition.mask_bs, real), dim=1)[:, None, None]
        return Line(torch.cat((asked, image), dim=1), table, mask, offset)

    def _head(self, x_bnd: Tensor, places_bm: Tensor | None) -> Tensor:
        return self.output(self.norm(at_places(x_bnd, places_bm)))[..., : self.codebook_size].float()

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """``logits`` at all places, under the name that training wrappers call."""
        return self.logits(tokens_bn, condition)

    @torch.no_grad()
    def start_from_codebook(self, codebook_kd: Tensor) -> None:
        """Before training: embed codes so that near code vectors start near each other."""
        spread_codes(self.tok_emb.weight, codebook_kd)


def build(config: MaskGILConfig) -> MaskGIL:
    """The model of a configuration, with uninitialised weights."""
    return MaskGIL(**arguments(config), rope=config.rope)


def create(config: str | Mapping[str, Any]) -> tuple[MaskGIL, dict[str, Any]]:
    """A freshly initialised model for training, and its configuration in full."""
    fields = resolve(config, CONFIGS, {}, "maskgil", MaskGILConfig)
    model = build(fields)
    init_weights(model)
    nn.init.zeros_(model.output.weight)
    return model, fields.model_dump()


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields that a state dict's shapes tell. Without QK-norm the released layout is assumed.

    Raises:
        ValueError: a weight that tells one of them is missing, or the width is no multiple of 64.
    """
    codes = shape_of(state, "output.weight", source)[0] - 1
    rows, dim = shape_of(state, "tok_emb.weight", source)
    paper = "layers.0.attention.q_norm.weight" in state
    fields = infer_blocks(state, dim, codes, source)
    if paper:
        fields |= _PAPER
    if text := infer_text(state):
        return fields | text | {"rope": "2d", "condition_rope": "keep"}
    return fields | {"num_classes": rows - codes - 2}


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> MaskGIL:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "maskgil",
        weights,
        config,
        sizes=CONFIGS,
        fields=MaskGILConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
