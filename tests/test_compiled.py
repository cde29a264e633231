"""The compiled decoding step against the plain one: the same tokens, few compilations, no look past the cache's length.

``aot_eager`` traces as inductor does, through the routes of compiled code; inductor itself runs in the slow suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from hybrid.adapters.llama import init_weights
from hybrid.adapters.llamagen import LlamaGen, build
from hybrid.adapters.transformer_config import TransformerConfig
from hybrid.phases import Sampling, ar_prefix
from hybrid.quantize import replace_weights
from hybrid.sampling import Guidance
from hybrid.types import Grid

SHAPE = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 8, "vocab_size": 20, "block_size": 16}
CLASSES = {"num_classes": 5}
TEXT = {"model_type": "t2i", "caption_dim": 6, "cls_token_num": 3, "qk_norm": True, "post_norm": True}
GRID = Grid(3, 5)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs of other tests."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model(kind: dict[str, Any] = CLASSES) -> LlamaGen:
    torch.manual_seed(0)
    made = build(TransformerConfig.model_validate(SHAPE | kind)).eval()
    init_weights(made, std=0.3)
    return made


def asked(model: LlamaGen, batch: int, grid: Grid = GRID) -> Any:
    if model.classes is not None:
        return model.condition([row % 5 for row in range(batch)], grid)
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, 3, dtype=torch.long)
    mask[0, 0] = 0  # a padded token on the left
    embedding = torch.randn(batch, 3, 6, generator=generator) * mask[..., None]
    return model.condition((embedding, mask), grid)


@torch.inference_mode()
def rolled(model: LlamaGen, batch: int, length: int, *, capacity: int | None = None, past: float = 0.0) -> Tensor:
    """Logits of every place of greedy drawing; ``past`` lies in the cache where nothing was written yet."""
    logits, state = model.prefill(asked(model, batch), capacity or length)
    for tensor in state.cache.tensors:
        tensor[:, :, state.offset :] = past
    seen = [logits]
    for _ in range(length - 1):
        seen.append(model.advance(seen[-1].argmax(-1), state))
    return torch.stack(seen, dim=1)


@pytest.mark.parametrize(("kind", "bucket"), [(CLASSES, None), (TEXT, None), (CLASSES, 4)])
def test_equals_the_plain_step_and_compiles_once_for_a_number_of_rows(kind: dict[str, Any], bucket: int | None) -> None:
    made = model(kind)
    rows = (1, 3)
    plain = [rolled(made, batch, length) for batch, length in zip(rows, (15, 7), strict=True)]
    made.compile_step(bucket=bucket, backend="aot_eager")
    for batch, expected in zip(rows, plain, strict=True):
        found = rolled(made, batch, expected.shape[1])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.argmax(-1), expected.argmax(-1))
    # One graph for each number of rows; a bucket that ends where the cache does may need another.
    assert counters["stats"]["unique_graphs"] <= 2 * (1 if bucket is None else 2)
    assert not counters["graph_break"]


def test_neither_place_nor_capacity_compiles_anew() -> None:
    made = model()
    made.compile_step(backend="aot_eager")
    for length, capacity in ((9, 9), (5, 12), (15, 15), (3, 14)):
        rolled(made, 2, length, capacity=capacity)
    assert counters["stats"]["unique_graphs"] == 1


def test_the_cache_is_never_read_past_its_length() -> None:
    made = model()
    plain = rolled(made, 3, 9, capacity=15)
    assert torch.equal(rolled(made, 3, 9, capacity=15, past=torch.nan), plain)
    made.compile_step(backend="aot_eager")
    torch.testing.assert_close(rolled(made, 3, 9, capacity=15, past=torch.nan), plain, atol=1e-4, rtol=1e-4)
    # A bucket is read to its end; what lies past the place is hidden, whatever number it is.
    made.compile_step(bucket=4, backend="aot_eager")
    torch.testing.assert_close(rolled(made, 3, 9, capacity=15, past=1e4), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_bfloat16_and_int8_stay_close(int8: bool) -> None:
    made = model().bfloat16()
    if int8:
        replace_weights(made, "int8")
    tokens = torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def forced() -> Tensor:
        _, state = made.prefill(asked(made, 2), 8)
        return torch.stack([made.advance(column, state) for column in tokens.T], dim=1)

    plain = forced()
    made.compile_step(backend="aot_eager")
    torch.testing.assert_close(forced(), plain, atol=0.15, rtol=0.05)


def test_advance_is_decode_where_the_cache_stands() -> None:
    made = model()
    condition = asked(made, 2)
    with torch.inference_mode():
        (first, one), (_, other) = made.prefill(condition, 3), made.prefill(condition, 3)
        token = first.argmax(-1)
        for place in range(3):
            expected = made.decode(token[:, None], torch.full((2,), place), other)[:, -1]
            assert torch.equal(made.advance(token, one), expected)
        with pytest.raises(ValueError, match=r"^the cache holds 3 image tokens, 4 are needed$"):
            made.advance(token, one)


def test_gradients_and_rows_apart_take_the_plain_step() -> None:
    made = model()
    made.compile_step(backend="aot_eager")
    _, state = made.prefill(asked(made, 2), 4)
    made.advance(torch.tensor([1, 2]), state)
    with torch.inference_mode():
        made.decode(torch.tensor([[1, 2], [3, 4]]), torch.tensor([1, 1]), state)
        made.decode(torch.tensor([[1], [2]]), torch.tensor([3, 1]), state)
    assert "unique_graphs" not in counters["stats"]


def test_broken_logits_are_told_at_the_end_of_the_row() -> None:
    made = model()
    torch.nn.init.constant_(made.output.weight, torch.nan)
    condition = asked(made, 1)
    with pytest.raises(ValueError, match=r"^logits: hold NaN"), torch.inference_mode():
        ar_prefix(made, condition, condition.null(), 5, torch.rand(1, 15), Sampling())


@pytest.mark.slow
def test_inductor_draws_the_same_tokens() -> None:
    made = model()
    condition = asked(made, 3)
    uniforms, how = torch.rand(3, 15), Sampling(Guidance(2.0), temperature=0.0)

    @torch.inference_mode()
    def drawn() -> Tensor:
        return ar_prefix(made, condition, condition.null(), 11, uniforms, how)[0]

    plain = drawn()
    made.compile_step()
    assert torch.equal(drawn(), plain)


@pytest.mark.slow
def test_the_compiled_step_writes_the_cache_where_it_stands() -> None:
    """Of what a step allocates only the scores grow, with the place; nothing has the cache's capacity."""
    made = model()
    made.compile_step()
    with torch.inference_mode():
        _, state = made.prefill(asked(made, 2, Grid(32, 32)), 700)
        _, (code, *_) = run_and_get_code(made.advance, torch.tensor([1, 2]), state)
    allocated = re.findall(r"= empty_strided_cpu\((.*)", code)
    assert allocated and len(set(re.findall(r"\bs\d+\b", " ".join(allocated)))) == 1
