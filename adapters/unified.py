"""One LLaMA network as AR model and masked model at once, so that the AR phase's cache serves the masked passes too.

A sequence is [condition tokens, prefix, suffix], the image in raster order and cut anywhere. Places of the condition
and the prefix see what stands before them, like LlamaGen's; places of the suffix see everything: condition, prefix and
each other. So keys and values of the prefix do not depend on the suffix, and a masked pass runs over the suffix alone.

A place has one of two roles. In the prefix it predicts the next token through ``output``; in the suffix it predicts its
own through ``output_masked``, and its input says so: a known token's embedding plus ``suffix_embedding``, or
``mask_embedding``. Everything else has LlamaGen's names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.few_rows import Linear
from hybrid.types import MASK, Grid, Prompts

from .conditions import TextCondition
from .llama import Window, at_places, init_weights, run, spread
from .llamagen import LlamaGen, LlamaGenState
from .loading import load_network, resolve
from .transformer_config import CONFIGS, TransformerConfig, arguments, infer


class Unified(LlamaGen):
    """Implements ``hybrid.types.ARModel``, ``hybrid.types.MaskedModel`` and ``hybrid.reuse.RecallingModel``. Takes
    LlamaGen's arguments."""

    def __init__(self, *, dim: int, codes: int, **settings: Any) -> None:
        super().__init__(dim=dim, codes=codes, **settings)
        self.mask_embedding = nn.Parameter(torch.zeros(dim))
        self.suffix_embedding = nn.Parameter(torch.zeros(dim))
        self.output_masked = Linear(dim, codes)

    def forward(  # type: ignore[override]  # one pass serves both losses, and the AR one alone is ``score``
        self, tokens_bn: Tensor, condition: Any, prefix_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both predictions in one pass, each (b, n, k): of every place from the place before it, which counts where
        that one is of the condition or the prefix; and of every place from itself, which counts in the suffix.

        Args:
            tokens_bn: tokens, MASK only in the suffix.
            condition: what is asked for.
            prefix_b: each image's prefix length, 0 to n.

        Raises:
            ValueError: the tokens do not fill the condition's grid.
        """
        x_bnd, offset = self._read(tokens_bn, condition, prefix_b)
        return self.output(x_bnd[:, offset - 1 : -1]).float(), self.output_masked(x_bnd[:, offset:]).float()

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the codes at all places (b, n, k), or at ``places_bm`` (b, m, k). Tokens may hold MASK.

        The tokens before an image's first MASK are its prefix. Ask for the places after them: those of the prefix
        have never learned to predict themselves.

        Raises:
            ValueError: the tokens do not fill the condition's grid.
        """
        x_bnd, offset = self._read(tokens_bn, condition, leading_known(tokens_bn))
        return self._own_logits(x_bnd[:, offset:], places_bm)

    def remember(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> tuple[Tensor, LlamaGenState]:
        """Logits (b, m, k) at the places, all of them read as suffix, and the cache for ``recall``; see
        ``hybrid.reuse.RecallingModel``. Where known tokens lead, ``logits`` reads these as prefix.

        Raises:
            ValueError: the tokens do not fill the condition's grid.
        """
        if tokens_bn.shape[1] != condition.grid.places:
            raise ValueError(f"{tokens_bn.shape[1]} tokens do not fill the condition's {condition.grid} grid")
        _, state = self.prefill(condition, condition.grid.places)
        return self.fill_logits(tokens_bn, places_bm, state, 0), state

    def recall(self, tokens_bn: Tensor, rows_br: Tensor, places_bm: Tensor, memory: LlamaGenState) -> Tensor:
        """Logits at the places from the tokens at ``rows_br``, all of them of the suffix; see
        ``hybrid.reuse.RecallingModel``. The memory is a state that ``fill_logits`` left."""
        batch, end = len(tokens_bn), memory.offset + tokens_bn.shape[1]
        indices_br = memory.offset + rows_br
        x_brd = run(
            self.layers,
            self._suffix(tokens_bn.gather(1, rows_br)),
            memory.rope[indices_br],
            mask=None if memory.key_mask_bl is None else memory.key_mask_bl[:batch, None, None, :end],
            cache=memory.cache.first(batch),
            window=Window(indices_br, None, end),
        )
        return self._own_logits(spread(self.norm(x_brd), rows_br, tokens_bn.shape[1]), places_bm)

    def after_prefix(self, state: LlamaGenState, length: int) -> PrefixedFill:
        """The masked model of the places from ``length`` on, which reads those before them from the AR phase's cache.

        Args:
            state: what ``prefill``, with a capacity of the whole grid, and ``decode`` left. The fill overwrites what it
                holds from ``length`` on.
            length: tokens of the prefix.

        Raises:
            ValueError: a cache that the grid does not fit in.
        """
        capacity, places = state.cache.capacity, len(state.rope)
        if capacity < places:
            raise ValueError(f"a cache of {capacity} tokens; the fill needs room for all {places}")
        return PrefixedFill(self, state, length)

    def fill_logits(self, tokens_bn: Tensor, places_bm: Tensor | None, state: LlamaGenState, length: int) -> Tensor:
        """See ``PrefixedFill.logits``, which this is for as many images as the state has rows at least.

        Raises:
            ValueError: a place of the prefix.
        """
        if places_bm is not None and bool((places_bm < length).any()):
            raise ValueError(f"place {int(places_bm.min())} is of the prefix; ask for places from {length} on")
        batch, places = tokens_bn.shape
        first = min(int(state.filled_b[:batch].min()), length)
        start, end = state.offset + first, state.offset + places
        mask = None
        if first < length:
            causal_b = torch.full((1,), state.offset + length, device=tokens_bn.device)
            mask = mixed_mask(causal_b, end)[:, :, start:]
        if state.key_mask_bl is not None:
            real = state.key_mask_bl[:batch, None, None, :end]
            mask = real if mask is None else mask & real
        unfed = self.tok_embeddings(tokens_bn[:, first:length])
        indices = torch.arange(start, end, device=tokens_bn.device).expand(batch, -1)
        x_bwd = run(
            self.layers,
            torch.cat((unfed, self._suffix(tokens_bn[:, length:])), dim=1),
            state.rope[start:end],
            mask=mask,
            cache=state.cache.first(batch),
            window=Window(indices, start, end),
        )
        state.filled_b = torch.cat((torch.full_like(state.filled_b[:batch], length), state.filled_b[batch:]))
        return self._own_logits(
            self.norm(x_bwd[:, length - first :]), None if places_bm is None else places_bm - length
        )

    def draft_logits(self, tokens_bn: Tensor, places_bw: Tensor, state: LlamaGenState) -> Tensor:
        """Logits (b, w, k) of places that follow each image's last known token; see ``hybrid.drafts.DraftingModel``.

        One pass over the window and that token, which the AR phase never fed; what follows the window is absent, not
        masked. The state keeps what it holds before the window; it may have more rows than there are images.
        """
        batch, last_b1 = len(tokens_bn), places_bw[:, :1] - 1
        indices_br = state.offset + torch.cat((last_b1, places_bw), dim=1)
        end = int(indices_br.max()) + 1
        limit_br = torch.cat((indices_br[:, :1], indices_br[:, -1:].expand_as(places_bw)), dim=1)
        mask = torch.arange(end, device=tokens_bn.device) <= limit_br[..., None]
        if state.key_mask_bl is not None:
            mask = mask & state.key_mask_bl[:batch, None, :end]
        last = self.tok_embeddings(tokens_bn.gather(1, last_b1))
        masked = self.mask_embedding.to(last.dtype).expand(*places_bw.shape, -1)
        x_brd = run(
            self.layers,
            torch.cat((last, masked), dim=1),
            state.rope[indices_br],
            mask=mask[:, None],
            cache=state.cache.first(batch),
            window=Window(indices_br, None, end),
        )
        return self._own_logits(self.norm(x_brd[:, 1:]), None)

    def _suffix(self, tokens_bm: Tensor) -> Tensor:
        """Input embeddings of suffix places."""
        masked = (tokens_bm == MASK)[..., None]
        known = self.tok_embeddings(tokens_bm.clamp(min=0)) + self.suffix_embedding
        return torch.where(masked, self.mask_embedding.to(known.dtype), known)

    def _read(self, tokens_bn: Tensor, condition: Any, prefix_b: Tensor) -> tuple[Tensor, int]:
        """Normalised output of [condition, image], each place in its role, and the number of condition tokens."""
        places = tokens_bn.shape[1]
        if places != condition.grid.places:
            raise ValueError(f"{places} tokens do not fill the condition's {condition.grid} grid")
        asked = self.cls_embedding(condition)
        offset = asked.shape[1]
        in_prefix_bn = torch.arange(places, device=tokens_bn.device) < prefix_b[:, None]
        image = torch.where(
            in_prefix_bn[..., None], self.tok_embeddings(tokens_bn.clamp(min=0)), self._suffix(tokens_bn)
        )
        mask = mixed_mask(prefix_b + offset, offset + places)
        if isinstance(condition, TextCondition):
            real = torch.ones(len(tokens_bn), places, dtype=torch.bool, device=tokens_bn.device)
            keys = torch.cat((condition.mask_bs, real), dim=1)[:, None, None]
            mask = mask & keys | torch.eye(offset + places, dtype=torch.bool, device=tokens_bn.device)
        rope = self._rope(condition.grid, offset, tokens_bn.device)
        return self.norm(run(self.layers, torch.cat((asked, image), dim=1), rope, mask=mask)), offset

    def _own_logits(self, x_bnd: Tensor, places_bm: Tensor | None) -> Tensor:
        return self.output_masked(at_places(x_bnd, places_bm)).float()


class PrefixedFill:
    """A ``hybrid.types.MaskedModel`` and ``hybrid.reuse.RecallingModel`` of what is left after a prefix, which it reads
    from a cache.

    Each pass runs over the places from ``length`` on, and over those of the prefix that were never fed: the AR phase
    draws its last token and stops. The cache may hold conditional rows followed by null ones, as guidance in the AR
    phase leaves it; a pass takes as many of them, from the first on, as it has images.
    """

    def __init__(self, model: Unified, state: LlamaGenState, length: int) -> None:
        self.model, self.state, self.length = model, state, length
        self.codebook_size = model.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> Any:
        """The model's own."""
        return self.model.condition(prompts, grid)

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the codes at every place after the prefix (b, n − length, k), or at ``places_bm`` (b, m, k).

        The prefix among ``tokens_bn`` and ``condition`` must be those that the cache was made from. More images than
        it has rows, as where guidance begins with the fill, are read anew once.

        Raises:
            ValueError: a place of the prefix.
        """
        if len(tokens_bn) > len(self.state.filled_b):
            _, self.state = self.model.prefill(condition, condition.grid.places)
        return self.model.fill_logits(tokens_bn, places_bm, self.state, self.length)

    def remember(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> tuple[Tensor, LlamaGenState]:
        """``logits``, and the cache in which it leaves every place for ``recall``."""
        logits_bmk = self.logits(tokens_bn, condition, places_bm)
        return logits_bmk, self.state

    def recall(self, tokens_bn: Tensor, rows_br: Tensor, places_bm: Tensor, memory: LlamaGenState) -> Tensor:
        """See ``Unified.recall``."""
        return self.model.recall(tokens_bn, rows_br, places_bm, memory)


def mixed_mask(causal_b: Tensor, length: int) -> Tensor:
    """Who sees whom (b, 1, length, length): the first ``causal_b`` positions what is not after them, the rest all."""
    position = torch.arange(length, device=causal_b.device)
    return ((position <= position[:, None]) | (position[:, None] >= causal_b[:, None, None]))[:, None]


def leading_known(tokens_bn: Tensor) -> Tensor:
    """How many tokens stand before each image's first MASK."""
    return (tokens_bn != MASK).long().cumprod(dim=1).sum(dim=1)


def build(config: TransformerConfig) -> Unified:
    """The model of a configuration, with uninitialised weights."""
    return Unified(**arguments(config))


def create(config: str | Mapping[str, Any]) -> tuple[Unified, dict[str, Any]]:
    """A freshly initialised model for training, and its configuration in full."""
    fields = resolve(config, CONFIGS, {}, "unified", TransformerConfig)
    model = build(fields)
    init_weights(model)
    for role in (model.mask_embedding, model.suffix_embedding):
        nn.init.normal_(role, std=0.02)
    for head in (model.output, model.output_masked):
        nn.init.zeros_(head.weight)
    return model, fields.model_dump()


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Unified:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "unified",
        weights,
        config,
        sizes=CONFIGS,
        fields=TransformerConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
