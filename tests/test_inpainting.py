"""In-painting: what is kept stays, the rest is filled by the masked phase alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import FakeTokenizer, always_masked, pair, table_ar

from hybrid.phases import Fill, Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.schedules import counts
from hybrid.types import FROM_INPUT, MASK


def test_kept_tokens_stay() -> None:
    tokens = torch.arange(16)
    keep = tokens % 3 == 0
    ar, masked = table_ar(), always_masked(9)
    result = pair(ar, masked).generate([0, 1], seeds=[0, 1], tokens=tokens, keep=keep, fill=Fill(steps=4))
    assert result.tokens.tolist() == [torch.where(keep, tokens, 9).tolist()] * 2
    assert (result.origin[:, keep] == FROM_INPUT).all()
    for origin_n in result.origin[:, ~keep]:
        assert torch.bincount(origin_n)[1:].tolist() == counts("arccos", 4, 16, 6)
    assert ar.batches == [] and result.phases.passes["fill"] == 4
    assert tokens.tolist() == list(range(16))  # the caller's tensor is left alone


def test_each_image_has_its_own_mask() -> None:
    tokens = torch.arange(16).repeat(4, 1)
    keep = torch.zeros(4, 16, dtype=torch.bool)
    keep[1, 3:8], keep[2, :12], keep[3] = True, True, True
    fill = Fill(steps=4, sampling=Sampling(Guidance(2)))
    result = pair().generate([1, 2, 3, 4], seeds=[0, 1, 2, 3], tokens=tokens, keep=keep, fill=fill)
    assert torch.equal(result.tokens[keep], tokens[keep]) and (result.origin[keep] == FROM_INPUT).all()
    for i, known in enumerate((0, 5, 12, 16)):
        revealed = torch.bincount(result.origin[i][~keep[i]], minlength=5)[1:].tolist()
        assert revealed == (counts("arccos", 4, 16, known) or [0] * 4)
        alone = pair().generate([i + 1], seeds=[i], tokens=tokens[i], keep=keep[i], fill=fill)
        assert torch.equal(alone.tokens[0], result.tokens[i]) and torch.equal(alone.origin[0], result.origin[i])


def test_nothing_to_paint_is_no_pass() -> None:
    masked = always_masked(9)
    keep = torch.ones(16, dtype=torch.bool)
    tokens = torch.arange(16, dtype=torch.int32)
    result = pair(masked=masked).generate([0], seeds=[0], tokens=tokens, keep=keep)
    assert result.tokens.tolist() == [list(range(16))] and result.tokens.dtype == torch.long
    assert (result.origin == FROM_INPUT).all()
    assert masked.batches == [] and result.phases.passes["fill"] == 0
    nothing_known = torch.full((16,), MASK)
    result = pair(masked=masked).generate([0], seeds=[0], tokens=nothing_known, keep=~keep)
    assert (result.tokens == 9).all() and (result.origin >= 1).all()


def test_inpainting_errors() -> None:
    tokens, keep = torch.arange(16), torch.arange(16) < 8

    def refused(match: str, sampler: HybridSampler | None = None, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            (sampler or pair()).generate([0], seeds=[0], **({"tokens": tokens, "keep": keep} | settings))

    refused("in-painting takes tokens and keep together", keep=None)
    refused("in-painting takes tokens and keep together", tokens=None)
    refused(r"tokens: expected \(16,\) or \(1, 16\), got \(15,\)", tokens=tokens[:15])
    refused(r"keep: expected \(16,\) or \(1, 16\), got \(2, 16\)", keep=keep.repeat(2, 1))
    refused(r"tokens: codes must be 0\.\.15", tokens=tokens + 9)
    refused(r"tokens: codes must be 0\.\.15", tokens=tokens.index_fill(0, torch.tensor(3), -2))
    refused("keep marks places whose token is not known", tokens=tokens.index_fill(0, torch.tensor(3), MASK))
    refused("in-painting runs in the masked phase: use ar_fraction 0", ar_fraction=0.5)
    refused("in-painting runs in the masked phase: use ar_fraction 0", ar_tokens=3)
    refused("there is no masked model", HybridSampler(table_ar(), None, FakeTokenizer()))
    refused("9 steps for 8 places: use at most 8 steps", fill=Fill(steps=9))
    pair().generate([0], seeds=[0], tokens=torch.where(keep, tokens, 99), keep=keep)  # what is not kept does not matter
