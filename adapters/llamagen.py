"""LlamaGen's autoregressive models (Sun et al., arXiv 2406.06525), class- and text-conditional.

A sequence is [condition tokens, image tokens in raster order]; the condition is one class token, or text tokens padded
on the left. This file knows that layout, the 2-D rotary table whose condition rows are zero, and the key names of the
released checkpoints. The embedded text model keeps the text's rotary rows instead (``condition_rope: keep``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.few_rows import Linear
from hybrid.types import Grid, Prompts, TextEncoder

from .compiled import CompiledStep
from .conditions import (
    CaptionEmbedding,
    ClassCondition,
    ClassEmbedding,
    TextCondition,
    class_condition,
    text_condition,
)
from .llama import (
    KVCache,
    RMSNorm,
    Window,
    blocks,
    devices_of,
    fuse,
    grid_rope,
    init_weights,
    require_fed,
    run,
    spread_codes,
    window_at,
)
from .loading import load_network, resolve
from .transformer_config import CONFIGS, TransformerConfig, arguments, infer


@dataclass
class LlamaGenState:
    """The cache of one batch.

    Attributes:
        cache: keys and values of [condition, image tokens].
        key_mask_bl: False at padded condition tokens, or None where nothing is padded.
        rope: the table of every index.
        offset: number of condition tokens.
        filled_b: image tokens that each row holds; in main memory, so that no device is waited for.
    """

    cache: KVCache
    key_mask_bl: Tensor | None
    rope: Tensor
    offset: int
    filled_b: Tensor

    def truncate(self, places_b: Tensor) -> None:
        """Forget everything fed at or after each row's given place."""
        self.filled_b = torch.minimum(self.filled_b, places_b.to(self.filled_b))

    def first(self, filled_b: Tensor) -> LlamaGenState:
        """The first rows in the same memory; see ``hybrid.lanes.SlotState``."""
        mask = None if self.key_mask_bl is None else self.key_mask_bl[: len(filled_b)]
        return replace(self, cache=self.cache.first(len(filled_b)), key_mask_bl=mask, filled_b=filled_b)

    def copy_row(self, row: int, other: LlamaGenState, source: int) -> None:
        """Make a row what another one is; see ``hybrid.lanes.SlotState``."""
        self.cache.copy_row(row, other.cache, source)
        if self.key_mask_bl is not None:
            self.key_mask_bl[row] = True
            if other.key_mask_bl is not None:
                self.key_mask_bl[row, : other.key_mask_bl.shape[1]] = other.key_mask_bl[source]


class LlamaGen(nn.Module):
    """The AR model. Implements ``hybrid.types.ARModel``, ``hybrid.zipar.ScatteredModel`` and
    ``hybrid.lanes.SlotModel``.

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
        qk_norm: bool = False,
        post_norm: bool = False,
        keep_condition_rope: bool = False,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.codebook_size = codes
        self.grid, self.classes, self.text_tokens, self.text_width = grid, classes, text_tokens, text_width
        self.heads, self.head_dim, self.rope_base = heads, dim // heads, rope_base
        self.keep_condition_rope = keep_condition_rope
        self.text_encoder: TextEncoder | None = None
        self.tok_embeddings = nn.Embedding(codes, dim)
        self.cls_embedding: nn.Module = (
            CaptionEmbedding(text_tokens, text_width, dim) if classes is None else ClassEmbedding(classes, dim)
        )
        self.layers = blocks(layers, dim, heads, hidden, qk_norm=qk_norm, post_norm=post_norm, eps=eps, dropout=dropout)
        self.norm = RMSNorm(dim, eps)
        self.output = Linear(dim, codes)
        self._step: CompiledStep | None = None

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
            ValueError: prompts of another kind or shape than the model's, or no grid given and none of its own.
        """
        grid = grid or self.grid
        if grid is None:
            raise ValueError("this checkpoint has no square grid of its own: pass the grid")
        if self.classes is not None:
            return class_condition(prompts, self.classes, grid, self.device)
        return text_condition(prompts, self.text_encoder, self.text_tokens, self.text_width, grid, self.device)

    def prefill(self, condition: Any, capacity: int) -> tuple[Tensor, LlamaGenState]:
        """Read the condition into a cache for ``capacity`` image tokens. Returns logits_bk of place 0 and the cache.

        Raises:
            ValueError: more capacity than the condition's grid has places.
        """
        if capacity > condition.grid.places:
            grid = condition.grid
            raise ValueError(f"a cache for {capacity} image tokens, but a {grid} grid has {grid.places} places")
        x_bnd = self.cls_embedding(condition)
        batch, offset = x_bnd.shape[:2]
        cache = KVCache(
            len(self.layers),
            batch,
            self.heads,
            offset + capacity,
            self.head_dim,
            dtype=x_bnd.dtype,
            device=devices_of(self.layers),
        )
        key_mask = None
        if isinstance(condition, TextCondition) and not bool(condition.mask_bs.all()):
            real = torch.ones(batch, capacity, dtype=torch.bool, device=x_bnd.device)
            key_mask = torch.cat((condition.mask_bs, real), dim=1)
        filled = torch.zeros(batch, dtype=torch.long)
        state = LlamaGenState(cache, key_mask, self._rope(condition.grid, offset, x_bnd.device), offset, filled)
        indices = torch.arange(offset, device=x_bnd.device).expand(batch, offset)
        return self._logits(self._feed(x_bnd, Window(indices, 0, offset), state)[:, -1]), state

    def slots(self, rows: int, grid: Grid, capacity: int) -> LlamaGenState:
        """An empty cache for rows that come and go; see ``hybrid.lanes.SlotModel``."""
        offset = 1 if self.classes is not None else self.text_tokens
        width, dtype = offset + capacity, self.norm.weight.dtype
        cache = KVCache(
            len(self.layers), rows, self.heads, width, self.head_dim, dtype=dtype, device=devices_of(self.layers)
        )
        mask = None
        if self.classes is None:
            mask = torch.ones(rows, width, dtype=torch.bool, device=self.device)
        filled = torch.zeros(rows, dtype=torch.long)
        return LlamaGenState(cache, mask, self._rope(grid, offset, self.device), offset, filled)

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: LlamaGenState) -> Tensor:
        """Feed w tokens standing at each row's place and after it. Returns logits_bwk of the place after each.

        Raises:
            ValueError: a row would skip a place, or the cache is full.
        """
        places = places_b.tolist()
        require_fed(places, state.filled_b)
        return self._decode(tokens_bw, places, state)

    def advance(self, tokens_b: Tensor, state: LlamaGenState) -> Tensor:
        """Feed each row its next token. Returns logits_bk of the place after it; waits for no device.

        Raises:
            ValueError: the cache is full.
        """
        return self._decode(tokens_b[:, None], state.filled_b.tolist(), state)[:, -1]

    def compile_step(self, *, bucket: int | None = None, backend: str = "inductor") -> None:
        """Compile the decoding step, see ``compiled``. The first tokens of a process are slow then."""
        self._step = CompiledStep(self.device, bucket=bucket, backend=backend)

    def read(self, tokens_bw: Tensor, window: Window, state: LlamaGenState) -> Tensor:
        """Logits_bwk after tokens that stand in the window: what ``compiled`` compiles."""
        return self._logits(self._feed(self.tok_embeddings(tokens_bw), window, state))

    def _decode(self, tokens_bw: Tensor, places: list[int], state: LlamaGenState) -> Tensor:
        width, first, last = tokens_bw.shape[1], min(places), max(places)
        capacity = state.cache.capacity - state.offset
        if last + width > capacity:
            raise ValueError(f"the cache holds {capacity} image tokens, {last + width} are needed")
        state.filled_b = torch.tensor(places) + width
        if self._step is not None and width == 1 and first == last and not torch.is_grad_enabled():
            return self._step(self, tokens_bw, state.offset + first, state)
        return self.read(tokens_bw, window_at(tokens_bw, places, state.offset), state)

    def decode_at(self, tokens_bw: Tensor, places: Sequence[int], known_n: Tensor, state: LlamaGenState) -> Tensor:
        """Feed tokens at places in any order; see ``hybrid.zipar.ScatteredModel``. ``truncate`` knows nothing of it.

        Raises:
            ValueError: the cache is full.
        """
        end = state.offset + max(places) + 1
        if end > state.cache.capacity:
            capacity = state.cache.capacity - state.offset
            raise ValueError(f"the cache holds {capacity} image tokens, {max(places) + 1} are needed")
        indices_w = state.offset + torch.tensor(places, device=tokens_bw.device)
        keys = torch.arange(end, device=tokens_bw.device)
        known_l = torch.cat((known_n.new_ones(state.offset), known_n))[:end]
        if state.key_mask_bl is not None:
            known_l = known_l & state.key_mask_bl[:, None, :end]
        mask = (known_l & (keys <= indices_w[:, None])) | (keys == indices_w[:, None])
        window = Window(indices_w.expand(len(tokens_bw), -1), None, end)
        return self._logits(
            run(
                self.layers,
                self.tok_embeddings(tokens_bw),
                state.rope[indices_w],
                mask=mask[:, None] if mask.dim() == 3 else mask,
                cache=state.cache,
                window=window,
            )
        )

    def score(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """Teacher-forced logits_bnk of every place, in one parallel pass. Fewer tokens than places are a prefix.

        Raises:
            ValueError: more tokens than the condition's grid has places.
        """
        if tokens_bn.shape[1] > condition.grid.places:
            raise ValueError(f"{tokens_bn.shape[1]} tokens are too many for a {condition.grid} grid")
        condition_tokens = self.cls_embedding(condition)
        offset = condition_tokens.shape[1]
        x_bnd = torch.cat((condition_tokens, self.tok_embeddings(tokens_bn[:, :-1])), dim=1)
        length = x_bnd.shape[1]
        mask = None
        if isinstance(condition, TextCondition) and not bool(condition.mask_bs.all()):
            mask = causal_mask(condition.mask_bs, length)
        rope = self._rope(condition.grid, offset, x_bnd.device)[:length]
        x_bnd = run(self.layers, x_bnd, rope, mask=mask, causal=mask is None)
        return self._logits(x_bnd[:, offset - 1 :])

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """``score``, under the name that training wrappers call."""
        return self.score(tokens_bn, condition)

    @torch.no_grad()
    def start_from_codebook(self, codebook_kd: Tensor) -> None:
        """Before training: embed codes so that near code vectors start near each other."""
        spread_codes(self.tok_embeddings.weight, codebook_kd)

    def _logits(self, x: Tensor) -> Tensor:
        return self.output(self.norm(x)).float()

    def _rope(self, grid: Grid, offset: int, device: torch.device) -> Tensor:
        return grid_rope(
            grid, offset, self.head_dim, keep_condition=self.keep_condition_rope, base=self.rope_base, device=device
        )

    def _feed(self, x_bnd: Tensor, window: Window, state: LlamaGenState) -> Tensor:
        width = x_bnd.shape[1]
        together = window.start is not None
        rope = state.rope[window.start : window.end] if together else state.rope[window.indices_bw]
        mask = None
        if width > 1 or state.key_mask_bl is not None or window.start is None:
            keys = torch.arange(window.end, device=x_bnd.device)
            mask = keys <= window.indices_bw[..., None]
            if state.key_mask_bl is not None:
                mask = mask & state.key_mask_bl[:, None, : window.end] | (keys == window.indices_bw[..., None])
            mask = mask[:, None]
        return run(self.layers, x_bnd, rope, mask=mask, cache=state.cache, window=window)


def causal_mask(text_mask_bs: Tensor, length: int) -> Tensor:
    """Causal attention (b, 1, length, length) that hides padded text; each token still sees itself (LlamaGen)."""
    causal = torch.ones(length, length, dtype=torch.bool, device=text_mask_bs.device).tril()
    real = torch.ones(len(text_mask_bs), length - text_mask_bs.shape[1], dtype=torch.bool, device=text_mask_bs.device)
    keys = torch.cat((text_mask_bs, real), dim=1)[:, None, :]
    return (causal & keys | torch.eye(length, dtype=torch.bool, device=keys.device))[:, None]


def build(config: TransformerConfig) -> LlamaGen:
    """The model of a configuration, with uninitialised weights."""
    return LlamaGen(**arguments(config))


def create(config: str | Mapping[str, Any]) -> tuple[LlamaGen, dict[str, Any]]:
    """A freshly initialised model for training, and its configuration in full."""
    fields = resolve(config, CONFIGS, {}, "llamagen", TransformerConfig)
    model = build(fields)
    init_weights(model)
    nn.init.zeros_(model.output.weight)
    return model, fields.model_dump()


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> LlamaGen:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "llamagen",
        weights,
        config,
        sizes=CONFIGS,
        fields=TransformerConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
