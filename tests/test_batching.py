"""Continuous batching against each request drawn alone: equal pictures, shared passes, who waits, who leaves."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from fakes import (
    FakeAR,
    FakeState,
    conditional_ar,
    conditional_masked,
    neighbour_masked,
    pair,
    table_ar,
)
from torch import Tensor

from hybrid.batching import Batcher
from hybrid.phases import Fill, Sampling, Step
from hybrid.sampling import Guidance
from hybrid.types import MASK, Generation, Grid
from hybrid.verify import Verify
from hybrid.zipar import ZipAR


class SlotFakeState(FakeState):
    """A ``SlotState``: every row is copied as a whole."""

    def first(self, filled_b: Tensor) -> SlotFakeState:
        rows = len(filled_b)
        labels = type(self.condition)(self.condition.labels_b[:rows], self.condition.grid)
        return SlotFakeState(labels, self.tokens_bn[:rows], filled_b)

    def copy_row(self, row: int, other: FakeState, source: int) -> None:
        self.condition.labels_b[row] = other.condition.labels_b[source]
        width = other.tokens_bn.shape[1]
        self.tokens_bn[row, :width] = other.tokens_bn[source]


class SlotAR(FakeAR):
    """A ``FakeAR`` that keeps slots; notes how many rows were in use at once."""

    def slots(self, rows: int, grid: Grid, capacity: int) -> SlotFakeState:
        self.rows = rows
        condition = self.condition([0] * rows, grid)
        return SlotFakeState(condition, torch.full((rows, capacity), MASK), torch.zeros(rows, dtype=torch.long))


def slots(model: FakeAR) -> SlotAR:
    return SlotAR(model.rule, model.codebook_size, model.grid)


MIXED: list[dict[str, Any]] = [
    {"prompts": [1], "seeds": [5], "ar_tokens": 3, "fill": Fill(steps=2)},
    {
        "prompts": [2, 3],
        "seeds": [6, 7],
        "ar_tokens": 9,
        "prefix": Sampling(temperature=0.5, top_k=4),
        "fill": Fill(steps=4),
    },
    {"prompts": [4], "seeds": [8], "ar_fraction": 1.0, "prefix": Sampling(Guidance(3.0), top_p=0.9)},
    {"prompts": [5], "seeds": [9], "ar_fraction": 0.0, "fill": Fill(steps=5, order="halton", schedule="cosine")},
    {"prompts": [6], "seeds": [10], "ar_tokens": 5, "fill": Fill(steps=3, sampling=Sampling(Guidance(2.0, "linear")))},
    {"prompts": [6], "seeds": [10], "ar_tokens": 7, "prefix": Sampling(Guidance(4.0, floor=0.2))},
    {"prompts": [2], "seeds": [3], "ar_tokens": 4, "fill": Fill(steps=3, sampling=Sampling(Guidance(3.0, floor=0.4)))},
    {"prompts": [7], "seeds": [11], "ar_tokens": 1, "fill": Fill(steps=4, order="random"), "negative": [2]},
    {"prompts": [1], "seeds": [12], "ar_tokens": 2, "fill": Fill(steps=14, resume="continue")},
    {"prompts": [1], "seeds": [16], "ar_tokens": 4, "fill": Fill(steps=4, order="spread", noise=9.0)},
    {"prompts": [3], "seeds": [13], "grid": Grid(2, 5), "ar_tokens": 4, "fill": Fill(steps=3)},
    {"prompts": [3], "seeds": [14], "grid": Grid(5, 2), "prefix": Sampling(Guidance(4.5, "interval", 0.2, 0.7))},
    {
        "prompts": [2],
        "seeds": [15],
        "tokens": torch.arange(16),
        "keep": torch.arange(16) % 3 == 0,
        "fill": Fill(steps=3),
    },
    {"prompts": [2], "seeds": [16], "tokens": torch.arange(16), "keep": torch.ones(16), "fill": Fill(steps=3)},
]


def same(one: Generation | None, other: Generation) -> None:
    assert one is not None
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.origin, other.origin)
    assert torch.equal(one.images, other.images)
    assert one.settings == other.settings and one.grid == other.grid and one.lossy == other.lossy
    assert one.phases.passes == other.phases.passes


def same_pictures(one: Generation | None, other: Generation) -> None:
    assert one is not None
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.images, other.images)


@pytest.mark.parametrize("ar", [table_ar(), slots(table_ar())], ids=["groups", "slots"])
@pytest.mark.parametrize("pictures", [2, 5, 16])
def test_requests_of_mixed_settings_equal_each_one_alone_bit_for_bit(ar: FakeAR, pictures: int) -> None:
    sampler = pair(ar)
    alone = [sampler.generate(**request) for request in MIXED]
    batcher = Batcher(sampler, pictures=pictures)
    tickets = [batcher.submit(**request) for request in MIXED]
    batcher.run()
    for ticket, expected in zip(tickets, alone, strict=True):
        same(ticket.result, expected)
    assert (batcher.waiting, batcher.running) == (0, 0)


def test_whoever_comes_late_joins_amid_the_prefix_and_leaves_at_its_own_length() -> None:
    ar = slots(conditional_ar())
    sampler = pair(ar)
    alone = [sampler.generate([n], seeds=[n], ar_tokens=length) for n, length in ((1, 6), (2, 2), (3, 3))]
    ar.batches.clear()
    ar.labels.clear()
    batcher = Batcher(sampler, patience=100)
    first = batcher.submit([1], seeds=[1], ar_tokens=6)
    batcher.step(), batcher.step()
    late = [batcher.submit([n], seeds=[n], ar_tokens=length) for n, length in ((2, 2), (3, 3))]
    batcher.run()
    # Read 1; feed 1; read 2 and 3; then all three, and whoever is done leaves: its row is filled by the last one.
    assert ar.labels == [[1], [1], [2, 3], [1, 2, 3], [1, 3], [1], [1]]
    for ticket, expected in zip((first, *late), alone, strict=True):
        same(ticket.result, expected)


def test_requests_at_different_passes_share_them() -> None:
    masked = neighbour_masked()
    batcher = Batcher(pair(slots(table_ar()), masked))
    early = batcher.submit([1], seeds=[1], ar_fraction=0, fill=Fill(steps=4))
    batcher.step()
    guided = Fill(steps=2, sampling=Sampling(Guidance(3.0)))
    late = batcher.submit([2, 3], seeds=[2, 3], ar_fraction=0, fill=guided)
    while not (early.over and late.over):
        batcher.step()
    assert masked.labels == [[1], [1, 2, 3, -1, -1], [1, 2, 3, -1, -1], [1]]
    assert (early.most, late.most) == (3, 3)
    assert late.result is not None and late.result.phases.passes["fill"] == 2


@pytest.mark.parametrize(("patience", "waits"), [(0, 0), (3, 3), (100, 4)])
def test_a_finished_prefix_waits_for_company_no_longer_than_patience(patience: int, waits: int) -> None:
    masked = neighbour_masked()
    ar = slots(table_ar())
    batcher = Batcher(pair(ar, masked), patience=patience)
    batcher.submit([1], seeds=[1], ar_tokens=2, fill=Fill(steps=1))
    batcher.submit([2], seeds=[2], ar_tokens=6, fill=Fill(steps=1))
    while not masked.batches:
        batcher.step()
    assert len(ar.batches) == 2 + waits


def test_no_more_pictures_are_drawn_than_there_is_room_and_nobody_is_passed_over() -> None:
    ar = slots(table_ar())
    batcher = Batcher(pair(ar), pictures=3)
    order: list[int] = []
    tickets = [
        batcher.submit([1] * count, seeds=[n] * count, ar_tokens=4, fill=Fill(steps=2))
        for n, count in enumerate((2, 2, 1, 3))
    ]
    while batcher.waiting or batcher.running:
        order += [tickets.index(ticket) for ticket in batcher.step()]
        assert batcher.running <= 3
    assert order == [0, 1, 2, 3] and ar.rows == 3 and max(ar.batches) <= 3
    with pytest.raises(ValueError, match=r"^4 pictures: at most 3 are drawn at once$"):
        batcher.submit([1] * 4, seeds=range(4))


def test_cancelling_amid_the_prefix_frees_the_rows_at_once_and_spares_the_others() -> None:
    ar = slots(table_ar())
    sampler = pair(ar)
    expected = [sampler.generate([n], seeds=[n], ar_tokens=8) for n in (2, 3)]
    batcher = Batcher(sampler, pictures=2)
    gone, stays, waits = (batcher.submit([n], seeds=[n], ar_tokens=8) for n in (1, 2, 3))
    for _ in range(3):
        batcher.step()
    assert (batcher.running, batcher.waiting) == (2, 1)
    batcher.cancel(gone)
    assert (batcher.running, batcher.waiting) == (1, 1) and gone.over and gone.cancelled and gone.result is None
    batcher.cancel(gone)
    ar.labels.clear()
    batcher.step()
    assert ar.labels == [[3]] and (batcher.running, batcher.waiting) == (2, 0)
    batcher.run()
    same(stays.result, expected[0])
    same(waits.result, expected[1])


@pytest.mark.parametrize("phase", ["prefix", "fill"])
def test_a_callback_that_returns_false_cancels_its_own_request_only(phase: str) -> None:
    batcher = Batcher(pair(slots(table_ar())))
    told: list[tuple[str, int, int]] = []

    def stop(step: Step) -> bool:
        told.append((step.phase, step.index, step.total))
        return step.phase != phase

    leaves = batcher.submit([1], seeds=[1], ar_tokens=6, fill=Fill(steps=3), callback=stop)
    stays = batcher.submit([1], seeds=[1], ar_tokens=6, fill=Fill(steps=3))
    batcher.run()
    assert told == [("prefix", 1, 2), ("prefix", 2, 2), ("fill", 1, 3)][: 1 if phase == "prefix" else 3]
    assert leaves.cancelled and leaves.result is None
    assert stays.result is not None and not stays.cancelled


def test_a_callback_sees_what_it_sees_alone() -> None:
    def watched(draw: Any) -> list[tuple[str, int, int, list[list[int]]]]:
        seen: list[tuple[str, int, int, list[list[int]]]] = []

        def note(step: Step) -> None:
            seen.append((step.phase, step.index, step.total, step.tokens_bn.tolist()))

        draw(prompts=[3], seeds=[4], ar_tokens=6, fill=Fill(steps=3), callback=note)
        return seen

    sampler = pair(slots(table_ar()))
    batcher = Batcher(sampler)
    batcher.submit([1], seeds=[1], ar_tokens=7)

    def together(**request: Any) -> None:
        batcher.submit(**request)
        batcher.run()

    assert watched(together) == watched(sampler.generate)


def test_a_model_without_slots_lets_nobody_join_a_group_that_has_begun() -> None:
    ar = table_ar()
    batcher = Batcher(pair(ar))
    batcher.submit([1], seeds=[1], ar_tokens=3, fill=Fill(steps=1))
    batcher.submit([4], seeds=[1], ar_tokens=2, fill=Fill(steps=1))
    batcher.step()
    batcher.submit([2], seeds=[2], ar_tokens=2, fill=Fill(steps=1))
    batcher.run()
    assert ar.labels == [[1, 4], [1, 4], [1, 4], [2], [2]]


def test_a_request_that_the_ar_model_judges_is_drawn_as_a_whole_and_its_mistake_is_its_own() -> None:
    sampler = pair(slots(table_ar()))
    expected = sampler.generate([1], seeds=[3], ar_fraction=1, verify=Verify(window=4))
    batcher = Batcher(sampler)
    generator = torch.Generator().manual_seed(3)
    whole = batcher.submit([1], seeds=[generator], ar_fraction=1, verify=Verify(window=4))
    wrong = batcher.submit([1], seeds=[3], ar_fraction=1, zipar=ZipAR(window=2))
    plain = batcher.submit([2], seeds=[4], ar_tokens=3)
    batcher.run()
    same(whole.result, expected)
    same(plain.result, sampler.generate([2], seeds=[4], ar_tokens=3))
    assert wrong.over and "SlotAR" in str(wrong.error) and wrong.result is None


def test_what_is_drawn_alike_as_a_whole_is_drawn_in_one_batch() -> None:
    ar = slots(table_ar())
    sampler = pair(ar)
    way: dict[str, Any] = {"ar_fraction": 1, "verify": Verify(window=4)}
    alone = [sampler.generate([n], seeds=[n], **way) for n in (1, 2, 3)]
    other = sampler.generate([4], seeds=[4], ar_fraction=1, verify=Verify(window=3))
    batcher = Batcher(sampler)
    told: list[list[int]] = [[], []]

    def leave(step: Step) -> bool:
        told[0].append(len(step.tokens_bn))
        return False

    first, odd, leaves, last = (
        batcher.submit([n], seeds=[n], callback=callback, **request)
        for n, request, callback in (
            (1, way, lambda step: told[1].extend(step.tokens_bn[:, 0].tolist())),
            (4, {"ar_fraction": 1, "verify": Verify(window=3)}, None),
            (2, way, leave),
            (3, way, None),
        )
    )
    assert batcher.step() == [first, leaves, last]
    same_pictures(first.result, alone[0])
    same_pictures(last.result, alone[2])
    assert (first.most, last.most) == (3, 3) and leaves.cancelled and leaves.result is None
    assert told[0] == [1] and set(told[1]) == {int(alone[0].tokens[0, 0])}
    assert batcher.step() == [odd]
    same(odd.result, other)


def test_everybody_may_leave_a_batch_that_is_drawn_as_a_whole() -> None:
    batcher = Batcher(pair())
    way: dict[str, Any] = {"ar_fraction": 1, "verify": Verify(window=4), "callback": lambda step: False}
    gone = [batcher.submit([n], seeds=[n], **way) for n in (1, 2)]
    assert batcher.step() == gone and all(ticket.cancelled and ticket.result is None for ticket in gone)


def test_no_stream_of_masked_requests_keeps_a_prefix_from_its_end() -> None:
    sampler = pair(slots(table_ar()))
    batcher = Batcher(sampler, pictures=4)
    waits = batcher.submit([1], seeds=[1], ar_tokens=12, fill=Fill(steps=2))
    for steps in range(1000):
        if waits.over:
            break
        batcher.submit([2], seeds=[steps], ar_fraction=0, fill=Fill(steps=5))
        batcher.step()
    assert waits.result is not None
    same(waits.result, sampler.generate([1], seeds=[1], ar_tokens=12, fill=Fill(steps=2)))


def test_no_stream_of_requests_keeps_another_kind_from_its_end() -> None:
    whole: dict[str, Any] = {"ar_fraction": 1, "verify": Verify(window=4)}
    plain: dict[str, Any] = {"ar_tokens": 3, "fill": Fill(steps=2)}
    for waiting, stream in ((whole, plain), (plain, whole)):
        batcher = Batcher(pair(slots(table_ar())), pictures=3)
        batcher.submit([3], seeds=[1], **stream)
        batcher.step()
        waits = batcher.submit([1], seeds=[1], **waiting)
        for steps in range(1000):
            if waits.over:
                break
            batcher.submit([2], seeds=[steps], **stream)
            batcher.step()
        assert waits.result is not None


def test_slots_are_as_many_as_are_needed() -> None:
    ar = slots(table_ar())
    batcher = Batcher(pair(ar), pictures=8)
    rooms = []
    for pictures, guided in ((1, 1.0), (1, 1.0), (1, 1.0), (2, 2.0)):
        batcher.submit([1] * pictures, seeds=range(pictures), ar_tokens=16, prefix=Sampling(Guidance(guided)))
        batcher.step()
        rooms.append(ar.rows)
    assert rooms == [1, 2, 4, 8]


def test_broken_logits_are_the_mistake_of_their_own_request() -> None:
    def broken(model: Any) -> Any:
        rule = model.rule
        model.rule = lambda tokens, label, *grid: rule(tokens, label, *grid) * (torch.nan if label == 9 else 1)
        return model

    sampler = pair(broken(slots(table_ar())), broken(neighbour_masked()))
    batcher = Batcher(sampler)
    mixed: list[tuple[int, dict[str, Any]]] = [
        (1, {"ar_tokens": 6}),
        (9, {"ar_tokens": 6}),
        (9, {"ar_fraction": 0}),
        (2, {"ar_fraction": 0}),
    ]
    tickets = [batcher.submit([label], seeds=[3], fill=Fill(steps=3), **length) for label, length in mixed]
    batcher.run()
    for ticket, (label, length) in zip(tickets, mixed, strict=True):
        if label == 9:
            assert ticket.over and ticket.result is None
            assert str(ticket.error).startswith("logits: hold NaN")
        else:
            same(ticket.result, sampler.generate([label], seeds=[3], fill=Fill(steps=3), **length))


def test_broken_logits_in_a_batch_that_is_drawn_as_a_whole_leave_the_others_to_be_drawn_alone() -> None:
    ar = slots(table_ar())
    rule = ar.rule
    ar.rule = lambda before, label: rule(before, label) * (torch.nan if label == 9 and len(before) > 5 else 1)
    sampler = pair(ar)
    way: dict[str, Any] = {"ar_fraction": 1, "verify": Verify(window=4)}
    batcher = Batcher(sampler)
    right, wrong, after = (batcher.submit([label], seeds=[3], **way) for label in (1, 9, 2))
    assert batcher.step() == [right, wrong, after]
    assert wrong.result is None and wrong.error is not None
    same(right.result, sampler.generate([1], seeds=[3], **way))
    same(after.result, sampler.generate([2], seeds=[3], **way))


def test_seconds_count_each_pass_once_and_leave_callbacks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by a second at each look."""
    ticks = count(0)
    monkeypatch.setattr("hybrid.sampler.time.perf_counter", lambda: float(next(ticks)))

    def late(step: Step) -> None:
        for _ in range(1000):
            next(ticks)

    batcher = Batcher(pair(slots(table_ar())))
    way: dict[str, Any] = {"ar_tokens": 4, "fill": Fill(steps=3), "callback": late}
    whole: dict[str, Any] = {"ar_fraction": 1, "verify": Verify(window=4), "callback": late}
    tickets = [batcher.submit([n], seeds=[n], **way) for n in (1, 2)]
    batcher.run()
    for ticket in tickets:
        assert ticket.result is not None
        seconds = ticket.result.phases.seconds
        assert (seconds["condition"], seconds["prefix"], seconds["fill"], seconds["decode"]) == (1, 4, 3, 1)
    assert (batcher.seconds["prefix"], batcher.seconds["fill"], batcher.seconds["condition"]) == (4, 3, 2)
    judged = batcher.submit([3], seeds=[3], **whole)
    batcher.run()
    assert judged.result is not None and sum(judged.result.phases.seconds.values()) < 200


def test_mistakes_are_told_when_a_request_is_submitted() -> None:
    batcher = Batcher(pair())
    with pytest.raises(ValueError, match=r"^17 steps for 16 places: use at most 16 steps$"):
        batcher.submit([1], seeds=[1], ar_fraction=0, fill=Fill(steps=17))
    decay = Fill(sampling=Sampling(Guidance(5.0, "decay")))
    with pytest.raises(ValueError, match=r"^guidance kind 'decay': counts an AR model's places"):
        batcher.submit([1], seeds=[1], ar_fraction=0, fill=decay)
    with pytest.raises(ValueError, match=r"ar_fraction 2: must be in \[0, 1\]"):
        batcher.submit([1], seeds=[1], ar_fraction=2)
    with pytest.raises(ValueError, match=r"pictures 0, patience 8: must be at least 1 and 0"):
        Batcher(pair(), pictures=0)
    assert batcher.waiting == 0 and batcher.step() == []


def test_unguided_and_guided_requests_get_their_own_share_of_the_null() -> None:
    """Without guidance code 0 wins, with it the label's own (``fakes.favour``)."""
    sampler = pair(slots(conditional_ar()), conditional_masked())
    batcher = Batcher(sampler)
    argmax = Sampling(temperature=0)
    guided = Sampling(Guidance(3.0), temperature=0)
    plain = batcher.submit([5], seeds=[1], ar_tokens=4, prefix=argmax, fill=Fill(steps=2, sampling=argmax))
    strong = batcher.submit([5], seeds=[1], ar_tokens=4, prefix=guided, fill=Fill(steps=2, sampling=guided))
    floored = Sampling(Guidance(3.0, floor=0.61), temperature=0)  # the label's code is 0.607 times as likely as code 0
    sober = batcher.submit([5], seeds=[1], ar_tokens=4, prefix=floored, fill=Fill(steps=2, sampling=floored))
    batcher.run()
    found = [ticket.result.tokens.unique().tolist() for ticket in (plain, strong, sober) if ticket.result is not None]
    assert found == [[0], [5], [0]]
