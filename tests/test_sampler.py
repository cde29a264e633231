"""The hybrid line with fakes, whose pictures are known in advance, and with golden models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    TALL,
    FakeAR,
    FakeTokenizer,
    always_ar,
    always_masked,
    neighbour_masked,
    pair,
    ranked_masked,
    table_ar,
    uniform_ar,
    uniform_masked,
)
from safetensors.torch import load_file
from torch import Tensor

from hybrid import sampler as sampler_module
from hybrid.adapters import load
from hybrid.orders import ORDERS, halton_order
from hybrid.phases import Fill, Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.schedules import SCHEDULES, counts
from hybrid.types import FROM_AR, MASK, PHASES, Generation, Grid

GOLDEN = Path(__file__).parent / "golden"
CODES = 16


def given_uniforms(seed: int, places: int, steps: int) -> tuple[Tensor, Tensor]:
    """An image's noise as the sampler's docstring promises it: the AR places, then each pass's tokens and order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(places, generator=generator), torch.rand(steps, 2, places, generator=generator)


def inverse_cdf(logits_k: Tensor, uniform: float, temperature: float = 1.0) -> int:
    if temperature == 0:
        return int(logits_k.argmax())
    return int((logits_k.double() / temperature).softmax(-1).cumsum(-1).gt(uniform).long().argmax())


@torch.no_grad()
def ar_loop(
    model: Any, label: int, grid: Grid, uniforms_n: Tensor, temperature: float, scale: float = 1.0
) -> list[int]:
    """The AR model's own loop for one image: no cache, one teacher-forced pass per token."""
    asked = model.condition([label], grid)
    tokens_bn = torch.zeros(1, grid.places, dtype=torch.long)
    for place in range(grid.places):
        logits_k = model.score(tokens_bn, asked)[0, place]
        if scale != 1:
            null_k = model.score(tokens_bn, asked.null())[0, place]
            logits_k = null_k + scale * (logits_k - null_k)
        tokens_bn[0, place] = inverse_cdf(logits_k, float(uniforms_n[place]), temperature)
    return tokens_bn[0].tolist()


@torch.no_grad()
def masked_loop(
    model: Any,
    label: int,
    grid: Grid,
    uniforms_t2n: Tensor,
    reveal: list[int],
    *,
    temperature: float = 1.0,
    noise: float = 0.0,
    scale: float = 1.0,
    turns: list[int] | None = None,
) -> list[int]:
    """The masked model's own loop for one image, in plain Python; ``turns`` is a fixed order of the places."""
    asked = model.condition([label], grid)
    tokens_bn = torch.full((1, grid.places), MASK)
    for index, count in enumerate(reveal):
        logits_nk = model.logits(tokens_bn, asked)[0]
        if scale != 1:
            null_nk = model.logits(tokens_bn, asked.null())[0]
            logits_nk = null_nk + scale * (logits_nk - null_nk)
        fade = 1 - index / max(len(reveal) - 1, 1)
        drawn: dict[int, int] = {}
        worth: dict[int, float] = {}
        for place in (tokens_bn[0] == MASK).nonzero()[:, 0].tolist():
            drawn[place] = inverse_cdf(logits_nk[place], float(uniforms_t2n[index, 0, place]), temperature)
            log_p = logits_nk[place].double() / (temperature or 1)
            gumbel = -(-uniforms_t2n[index, 1, place].double().log()).log()
            worth[place] = float(log_p.log_softmax(-1)[drawn[place]] + noise * fade * gumbel)
            if turns is not None:
                worth[place] = -turns.index(place)
        for place in sorted(worth, key=lambda place: -worth[place])[:count]:
            tokens_bn[0, place] = drawn[place]
    return tokens_bn[0].tolist()


@cache
def golden(kind: str) -> tuple[Any, dict[str, Tensor]]:
    path = GOLDEN / f"{kind}_c2i.safetensors"
    return load(kind, path), load_file(path)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("grid", [Grid(4, 4), TALL])
def test_fraction_one_is_the_ar_models_own_loop(temperature: float, grid: Grid) -> None:
    result = pair().generate(
        [1, 2, 3], seeds=[0, 1, 2], grid=grid, ar_fraction=1, prefix=Sampling(temperature=temperature)
    )
    for i in range(3):
        noise_n, _ = given_uniforms(i, grid.places, 0)
        assert result.tokens[i].tolist() == ar_loop(table_ar(), i + 1, grid, noise_n, temperature)
    assert (result.origin == FROM_AR).all()


@pytest.mark.parametrize("scale", [1, 4])
def test_fraction_one_is_llamagens_greedy_decoding(scale: int) -> None:
    model, values = golden("llamagen")
    sampler = HybridSampler(model, None, FakeTokenizer(64))
    result = sampler.generate(
        values["labels"], seeds=[0, 1, 2], ar_fraction=1, prefix=Sampling(Guidance(scale), temperature=0)
    )
    assert torch.equal(result.tokens, values[f"greedy_cfg{scale}"])
    assert torch.equal(sampler.tokenizer.encode(result.images), values[f"greedy_cfg{scale}"])
    label, noise_n = int(values["labels"][1]), torch.zeros(16)
    assert result.tokens[1].tolist() == ar_loop(model, label, Grid(4, 4), noise_n, 0, scale)


@pytest.mark.parametrize("noise", [0.0, 4.5])
@pytest.mark.parametrize(("grid", "steps"), [(Grid(4, 4), 5), (TALL, 15), (TALL, 1)])
def test_fraction_zero_is_the_masked_models_own_loop(grid: Grid, steps: int, noise: float) -> None:
    fill = Fill(steps=steps, schedule="cosine", noise=noise, sampling=Sampling(temperature=0.8))
    result = pair().generate([1, 2, 3], seeds=[0, 1, 2], grid=grid, ar_fraction=0, fill=fill)
    for i in range(3):
        _, noise_t2n = given_uniforms(i, grid.places, steps)
        reveal = counts("cosine", steps, grid.places)
        expected = masked_loop(neighbour_masked(), i + 1, grid, noise_t2n, reveal, temperature=0.8, noise=noise)
        assert result.tokens[i].tolist() == expected


def test_fraction_zero_is_maskgils_own_loop() -> None:
    model, values = golden("maskgil")
    fill = Fill(steps=6, order="halton", sampling=Sampling(Guidance(3), temperature=0))
    sampler = HybridSampler(None, model, FakeTokenizer(64))
    result = sampler.generate(values["labels"][:2], seeds=[0, 1], fill=fill)
    grid, turns = Grid(16, 16), halton_order(16, 16).tolist()
    reveal = counts("arccos", 6, 256)
    for i in range(2):
        _, noise_t2n = given_uniforms(i, 256, 6)
        label = int(values["labels"][i])
        expected = masked_loop(model, label, grid, noise_t2n, reveal, temperature=0, scale=3, turns=turns)
        assert result.tokens[i].tolist() == expected


@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(3), Guidance(3, "linear"), Guidance(3, "interval", 0.6, 1.0)]
)
def test_the_prefix_is_the_start_of_the_pure_ar_run(guidance: Guidance) -> None:
    prefix = Sampling(guidance)
    whole = pair().generate([1, 2], seeds=[7, 8], ar_fraction=1, prefix=prefix).tokens
    for length in (1, 4, 6, 12):
        part = pair().generate([1, 2], seeds=[7, 8], ar_tokens=length, prefix=prefix, fill=Fill(steps=2)).tokens
        assert torch.equal(part[:, :length], whole[:, :length])


@pytest.mark.parametrize("grid", [Grid(4, 4), TALL, Grid(2, 7), Grid(1, 12)])
@pytest.mark.parametrize("length", [0, 1, 4, 5, 11, 12])
@pytest.mark.parametrize("resume", ["remaining", "continue"])
def test_every_token_has_its_origin(grid: Grid, length: int, resume: Any) -> None:
    left = grid.places - length
    steps = min(3, left)
    sampler = pair(always_ar(3), always_masked(9))
    fill = Fill(steps=max(steps, 1), resume=resume)
    result = sampler.generate([0, 1], seeds=[0, 1], grid=grid, ar_tokens=length, fill=fill)
    assert result.grid == grid and result.tokens.shape == result.origin.shape == (2, grid.places)
    assert (result.tokens[:, :length] == 3).all() and (result.origin[:, :length] == FROM_AR).all()
    assert (result.tokens[:, length:] == 9).all()
    expected = counts("arccos", steps, grid.places, length, resume) if left else []
    for origin_n in result.origin:
        assert torch.bincount(origin_n[length:], minlength=steps + 1).tolist() == [0, *expected]
    assert result.phases.passes["prefix"] == length and result.phases.passes["fill"] == steps
    assert result.images.shape == (2, 3, 2 * grid.height, 2 * grid.width)
    assert torch.equal(FakeTokenizer().encode(result.images), result.tokens)


def test_ar_fraction_counts_whole_tokens() -> None:
    sampler, fill = pair(always_ar(3), always_masked(9)), Fill(steps=1)
    for fraction, length in ((0.25, 4), (0.5, 8), (0.3, 5), (0.01, 0), (0.99, 16)):
        result = sampler.generate([0], seeds=[0], ar_fraction=fraction, fill=fill)
        assert (result.tokens == 3).sum() == length == result.settings["ar_tokens"]
    assert sampler.generate([0], seeds=[0]).settings["ar_tokens"] == 4  # a quarter, where nothing is said
    assert HybridSampler(always_ar(3), None, FakeTokenizer()).generate([0], seeds=[0]).settings["ar_fraction"] == 1
    assert HybridSampler(None, always_masked(9), FakeTokenizer()).generate([0], seeds=[0]).settings["ar_fraction"] == 0


def test_steps_from_one_to_all_places() -> None:
    for steps in (1, 12):
        result = pair().generate([0], seeds=[0], ar_tokens=4, fill=Fill(steps=steps))
        assert torch.bincount(result.origin[0, 4:]).tolist() == [0] + [12 // steps] * steps
    ar, masked = table_ar(), neighbour_masked()
    with pytest.raises(ValueError, match="13 steps for 12 places: use at most 12 steps"):
        pair(ar, masked).generate([0], seeds=[0], ar_tokens=4, fill=Fill(steps=13))
    assert ar.batches == masked.batches == []  # told before the prefix is written
    with pytest.raises(ValueError, match="17 steps for 16 places"):
        pair().generate([0], seeds=[0], ar_fraction=0, fill=Fill(steps=17))
    assert pair().generate([0], seeds=[0], ar_fraction=1, fill=Fill(steps=17)).phases.passes["fill"] == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_orders_and_schedules(order: str, schedule: str) -> None:
    for resume in ("remaining", "continue"):
        fill = Fill(steps=4, schedule=schedule, order=order, resume=resume)  # type: ignore[arg-type]
        result = pair().generate([1, 2], seeds=[0, 1], grid=TALL, ar_tokens=4, fill=fill)
        for origin_n in result.origin:
            assert torch.bincount(origin_n[4:])[1:].tolist() == counts(schedule, 4, 15, 4, resume)


@pytest.mark.parametrize("order", ["raster", "halton", "random"])
def test_fixed_orders_reveal_the_expected_places(order: str) -> None:
    length, steps = 4, 3
    fill = Fill(steps=steps, order=order, schedule="linear")
    origin_bn = pair().generate([1, 2], seeds=[0, 1], grid=TALL, ar_tokens=length, fill=fill).origin
    for i in range(2):
        turns = {"raster": torch.arange(15), "halton": halton_order(5, 3)}.get(
            order, given_uniforms(i, 15, steps)[1][0, 1].argsort(descending=True)
        )
        left = [place for place in turns.tolist() if place >= length]
        for index, count in enumerate(counts("linear", steps, 15, length)):
            now, left = left[:count], left[count:]
            assert sorted(now) == (origin_bn[i] == index + 1).nonzero()[:, 0].tolist()


def test_confidence_without_noise_reveals_the_surest() -> None:
    certainty_n = torch.rand(16, generator=torch.Generator().manual_seed(0)) * 9
    fill = Fill(steps=4, noise=0, sampling=Sampling(temperature=0))
    result = pair(masked=ranked_masked(certainty_n)).generate([0], seeds=[0], ar_tokens=3, fill=fill)
    turns = [place for place in certainty_n.argsort(descending=True).tolist() if place >= 3]
    for index, count in enumerate(counts("arccos", 4, 16, 3)):
        now, turns = turns[:count], turns[count:]
        shown = (result.origin[0] == index + 1).nonzero()[:, 0].tolist()
        assert sorted(now) == shown and result.tokens[0, shown].tolist() == shown


def test_later_passes_see_the_earlier_ones() -> None:
    seen: list[int] = []
    masked = uniform_masked()
    plain = masked.rule
    masked.rule = lambda tokens, label, grid: (seen.append(int((tokens != MASK).sum())), plain(tokens, label, grid))[1]
    pair(masked=masked).generate([0], seeds=[0], ar_tokens=4, fill=Fill(steps=4, schedule="linear"))
    reveal = counts("linear", 4, 16, 4)
    assert seen == [4 + sum(reveal[:index]) for index in range(4)]


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pure AR": {"ar_fraction": 1},
    "pure masked": {"ar_fraction": 0},
    "filtered": {"prefix": Sampling(top_k=5, top_p=0.9, temperature=1.3)},
    "guided": {"prefix": Sampling(Guidance(3, "linear")), "fill": Fill(steps=3, sampling=Sampling(Guidance(2)))},
    "random": {"fill": Fill(steps=5, order="random")},
    "spread": {"fill": Fill(steps=5, order="spread", noise=9.0)},
    "halton": {"grid": TALL, "fill": Fill(steps=5, order="halton", resume="continue")},
}


@pytest.mark.parametrize("run", RUNS)
def test_an_image_does_not_depend_on_its_neighbours(run: str) -> None:
    labels, seeds = [3, 1, 4, 1], [5, 9, 2, 6]
    together = pair().generate(labels, seeds=seeds, **RUNS[run])
    for i in range(4):
        alone = pair().generate(labels[i : i + 1], seeds=seeds[i : i + 1], **RUNS[run])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.origin[0], together.origin[i])
        assert torch.equal(alone.images[0], together.images[i])


def test_a_batch_of_golden_models_agrees_with_each_alone() -> None:
    ar, values = golden("llamagen")
    masked, _ = golden("maskgil")
    classes, places = values["labels"] % 10, torch.arange(40, 256).expand(3, -1)
    sampler = HybridSampler(ar, masked, FakeTokenizer(64))
    settings: dict[str, Any] = {
        "ar_tokens": 40,
        "prefix": Sampling(Guidance(2)),
        "fill": Fill(steps=3, sampling=Sampling(Guidance(2))),
    }
    result = sampler.generate(classes, seeds=[0, 1, 2], **settings)
    alone = sampler.generate(classes[1:2], seeds=[1], **settings)
    assert torch.equal(alone.tokens[0, :1], result.tokens[1, :1])
    partial = torch.where(result.origin <= 1, result.tokens, MASK)
    with torch.inference_mode():
        scored = ar.score(result.tokens, ar.condition(classes, result.grid))
        filled = masked.logits(partial, masked.condition(classes), places)
        for i in range(3):
            one = slice(i, i + 1)
            logits = ar.score(result.tokens[one], ar.condition(classes[one], result.grid))
            torch.testing.assert_close(logits, scored[one], atol=1e-4, rtol=0)
            logits = masked.logits(partial[one], masked.condition(classes[one]), places[one])
            torch.testing.assert_close(logits, filled[one], atol=1e-4, rtol=0)


def test_seeds_and_generators() -> None:
    sampler = pair(uniform_ar(), uniform_masked())
    by_seed = sampler.generate([0, 0, 0], seeds=[0, 1, 0]).tokens
    assert torch.equal(by_seed[0], by_seed[2]) and not torch.equal(by_seed[0], by_seed[1])
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    first = sampler.generate([0, 0], seeds=generators).tokens
    assert torch.equal(first, by_seed[:2])
    assert not torch.equal(sampler.generate([0, 0], seeds=generators).tokens, first)  # they go on
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(sampler.generate([0, 0, 0], seeds=[0, 1, 0]).tokens, by_seed)  # global state plays no part
    for half in (by_seed[:, :4], by_seed[:, 4:]):
        assert len(half.unique()) > 2


def test_the_callers_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    pair().generate([0], seeds=[0])
    assert torch.equal(before, torch.get_rng_state())


def test_no_mask_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: Any, condition: Any, null: Any, tokens_bn: Tensor, *_: Any) -> tuple[Tensor, Tensor, int]:
        return tokens_bn, torch.zeros_like(tokens_bn), 1

    monkeypatch.setattr(sampler_module, "masked_fill", forgetful)
    for decode in (True, False):
        with pytest.raises(ValueError, match="12 of 16 places were never written; nothing to decode there"):
            pair().generate([0], seeds=[0], decode=decode)


def test_phases() -> None:
    def passes(**settings: Any) -> dict[str, int]:
        result = pair().generate([0, 1], seeds=[0, 1], fill=Fill(steps=3), **settings)
        assert tuple(result.phases.seconds) == tuple(result.phases.passes) == PHASES
        assert all(value >= 0 for value in result.phases.seconds.values())
        assert result.phases.total_seconds == pytest.approx(sum(result.phases.seconds.values()))
        for phase in ("prefix", "fill", "decode"):
            assert (result.phases.seconds[phase] > 0) == (result.phases.passes[phase] > 0)
        return {phase: count for phase, count in result.phases.passes.items() if count}

    assert passes(ar_tokens=5) == {"prefix": 5, "fill": 3, "decode": 1}
    assert passes(ar_fraction=0) == {"fill": 3, "decode": 1}
    assert passes(ar_fraction=1) == {"prefix": 16, "decode": 1}
    assert passes(ar_tokens=5, decode=False) == {"prefix": 5, "fill": 3}


def test_tokens_alone() -> None:
    drawn = pair().generate([0], seeds=[0])
    only = pair().generate([0], seeds=[0], decode=False)
    assert only.images is None and torch.equal(only.tokens, drawn.tokens)


@pytest.mark.parametrize("run", RUNS)
def test_settings_repeat_the_picture(run: str) -> None:
    first = pair().generate([1, 2], seeds=[3, 4], **RUNS[run])
    settings = json.loads(json.dumps(first.settings))

    def sampling(fields: dict[str, Any]) -> Sampling:
        return Sampling(**fields | {"guidance": Guidance(**fields["guidance"])})

    prefix, fill = settings["prefix"], settings["fill"]
    assert (prefix is None) == (run == "pure masked") and (fill is None) == (run == "pure AR")
    assert settings["ar_fraction"] == settings["ar_tokens"] / first.grid.places
    again = pair().generate(
        [1, 2],
        seeds=[3, 4],
        grid=Grid(*settings["grid"]),
        ar_tokens=settings["ar_tokens"],
        prefix=prefix and sampling(prefix),
        fill=fill and Fill(**fill | {"sampling": sampling(fill["sampling"])}),
    )
    assert torch.equal(again.tokens, first.tokens) and torch.equal(again.origin, first.origin)
    assert again.settings == first.settings


def test_a_baseline_asks_only_its_own_model() -> None:
    ar, masked = table_ar(), neighbour_masked()
    pair(ar, masked).generate([0], seeds=[0], ar_fraction=0)
    assert (ar.conditions, ar.batches) == (0, [])
    masked = neighbour_masked()
    pair(ar, masked).generate([0], seeds=[0], ar_fraction=1, grid=TALL)
    assert (masked.conditions, masked.batches, ar.conditions) == (0, [], 1)
    alone = table_ar()
    HybridSampler(alone, None, FakeTokenizer()).generate([0], seeds=[0])
    assert alone.conditions == 1


def test_the_masked_models_own_grid_counts_in_every_mix() -> None:
    for fraction in (0, 0.5, 1):
        sampler = pair(table_ar(grid=Grid(2, 2)), neighbour_masked(grid=TALL))
        assert sampler.generate([0], seeds=[0], ar_fraction=fraction, fill=Fill(steps=2)).grid == TALL


def test_contradictions_are_refused() -> None:
    def refused(match: str, sampler: HybridSampler | None = None, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            (sampler or pair()).generate([0], **({"seeds": [0]} | settings))

    refused("give ar_fraction or ar_tokens, not both", ar_fraction=0.5, ar_tokens=8)
    for fraction in (-0.1, 1.5, float("nan")):
        refused(rf"ar_fraction {fraction:g}: must be in \[0, 1\]", ar_fraction=fraction)
    refused(r"ar_tokens 17: must be 0\.\.16 for a 4x4 grid", ar_tokens=17)
    refused(r"ar_tokens -1: must be 0\.\.16 for a 4x4 grid", ar_tokens=-1)
    refused("1 prompts but 2 seeds", seeds=[0, 1])
    refused("no generators; give one per image|1 prompts but 0 seeds", seeds=[])
    refused(
        "there is no AR model: use ar_fraction 0", HybridSampler(None, uniform_masked(), FakeTokenizer()), ar_tokens=1
    )
    refused(
        "there is no masked model: use ar_fraction 1", HybridSampler(uniform_ar(), None, FakeTokenizer()), ar_tokens=1
    )
    with pytest.raises(ValueError, match="a sampler needs an AR model, a masked model or both"):
        HybridSampler(None, None, FakeTokenizer())


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Fill(schedule="arcos"), "schedule 'arcos': unknown; did you mean 'arccos'"),
    (lambda: Fill(order="halten"), "order 'halten': unknown; choose one of confidence, spread, halton, random, raster"),
    (lambda: Fill(resume="restart"), "resume 'restart': unknown; choose one of remaining, continue"),  # type: ignore[arg-type]
    (lambda: Fill(steps=0), "0 steps: use at least 1 step"),
    (lambda: Fill(noise=-1), "noise -1: must be 0"),
    (lambda: Sampling(temperature=-1), "temperature -1: must be 0"),
    (lambda: Sampling(top_k=-1), "top_k -1"),
    (lambda: Sampling(top_p=0), "top_p 0: must be above 0"),
]


@pytest.mark.parametrize(("build", "match"), WRONG)
def test_wrong_settings_fail_before_any_model_runs(build: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


def test_broken_logits_are_named() -> None:
    ar = FakeAR(lambda before, label: torch.full((CODES,), float("nan")), CODES)
    with pytest.raises(ValueError, match="logits: hold NaN"):
        pair(ar).generate([0], seeds=[0])


def test_the_result_is_a_generation() -> None:
    result = pair().generate([0], seeds=[0])
    assert isinstance(result, Generation) and result.lossy is None
    assert result.tokens.dtype == result.origin.dtype == torch.long and result.images.dtype == torch.float32
