"""Products of few rows: every route gives what torch's own linear layer gives, and training takes no other route."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.few_rows import FEW_ROWS, Int8Linear, Linear, sums_of_products


def layer(inputs: int, outputs: int) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs)


@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 3), (FEW_ROWS,), (FEW_ROWS + 1,), (2, 7)])
@pytest.mark.parametrize("shape", [(16, 24), (33, 7)])
def test_few_and_many_rows_equal_torchs_own(rows: tuple[int, ...], shape: tuple[int, int]) -> None:
    linear, x = layer(*shape), torch.randn(*rows, shape[0])
    expected = F.linear(x, linear.weight)
    with torch.inference_mode():
        found = linear(x)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sums_of_products(x, linear.weight), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(linear(x), expected)  # where gradients are taken


def test_bfloat16_is_summed_in_float32() -> None:
    linear, x = layer(512, 8).bfloat16(), torch.randn(2, 512).bfloat16()
    exact = x.double() @ linear.weight.double().T
    with torch.no_grad():
        torch.testing.assert_close(sums_of_products(x, linear.weight).double(), exact, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(linear(x).double(), exact, atol=1e-2, rtol=1e-2)


def test_gradients_are_torchs_own() -> None:
    linear, x = layer(6, 4), torch.randn(2, 6)
    linear(x).square().sum().backward()
    weight = linear.weight.detach().clone().requires_grad_()
    F.linear(x, weight).square().sum().backward()
    assert torch.equal(linear.weight.grad, weight.grad)
    assert set(linear.state_dict()) == {"weight"}


def rounded(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, 20])
@pytest.mark.parametrize("shape", [(64, 32), (88, 32), (64, 7)])
def test_int8_is_the_product_of_rounded_weights(rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(*shape)
    x, int8 = torch.randn(rows, 1, shape[0]), Int8Linear(plain)
    expected = F.linear(x, rounded(plain.weight.detach()), plain.bias)
    assert int8.weight.dtype == torch.int8 and int8.weight.nbytes == shape[0] * shape[1]
    with torch.inference_mode():
        # Few rows are rounded to bfloat16 on their way in and out.
        torch.testing.assert_close(int8(x), expected, atol=2e-2, rtol=2e-2)
        half = Int8Linear(plain.bfloat16())
        assert half(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(half(x.bfloat16()).float(), expected, atol=3e-2, rtol=3e-2)


def test_int8_of_a_row_of_zeros_is_zero() -> None:
    plain = nn.Linear(16, 2, bias=False)
    nn.init.zeros_(plain.weight)
    with torch.no_grad():
        assert torch.equal(Int8Linear(plain)(torch.randn(1, 16)), torch.zeros(1, 2))
