"""Exact verification, step by step: greedy decoding, passes and acceptance, windows, callbacks, what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    FakeAR,
    FakeMasked,
    always_ar,
    always_masked,
    neighbour_masked,
    table_ar,
    uniform_ar,
    uniform_masked,
)
from safetensors.torch import load_file
from torch import Tensor

from hybrid import verify
from hybrid.adapters import load
from hybrid.align import Alignment
from hybrid.drafts import JacobiDrafter
from hybrid.phases import Cancelled, Sampling, Step, ar_prefix
from hybrid.sampling import Guidance
from hybrid.types import FROM_AR, MASK, Grid
from hybrid.verify import ExactResult, Verify, accept, exact_generate, next_window

GOLDEN = Path(__file__).parent / "golden"
WIDE = Grid(5, 3)


def generate(
    ar: Any, masked: Any, labels: Any, seeds: list[int], grid: Grid | None = None, **options: Any
) -> ExactResult:
    how = {name: options.pop(name) for name in ("window", "adapt", "relax") if name in options}
    how |= {"draft": options.pop("by")} if "by" in options else {}
    settings: dict[str, Any] = {"prefix": Sampling(), "draft": Sampling(), "verify": Verify(**how)} | options
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    asked = ar.condition(labels, grid)
    drafting = None if masked is None else masked.condition(labels, grid)
    nulls = asked.null(), None if drafting is None else drafting.null()
    return exact_generate(ar, masked, asked, nulls[0], drafting, nulls[1], generators=generators, **settings)


GREEDY = Sampling(Guidance(2), temperature=0)


@pytest.mark.parametrize("draft", [Sampling(), Sampling(temperature=0), Sampling(Guidance(3), top_k=4)])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_argmax_is_greedy_ar(draft: Sampling, window: int) -> None:
    ar = table_ar()
    asked = ar.condition([1, 2, 3], WIDE)
    greedy, _ = ar_prefix(ar, asked, asked.null(), WIDE.places, torch.zeros(3, WIDE.places), GREEDY)
    for how in ({"relax": 0.0}, {"relax": 0.9}, {"by": "jacobi"}):  # argmax is never loosened
        result = generate(
            ar, neighbour_masked(), [1, 2, 3], [0, 1, 2], WIDE, prefix=GREEDY, draft=draft, window=window, **how
        )
        assert torch.equal(result.tokens_bn, greedy)


@cache
def golden_pair() -> tuple[Any, Any]:
    """LlamaGen's golden model, and a MaskGIL of its size in the paper's form with random weights."""
    from hybrid.adapters.maskgil import create

    torch.manual_seed(0)
    fields = {"dim": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "block_size": 16, "num_classes": 10}
    masked, _ = create({**fields, "multiple_of": 32, "rope": "2d", "qk_norm": True, "post_norm": True})
    torch.nn.init.normal_(masked.output.weight, std=0.3)
    return load("llamagen", GOLDEN / "llamagen_c2i.safetensors"), masked.eval()


def test_jacobi_settles_what_does_not_depend_on_the_draft_in_one_window_a_pass() -> None:
    result = generate(always_ar(3), None, [0, 1], [0, 1], by="jacobi", window=4, adapt=False)
    assert (result.tokens_bn == 3).all()
    # The first place, then four drafts and one token more each time: 1 + 5 + 5 + 5 places.
    assert result.passes == {"ar": 4, "masked": 0}
    assert (result.origin_bn == FROM_AR).all() and result.accepted_bn[0].tolist() == [False, *[True] * 4] * 3 + [False]


def test_jacobi_drafts_from_the_last_look_and_before_that_from_the_last_place_looked_at() -> None:
    p = torch.arange(12.0).view(1, 4, 3)
    drafter = JacobiDrafter(4, p[:, 0])
    assert drafter.propose(torch.empty(0), torch.tensor([[1, 2, 3]]))[0].tolist() == [p[0, 0].tolist()] * 3
    looked = torch.tensor([[True, True, False]])
    drafter.learn(torch.tensor([[1, 2, 3]]), p[:, 1:], looked)
    assert drafter.propose(torch.empty(0), torch.tensor([[2, 3]]))[0].tolist() == [p[0, 2].tolist()] * 2
    drafter.learn(torch.tensor([[2, 3]]), p[:, :2], torch.tensor([[True, True]]))
    assert drafter.propose(torch.empty(0), torch.tensor([[2, 3]]))[0].tolist() == p[0, :2].tolist()


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("window", [3, 16])
def test_argmax_is_llamagens_greedy_decoding(scale: int, window: int) -> None:
    ar, masked = golden_pair()
    values = load_file(GOLDEN / "llamagen_c2i.safetensors")
    prefix = Sampling(Guidance(scale), temperature=0)
    result = generate(ar, masked, values["labels"], [0, 1, 2], prefix=prefix, window=window)
    assert torch.equal(result.tokens_bn, values[f"greedy_cfg{scale}"])
    assert result.passes["ar"] <= 16
    jacobi = generate(ar, None, values["labels"], [0, 1, 2], prefix=prefix, window=window, by="jacobi")
    assert torch.equal(jacobi.tokens_bn, values[f"greedy_cfg{scale}"])


class OracleMasked(FakeMasked):
    """Knows what the AR model will say: a draft that is always right, as far as ``known`` tells."""

    def __init__(self, known_bn: Tensor, codes: int, grid: Grid) -> None:
        super().__init__(lambda *_: torch.zeros(0), codes, grid)
        self.known_bn = known_bn

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        assert places_bm is not None
        return torch.nn.functional.one_hot(self.known_bn.gather(1, places_bm), self.codebook_size) * 50.0


def test_a_right_draft_saves_llamagens_passes() -> None:
    """Rows stand at different places of the real cache, and the last places are fed in windows that begin earlier."""
    ar, _ = golden_pair()
    values = load_file(GOLDEN / "llamagen_c2i.safetensors")
    greedy = values["greedy_cfg4"]
    known = greedy.clone()
    known[1, 5:] = (known[1, 5:] + 1) % 64  # the second image's drafts go wrong, the others' do not
    masked = OracleMasked(known, 64, Grid(4, 4))
    prefix = Sampling(Guidance(4), temperature=0)
    result = generate(ar, masked, values["labels"], [0, 1, 2], prefix=prefix, draft=Sampling(temperature=0), window=6)
    assert torch.equal(result.tokens_bn, greedy)
    assert result.drafted_br[0].tolist()[:3] == [6, 6, 0]
    assert (result.origin_bn[0] != FROM_AR).sum() == 12 and (result.origin_bn[1] != FROM_AR).sum() == 4
    assert result.passes["ar"] == 1 + result.drafted_br.shape[1]


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"prefix": Sampling(Guidance(3, "linear"), top_k=5), "draft": Sampling(Guidance(2), top_p=0.9)},
    "fixed": {"window": 5, "adapt": False},
    "tall": {"grid": WIDE, "window": 3},
    "relaxed": {"relax": 0.4},
    "greedy": {"prefix": GREEDY},
}


@pytest.mark.parametrize("run", RUNS)
def test_an_image_does_not_depend_on_its_neighbours(run: str) -> None:
    labels, seeds = [3, 1, 4, 1, 5], [5, 9, 2, 6, 5]
    together = generate(table_ar(), neighbour_masked(), labels, seeds, **RUNS[run])
    for i in range(5):
        alone = generate(table_ar(), neighbour_masked(), labels[i : i + 1], seeds[i : i + 1], **RUNS[run])
        for name in ("tokens_bn", "origin_bn", "tested_bn"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])
        rounds = alone.drafted_br.shape[1]
        for name in ("drafted_br", "accepted_br"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i, :rounds])
            assert (getattr(together, name)[i, rounds:] == 0).all()


def test_an_image_leaves_its_generator_where_it_would_alone() -> None:
    ends = []
    for seeds in ([0, 1, 2], [1]):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        ar, masked = table_ar(), neighbour_masked()
        asked = ar.condition(seeds)
        exact_generate(
            ar,
            masked,
            asked,
            asked.null(),
            asked,
            asked.null(),
            generators=generators,
            prefix=Sampling(),
            draft=Sampling(),
        )
        ends.append(torch.rand(4, generator=generators[seeds.index(1)]))
    assert torch.equal(*ends)


def test_no_noise_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(p: Tensor, q: Tensor, draft: Tensor, u: Tensor, last: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.extend((u.flatten(), last))
        return accept(p, q, draft, u, last, **options)

    monkeypatch.setattr(verify, "accept", watched)
    generate(table_ar(), neighbour_masked(), [0, 1], [0, 1], Grid(2, 3), window=2)
    values = torch.cat(seen)
    values = values[values > 0]  # a finished image gets zeros
    assert len(values) > 10 and len(values.unique()) == len(values)


def test_passes_and_acceptance() -> None:
    worst = generate(always_ar(3), always_masked(4), [0, 0], [0, 1])
    assert (worst.tokens_bn == 3).all() and (worst.origin_bn == FROM_AR).all()
    # One token an attempt; the last place is left to the AR model, so nothing is drafted for it.
    assert worst.passes == {"ar": 16, "masked": 14}
    assert worst.tested_bn.tolist() == [[0] + [1] * 14 + [0]] * 2 and not worst.accepted_bn.any()
    assert worst.drafted_br[0].tolist() == [14, 8, 4, 2, *[1] * 10, 0]

    best = generate(always_ar(3), always_masked(3), [0, 0], [0, 1])
    assert (best.tokens_bn == 3).all() and best.passes == {"ar": 2, "masked": 1}
    assert best.origin_bn.tolist() == [[0] + [1] * 14 + [0]] * 2
    assert best.drafted_br.tolist() == best.accepted_br.tolist() == [[14]] * 2

    best = generate(always_ar(3), always_masked(3), [0], [0], window=4)
    assert best.origin_bn.tolist() == [[0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 3, 3, 3, 0]]

    ar, masked = table_ar(), neighbour_masked()
    mixed = generate(ar, masked, [1, 2, 3], [0, 1, 2], prefix=Sampling(Guidance(2)))
    assert mixed.passes == {"ar": len(ar.batches), "masked": len(masked.batches)}
    assert set(ar.batches) == {6} and set(masked.batches) == {3}
    assert mixed.passes["ar"] <= 16
    assert torch.equal(mixed.accepted_bn.sum(1), mixed.accepted_br.sum(1))
    assert (mixed.tested_bn >= mixed.accepted_bn.long()).all()
    assert torch.equal(mixed.tested_bn.sum(1), torch.minimum(mixed.accepted_br + 1, mixed.drafted_br).sum(1))
    for single in (Grid(1, 1), Grid(1, 2)):
        few = generate(uniform_ar(), uniform_masked(), [0], [0], single)
        assert few.passes == {"ar": single.places, "masked": 0} and few.tokens_bn.shape == (1, single.places)


def test_acceptance_rate_is_the_overlap() -> None:
    """Each tested draft is accepted with probability sum(min(p, q)) = 1 - TV(p, q)."""
    p_k, q_k = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.2, 0.6])
    ar = FakeAR(lambda *_: p_k.log(), 3, Grid(4, 4))
    masked = FakeMasked(lambda tokens, *_: q_k.log().expand(len(tokens), -1), 3, Grid(4, 4))
    result = generate(ar, masked, [0] * 300, list(range(300)))
    tested = float(result.tested_bn.sum())
    assert abs(float(result.accepted_bn.sum()) / tested - 0.5) < 5 * 0.5 / tested**0.5


def test_windows_follow_the_past_only() -> None:
    window, drafted, accepted = torch.tensor([[8, 8, 8, 8, 16, 1, 5], [8, 8, 8, 3, 16, 1, 0], [8, 4, 3, 3, 16, 0, 0]])
    assert next_window(window, drafted, accepted, 16).tolist() == [16, 8, 4, 16, 16, 1, 5]
    ar, masked = table_ar(), neighbour_masked()
    result = generate(ar, masked, list(range(8)), list(range(8)), Grid(6, 6), prefix=Sampling(temperature=3.0))
    assert len(result.drafted_br.unique()) > 3
    for drafted_r, accepted_r in zip(result.drafted_br.tolist(), result.accepted_br.tolist(), strict=True):
        width, done = 16, 1
        for drafted_now, accepted_now in zip(drafted_r, accepted_r, strict=True):
            assert drafted_now == max(min(width, 36 - done - 1), 0)
            if drafted_now:
                if accepted_now == drafted_now:
                    width = min(2 * width, 16)
                elif 2 * accepted_now < drafted_now:
                    width = max(width // 2, 1)
            done = min(done + accepted_now + 1, 36)
        assert done == 36
    fixed = generate(ar, masked, [0, 1], [0, 1], Grid(6, 6), window=5, adapt=False)
    for drafted_r, accepted_r in zip(fixed.drafted_br.tolist(), fixed.accepted_br.tolist(), strict=True):
        done = 1
        for drafted_now, accepted_now in zip(drafted_r, accepted_r, strict=True):
            assert drafted_now == max(min(5, 36 - done - 1), 0)
            done = min(done + accepted_now + 1, 36)


def test_drafts_see_the_verified_prefix_only() -> None:
    seen: list[list[int]] = []

    def rule(tokens_n: Tensor, label: int, grid: Grid) -> Tensor:
        seen.append(tokens_n.tolist())
        return torch.zeros(len(tokens_n), 16)

    result = generate(table_ar(), FakeMasked(rule, 16), [1], [0], window=3)
    done = 1
    for tokens, accepted in zip(seen, result.accepted_br[0].tolist(), strict=False):
        assert tokens == result.tokens_bn[0, :done].tolist() + [MASK] * (16 - done)
        done += accepted + 1


class CarefulAR(FakeAR):
    """Fails where its cache holds more than verified tokens, or where a row feeds the last place."""

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: Any) -> Tensor:
        end_b = places_b + tokens_bw.shape[1]
        assert (end_b <= 15).all()
        assert ((state.filled_b == places_b) | (end_b == 15)).all()
        assert (tokens_bw >= 0).all()
        return super().decode(tokens_bw, places_b, state)


def test_the_cache_holds_verified_tokens_and_never_the_last_place() -> None:
    ar = CarefulAR(table_ar().rule, 16)
    careful = generate(ar, neighbour_masked(), [1, 2, 3, 4], [0, 1, 2, 3], prefix=Sampling(Guidance(2)))
    plain = generate(table_ar(), neighbour_masked(), [1, 2, 3, 4], [0, 1, 2, 3], prefix=Sampling(Guidance(2)))
    assert torch.equal(careful.tokens_bn, plain.tokens_bn)


def test_callbacks_see_the_verified_tokens() -> None:
    steps: list[Step] = []
    result = generate(table_ar(), neighbour_masked(), [1, 2], [0, 1], callback=steps.append)
    assert len(steps) == result.passes["ar"]
    assert {(step.phase, step.total, step.grid) for step in steps} == {("verify", 16, Grid(4, 4))}
    indices = [step.index for step in steps]
    assert indices[0] == 1 and indices[-1] == 16 and indices == sorted(indices)
    for step in steps:
        known = step.tokens_bn != MASK
        assert int(known.sum(1).min()) == step.index
        assert torch.equal(step.tokens_bn[known], result.tokens_bn[known])
        assert (known.long().diff(dim=1) <= 0).all()


def test_returning_false_cancels() -> None:
    ar = always_ar(3)
    with pytest.raises(Cancelled, match="cancelled after verify 6 of 16"):
        generate(ar, always_masked(3), [0], [0], window=4, callback=lambda step: step.index < 6)
    assert len(ar.batches) == 2
    generate(ar, always_masked(3), [0], [0], callback=lambda step: 0)  # only False cancels


def test_contradictions_are_refused_before_any_model_runs() -> None:
    def refused(match: str, ar: Any = None, masked: Any = None, seeds: tuple[int, ...] = (0,), **options: Any) -> None:
        ar, masked = ar or table_ar(), masked or neighbour_masked()
        with pytest.raises(ValueError, match=match):
            generate(ar, masked, [0], list(seeds), **options)
        assert ar.batches == masked.batches == []

    refused("draft 'guess': use masked or jacobi", by="guess")
    refused("window 0: must be at least 1 place", window=0)
    refused(r"relax 1: must be at least 0 \(exact\) and below 1", relax=1.0)
    refused("masked model's codes: expected 16, as the AR model has, got 8", masked=neighbour_masked(8))
    refused("masked model's grid: expected 4x4, as the AR model has, got 5x3", masked=neighbour_masked(grid=WIDE))
    refused("generators: expected 1, as the AR model has, got 2", seeds=(0, 1))
    for kind in ("offset", "permutation", "nearest"):
        table = torch.arange(16)
        refused(
            f"exact verification needs one tokenizer for both models, not '{kind}' alignment",
            alignment=Alignment(kind, table),
        )
    generate(table_ar(), neighbour_masked(), [0], [0], alignment=Alignment("identity", None))


def test_broken_logits_are_named() -> None:
    nan = torch.full((16,), float("nan"))
    for ar, masked in (
        (FakeAR(lambda *_: nan, 16), neighbour_masked()),
        (table_ar(), FakeMasked(lambda tokens, *_: nan.expand(len(tokens), -1), 16)),
    ):
        with pytest.raises(ValueError, match="logits: hold NaN"):
            generate(ar, masked, [0], [0])


def test_the_callers_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    generate(table_ar(), neighbour_masked(), [0], [0])
    assert torch.equal(before, torch.get_rng_state())
