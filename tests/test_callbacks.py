"""What a callback sees after each AR row and masked pass, and how it stops the sampler."""

from __future__ import annotations

import pytest
import torch
from fakes import TALL, neighbour_masked, pair, table_ar

from hybrid.phases import Cancelled, Fill, Step
from hybrid.types import MASK


def test_callbacks_see_every_row_and_pass() -> None:
    steps: list[Step] = []
    result = pair().generate([1, 2], seeds=[0, 1], grid=TALL, ar_tokens=7, fill=Fill(steps=3), callback=steps.append)
    seen = [(step.phase, step.index, step.total) for step in steps]
    assert seen == [
        ("prefix", 1, 3),
        ("prefix", 2, 3),
        ("prefix", 3, 3),
        ("fill", 1, 3),
        ("fill", 2, 3),
        ("fill", 3, 3),
    ]
    assert all(step.grid == TALL for step in steps)
    for step, known in zip(steps[:3], (3, 6, 7), strict=True):  # kept, though the prefix has moved on since
        assert torch.equal(step.tokens_bn[:, :known], result.tokens[:, :known])
        assert (step.tokens_bn[:, known:] == MASK).all()
    for step in steps[3:]:
        expected = torch.where(result.origin <= step.index, result.tokens, MASK)
        assert torch.equal(step.tokens_bn, expected)


@pytest.mark.parametrize(("phase", "index", "ar_passes", "passes"), [("prefix", 1, 4, 0), ("fill", 2, 6, 2)])
def test_returning_false_cancels(phase: str, index: int, ar_passes: int, passes: int) -> None:
    ar, masked = table_ar(), neighbour_masked()
    with pytest.raises(Cancelled, match=f"cancelled after {phase} {index} of {2 if phase == 'prefix' else 5}"):
        pair(ar, masked).generate(
            [0],
            seeds=[0],
            ar_tokens=6,
            fill=Fill(steps=5),
            callback=lambda step: (step.phase, step.index) != (phase, index),
        )
    assert (len(ar.batches), len(masked.batches)) == (ar_passes, passes)


@pytest.mark.parametrize("answer", [None, 0, "", True])
def test_only_false_cancels(answer: object) -> None:
    pair().generate([0], seeds=[0], callback=lambda step: answer)


def test_what_a_callback_raises_comes_out() -> None:
    def fail(step: Step) -> None:
        raise KeyError(step.phase)

    with pytest.raises(KeyError, match="prefix"):
        pair().generate([0], seeds=[0], callback=fail)
    with pytest.raises(KeyError, match="fill"):
        pair().generate([0], seeds=[0], ar_fraction=0, callback=fail)
