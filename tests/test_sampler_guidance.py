"""Guidance, its ramps, its floor and negative prompts in both phases, with fakes that make the scale visible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import NULL, FakeAR, always_masked, conditional_ar, conditional_masked, pair

from hybrid.phases import Fill, Sampling
from hybrid.sampling import Guidance
from hybrid.verify import Verify

CODES = 16


def test_scale_one_leaves_no_trace_of_the_null() -> None:
    # u + 1 (c - u) would round everything about c away beside so large a u.
    ar = FakeAR(lambda before, label: torch.full((CODES,), 1e9) if label == NULL else torch.arange(CODES) / 2.0, CODES)
    plain = pair(ar).generate([5], seeds=[0], ar_tokens=8).tokens
    later = Sampling(Guidance(2, "interval", 0.4, 1.0))
    assert torch.equal(pair(ar).generate([5], seeds=[0], ar_tokens=8, prefix=later).tokens[:, :6], plain[:, :6])


def test_guidance_changes_the_picture() -> None:
    sampler = pair(conditional_ar(), conditional_masked())
    for scale, token in ((1, 0), (4, 5)):
        sampling = Sampling(Guidance(scale), temperature=0)
        result = sampler.generate([5], seeds=[0], prefix=sampling, fill=Fill(steps=3, sampling=sampling))
        assert result.tokens.tolist() == [[token] * 16]


@pytest.mark.parametrize("more", [{}, {"verify": Verify(window=4), "ar_fraction": 1.0}])
def test_the_guidance_floor_keeps_what_is_implausible_unguided(more: dict[str, Any]) -> None:
    """The label's own code, which guidance favours, is e^-0.5 = 0.61 times as likely as code 0 without it."""
    sampler = pair(conditional_ar(), conditional_masked())
    for floor, token in ((0.6, 5), (0.61, 0)):
        sampling = Sampling(Guidance(4, floor=floor), temperature=0)
        result = sampler.generate([5], seeds=[0], prefix=sampling, fill=Fill(steps=3, sampling=sampling), **more)
        assert result.tokens.tolist() == [[token] * 16]


def test_forward_passes_and_guidance_batches() -> None:
    def batches(guidance: Guidance) -> tuple[list[int], list[int]]:
        ar, masked = conditional_ar(), conditional_masked()
        sampling = Sampling(guidance)
        result = pair(ar, masked).generate(
            [1, 2, 3], seeds=[0, 1, 2], ar_tokens=5, prefix=sampling, fill=Fill(steps=4, sampling=sampling)
        )
        assert result.phases.passes["prefix"] == len(ar.batches) == 5
        assert result.phases.passes["fill"] == len(masked.batches) == 4
        return ar.batches, masked.batches

    assert batches(Guidance()) == ([3] * 5, [3] * 4)  # scale 1: no null pass
    assert batches(Guidance(4)) == ([6] * 5, [6] * 4)
    assert batches(Guidance(0)) == ([6] * 5, [6] * 4)  # the unconditional model is the null's
    assert batches(Guidance(4, "linear")) == ([6] * 5, [3, 6, 6, 6])  # the AR cache needs the null from the start
    assert batches(Guidance(4, "interval", 0.25, 0.7)) == ([6] * 5, [3, 6, 6, 3])
    assert batches(Guidance(4, "interval", 0.9, 1.0)) == ([3] * 5, [3, 3, 3, 6])  # the prefix never gets there


def test_linear_ramp_and_interval_in_the_prefix() -> None:
    # Guided logits favour code 0 up to a scale of 1.2, then the label; place p of 16 stands at p / 15 of the way.
    def written(guidance: Guidance, length: int) -> list[int]:
        sampling = Sampling(guidance, temperature=0)
        result = pair(conditional_ar(), always_masked(9)).generate(
            [5], seeds=[0], ar_tokens=length, prefix=sampling, fill=Fill(steps=1)
        )
        return result.tokens[0, :length].tolist()

    assert written(Guidance(1.55, "linear"), 16) == [0] * 6 + [5] * 10
    assert written(Guidance(1.55, "linear"), 8) == [0] * 6 + [5] * 2
    assert written(Guidance(4, "interval", 0.25, 0.5), 16) == [0] * 4 + [5] * 4 + [0] * 8


def test_linear_ramp_and_interval_in_the_fill() -> None:
    def written(guidance: Guidance, steps: int = 4) -> list[set[int]]:
        fill = Fill(steps=steps, sampling=Sampling(guidance, temperature=0))
        result = pair(masked=conditional_masked()).generate([5], seeds=[0], ar_fraction=0, fill=fill)
        return [set(result.tokens[result.origin == index + 1].tolist()) for index in range(steps)]

    assert written(Guidance(1.45, "linear")) == [{0}, {0}, {5}, {5}]
    assert written(Guidance(4, "interval", 0.3, 0.4)) == [{0}, {5}, {0}, {0}]
    assert written(Guidance(4, "linear"), steps=1) == [{5}]  # the only pass is the last of the ramp
    assert written(Guidance(1, "linear")) == [{0}] * 4


def test_negative_prompts_replace_the_null() -> None:
    ar, masked = conditional_ar(), conditional_masked()
    sampling = Sampling(Guidance(4), temperature=0)
    settings: dict[str, Any] = {"prefix": sampling, "fill": Fill(steps=2, sampling=sampling)}
    plain = pair(ar, masked).generate([5, 6], seeds=[0, 1], **settings)
    assert plain.tokens[:, 0].tolist() == [5, 6]
    assert {tuple(labels) for labels in ar.labels + masked.labels} == {(5, 6, NULL, NULL)}
    ar.labels, masked.labels = [], []
    result = pair(ar, masked).generate([5, 6], seeds=[0, 1], negative=[5, 7], **settings)
    assert {tuple(labels) for labels in ar.labels + masked.labels} == {(5, 6, 5, 7)}
    assert result.tokens.tolist() == [[0] * 16, [6] * 16]  # away from itself is nowhere: label 5 is unguided
    with pytest.raises(ValueError, match="1 negative prompts but 2 prompts; give one for each"):
        pair(ar, masked).generate([5, 6], seeds=[0, 1], negative=[5], **settings)
