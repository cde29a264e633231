"""The shared LLaMA block: rotary tables, norms, switches and the cache."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.adapters import llama
from hybrid.adapters.llama import (
    FeedForward,
    KVCache,
    RMSNorm,
    Window,
    blocks,
    ffn_width,
    grid_rope,
    rope_1d,
    rope_2d,
    rotate,
    run,
)
from hybrid.quantize import replace_weights
from hybrid.types import Grid

CPU = torch.device("cpu")


def stack(*, qk_norm: bool = False, post_norm: bool = False, dropout: float = 0.0) -> nn.ModuleList:
    torch.manual_seed(0)
    return blocks(2, 16, 2, 32, qk_norm=qk_norm, post_norm=post_norm, dropout=dropout).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hidden_width_is_that_of_the_released_sizes() -> None:
    widths = {768: 2048, 1024: 2816, 1280: 3584, 1536: 4096, 3200: 8704}
    assert {dim: ffn_width(dim) for dim in widths} == widths
    assert ffn_width(32, multiple_of=32) == 96


def test_rotating_is_a_complex_product() -> None:
    x_bnhd, rope = noise(2, 5, 3, 8), rope_1d(torch.arange(5), 8)
    turned = torch.view_as_complex(x_bnhd.unflatten(-1, (-1, 2))) * torch.view_as_complex(rope)[:, None]
    torch.testing.assert_close(rotate(x_bnhd, rope), torch.view_as_real(turned).flatten(-2))
    assert rotate(x_bnhd.bfloat16(), rope).dtype == torch.bfloat16


def test_products_of_rotated_vectors_depend_on_the_distance_only() -> None:
    query, key = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1)

    def product(a: int, b: int) -> Tensor:
        return (rotate(query, rope_1d(torch.tensor([a]), 8)) * rotate(key, rope_1d(torch.tensor([b]), 8))).sum()

    torch.testing.assert_close(product(3, 1), product(40, 38), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [8, 64, 100])
def test_half_of_the_pairs_turn_with_the_row_and_half_with_the_column(head_dim: int) -> None:
    table = grid_rope(Grid(3, 5), 0, head_dim, keep_condition=False, base=10000.0, device=CPU).unflatten(0, (3, 5))
    assert table.shape == (3, 5, head_dim // 2, 2)
    rows, columns = table.split(head_dim // 4, dim=2)
    torch.testing.assert_close(rows, rope_1d(torch.arange(3), head_dim // 2)[:, None].expand_as(rows))
    torch.testing.assert_close(columns, rope_1d(torch.arange(5), head_dim // 2).expand_as(columns))


def test_condition_rows_vanish_or_lead_to_the_first_corner() -> None:
    zeroed = grid_rope(Grid(2, 3), 4, 8, keep_condition=False, base=10000.0, device=CPU)
    kept = grid_rope(Grid(2, 3), 4, 8, keep_condition=True, base=10000.0, device=CPU)
    assert zeroed.shape == kept.shape == (10, 4, 2)
    assert not zeroed[:4].any()
    assert torch.equal(zeroed[4:], kept[4:])
    diagonal = torch.tensor([-4, -3, -2, -1])
    assert torch.equal(kept[:4], rope_2d(diagonal, diagonal, 8))


def test_rms_norm_works_in_float32_whatever_comes_in() -> None:
    norm, x = RMSNorm(8, eps=1e-5), noise(3, 8)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5))
    assert torch.isfinite(norm.half()((x * 3e4).clamp(-6e4, 6e4).half())).all()


def test_qk_norm_adds_its_two_weights_and_post_norm_none() -> None:
    plain = set(stack().state_dict())
    added = {f"{layer}.attention.{name}_norm.weight" for layer in (0, 1) for name in "qk"}
    assert set(stack(qk_norm=True).state_dict()) == plain | added
    assert set(stack(post_norm=True).state_dict()) == plain


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant() -> None:
    x_bnd, rope = noise(1, 6, 16), rope_1d(torch.arange(6), 8)
    for qk_norm in (True, False):
        layers = stack(qk_norm=qk_norm)
        before = run(layers, x_bnd, rope)
        for layer in layers:
            layer.attention.wqkv.weight.data[:32] *= 50  # queries and keys, not values
        same = torch.allclose(run(layers, x_bnd, rope), before, atol=1e-3)
        assert same is qk_norm


def test_post_norm_bounds_what_joins_the_stream() -> None:
    x_bnd, rope = noise(1, 6, 16), rope_1d(torch.arange(6), 8)
    for post_norm in (True, False):
        layers = stack(post_norm=post_norm)
        for layer in layers:
            layer.attention.wo.weight.data *= 1000
            layer.feed_forward.w2.weight.data *= 1000
        moved = (run(layers, x_bnd, rope) - x_bnd).norm(dim=-1).max()
        four_unit_steps = 4 * 16**0.5 + 1e-3
        assert bool(moved <= four_unit_steps) is post_norm


def test_dropout_acts_in_training_only() -> None:
    layers, x_bnd, rope = stack(dropout=0.5), noise(1, 6, 16), rope_1d(torch.arange(6), 8)
    assert torch.equal(run(layers, x_bnd, rope), run(layers, x_bnd, rope))
    layers.train()
    assert not torch.equal(run(layers, x_bnd, rope), run(layers, x_bnd, rope))


@pytest.mark.parametrize("together", [True, False])
def test_a_cache_equals_one_causal_pass(together: bool) -> None:
    layers, x_bnd, rope = stack(), noise(2, 6, 16), rope_1d(torch.arange(6), 8)
    whole = run(layers, x_bnd, rope, causal=True)
    cache = KVCache(2, 2, 2, 6, 8, dtype=torch.float32, device=CPU)
    for start in (0, 2, 4):
        indices = torch.arange(start, start + 2).expand(2, 2)
        mask = (torch.arange(start + 2) <= indices[..., None])[:, None]
        window = Window(indices, start if together else None, start + 2)
        part = run(layers, x_bnd[:, start : start + 2], rope[start : start + 2], mask=mask, cache=cache, window=window)
        torch.testing.assert_close(part, whole[:, start : start + 2], atol=1e-5, rtol=0)


def test_learning_on_a_cpu_attends_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and every gradient, for masks of a hand-off: causal up to each sample's prefix, both ways behind it."""
    attention, end = llama.Attention(32, 4, qk_norm=False, eps=1e-5), torch.tensor([0, 5, 11])
    rope = rope_1d(torch.arange(11), 8)
    reach_bn = torch.arange(11).expand(3, 11).clone()
    reach_bn[torch.arange(11) >= end[:, None]] = 10
    mask = (torch.arange(11) <= reach_bn[..., None])[:, None]
    taken: list[str] = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (taken.append("torch"), plain(*a, **k))[1])

    def learnt() -> list[Tensor]:
        x_bnd = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = attention(x_bnd, rope, mask, False, None)
        return [out, *torch.autograd.grad(out.square().sum(), [x_bnd, *attention.parameters()])]

    own = learnt()
    assert not taken
    monkeypatch.setattr(llama, "LEARNT_TABLE", 10)
    torch.testing.assert_close(own, learnt(), rtol=0, atol=2e-5)
    assert taken == ["torch"]
    monkeypatch.undo()
    with torch.no_grad():
        assert not llama.learns_on_cpu(torch.zeros(3, 4, 11, 8), torch.zeros(3, 4, 11, 8), mask)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^dim 16 is not a multiple of n_head 3$"):
        blocks(1, 16, 3, 32)


def fused_layer() -> FeedForward:
    torch.manual_seed(0)
    layer = FeedForward(8, 12)
    layer.fuse()
    return layer


def both(layer: FeedForward) -> Tensor | None:
    return layer._both


def test_gate_and_up_as_one_product_equal_two() -> None:
    layer = fused_layer()
    plain = copy.deepcopy(layer)
    assert both(layer) is not None and both(plain) is None
    for rows in ((1, 1), (5, 6)):
        x = torch.randn(*rows, 8)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plain(x), atol=1e-6, rtol=1e-5)
        assert torch.equal(layer(x), plain(x))  # where gradients are taken, both are two products
    assert list(layer.state_dict()) == ["w1.weight", "w3.weight", "w2.weight"]


def test_the_joined_weights_are_those_of_the_parameters_whatever_happens_to_them() -> None:
    layer, x = fused_layer(), torch.randn(5, 8)

    def expect(made: FeedForward, dtype: torch.dtype = torch.float32) -> None:
        with torch.no_grad():
            own = x.to(dtype)
            split = made.w2(F.silu(made.w1(own)) * made.w3(own))
            torch.testing.assert_close(made(own), split, atol=1e-2, rtol=1e-2)

    step = torch.optim.SGD(layer.parameters(), lr=10.0)
    layer(x).square().sum().backward()
    step.step()
    expect(layer)
    layer.load_state_dict(FeedForward(8, 12).state_dict())
    expect(layer)
    layer.bfloat16()
    joined = both(layer)
    assert joined is not None and joined.dtype == torch.bfloat16
    assert layer.w1.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    expect(layer, torch.bfloat16)
    replace_weights(SimpleNamespace(layers=nn.ModuleList([layer])), "int8")
    assert both(layer) is None
    expect(layer, torch.bfloat16)
