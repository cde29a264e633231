"""Orders: Halton's golden order, priorities, and choosing places row by row."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hybrid.orders import ORDERS, gumbel, halton_order, noise_left, priority, reveal, spread_uniforms
from hybrid.types import Grid

GOLDEN = Path(__file__).parent / "golden" / "halton_c2i.safetensors"
GRID = Grid(3, 5)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [8, 16, 24, 32])
def test_halton_equals_the_original(size: int) -> None:
    with safe_open(GOLDEN, "pt") as golden:
        pairs = golden.get_tensor(f"halton_order_{size}")
    assert torch.equal(halton_order(size, size), pairs[:, 0] * size + pairs[:, 1])


def test_halton_covers_every_grid_once() -> None:
    shapes = [(h, w) for h in range(1, 13) for w in range(1, 13)] + [(1, 300), (300, 1), (24, 40), (96, 50)]
    for height, width in shapes:
        order_n = halton_order(height, width)
        assert order_n.dtype == torch.int64
        assert torch.equal(order_n.sort().values, torch.arange(height * width)), (height, width)


def test_halton_by_hand() -> None:
    # Points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9) in a 2x3 grid, then (1/8, 4/9) taken, (5/8, 7/9), (3/8, 2/9).
    assert halton_order(2, 3).tolist() == [4, 2, 3, 1, 5, 0]
    assert halton_order(1, 1).tolist() == [0]


def test_halton_is_fast_and_safe_to_change() -> None:
    start = time.perf_counter()
    first = halton_order(96, 96)
    assert time.perf_counter() - start < 2
    kept = first.clone()
    first.zero_()
    assert torch.equal(halton_order(96, 96), kept)


def test_halton_needs_a_grid() -> None:
    with pytest.raises(ValueError, match="grid 0x4: both sides must be at least 1"):
        halton_order(0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gumbel_is_finite_at_the_ends(dtype: torch.dtype) -> None:
    low, middle, high = gumbel(torch.tensor([0.0, 0.5, 1.0], dtype=dtype))
    assert torch.isfinite(torch.stack([low, middle, high])).all() and low < middle < high
    assert middle.item() == pytest.approx(0.3665, abs=5e-3)


def test_gumbel_has_its_mean_and_variance() -> None:
    noise = gumbel(rand(200_000))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)


def test_confidence_noise_fades() -> None:
    confidence_bn, uniforms_bn = -rand(2, 15), rand(2, 15, seed=1)
    plain = priority("confidence", grid=GRID, confidence_bn=confidence_bn)
    assert torch.equal(plain, confidence_bn)
    for step, progress in ((0, 0.0), (1, 0.25), (4, 1.0)):
        noisy = priority(
            "confidence",
            grid=GRID,
            confidence_bn=confidence_bn,
            uniforms_bn=uniforms_bn,
            noise=4.5,
            left=noise_left("confidence", step, 5),
        )
        expected = confidence_bn + 4.5 * -torch.log(-torch.log(uniforms_bn)) * (1 - progress)
        assert torch.allclose(noisy, expected, atol=1e-5)
    assert torch.equal(noisy, confidence_bn)


def test_fixed_orders_reveal_in_order() -> None:
    masked_bn = torch.ones(2, 15, dtype=torch.bool)
    expected = {"raster": torch.arange(15), "halton": halton_order(3, 5)}
    for order, order_n in expected.items():
        priority_bn = priority(order, grid=GRID)
        assert priority_bn.shape == (1, 15) and priority_bn.is_floating_point()
        for count in range(16):
            chosen = reveal(priority_bn, masked_bn, count)
            assert torch.equal(chosen[0].nonzero()[:, 0], order_n[:count].sort().values)
            assert torch.equal(chosen[0], chosen[1])


def test_random_is_the_uniforms() -> None:
    uniforms_bn = rand(2, 15)
    assert torch.equal(priority("random", grid=GRID, uniforms_bn=uniforms_bn), uniforms_bn)


def test_spread_uniforms_are_the_halton_order_moved_around_the_grid() -> None:
    ranks_hw = halton_order(3, 5).argsort().view(3, 5)
    uniforms_bn = torch.zeros(15, 15)
    uniforms_bn[:, 0], uniforms_bn[:, -1] = torch.arange(15) // 5 / 3 + 0.1, torch.arange(15) % 5 / 5 + 0.1
    found_bn = spread_uniforms(uniforms_bn, GRID)
    for row, found_n in enumerate(found_bn):
        expected_n = 1 - (ranks_hw.roll((row // 5, row % 5), (0, 1)).flatten() + 0.5) / 15
        assert torch.equal(found_n, expected_n)
    # Every place takes every turn once among the fifteen moves, so that none is preferred.
    assert torch.equal(found_bn.sort(0).values, found_bn[0].sort().values[:, None].expand(15, 15))
    assert spread_uniforms(torch.tensor([[0.99]]), Grid(1, 1)).item() == 0.5


def test_spread_keeps_first_places_apart() -> None:
    """16 of 256 places: at random the closest two are mostly neighbours; spread, a knight's move at least."""

    def closest(order: str) -> list[float]:
        found = []
        for seed in range(50):
            uniforms_bn = rand(1, 256, seed=seed)
            priority_bn = priority(
                order, grid=Grid(16, 16), confidence_bn=-rand(1, 256), uniforms_bn=uniforms_bn, noise=1e6
            )
            place = reveal(priority_bn, torch.ones(1, 256, dtype=torch.bool), 16)[0].nonzero()[:, 0]
            points = torch.stack((place // 16, place % 16), 1).float()
            apart = (points[:, None] - points).abs()
            distance = torch.minimum(apart, 16 - apart).norm(dim=-1)
            found.append(distance[~torch.eye(16, dtype=torch.bool)].min().item())
        return found

    assert sum(closest("confidence")) / 50 < 1.5
    assert min(closest("spread")) > 2.2


def test_spread_noise_counts_the_passes_that_follow() -> None:
    confidence_bn, uniforms_bn = -rand(2, 15), rand(2, 15, seed=1)
    options = {"grid": GRID, "confidence_bn": confidence_bn, "uniforms_bn": uniforms_bn, "noise": 3.0}
    noise_bn = gumbel(spread_uniforms(uniforms_bn, GRID))
    for step, scale in ((0, 12.0), (3, 3.0), (4, 0.0)):
        found_bn = priority("spread", left=noise_left("spread", step, 5), **options)
        assert torch.allclose(found_bn, confidence_bn + scale * noise_bn)
    assert torch.equal(found_bn, confidence_bn)
    assert noise_left("confidence", 0, 1) == 1
    assert noise_left("spread", 0, 1) == 0
    with pytest.raises(ValueError, match="step 5: must be from 0 to 4 where there are 5 steps"):
        noise_left("spread", 5, 5)


def test_reveal_takes_only_masked_places_and_the_lowest_of_equals() -> None:
    priority_bn = torch.tensor([[9.0, 1.0, 1.0, 5.0, 1.0], [0.0, 0.0, -0.0, 0.0, 0.0]])
    masked_bn = torch.tensor([[False, True, True, True, True], [True, False, True, True, True]])
    chosen = reveal(priority_bn, masked_bn, torch.tensor([2, 3]))
    assert chosen.int().tolist() == [[0, 1, 0, 1, 0], [1, 0, 1, 1, 0]]


def test_reveal_prefers_a_masked_place_of_no_probability_to_a_known_one() -> None:
    priority_bn = torch.full((1, 4), -torch.inf)
    chosen = reveal(priority_bn, torch.tensor([[False, False, True, True]]), 2)
    assert chosen.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("order", ORDERS)
def test_reveal_is_batch_invariant(order: str) -> None:
    confidence_bn, uniforms_bn = -rand(6, 15), rand(6, 15, seed=1).mul(4).floor().div(4)
    masked_bn, counts_b = rand(6, 15, seed=2) < 0.6, torch.tensor([0, 1, 2, 3, 4, 5])

    def choose(rows: slice) -> Tensor:
        priority_bn = priority(
            order, grid=GRID, confidence_bn=confidence_bn[rows], uniforms_bn=uniforms_bn[rows], noise=1.0, left=0.5
        )
        return reveal(priority_bn, masked_bn[rows], counts_b[rows])

    together = choose(slice(None))
    assert torch.equal(together.sum(1), counts_b) and not (together & ~masked_bn).any()
    for i in range(6):
        assert torch.equal(choose(slice(i, i + 1))[0], together[i])


def test_reveal_errors() -> None:
    masked_bn = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="row 1: asked to reveal 2 places, 1 are masked; ask for 0 to 1"):
        reveal(torch.zeros(1, 2), masked_bn, 2)
    with pytest.raises(ValueError, match="row 0: asked to reveal -1 places"):
        reveal(torch.zeros(1, 2), masked_bn, torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="priority: holds NaN"):
        reveal(torch.tensor([[0.0, torch.nan]]), masked_bn, 1)
    with pytest.raises(ValueError, match=r"priority \(3, 2\): does not fit the places \(2, 2\)"):
        reveal(torch.zeros(3, 2), masked_bn, 1)


def test_priority_errors() -> None:
    with pytest.raises(ValueError, match="order 'spiral': unknown; choose one of confidence, spread, halton, random"):
        priority("spiral", grid=GRID)
    with pytest.raises(ValueError, match="order confidence: needs confidence_bn"):
        priority("confidence", grid=GRID)
    with pytest.raises(ValueError, match="order confidence with noise: needs uniforms_bn"):
        priority("confidence", grid=GRID, confidence_bn=torch.zeros(1, 15), noise=1.0)
    with pytest.raises(ValueError, match="order random: needs uniforms_bn"):
        priority("random", grid=GRID)
    with pytest.raises(ValueError, match=r"uniforms_bn: expected \(b, 15\) for grid 3x5, got \(1, 14\)"):
        priority("random", grid=GRID, uniforms_bn=torch.zeros(1, 14))
    with pytest.raises(ValueError, match=r"noise -1: must be 0 \(none\) or above"):
        priority("raster", grid=GRID, noise=-1)
