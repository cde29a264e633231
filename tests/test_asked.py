"""A request put together and not drawn: ``HybridPipeline.ask``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from pairs import class_pair, text_pair

from hybrid import HybridPipeline


def test_what_is_asked_becomes_what_a_call_gives() -> None:
    pipe = text_pair()
    told: list[tuple[int, str]] = []

    def note(own: HybridPipeline, index: int, phase: str, state: dict[str, object]) -> None:
        assert own is pipe
        told.append((index, phase))

    request: dict[str, Any] = {
        "negative_prompt": "a cat",
        "ar_fraction": 0.5,
        "steps": 2,
        "seed": 3,
        "output_type": "pt",
    }
    called = pipe(["a dog", "a bee"], **request)
    asked = pipe.ask(["a dog", "a bee"], **request, callback_on_step_end=note)
    assert told == [] and asked.pipe is pipe
    answer = asked.answer(pipe.sampler.generate(**asked.arguments))
    assert told == [(1, "prefix"), (2, "prefix"), (1, "fill"), (2, "fill")]
    assert torch.equal(answer.images, called.images) and torch.equal(answer.tokens, called.tokens)
    assert answer.settings == called.settings and answer.phases.passes == called.phases.passes
    assert answer.phases.passes["condition"] == 2


def test_mistakes_are_told_when_it_is_asked() -> None:
    pipe = class_pair()
    with pytest.raises(ValueError, match=r"^prompt 'shoo': not a class of tiny"):
        pipe.ask("shoo")
    with pytest.raises(TypeError, match="sed"):
        pipe.ask("bag", sed=1)  # type: ignore[call-arg]


def test_other_types_ask_another_pipeline() -> None:
    pipe = class_pair()
    asked = pipe.ask("bag", seed=1, dtype="bf16")
    assert asked.pipe is pipe.in_dtype("bf16") is not pipe
    drawn = asked.answer(asked.pipe.sampler.generate(**asked.arguments))
    assert drawn.settings["dtype"] == "bfloat16" == pipe("bag", seed=1, dtype="bf16").settings["dtype"]


def test_a_call_takes_what_ask_takes() -> None:
    called, asked = (inspect.signature(way).parameters for way in (HybridPipeline.__call__, HybridPipeline.ask))
    assert called == asked and {"prompt", "seed", "callback_on_step_end"} < set(called)
