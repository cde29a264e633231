"""Fake models with exact expectations.

A fake AR or masked model is a *rule*: a function of one image's tokens, label and grid. Rules run image by image, so
nothing can leak between the rows of a batch; the fakes around them count their calls and note what they were asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybrid.sampler import HybridSampler
from hybrid.types import MASK, Grid, require_no_mask

NULL = -1
"""Label of the null condition."""

SQUARE = Grid(4, 4)
"""The fakes' own grid."""

TALL = Grid(5, 3)
"""A grid that is no square."""


@dataclass(frozen=True)
class FakeCondition:
    """Labels and a grid."""

    labels_b: Tensor
    grid: Grid

    def __len__(self) -> int:
        return len(self.labels_b)

    def null(self) -> FakeCondition:
        return replace(self, labels_b=torch.full_like(self.labels_b, NULL))

    def cat(self, other: FakeCondition) -> FakeCondition:
        return replace(self, labels_b=torch.cat((self.labels_b, other.labels_b)))


class _Fake:
    """What both kinds share: labels as prompts, and a diary of forward passes."""

    def __init__(self, rule: Callable[..., Tensor], codes: int, grid: Grid = SQUARE) -> None:
        self.rule, self.codebook_size, self.grid = rule, codes, grid
        self.batches: list[int] = []
        self.labels: list[list[int]] = []
        self.conditions = 0

    def condition(self, prompts: object, grid: Grid | None = None) -> FakeCondition:
        self.conditions += 1
        return FakeCondition(torch.as_tensor(prompts), grid or self.grid)

    def note(self, labels_b: Tensor) -> None:
        self.batches.append(len(labels_b))
        self.labels.append(labels_b.tolist())


@dataclass
class FakeState:
    """Everything that was fed, and how far each row got."""

    condition: FakeCondition
    tokens_bn: Tensor
    filled_b: Tensor

    def truncate(self, places_b: Tensor) -> None:
        self.filled_b = torch.minimum(self.filled_b, places_b)
        self.tokens_bn[torch.arange(self.tokens_bn.shape[1]) >= self.filled_b[:, None]] = MASK


class FakeAR(_Fake):
    """An ``ARModel`` whose rule maps (tokens before, label) to logits_k of the next token."""

    def prefill(self, condition: FakeCondition, capacity: int) -> tuple[Tensor, FakeState]:
        batch = len(condition)
        state = FakeState(condition, torch.full((batch, capacity), MASK), torch.zeros(batch, dtype=torch.long))
        self.note(condition.labels_b)
        return self._next(state), state

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: FakeState) -> Tensor:
        if len(tokens_bw) != len(state.condition) or bool((places_b > state.filled_b).any()):
            raise ValueError("rows that were never prefilled, or a place that was skipped")
        self.note(state.condition.labels_b)
        logits_wbk = []
        for column in range(tokens_bw.shape[1]):
            state.tokens_bn.scatter_(1, (places_b + column)[:, None], tokens_bw[:, column : column + 1])
            state.filled_b = places_b + column + 1
            logits_wbk.append(self._next(state))
        return torch.stack(logits_wbk, dim=1)

    def score(self, tokens_bn: Tensor, condition: FakeCondition) -> Tensor:
        self.note(condition.labels_b)
        ends_b = torch.full((len(tokens_bn),), 0)
        states = [
            FakeState(condition, require_no_mask(tokens_bn), ends_b + place) for place in range(tokens_bn.shape[1])
        ]
        return torch.stack([self._next(state) for state in states], dim=1)

    def _next(self, state: FakeState) -> Tensor:
        rows = zip(state.tokens_bn, state.filled_b.tolist(), state.condition.labels_b.tolist(), strict=True)
        return torch.stack([self.rule(tokens_n[:filled], label) for tokens_n, filled, label in rows])


class FakeMasked(_Fake):
    """A ``MaskedModel`` whose rule maps (tokens, label, grid) to logits_nk."""

    def logits(self, tokens_bn: Tensor, condition: FakeCondition, places_bm: Tensor | None = None) -> Tensor:
        self.note(condition.labels_b)
        rows = zip(tokens_bn, condition.labels_b.tolist(), strict=True)
        logits_bnk = torch.stack([self.rule(tokens_n, label, condition.grid) for tokens_n, label in rows])
        if places_bm is None:
            return logits_bnk
        return logits_bnk.gather(1, places_bm[..., None].expand(-1, -1, self.codebook_size))


def favour(label: int, codes: int) -> Tensor:
    """Logits_k of a label. Without guidance code 0 wins; with guidance above 1.2, the label's own code does."""
    logits_k = torch.zeros(codes)
    logits_k[0] = 3.0 if label == NULL else 2.0
    if label > 0:
        logits_k[label] = 1.5
    return logits_k


def uniform_ar(codes: int = 16, grid: Grid = SQUARE) -> FakeAR:
    """Every code is equally likely."""
    return FakeAR(lambda before, label: torch.zeros(codes), codes, grid)


def always_ar(token: int, codes: int = 16, grid: Grid = SQUARE) -> FakeAR:
    """Only one code is possible."""
    logits_k = torch.full((codes,), -torch.inf).index_fill(0, torch.tensor(token), 0.0)
    return FakeAR(lambda before, label: logits_k, codes, grid)


def table_ar(codes: int = 16, grid: Grid = SQUARE) -> FakeAR:
    """Conditional probabilities in a table: row [token before, or ``codes`` at the start], shifted by the label."""
    table = torch.randn(codes + 1, codes, generator=torch.Generator().manual_seed(0)) * 2

    def rule(before: Tensor, label: int) -> Tensor:
        return table[int(before[-1]) if len(before) else codes].roll(label)

    return FakeAR(rule, codes, grid)


def conditional_ar(codes: int = 16, grid: Grid = SQUARE) -> FakeAR:
    """See ``favour``."""
    return FakeAR(lambda before, label: favour(label, codes), codes, grid)


def uniform_masked(codes: int = 16, grid: Grid = SQUARE) -> FakeMasked:
    """Every code is equally likely at every place."""
    return FakeMasked(lambda tokens, label, _: torch.zeros(len(tokens), codes), codes, grid)


def always_masked(token: int, codes: int = 16, grid: Grid = SQUARE) -> FakeMasked:
    """Only one code is possible."""
    logits_k = torch.full((codes,), -torch.inf).index_fill(0, torch.tensor(token), 0.0)
    return FakeMasked(lambda tokens, label, _: logits_k.expand(len(tokens), -1), codes, grid)


def neighbour_masked(codes: int = 16, grid: Grid = SQUARE) -> FakeMasked:
    """Each place leans to the sum of its known neighbours' codes plus the label, more so the more are known.

    Later places lean a little more than earlier ones, so that no two are equally sure.
    """

    def rule(tokens_n: Tensor, label: int, shape: Grid) -> Tensor:
        tokens_hw = tokens_n.view(shape.height, shape.width)
        around = torch.nn.functional.pad(tokens_hw, (1, 1, 1, 1), value=MASK)
        sides = torch.stack((around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])).flatten(1)
        known = sides != MASK
        lean_n = (torch.where(known, sides, 0).sum(0) + label + 1) % codes
        strength_n = 1 + known.sum(0) + torch.arange(len(tokens_n)) / 100
        return torch.nn.functional.one_hot(lean_n, codes) * strength_n[:, None]

    return FakeMasked(rule, codes, grid)


def ranked_masked(certainty_n: Tensor, codes: int = 16, grid: Grid = SQUARE) -> FakeMasked:
    """Place i wants code i % codes, as surely as ``certainty_n[i]`` says."""
    wanted_nk = torch.nn.functional.one_hot(torch.arange(len(certainty_n)) % codes, codes)
    return FakeMasked(lambda tokens, label, _: wanted_nk * certainty_n[:, None], codes, grid)


def conditional_masked(codes: int = 16, grid: Grid = SQUARE) -> FakeMasked:
    """See ``favour``."""
    return FakeMasked(lambda tokens, label, _: favour(label, codes).expand(len(tokens), -1), codes, grid)


class FakeTokenizer(nn.Module):
    """Each token is one square of pixels, its brightness the code's first coordinate times ``paint`` of the channel."""

    codebook_kd: Tensor

    def __init__(self, codes: int = 16, *, codebook_kd: Tensor | None = None, paint: float = 1.0) -> None:
        super().__init__()
        self.register_buffer(
            "codebook_kd", torch.linspace(-1, 1, codes)[:, None] if codebook_kd is None else codebook_kd
        )
        self.register_buffer("paint_c", torch.full((3,), paint))

    def encode(self, images_bchw: Tensor) -> Tensor:
        values_bn = images_bchw[:, 0, ::2, ::2].flatten(1) / self.paint_c[0]
        return (values_bn[..., None] - self.codebook_kd[:, 0]).abs().argmin(-1)

    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        values_bhw = self.codebook_kd[require_no_mask(tokens_bn), 0].unflatten(1, (grid.height, grid.width))
        values_bhw = values_bhw.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        return values_bhw[:, None] * self.paint_c[:, None, None]


def pair(ar: FakeAR | None = None, masked: FakeMasked | None = None) -> HybridSampler:
    """A sampler of two fakes, ``table_ar`` and ``neighbour_masked`` unless told otherwise."""
    return HybridSampler(ar or table_ar(), masked or neighbour_masked(), FakeTokenizer())
