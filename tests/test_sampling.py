"""Sampling: guidance, filters, and draws that are exact, safe at the ends and the same in any batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybrid.sampling import Guidance, check_sampling, draw, draw_unseen, filter_logits, guide, uniforms

LAST = 1 - 2**-24
INF = math.inf


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def kept(logits: Tensor) -> list[int]:
    return (logits > -INF).nonzero()[:, 0].tolist()


def test_guide() -> None:
    cond, uncond = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert guide(cond, uncond, 3.0).tolist() == [[3.0, -2.0]]
    assert guide(cond, uncond, 0.0).tolist() == uncond.tolist()
    assert guide(cond.half(), uncond.half(), 1.0).dtype == torch.float32
    scale = torch.tensor([1.0, 3.0])[:, None, None]
    both = guide(cond.expand(2, 5, 2), uncond.expand(2, 5, 2), scale)
    assert both[0, 0].tolist() == [1.0, 2.0] and both[1, 4].tolist() == [3.0, -2.0]
    with pytest.raises(ValueError, match=r"unconditional logits: expected \(1, 2\), got \(2,\)"):
        guide(cond, uncond[0], 1.0)


def test_the_floor_keeps_implausible_codes_from_being_guided_up() -> None:
    """Conditional probabilities .9, .09 and .01; guidance lifts the last one, which the null finds rarer still."""
    cond, uncond = torch.tensor([0.9, 0.09, 0.01]).log(), torch.tensor([0.9, 0.0999, 0.0001]).log()
    plain = guide(cond, uncond, 3.0)
    assert plain.argmax() == 2
    for floor, out in ((0.01, []), (0.012, [2]), (0.09, [2]), (0.2, [1, 2])):
        found = guide(cond, uncond, 3.0, floor)
        assert [code for code in range(3) if found[code] == -INF] == out
        assert torch.equal(found[found > -INF], plain[found > -INF])
    rows = guide(cond.expand(3, 3), uncond.expand(3, 3), 3.0, torch.tensor([[0.0], [0.09], [0.2]]))
    assert rows.argmax(-1).tolist() == [2, 0, 0]
    assert torch.equal(rows[0], plain) and (rows == -INF).sum(-1).tolist() == [0, 1, 2]


def test_guidance_kinds() -> None:
    assert [Guidance(4.0).at(p) for p in (0, 0.5, 1)] == [4, 4, 4]
    assert [Guidance(4.0, "linear").at(p) for p in (0, 0.5, 1)] == [1, 2.5, 4]
    interval = Guidance(3.0, "interval", 0.25, 0.75)
    assert [interval.at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 3, 3, 3, 1]
    assert [interval.needed(p) for p in (0, 0.5, 1)] == [False, True, False]
    assert not Guidance().needed(0.5) and Guidance(0.0).needed(0.5)
    assert [Guidance(4.0, "linear").needed(p) for p in (0, 1)] == [False, True]


def test_linear_guidance_is_maskgils() -> None:
    w, steps, cond, uncond = 3.0, 8, randn(2, 16), randn(2, 16, seed=1)
    for t in range(steps):
        w_t = w * t / (steps - 1)
        expected = (1 + w_t) * cond - w_t * uncond
        assert torch.allclose(
            guide(cond, uncond, Guidance(1 + w, "linear").at(t / (steps - 1))), expected, atol=1e-5, rtol=1e-5
        )


def test_guidance_along_places() -> None:
    assert Guidance(4.0).along(6, 3) == [4] * 6
    assert Guidance(5.0, "linear").along(5, 5) == [1, 2, 3, 4, 5]
    assert Guidance(3.0, "interval", 0.25, 0.75).along(5, 5) == [1, 3, 3, 3, 1]
    assert Guidance(3.0).along(1, 1) == [3] and Guidance(3.0, "linear").along(1, 1) == [1]


def test_decaying_guidance_counts_sizes_codes_and_row_ends() -> None:
    """16 rows of 4: n goes from 2 and passes a row's end at 6, which multiplies too; 1 - n / 16 falls to 0 at 16."""
    fall = [math.prod(1 - n / 16 for n in range(2, last + 1)) for last in (2, 3, 4, 5, 7, 8, 9, 10, 12)]
    scales = Guidance(1000.0, "decay").along(64, 4)
    assert scales[:9] == pytest.approx([max(4, 1000 * f) for f in fall], rel=1e-12)
    assert scales[7] > 4 and scales[12:] == [4] * 52
    assert Guidance(4.0, "decay").along(64, 4) == [4] * 64
    assert Guidance(1.0, "decay").along(64, 4) == [1] * 64 and not Guidance(1.0, "decay").needed(0.5)
    with pytest.raises(ValueError, match="guidance scale 3: kind 'decay' falls to 4; give 1 "):
        Guidance(3.0, "decay")
    with pytest.raises(ValueError, match="guidance kind 'decay': counts an AR model's places"):
        Guidance(5.0, "decay").at(0.5)


def test_guidance_errors() -> None:
    for scale in (-1.0, INF, math.nan):
        with pytest.raises(ValueError, match=f"guidance scale {scale:g}: must be a number from 0"):
            Guidance(scale)
    with pytest.raises(
        ValueError, match="guidance kind 'cosine': unknown; choose one of constant, linear, interval, decay"
    ):
        Guidance(2.0, "cosine")
    for start, end in ((-0.1, 1.0), (0.0, 1.1), (0.6, 0.4)):
        with pytest.raises(ValueError, match=f"guidance start {start:g}, end {end:g}: must be 0 <= start <= end <= 1"):
            Guidance(2.0, "interval", start, end)
    with pytest.raises(ValueError, match=r"start 0\.2, end 1: kind 'linear' ignores them; use kind 'interval'"):
        Guidance(2.0, "linear", 0.2)
    for floor in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"guidance floor {floor:g}: must be at least 0 \(off\) and below 1"):
            Guidance(2.0, floor=floor)
    with pytest.raises(ValueError, match=r"progress 1\.5: must be from 0 to 1"):
        Guidance().at(1.5)


def test_temperature_divides() -> None:
    logits = randn(3, 7)
    assert torch.equal(filter_logits(logits, temperature=2.0), logits / 2)
    assert filter_logits(logits.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="temperature 0: is argmax and needs no filters"):
        filter_logits(logits, temperature=0)


def test_top_k() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, 1.0])
    assert [kept(filter_logits(logits, top_k=k)) for k in (1, 2)] == [[1], [1, 3]]
    assert kept(filter_logits(logits, top_k=3)) == [1, 2, 3, 4]  # the tie at the third value stays whole
    for off in (None, 0, 5, 100):
        assert torch.equal(filter_logits(logits, top_k=off), logits)


def test_top_p() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    expected = {0.01: [1], 0.5: [1], 0.51: [1, 2], 0.8: [1, 2], 0.81: [0, 1, 2], 1e-9: [1]}
    for top_p, codes in expected.items():
        assert kept(filter_logits(logits, top_p=top_p)) == codes, top_p
    for off in (None, 1.0):
        assert torch.equal(filter_logits(logits, top_p=off), logits)
    assert kept(filter_logits(torch.zeros(4), top_p=0.5)) == [0, 1]  # equals: the lower code first


def test_top_p_looks_at_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(filter_logits(logits, top_k=2, top_p=0.57)) == [0]
    assert kept(filter_logits(logits, top_p=0.57)) == [0, 1]


def test_drawing_unseen_makes_no_tensor_on_the_host() -> None:
    """Which would be copied to a GPU, and waited for, at every token."""
    seen = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    logits, drawn = randn(3, 20), torch.full((3,), 0.5)
    with Note():
        tokens, _ = draw_unseen(logits, drawn, temperature=0.7, top_k=5, top_p=0.8)
    assert torch.equal(tokens, draw(logits, drawn, temperature=0.7, top_k=5, top_p=0.8)[0])
    assert torch.full in seen and not {torch.tensor, torch.as_tensor, Tensor.item, Tensor.tolist} & set(seen)


def test_top_p_is_the_smallest_set() -> None:
    logits = randn(50, 300) * 3
    for top_p in (0.1, 0.5, 0.9, 0.999):
        keep = filter_logits(logits, top_p=top_p) > -INF
        p = logits.double().softmax(-1)
        mass = (p * keep).sum(-1)
        smallest = p.masked_fill(~keep, 2).amin(-1)
        assert (mass >= top_p - 2e-6).all() and (mass - smallest < top_p).all()
        assert (p.masked_fill(keep, 0).amax(-1) <= smallest).all()


def test_argmax_takes_the_first_maximum() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [0.0, -INF, 0.0, 0.0]])
    tokens, log_prob = draw(logits, torch.tensor([LAST, 0.3]), temperature=0, top_k=1, top_p=0.1)
    assert tokens.tolist() == [1, 0]
    assert torch.allclose(log_prob, torch.log_softmax(logits, -1)[torch.arange(2), tokens])


def test_inverse_cdf_by_hand() -> None:
    logits = torch.tensor([0.25, 0.25, 0.5]).log().expand(6, 3)
    tokens, log_prob = draw(logits, torch.tensor([0.0, 0.24, 0.26, 0.49, 0.51, LAST]))
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.allclose(log_prob.exp(), torch.tensor([0.25, 0.25, 0.25, 0.25, 0.5, 0.5]))
    # Exact boundaries: u = i / 4 is not exceeded by the mass of the codes before i.
    tokens, _ = draw(torch.zeros(4, 4), torch.arange(4) / 4)
    assert tokens.tolist() == [0, 1, 2, 3]


def test_log_prob_is_of_the_distribution_drawn_from() -> None:
    logits = randn(40, 9)
    tokens, log_prob = draw(logits, uniforms([generator(1)], [40])[0], temperature=0.7, top_k=5, top_p=0.8)
    expected = filter_logits(logits, temperature=0.7, top_k=5, top_p=0.8).log_softmax(-1)
    assert torch.allclose(log_prob, expected.gather(-1, tokens[:, None])[:, 0], atol=1e-6)
    assert torch.isfinite(log_prob).all() and (log_prob <= 1e-6).all()


def test_the_distribution_is_right() -> None:
    p = torch.tensor([0.02, 0.3, 0.0, 0.08, 0.2, 0.1, 0.0, 0.25, 0.05])
    draws = 40_000
    tokens, _ = draw(p.log().expand(draws, 9), uniforms([generator(3)], [draws])[0])
    observed = torch.bincount(tokens, minlength=9)
    assert observed[p == 0].sum() == 0
    alive = p > 0
    chi_square = ((observed - draws * p)[alive] ** 2 / (draws * p[alive])).sum().item()
    assert chi_square < 24.3  # 6 degrees of freedom exceed 22.5 once in a thousand


@pytest.mark.parametrize("codes", [2, 7, 1000, 16384])
def test_no_code_without_probability(codes: int) -> None:
    ends = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-23, LAST])
    for seed in range(6):
        logits = randn(5, codes, seed=seed) * (1 + 10 * seed)
        removed = torch.rand(5, codes, generator=generator(seed)) < 0.7
        removed[:, -codes // 3 :] = True  # a dead tail
        removed[:, : codes // 5] = True  # and a dead start
        removed[:, codes // 3] = False
        logits = logits.masked_fill(removed, -INF)
        for settings in (
            {},
            {"top_k": 3},
            {"top_p": 0.3},
            {"temperature": 0.01},
            {"temperature": 100.0, "top_p": 0.99},
        ):
            tokens, log_prob = draw(logits, ends, **settings)
            assert not removed.gather(-1, tokens[:, None]).any()
            left = filter_logits(logits, **settings)
            assert (left.gather(-1, tokens[:, None]) > -INF).all() and torch.isfinite(log_prob).all()


def test_both_ends_of_a_large_vocabulary() -> None:
    logits = torch.zeros(2, 16384)
    tokens, _ = draw(logits, torch.tensor([0.0, LAST]))
    assert tokens.tolist() == [0, 16383]
    every = torch.arange(16384)
    tokens, _ = draw(torch.zeros(16384).expand(64, -1), every[::256] / 16384)
    assert tokens.tolist() == every[::256].tolist()
    logits[:, 5:] = -INF
    assert draw(logits, torch.tensor([0.0, LAST]))[0].tolist() == [0, 4]
    lonely = torch.full((2, 16384), -INF)
    lonely[:, 77] = -1e4
    tokens, log_prob = draw(lonely, torch.tensor([0.0, LAST]))
    assert tokens.tolist() == [77, 77] and log_prob.tolist() == [0.0, 0.0]


def test_tiny_temperature_is_argmax() -> None:
    logits = randn(20, 50) * 30
    tokens, _ = draw(logits, uniforms([generator(0)], [20])[0], temperature=1e-20)
    assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("settings", [{}, {"top_k": 20}, {"top_p": 0.9}, {"temperature": 0}, {"temperature": 0.8}])
def test_batch_invariant_bit_for_bit(settings: dict) -> None:
    logits, noise = randn(5, 13, 517) * 4, uniforms([generator(i) for i in range(5)], [13])
    tokens, log_prob = draw(logits, noise, **settings)
    for i in range(5):
        alone, log_prob_alone = draw(logits[i : i + 1], noise[i : i + 1], **settings)
        assert torch.equal(alone[0], tokens[i]) and torch.equal(log_prob_alone[0], log_prob[i])
    places = torch.tensor([7, 2])
    some, log_prob_some = draw(logits[:, places], noise[:, places], **settings)
    assert torch.equal(some, tokens[:, places]) and torch.equal(log_prob_some, log_prob[:, places])
    strided, log_prob_strided = draw(logits.transpose(0, 2).contiguous().transpose(0, 2), noise, **settings)
    assert torch.equal(strided, tokens) and torch.equal(log_prob_strided, log_prob)


def test_shapes() -> None:
    tokens, log_prob = draw(randn(2, 3, 4, 8), torch.zeros(2, 3, 4))
    assert tokens.shape == log_prob.shape == (2, 3, 4)
    assert tokens.dtype == torch.int64 and log_prob.dtype == torch.float32
    for temperature in (0.0, 1.0):
        tokens, log_prob = draw(torch.zeros(2, 0, 8), torch.zeros(2, 0), temperature=temperature, top_k=2, top_p=0.5)
        assert tokens.shape == log_prob.shape == (2, 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(temperature: float) -> None:
    for broken in ([0.0, math.nan], [0.0, INF], [-INF, -INF]):
        with pytest.raises(ValueError, match=r"logits: hold NaN, \+inf or nothing but -inf"):
            draw(torch.tensor([[0.0, 1.0], broken]), torch.zeros(2), temperature=temperature)


def test_draw_errors() -> None:
    with pytest.raises(ValueError, match=r"uniforms: expected \(2,\), got \(3,\)"):
        draw(torch.zeros(2, 4), torch.zeros(3))
    for outside in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="uniforms: must be at least 0 and below 1"):
            draw(torch.zeros(1, 4), torch.tensor([outside]))


def test_check_sampling() -> None:
    check_sampling(0, None, None)
    check_sampling(1.0, 0, 1.0)
    for temperature in (-1, INF, math.nan):
        with pytest.raises(ValueError, match=rf"temperature {temperature:g}: must be 0 \(argmax\) or above"):
            check_sampling(temperature)
    with pytest.raises(ValueError, match="temperature 1e-40: too small to divide by; use 0 for argmax"):
        check_sampling(1e-40)
    with pytest.raises(ValueError, match=r"top_k -1: must be 0 \(off\) or above"):
        check_sampling(1.0, -1)
    for top_p in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"top_p {top_p:g}: must be above 0 and at most 1"):
            check_sampling(1.0, None, top_p)
    with pytest.raises(ValueError, match="temperature -1"):
        draw(torch.zeros(1, 4), torch.zeros(1), temperature=-1)


def test_uniforms_belong_to_their_generator() -> None:
    together = uniforms([generator(seed) for seed in (0, 5, 9)], (2, 3))
    assert together.shape == (3, 2, 3) and together.dtype == torch.float32
    assert together.min() >= 0 and together.max() < 1
    for i, seed in enumerate((0, 5, 9)):
        assert torch.equal(uniforms([generator(seed)], (2, 3))[0], together[i])
    one = generator(0)
    first, second = uniforms([one], (6,)), uniforms([one], (6,))
    assert torch.equal(first.view(2, 3), together[0]) and not torch.equal(first, second)
    with pytest.raises(ValueError, match="uniforms: no generators; give one per image"):
        uniforms([], (2,))
