"""Exact verification: on models small enough to enumerate, the tokens have the AR model's distribution.

Each chi-square test and each test of total variation rejects a correct program with probability ALARM. Fewer than 300
run, so that one choice of seeds fails with probability below 3e-4. The seeds are fixed: what has passed passes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fakes import NULL, FakeAR, FakeCondition, FakeMasked
from pairs import TRANSFORMER
from torch import Tensor

from hybrid import verify
from hybrid.adapters import unified
from hybrid.drafts import distribution
from hybrid.phases import Sampling, ar_prefix
from hybrid.sampling import Guidance
from hybrid.types import MASK, Grid
from hybrid.verify import ExactResult, Verify, accept, exact_generate

ALARM = 1e-6
CODES, TINY = 3, Grid(1, 5)
PLACES = TINY.places
IMAGES = 20_000


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class BatchAR(FakeAR):
    """A table of next-token logits for every prefix, with and without condition, looked up for whole batches."""

    def __init__(self) -> None:
        super().__init__(lambda before, label: torch.zeros(CODES), CODES, TINY)
        self.table = randn(2, PLACES, CODES**PLACES, CODES, seed=1) * 1.5

    def _next(self, state: Any) -> Tensor:
        known_bn = torch.arange(state.tokens_bn.shape[1]) < state.filled_b[:, None]
        weight_n = CODES ** torch.arange(state.tokens_bn.shape[1])
        prefix_b = (torch.where(known_bn, state.tokens_bn, 0) * weight_n).sum(1)
        kind_b = (state.condition.labels_b == NULL).long()
        return self.table[kind_b, state.filled_b.clamp(max=PLACES - 1), prefix_b]


class BatchMasked(FakeMasked):
    """The same of the masked model: logits for every grid with unknown places, of any quality."""

    def __init__(self, spread: float = 1.0) -> None:
        super().__init__(lambda *_: torch.zeros(PLACES, CODES), CODES, TINY)
        self.table = randn(2, (CODES + 1) ** PLACES, PLACES, CODES, seed=2) * spread

    def logits(self, tokens_bn: Tensor, condition: FakeCondition, places_bm: Tensor | None = None) -> Tensor:
        self.note(condition.labels_b)
        assert places_bm is not None
        grid_b = ((tokens_bn + 1) * (CODES + 1) ** torch.arange(PLACES)).sum(1)
        kind_b = (condition.labels_b == NULL).long()
        return self.table[kind_b[:, None], grid_b[:, None], places_bm]


@cache
def exact_probabilities(sampling: Sampling) -> Tensor:
    """Of each of the k^n grids, by hand: guidance, temperature, top-k and top-p of every conditional."""
    model, found = BatchAR(), []
    for grid in product(range(CODES), repeat=PLACES):
        total, prefix = 1.0, 0
        for place, code in enumerate(grid):
            cond, null = (model.table[kind, place, prefix].double() for kind in (0, 1))
            scale = sampling.guidance.at(place / (PLACES - 1))
            logits = ((null + scale * (cond - null)) / sampling.temperature).tolist()
            lowest = -math.inf if scale == 1 else float(cond.exp().max()) * sampling.guidance.floor
            plausible = [i for i in range(CODES) if float(cond[i].exp()) >= lowest]
            ranked = sorted(plausible, key=lambda i: -logits[i])[: sampling.top_k or CODES]
            weights = {i: math.exp(logits[i]) for i in ranked}
            mass, kept = 0.0, {}
            for i in ranked:
                if mass < (sampling.top_p or 1.0):
                    kept[i] = weights[i]
                mass += weights[i] / sum(weights.values())
            total *= kept.get(code, 0.0) / sum(kept.values())
            prefix += code * CODES**place
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def counted(tokens_bn: Tensor) -> Tensor:
    """How often each of the k^n grids came out, in the order of ``itertools.product``."""
    cells = (tokens_bn * CODES ** torch.arange(PLACES - 1, -1, -1)).sum(1)
    return torch.bincount(cells, minlength=CODES**PLACES).double()


def chance(statistic: float, freedom: int) -> float:
    """P(chi-square of so many degrees of freedom >= statistic)."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def fits(counts: Tensor, p: Tensor) -> float:
    """p-value of Pearson's test; cells expected fewer than 5 times are pooled. 0 where an impossible grid came out."""
    if bool((counts[p == 0] > 0).any()):
        return 0.0
    expected = p * counts.sum()
    rare = expected < 5
    seen, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    return chance(float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1)


def agree(one: Tensor, other: Tensor) -> float:
    """p-value of the two-sample test for equally many draws; cells seen fewer than 10 times together are pooled."""
    rare = one + other < 10
    one, other = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (one, other))
    one, other = one[one + other > 0], other[one + other > 0]
    return chance(float(((one - other) ** 2 / (one + other)).sum()), len(one) - 1)


def variation(counts: Tensor, p: Tensor) -> float:
    return float((counts / counts.sum() - p).abs().sum() / 2)


def variation_bound(p: Tensor, images: int) -> float:
    """Exceeded by the empirical total variation with probability below ALARM (its mean, then McDiarmid)."""
    mean = float((p * (1 - p) / images).sqrt().sum() / 2)
    return mean + math.sqrt(math.log(1 / ALARM) / (2 * images))


def variation_between(one: Tensor, other: Tensor) -> float:
    """Total variation between two empirical distributions."""
    return float((one / one.sum() - other / other.sum()).abs().sum() / 2)


def variation_between_bound(p: Tensor, images: int) -> float:
    """Exceeded by it with probability below ALARM where both have ``images`` draws of p (mean, then McDiarmid)."""
    mean = float((2 * p * (1 - p) / images).sqrt().sum() / 2)
    return mean + math.sqrt(math.log(1 / ALARM) / images)


def pooled(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """What ``uniforms`` gives, drawn at once from the first generator, since one for each of many images is slow."""
    return torch.rand((len(generators), *shape), generator=generators[0])


def tiny(prefix: Sampling, draft: Sampling, seed: int = 0, by: Any = "masked", **options: Any) -> ExactResult:
    ar, masked = BatchAR(), BatchMasked()
    asked = ar.condition([0] * IMAGES)
    generators = [torch.Generator().manual_seed(seed)] * IMAGES
    how = Verify(**options, draft=by)
    nulls = asked.null()
    with patch.object(verify, "uniforms", pooled):
        return exact_generate(
            ar, masked, asked, nulls, asked, nulls, generators=generators, prefix=prefix, draft=draft, verify=how
        )


SETTINGS: dict[str, tuple[Sampling, Sampling]] = {
    "plain": (Sampling(), Sampling()),
    "guided": (Sampling(Guidance(2.5)), Sampling(Guidance(1.5))),
    "ramp": (Sampling(Guidance(3, "linear"), temperature=1.3), Sampling(Guidance(2, "interval", 0.5, 1))),
    "top-k": (Sampling(top_k=2, temperature=1.5), Sampling(top_k=2)),
    "top-p": (Sampling(Guidance(0.5), temperature=0.8, top_p=0.8), Sampling(temperature=2.0)),
    "soft": (Sampling(Guidance(2), temperature=2.5), Sampling()),
    "floor": (Sampling(Guidance(3, floor=0.3)), Sampling(Guidance(2, floor=0.1))),
    "sure draft": (Sampling(temperature=1.2), Sampling(temperature=0)),
}


@pytest.mark.parametrize("by", ["masked", "jacobi"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_joint_distribution_is_the_ar_models(name: str, seed: int, by: Any) -> None:
    prefix, masked = SETTINGS[name]
    p = exact_probabilities(prefix)
    assert float(p.sum()) == pytest.approx(1)
    counts = counted(tiny(prefix, masked, seed, window=(4, 2, 16)[seed], by=by).tokens_bn)
    assert fits(counts, p) > ALARM
    assert variation(counts, p) < variation_bound(p, IMAGES)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 3, "adapt": False}])
def test_every_window_is_exact(options: dict[str, Any]) -> None:
    prefix, draft = SETTINGS["guided"]
    assert fits(counted(tiny(prefix, draft, 5, **options).tokens_bn), exact_probabilities(prefix)) > ALARM


@cache
def plain_ar(name: str, seed: int) -> Tensor:
    """Counts of the grids that the AR model draws token by token."""
    model = BatchAR()
    asked = model.condition([0] * IMAGES)
    noise = torch.rand(IMAGES, PLACES, generator=torch.Generator().manual_seed(100 + seed))
    return counted(ar_prefix(model, asked, asked.null(), PLACES, noise, SETTINGS[name][0])[0])


@pytest.mark.parametrize("by", ["masked", "jacobi"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_plain_ar_agrees(name: str, seed: int, by: Any) -> None:
    prefix, draft = SETTINGS[name]
    p, plain = exact_probabilities(prefix), plain_ar(name, seed)
    assert fits(plain, p) > ALARM and variation(plain, p) < variation_bound(p, IMAGES)
    own = counted(tiny(prefix, draft, 8 + seed, by=by).tokens_bn)
    assert agree(plain, own) > ALARM
    assert variation_between(plain, own) < variation_between_bound(p, IMAGES)


@torch.inference_mode()
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("wrong", [False, True])
def test_drafts_from_the_cache_of_one_network_are_exact(
    seed: int, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the network's own distribution of 2x2 grids, enumerated; a wrong q is caught."""
    torch.manual_seed(3)
    small = {"n_layer": 2, "num_classes": 2, "vocab_size": CODES, "block_size": 4}
    model, _ = unified.create(TRANSFORMER | small)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    model.eval()
    prefix, draft, images = Sampling(Guidance(2.0)), Sampling(Guidance(1.5)), 8000
    grids = torch.tensor(list(product(range(CODES), repeat=4)))
    asked = model.condition([0] * len(grids))
    cond, null = (model.score(grids, one).double() for one in (asked, asked.null()))
    log_p = (null + 2 * (cond - null)).log_softmax(-1).gather(-1, grids[..., None])[..., 0].sum(1)
    if wrong:  # q is told of other codes than those that were drawn from it
        monkeypatch.setattr(verify, "accept", lambda p, q, *rest, relax: accept(p, q.roll(1, -1), *rest, relax=relax))
    asked = model.condition([0] * images)
    with patch.object(verify, "uniforms", pooled):
        made = exact_generate(
            model, model, asked, asked.null(), asked, asked.null(),
            generators=[torch.Generator().manual_seed(seed)] * images,
            prefix=prefix, draft=draft, verify=Verify(window=3),
        )  # fmt: skip
    cells = (made.tokens_bn * CODES ** torch.arange(3, -1, -1)).sum(1)
    p_value = fits(torch.bincount(cells, minlength=CODES**4).double(), log_p.exp())
    assert (p_value < ALARM) == wrong
    assert made.accepted_bn.any()


def _noise(change: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Every attempt's uniforms (b, 3, w), of drafts, acceptance and the last token (its first), changed."""
    fresh = verify._fresh
    return lambda monkeypatch: monkeypatch.setattr(verify, "_fresh", lambda *given: change(fresh(*given)))


def _same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    fresh = verify._fresh
    monkeypatch.setattr(verify, "_fresh", lambda *given: (kept.append(fresh(*given)), kept[0])[1])


def _rule(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(verify, "accept", change)


def _q_of_the_place_before(p: Tensor, q: Tensor, draft: Tensor, *rest: Any, relax: float) -> tuple[Tensor, Tensor]:
    return accept(p, torch.cat((q[:, :1], q[:, :-1]), dim=1), draft, *rest, relax=relax)


def _p_without_its_last_place(p: Tensor, *rest: Any, relax: float) -> tuple[Tensor, Tensor]:
    return accept(torch.cat((p[:, :1], p[:, :-1]), dim=1), *rest, relax=relax)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "residual from p": lambda patch: patch.setattr(verify, "_residual", lambda p, q: p),
    "one uniform for draft and acceptance": _noise(lambda noise: noise[:, [0, 0, 2]]),
    "one uniform for draft and residual": _noise(lambda noise: noise[:, [0, 1, 0]]),
    "one uniform for acceptance and residual": _noise(lambda noise: noise[:, [0, 1, 1]]),
    "the same noise for every attempt": _same_every_time,
    "q of the place before": _rule(_q_of_the_place_before),
    "p of the place before": _rule(_p_without_its_last_place),
    "loosened": _rule(lambda *given, relax: accept(*given, relax=0.2)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, draft = SETTINGS["soft"]
    BUGS[bug](monkeypatch)
    assert fits(counted(tiny(prefix, draft, window=4).tokens_bn), exact_probabilities(prefix)) < ALARM


@pytest.mark.parametrize("relax", [0.1, 0.5])
def test_relaxation_stays_within_its_bound(relax: float) -> None:
    prefix, draft = SETTINGS["guided"]
    p = exact_probabilities(prefix)
    exact, loose = (tiny(prefix, draft, 3, window=4, adapt=False, relax=value) for value in (0.0, relax))
    assert loose.accepted_br.sum() > exact.accepted_br.sum()
    counts = counted(loose.tokens_bn)
    slack = variation_bound(p, IMAGES)
    assert variation(counts, p) < 1 - (1 - relax) ** PLACES + slack
    assert fits(counts, p) < ALARM  # it is not exact, and the test sees it
    # One place by enumeration: the emitted distribution from the rule's own definition.
    p_k, q_k = distribution(randn(2, CODES, seed=4), Sampling()).double()
    kept_k = torch.minimum(q_k, p_k / (1 - relax))
    left_k = (p_k - q_k).clamp(min=0)
    emitted_k = kept_k + (1 - kept_k.sum()) * left_k / left_k.sum()
    assert (emitted_k <= p_k / (1 - relax) + 1e-12).all()
    assert (emitted_k - p_k).abs().sum() / 2 <= relax
    images = 100_000
    noise = torch.rand(3, images, generator=torch.Generator().manual_seed(0))
    draft_b = torch.searchsorted(q_k.cumsum(0), noise[0].double()).clamp(max=CODES - 1)
    p_bwk, q_bwk = (x.float().expand(images, 1, CODES) for x in (p_k, q_k))
    tokens_b = accept(p_bwk, q_bwk, draft_b[:, None], noise[1][:, None], noise[2], relax=relax)[1][:, 0]
    # A window without a place after it leaves nothing to draw where its only draft stays.
    assert fits(torch.bincount(tokens_b, minlength=CODES).double(), emitted_k) > ALARM


def test_the_rule_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.25, 0.5, 0.25]])
    q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])

    def run(draft: list[int], u: list[float], last: float) -> tuple[int, list[int]]:
        accepted, tokens = accept(
            p[None], q[None], torch.tensor([draft]), torch.tensor([[*u, 0.0]]), torch.tensor([last])
        )
        return int(accepted), tokens[0].tolist()

    assert run([0, 2, MASK], [0.99, 0.99], 0.3) == (2, [0, 2, 1])  # p >= q: accepted whatever u; the bonus is of p
    assert run([0, 2, MASK], [0.99, 0.99], 0.24) == (2, [0, 2, 0])
    assert run([1, 2, MASK], [0.49, 0.99], 0.75) == (2, [1, 2, 2])  # u below p / q = 1 / 2
    assert run([1, 2, MASK], [0.5, 0.0], 0.99) == (0, [0, MASK, MASK])  # only code 0 has p > q
    assert run([0, 0, MASK], [0.0, 0.0], 0.99) == (1, [0, 1, MASK])  # p = 0 is rejected even at u = 0
    assert run([0, 1, MASK], [0.9, 0.99], 0.0) == (2, [0, 1, 0])  # q = 0, p > 0: the ratio is infinite
    assert run([MASK, MASK, MASK], [0.0, 0.0], 0.6) == (0, [1, MASK, MASK])  # no draft: a plain draw from p
    accepted, tokens = accept(p[None, :1], q[None, :1], torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1))
    assert (int(accepted), tokens.tolist()) == (1, [[0]])


def test_equal_distributions_never_reject() -> None:
    p = distribution(randn(300, 4, 1000, seed=0) * 3, Sampling(top_k=50))
    draft = p.flatten(0, 1).multinomial(1, generator=torch.Generator().manual_seed(0)).view(300, 4)
    accepted, tokens = accept(p, p, draft, torch.full((300, 4), 1 - 2.0**-24), torch.zeros(300))
    assert (accepted == 4).all() and torch.equal(tokens, draft)


def test_a_rejection_always_has_a_residual() -> None:
    """The last bits of float32 may differ without p exceeding q anywhere; whole numbers of equal sums may not."""
    p = distribution(randn(4000, 1, 64, seed=0), Sampling())
    q = torch.nextafter(p, torch.ones(()))
    for one, other in ((p, q), (q, p)):
        draft = one.argmin(-1)
        accepted, tokens = accept(one, other, draft, torch.full((4000, 1), 1 - 2.0**-24), torch.full((4000,), 0.999))
        assert ((tokens >= 0) & (tokens < 64)).all() and ((accepted == 1) | (tokens != draft)[:, 0]).all()


def test_wrong_probabilities_and_knobs_are_refused() -> None:
    half = torch.tensor([[[0.5, 0.5]]])
    one = torch.zeros(1, 1)
    for p, q in ((half * 0.9, half), (half, half * 1.1), (torch.tensor([[[1.5, -0.5]]]), half)):
        with pytest.raises(ValueError, match="probabilities: must be from 0 and sum to 1"):
            accept(p, q, torch.zeros(1, 1, dtype=torch.long), one, one[0])
    for relax in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"relax {relax:g}: must be at least 0 \(exact\) and below 1"):
            accept(half, half, torch.zeros(1, 1, dtype=torch.long), one, one[0], relax=relax)
