"""Number types by phase (hybrid.dtypes)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import FakeTokenizer, table_ar, uniform_masked
from pairs import class_pair
from torch import nn

from hybrid import dtypes
from hybrid.dtypes import PhaseTypes, fastest_types, find_types
from hybrid.pipeline import HybridPipeline

CPU, FP32, BF16, FP16 = torch.device("cpu"), torch.float32, torch.bfloat16, torch.float16
MIXED = PhaseTypes(FP32, BF16, FP32)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("auto", PhaseTypes(FP32, FP32, FP32)),
        ("bf16", PhaseTypes(BF16, BF16, BF16)),
        ("bfloat16", PhaseTypes(BF16, BF16, BF16)),
        (FP16, PhaseTypes(FP16, FP16, FP16)),
        ("masked=bf16", MIXED),
        ("ar=fp32, masked=bf16, decode=auto", MIXED),
        ({"masked": BF16, "ar": "float32"}, MIXED),
        (MIXED, MIXED),
    ],
)
def test_reading(given: Any, found: PhaseTypes) -> None:
    assert find_types(given, CPU) == found
    assert find_types(str(found), CPU) == find_types(found.name, CPU) == found


def test_words() -> None:
    assert str(MIXED) == MIXED.name == "ar=fp32,masked=bf16,decode=fp32"
    same = find_types("bf16", CPU)
    assert (str(same), same.name) == ("bf16", "bfloat16")
    assert [MIXED.of(part) for part in ("ar", "masked", "tokenizer", "ar_tokenizer", "text")] == [
        *(FP32, BF16, FP32, FP32, FP32)
    ]
    assert find_types("ar=fp32", torch.device("cuda")) == PhaseTypes(FP32, BF16, BF16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fp8", "dtype 'fp8': use auto, fp32, bf16, fp16"),
        ("ar=fp8", "dtype 'fp8': use auto, fp32, bf16, fp16"),
        ("maskd=bf16", "dtype: no part 'maskd'; did you mean masked?"),
        ("x=bf16", "dtype: no part 'x'; ar, masked, decode"),
        ("ar=bf16,ar=fp32", "dtype 'ar=bf16,ar=fp32': names a part twice"),
    ],
)
def test_mistakes(given: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        find_types(given, CPU)
    assert str(raised.value) == message


def weights(pipe: HybridPipeline) -> list[torch.dtype]:
    return [next(module.parameters()).dtype for module in (pipe.ar, pipe.masked, pipe.tokenizer)]


def test_a_request_in_mixed_types_shares_what_stays() -> None:
    pipe = class_pair()
    plain = pipe("bag", seed=0, method="ar")
    mixed = pipe("bag", seed=0, method="ar", dtype="masked=bf16")
    assert torch.equal(mixed.tokens, plain.tokens)
    assert mixed.settings["dtype"] == "ar=fp32,masked=bf16,decode=fp32" and plain.settings["dtype"] == "float32"
    other = pipe.in_dtype(MIXED)
    assert weights(other) == [FP32, BF16, FP32] and weights(pipe) == [FP32] * 3
    assert other.ar is pipe.ar and other.tokenizer is pipe.tokenizer
    assert pipe.in_dtype("ar=bf16,masked=bf16").masked is other.masked
    assert other.in_dtype("fp32") is pipe and other.in_dtype("decode=bf16").masked is pipe.masked
    assert pipe("bag", seed=0, dtype=MIXED).images[0].size == (8, 8)


def test_loading_and_saving(tmp_path: Any) -> None:
    class_pair().save_pretrained(tmp_path)
    pipe = HybridPipeline.from_pretrained(tmp_path, dtype={"masked": "bf16"})
    assert weights(pipe) == [FP32, BF16, FP32] and pipe.types == MIXED and pipe.dtype == BF16
    with pytest.raises(ValueError, match="dtype fastest: measures plain networks"):
        HybridPipeline.from_pretrained(tmp_path, dtype="fastest", quantize="int8")


def test_models_without_weights_and_one_network_for_both() -> None:
    pipe = HybridPipeline(FakeTokenizer(), ar=table_ar(), masked=uniform_masked())
    assert pipe([1], seed=0, dtype="ar=bf16").settings["dtype"] == "ar=bf16,masked=fp32,decode=fp32"
    pair = class_pair()
    pair.masked = pair.ar
    apart, together = pair.in_dtype("ar=bf16"), pair.in_dtype("bf16")
    assert weights(apart)[:2] == [BF16, FP32] and together.masked is together.ar is apart.ar and apart.masked is pair.ar


class Costs:
    """A clock that each run of a module moves on by what its type costs."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, pipe: HybridPipeline, costs: dict[str, dict[Any, float]]
    ) -> None:
        self.time, self.runs = 0.0, 0

        def spend(part: str, method: str, module: nn.Module) -> None:
            kept = getattr(type(module), method)

            def timed(this: nn.Module, *args: Any, **more: Any) -> Any:
                self.time += costs[part][next(this.parameters()).dtype]
                self.runs += 1
                return kept(this, *args, **more)

            monkeypatch.setattr(type(module), method, timed)

        spend("ar", "prefill", pipe.ar)
        spend("masked", "logits", pipe.masked)
        spend("decode", "decode", pipe.tokenizer)

    def __call__(self) -> float:
        return self.time


def test_each_part_gets_its_fastest_type(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = class_pair()
    costs = {"ar": {FP32: 0.1, BF16: 0.2}, "masked": {FP32: 0.3, BF16: 0.1}, "decode": {FP32: 0.5, BF16: 0.49}}
    clock = Costs(monkeypatch, pipe, costs)
    # The decoder gains too little to leave what was loaded.
    assert fastest_types(pipe, ["bag", "sneaker"], clock) == MIXED
    assert clock.runs == 3 * 2 * (1 + dtypes.TURNS)
    assert weights(pipe) == [FP32] * 3


def test_slow_machines_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = class_pair()
    clock = Costs(monkeypatch, pipe, {part: {FP32: 9.0, BF16: 1.0} for part in ("ar", "masked", "decode")})
    assert fastest_types(pipe, ["bag"], clock) == find_types("bf16", CPU)
    assert clock.runs == 3 * 2 * 2


def test_fastest_is_measured_for_each_number_of_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[int] = []

    def found(pipe: HybridPipeline, prompts: Any) -> PhaseTypes:
        asked.append(len(prompts))
        return MIXED if len(prompts) > 1 else find_types("fp32", CPU)

    monkeypatch.setattr("hybrid.pipeline.fastest_types", found)
    class_pair().save_pretrained(tmp_path)
    pipe = HybridPipeline.from_pretrained(tmp_path, dtype="fastest")
    assert asked == []
    names = [pipe(["bag"] * count, seed=0).settings["dtype"] for count in (1, 2, 1, 2)]
    assert names == ["float32", str(MIXED)] * 2 and asked == [1, 2]
    assert pipe("bag", seed=0, dtype="bf16").settings["dtype"] == "bfloat16"
    assert class_pair()("bag", seed=0, dtype="fastest", num_images_per_prompt=3).settings["dtype"] == str(MIXED)
