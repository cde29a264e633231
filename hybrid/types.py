"""The vocabulary of the project: grids, conditions, results and the three protocols.

This file knows tensors and names. It does not know any model, schedule or file.

Shape letters used in names everywhere (``logits_bnk`` is batch x places x codes):

    b  images of a batch           c  colour channels        d  width of a model or of a code vector
    n  places of a token grid      h  rows (pixels or tokens) k  codes of a codebook
    m  some of the places          w  columns; in ``decode`` the tokens of one window
    s  tokens of a text prompt

Tokens are code ids 0..k-1 in raster order (row by row, left to right); ``MASK`` marks a place not yet written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

MASK = -1
"""A place that holds no code yet. Never a valid input of an image tokenizer."""

FROM_AR = 0
"""Origin of a token written by the AR model. Pass p of the masked model (from 1) has origin p."""

FROM_INPUT = -1
"""Origin of a token that the caller gave (in-painting)."""

Prompt: TypeAlias = "int | str | Tensor"
"""A class label, a caption, or an already tokenised prompt (1-D ids)."""

Prompts: TypeAlias = "Sequence[Prompt] | Tensor | tuple[Tensor, Tensor]"
"""Several prompts; a 1-D tensor of labels; or ready-made embeddings as (embedding_bsd, mask_bs)."""


@dataclass(frozen=True)
class Grid:
    """A token grid, counted in tokens."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"grid {self.height}x{self.width}: both sides must be at least 1 token")

    @property
    def places(self) -> int:
        """Number of tokens, height times width."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Condition(Protocol):
    """What a model was asked for. Opaque to the core, which only pairs it with its null for guidance."""

    @property
    def grid(self) -> Grid:
        """The token grid that the model will fill."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def null(self) -> Condition:
        """The same number of images with the condition dropped, for classifier-free guidance."""
        ...

    def cat(self, other: Condition) -> Condition:
        """The images of this condition followed by those of the other one, in one batch."""
        ...


class State(Protocol):
    """An AR model's cache. Rows may stand at different places."""

    def truncate(self, places_b: Tensor) -> None:
        """Forget everything that was fed at or after each row's given place."""
        ...


@runtime_checkable
class ARModel(Protocol):
    """A model of p(token i | tokens before i, condition) in raster order."""

    codebook_size: int

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> Condition:
        """Turn prompts into a condition; ``grid`` None means the checkpoint's own square grid."""
        ...

    def prefill(self, condition: Any, capacity: int) -> tuple[Tensor, State]:
        """Read the condition into a fresh cache for ``capacity`` tokens. Returns logits_bk of place 0 and the cache."""
        ...

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: Any) -> Tensor:
        """Feed w tokens standing at each row's place and after it. Returns logits_bwk of the place after each."""
        ...

    def score(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """Teacher-forced logits_bnk of every place, in one parallel pass. Tokens hold no MASK."""
        ...


@runtime_checkable
class MaskedModel(Protocol):
    """A bidirectional model of p(token i | every known token, condition)."""

    codebook_size: int

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> Condition:
        """Turn prompts into a condition; ``grid`` None means the checkpoint's own square grid."""
        ...

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the real codes. Tokens may hold MASK. At all places (b, n, k) or at the given ones (b, m, k)."""
        ...


@runtime_checkable
class ImageTokenizer(Protocol):
    """A VQ autoencoder."""

    codebook_kd: Tensor

    def encode(self, images_bchw: Tensor) -> Tensor:
        """RGB images in [-1, 1] to tokens_bn."""
        ...

    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        """Tokens to RGB images_bchw in [-1, 1] (values may overshoot slightly, as the decoder gives them)."""
        ...


class TextEncoder(Protocol):
    """A frozen language model that embeds captions."""

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to (embedding_bsd, mask_bs), left-padded; mask 1 marks a real token, padded embeddings are zero."""
        ...


@dataclass(frozen=True)
class Phases:
    """Seconds and forward passes of one request, by phase, for the whole batch.

    A forward pass is one call of a network, whatever its batch; guidance shares the call of its condition.
    """

    seconds: Mapping[str, float]
    passes: Mapping[str, int]

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds of all phases together."""
        return float(sum(self.seconds.values()))


PHASES = ("condition", "prefix", "align", "fill", "draft", "verify", "score", "refill", "decode")
"""``draft`` (masked passes) and ``verify`` (AR passes) alternate in exact and relaxed mode, ``score`` (AR) and
``refill`` (masked) in refinement; the other modes have none of them."""

AR_PHASES = ("prefix", "verify", "score")
MASKED_PHASES = ("fill", "draft", "refill")


@dataclass(frozen=True)
class Generation:
    """The result of one request.

    Attributes:
        images: what ``output_type`` asked for: a list of PIL images, an array (b, h, w, 3) in [0, 1], a tensor
            (b, 3, h, w) in [-1, 1], or None where only tokens were asked for.
        tokens: (b, n) codes of the tokenizer that decodes them, whatever the output type.
        origin: (b, n) who wrote each token: FROM_INPUT, FROM_AR, or the masked pass, counted from 1.
        grid: the token grid.
        phases: seconds and forward passes per phase.
        settings: everything needed to repeat the request.
        lossy: how alignment between two codebooks, or a local window, changed what the AR model wrote, or None where it
            is exact.
    """

    images: Any
    tokens: Tensor
    origin: Tensor
    grid: Grid
    phases: Phases
    settings: Mapping[str, Any] = field(default_factory=dict)
    lossy: str | None = None


def require_no_mask(tokens_bn: Tensor) -> Tensor:
    """Return the tokens, or raise where a place was never written."""
    missing = int((tokens_bn == MASK).sum())
    if missing:
        raise ValueError(f"{missing} of {tokens_bn.numel()} places were never written; nothing to decode there")
    return tokens_bn


def require_codes(tokens_bn: Tensor, grid: Grid, size: int) -> Tensor:
    """Return tokens that an image tokenizer of ``size`` codes can decode as that grid.

    Raises:
        ValueError: MASK or ids outside the codebook among the tokens, or tokens that do not fill the grid.
    """
    if tokens_bn.dim() != 2 or tokens_bn.shape[1] != grid.places:
        raise ValueError(f"tokens {tuple(tokens_bn.shape)} do not fill a {grid} grid: expected (b, {grid.places})")
    outside = require_no_mask(tokens_bn)[(tokens_bn < 0) | (tokens_bn >= size)]
    if len(outside):
        raise ValueError(f"token {int(outside[0])} is not in the codebook of {size} codes (0..{size - 1})")
    return tokens_bn


def fill_unknown(tokens_bn: Tensor, how: int | Tensor) -> Tensor:
    """Write a stand-in code into unknown places, for previews and transcoding only.

    ``how`` is one code for all of them, or tokens_bn to copy from.
    """
    stand_in = torch.full_like(tokens_bn, how) if isinstance(how, int) else how.to(tokens_bn)
    return torch.where(tokens_bn == MASK, stand_in, tokens_bn)
