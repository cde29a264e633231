"""Approximate reuse of keys and values between masked passes (hybrid.reuse)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import SQUARE, FakeCondition, FakeMasked, neighbour_masked
from pairs import PAPER, TEXT, TRANSFORMER, class_pair
from torch import Tensor

from hybrid.adapters import maskgil
from hybrid.phases import Fill, Sampling, masked_fill
from hybrid.sampling import Guidance
from hybrid.types import MASK, Grid


class Diary(FakeMasked):
    """A fake that can recall: what is remembered is the grid as it was last read, place by place."""

    def __init__(self) -> None:
        super().__init__(neighbour_masked().rule, 16)
        self.read: list[tuple[str, int, int]] = []

    def remember(self, tokens_bn: Tensor, condition: FakeCondition, places_bm: Tensor) -> tuple[Tensor, Any]:
        self.read.append(("all", *tokens_bn.shape))
        return self.logits(tokens_bn, condition, places_bm), [tokens_bn.clone(), condition]

    def recall(self, tokens_bn: Tensor, rows_br: Tensor, places_bm: Tensor, memory: Any) -> Tensor:
        self.read.append(("rows", *rows_br.shape))
        memory[0] = memory[0].scatter(1, rows_br, tokens_bn.gather(1, rows_br))
        return self.logits(memory[0], memory[1], places_bm)


def fill(model: Any, reuse: int, guidance: Guidance, *, steps: int = 4, images: int = 2) -> Tensor:
    tokens_bn = torch.full((images, 16), MASK)
    tokens_bn[:, :5] = torch.arange(5)
    condition = FakeCondition(torch.arange(1, images + 1), SQUARE)
    noise = torch.rand(images, steps, 2, 16, generator=torch.Generator().manual_seed(0))
    how = Fill(steps=steps, sampling=Sampling(guidance), reuse=reuse, schedule="linear")
    return masked_fill(model, condition, condition.null(), tokens_bn, noise, how)[0]


def test_which_places_each_pass_reads() -> None:
    model = Diary()
    fill(model, 3, Guidance(2.0))
    # Of 11 unknown places the linear schedule writes 1, 2, 4 and 4: each pass reads what the one before did not know.
    assert model.read == [("all", 4, 16), ("rows", 4, 11), ("rows", 4, 10), ("all", 4, 16)]


def test_a_change_of_streams_is_a_refresh() -> None:
    model = Diary()
    fill(model, 4, Guidance(3.0, "linear"))  # no guidance in the first pass
    assert model.read[:3] == [("all", 2, 16), ("all", 4, 16), ("rows", 4, model.read[2][2])]


def test_reading_what_changed_is_enough_where_the_model_looks_at_tokens_alone() -> None:
    for guidance in (Guidance(), Guidance(2.0), Guidance(3.0, "linear")):
        plain = fill(Diary(), 1, guidance)
        for reuse in (2, 3, 8):
            assert torch.equal(fill(Diary(), reuse, guidance), plain)


def test_every_pass_reads_everything_by_default() -> None:
    model = Diary()
    fill(model, 1, Guidance())
    assert model.read == [] and model.batches == [2] * 4


def test_models_that_cannot_recall_are_refused_before_the_prefix() -> None:
    with pytest.raises(ValueError, match="reuse: a FakeMasked cannot keep keys and values between passes; use reuse 1"):
        fill(neighbour_masked(), 2, Guidance())
    with pytest.raises(ValueError, match="reuse 0: must be at least 1"):
        Fill(reuse=0)


KINDS = {"class": {"num_classes": 3, **PAPER}, "text": {**TEXT, **PAPER}, "released": {"num_classes": 3}}


def network(kind: str, layers: int) -> Any:
    torch.manual_seed(0)
    model, _ = maskgil.create({**TRANSFORMER, **KINDS[kind], "n_layer": layers})
    torch.nn.init.normal_(model.output.weight)
    return model.eval()


def asked(model: Any, images: int) -> Any:
    if model.classes is not None:
        return model.condition([label % 3 for label in range(images)], Grid(4, 4))
    embedding, mask = torch.randn(images, 16, 384), torch.ones(images, 16)
    mask[:, :7] = 0
    return model.condition((embedding, mask), Grid(4, 4))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_remembering_is_the_plain_pass_and_recalling_takes_changes_in(kind: str, images: int) -> None:
    torch.manual_seed(1)
    close = {"rtol": 0, "atol": 1e-5}
    tokens_bn = torch.randint(0, 12, (images, 16)).masked_fill(torch.rand(images, 16) < 0.5, MASK)
    rows_br = torch.rand(images, 16).argsort(1)[:, :7]
    places_bm = rows_br[:, [4, 0, 2]]
    later_bn = tokens_bn.scatter(1, rows_br, 3)
    for layers in (1, 3):
        model = network(kind, layers)
        condition = asked(model, images)
        found, memory = model.remember(tokens_bn, condition, places_bm)
        torch.testing.assert_close(found, model.logits(tokens_bn, condition, places_bm), **close)
        same = model.recall(tokens_bn, rows_br, places_bm, memory)
        torch.testing.assert_close(same, found, **close)
        # Keys and values of one layer are those of each token alone, so that nothing is stale; with more they are.
        recalled = model.recall(later_bn, rows_br, places_bm, memory)
        whole = model.logits(later_bn, condition, places_bm)
        assert torch.allclose(recalled, whole, **close) == (layers == 1)
        assert not torch.allclose(recalled, found, **close)


def test_a_pipeline_and_its_settings() -> None:
    pipe = class_pair()
    plain = pipe("bag", seed=0, output_type="tokens")
    assert torch.equal(pipe("bag", seed=0, output_type="tokens", reuse=1).tokens, plain.tokens)
    found = pipe("bag", seed=0, output_type="tokens", reuse=3)
    assert found.settings["fill"]["reuse"] == 3 and found.phases.passes == plain.phases.passes
    # The first pass reads everything, so what it writes is the same.
    first = plain.origin <= 1
    assert torch.equal(found.origin <= 1, first) and torch.equal(found.tokens[first], plain.tokens[first])


def test_compiled_blocks_meet_few_shapes() -> None:
    """Every pass of a fill has one shape, whatever is left to write: one compilation for each number of streams."""
    masked = network("class", 1)
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    for block in masked.layers:
        block.compile(backend=count)
    with torch.inference_mode():
        for known in (4, 7, 0):
            tokens_bn = torch.full((1, 16), MASK)
            tokens_bn[:, :known] = 1
            condition = masked.condition([1])
            how = Fill(steps=6, sampling=Sampling(Guidance(2.0, "linear")))
            masked_fill(masked, condition, condition.null(), tokens_bn, torch.rand(1, 6, 2, 16), how)
    assert 1 <= len(graphs) <= 2
