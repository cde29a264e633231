"""AR-scored refinement, with fakes whose scores and fills are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import FakeAR, FakeTokenizer, always_ar, always_masked, neighbour_masked, pair, table_ar
from torch import Tensor

from hybrid.align import Alignment
from hybrid.phases import Cancelled, Fill, Sampling
from hybrid.refine import Refine, least_likely, log_likelihood, refine_tokens
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance, uniforms
from hybrid.types import FROM_AR


def run(ar: Any, masked: Any, tokens_bn: Tensor, open_bn: Tensor, refine: Refine, **options: Any) -> Any:
    asked = ar.condition(list(range(len(tokens_bn))))
    generators = [torch.Generator().manual_seed(row) for row in range(len(tokens_bn))]
    noise = uniforms(generators, (refine.rounds * refine.steps, 2, tokens_bn.shape[1]))
    options = {"prefix": Sampling(), "fill": Fill(noise=0)} | options
    nulls = asked.null()
    return refine_tokens(ar, masked, asked, nulls, asked, nulls, tokens_bn, open_bn, noise, refine=refine, **options)


def test_log_likelihood_is_the_table_s() -> None:
    ar = table_ar(codes=5)
    tokens = torch.randint(5, (2, 16), generator=torch.Generator().manual_seed(0))
    asked = ar.condition([0, 1])
    found = log_likelihood(ar, asked, asked.null(), tokens, Sampling())
    for row, label in enumerate((0, 1)):
        for place in range(16):
            wanted = ar.rule(tokens[row, :place], label).log_softmax(-1)[tokens[row, place]]
            torch.testing.assert_close(found[row, place], wanted)
    assert ar.batches == [2]


def test_log_likelihood_is_guided_in_one_pass() -> None:
    ar = table_ar(codes=5)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    asked = ar.condition([1])
    found = log_likelihood(ar, asked, asked.null(), tokens, Sampling(Guidance(3), temperature=0.1))
    with_, without = (ar.rule(tokens[0, :4], label) for label in (1, -1))
    wanted = (without + 3 * (with_ - without)).log_softmax(-1)[0]
    torch.testing.assert_close(found[0, 4], wanted)
    assert ar.batches == [2]


def test_least_likely_counts_open_places_only_and_rounds_up() -> None:
    log_p = torch.tensor([[-5.0, -1, -4, -2], [-1, -1, -1, -9]])
    open_ = torch.tensor([[False, True, True, True], [True, True, True, False]])
    assert least_likely(log_p, open_, 0.5).tolist() == [[False, False, True, True], [True, True, False, False]]
    assert torch.equal(least_likely(log_p, open_, 1.0), open_)
    assert not least_likely(log_p, torch.zeros_like(open_), 1.0).any()


def test_what_the_ar_model_would_not_write_is_drawn_anew_and_the_rest_stays() -> None:
    tokens = torch.full((2, 16), 3)
    tokens[0, [5, 9]] = 7
    tokens[1, [0, 5, 9]] = 7  # place 0 is not open
    open_ = torch.ones(2, 16, dtype=torch.bool)
    open_[:, :4] = False
    made, passes, counted = run(always_ar(3), always_masked(3), tokens, open_, Refine(redraw=2 / 12, steps=1))
    assert made[0].tolist() == [3] * 16 and made[1].tolist() == [7] + [3] * 15
    assert passes.nonzero().tolist() == [[0, 5], [0, 9], [1, 5], [1, 9]]
    assert counted == {"ar": 1, "masked": 1}


def test_a_second_round_scores_what_the_first_one_wrote() -> None:
    def rule(before: Tensor, label: int) -> Tensor:  # never two equal codes in a row
        logits = torch.zeros(16)
        if len(before):
            logits[before[-1]] = -50
        return logits

    ar = FakeAR(rule, 16)
    tokens, open_ = torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16, dtype=torch.bool)
    _, passes, counted = run(ar, always_masked(0), tokens, open_, Refine(rounds=3, redraw=0.25, steps=2))
    assert counted == {"ar": 3, "masked": 6} and ar.batches == [1, 1, 1]
    assert set(passes[0].tolist()) <= {0, 5, 6}  # the same four places each time: their last writer is round 3
    assert int((passes > 0).sum()) == 4


def test_an_image_of_a_batch_equals_it_alone_and_the_line_accounts_for_every_pass() -> None:
    how: dict[str, Any] = {"refine": Refine(rounds=2, redraw=0.3, steps=2), "ar_fraction": 0.25}
    together = pair().generate([0, 1, 2], seeds=[4, 5, 6], **how)
    for row in range(3):
        alone = pair().generate([row], seeds=[4 + row], **how)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.origin[0], together.origin[row])
    told = {phase: count for phase, count in together.phases.passes.items() if count}
    assert told == {"prefix": 4, "fill": 8, "score": 2, "refill": 4, "decode": 1}
    assert (together.origin[:, :4] == FROM_AR).all() and int(together.origin.max()) in range(9, 13)
    assert together.settings["refine"] == {"rounds": 2, "redraw": 0.3, "steps": 2}


def test_there_are_never_more_passes_than_places() -> None:
    made = pair().generate([1, 2], seeds=[3, 4], ar_tokens=15, fill=Fill(steps=1), refine=Refine(rounds=2))
    assert (made.phases.passes["score"], made.phases.passes["refill"]) == (2, 2)
    assert made.origin.tolist() == [[FROM_AR] * 15 + [3]] * 2
    open_ = torch.zeros(3, 16, dtype=torch.bool)
    open_[0, 4:], open_[1, 4:9] = True, True  # four, two and none of them
    tokens = torch.zeros(3, 16, dtype=torch.long)
    _, passes, counted = run(table_ar(), neighbour_masked(), tokens, open_, Refine(redraw=1 / 3, steps=3))
    assert counted == {"ar": 1, "masked": 2}
    assert [sorted(set(row)) for row in passes.tolist()] == [[0, 1, 2], [0, 1, 2], [0]]


def test_the_fill_before_it_is_the_hybrid_s_own() -> None:
    plain = pair().generate([1], seeds=[3], ar_fraction=0.5)
    refined = pair().generate([1], seeds=[3], ar_fraction=0.5, refine=Refine(redraw=0.01, steps=1))
    assert int((plain.tokens != refined.tokens).sum()) <= 1
    assert int((refined.origin == 9).sum()) == 1


def test_callback_sees_each_pass_and_cancels() -> None:
    seen: list[tuple[str, int, int]] = []

    def callback(step: Any) -> bool:
        seen.append((step.phase, step.index, step.total))
        return seen[-1] != ("refill", 3, 4)

    with pytest.raises(Cancelled, match="cancelled after refill 3 of 4"):
        pair().generate([0], seeds=[0], refine=Refine(rounds=2), callback=callback)
    assert [entry for entry in seen if entry[0] == "refill"] == [("refill", index, 4) for index in (1, 2, 3)]


def test_contradictions_are_named() -> None:
    for arguments, message in (
        ({"rounds": 0}, "rounds 0: must be at least 1"),
        ({"steps": 0}, "refinement steps 0: must be at least 1"),
        ({"redraw": 0.0}, "redraw 0: must be above 0 and at most 1"),
        ({"redraw": float("nan")}, "redraw nan: must be above 0 and at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Refine(**arguments)
    with pytest.raises(ValueError, match="refinement needs an AR model and a masked phase: use an ar_fraction below 1"):
        pair().generate([0], seeds=[0], ar_fraction=1, refine=Refine())
    with pytest.raises(ValueError, match="refinement needs an AR model"):
        HybridSampler(None, neighbour_masked(), FakeTokenizer()).generate([0], seeds=[0], refine=Refine())
    tokens = torch.zeros(1, 16, dtype=torch.long)
    other = Alignment("offset", torch.arange(16))
    with pytest.raises(ValueError, match="refinement needs one tokenizer for both models, not 'offset' alignment"):
        run(table_ar(), neighbour_masked(), tokens, tokens == 0, Refine(), alignment=other)
