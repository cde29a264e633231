"""Rows side by side (hybrid.zipar)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from fakes import TALL, FakeAR, FakeCondition, FakeState, conditional_ar, table_ar
from pairs import TEXT, class_pair, pair
from torch import Tensor

from hybrid.phases import Cancelled, Sampling, Step, ar_prefix
from hybrid.sampling import Guidance
from hybrid.types import MASK, Grid
from hybrid.verify import Verify
from hybrid.zipar import ZipAR, wavefront, zipar_prefix

WIDE = Grid(3, 5)


class Witness(FakeAR):
    """Feeds at any place, and writes down (place fed, its token, what it sees) for image 0."""

    def __init__(self, inner: FakeAR) -> None:
        super().__init__(inner.rule, inner.codebook_size, inner.grid)
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []

    def decode_at(self, tokens_bw: Tensor, places: Sequence[int], known_n: Tensor, state: FakeState) -> Tensor:
        self.note(state.condition.labels_b)
        state.tokens_bn[:, list(places)] = tokens_bw
        found = []
        for place in places:
            sees = [at for at in range(place + 1) if known_n[at] or at == place]
            self.seen.append((place, int(state.tokens_bn[0, place]), tuple(sees)))
            labels = state.condition.labels_b.tolist()
            rows = [self.rule(row[sees], label) for row, label in zip(state.tokens_bn, labels, strict=True)]
            found.append(torch.stack(rows))
        return torch.stack(found, dim=1)


def noise(images: int, places: int) -> Tensor:
    return torch.rand(images, places, generator=torch.Generator().manual_seed(3))


def test_wavefront() -> None:
    assert wavefront(Grid(3, 4), 2, 12) == [[0], [1], [2, 4], [3, 5], [6, 8], [7, 9], [10], [11]]
    assert wavefront(Grid(3, 4), 2, 6) == [[0], [1], [2, 4], [3, 5]]
    assert wavefront(TALL, 3, 15) == [[place] for place in range(15)]
    for grid in (WIDE, TALL, Grid(1, 4), Grid(4, 1)):
        for window in range(1, grid.width + 1):
            passes = wavefront(grid, window, grid.places)
            assert sorted(chain.from_iterable(passes)) == list(range(grid.places))
            assert len(passes) == (grid.height - 1) * window + grid.width and all(passes)


@pytest.mark.parametrize("grid", [WIDE, TALL, Grid(1, 4), Grid(4, 1)])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(3.0, floor=0.2), Guidance(3.0, "linear")])
def test_a_window_as_wide_as_the_grid_is_raster_order(grid: Grid, guidance: Guidance) -> None:
    condition = FakeCondition(torch.tensor([1, 2, 3]), grid)
    for length in (grid.places, grid.places - 1, 1, 0):
        args = (condition, condition.null(), length, noise(3, grid.places), Sampling(guidance))
        plain, zipped = table_ar(grid=grid), Witness(table_ar(grid=grid))
        tokens_bn, passes = ar_prefix(plain, *args)
        found_bn, count = zipar_prefix(zipped, *args, ZipAR(grid.width))
        assert torch.equal(found_bn, tokens_bn) and count == passes
        assert zipped.batches == plain.batches


def test_what_each_token_sees() -> None:
    model = Witness(table_ar(grid=Grid(2, 3)))
    condition = FakeCondition(torch.tensor([0]), Grid(2, 3))
    tokens_bn, passes = zipar_prefix(model, condition, condition, 6, noise(1, 6), Sampling(), ZipAR(1))
    token = tokens_bn[0].tolist()
    assert passes == 4 and MASK not in token
    assert model.seen == [
        # Pass 1 draws places 1 and 3: place 2 is not known, so the token of place 0 stands in, seen by itself alone.
        (0, token[0], (0,)),
        (2, token[0], (0, 2)),
        # Pass 2 draws places 2 and 4.
        (1, token[1], (0, 1)),
        (3, token[3], (0, 1, 3)),
        # Pass 3 draws place 5; place 2 is fed again with its own token, and place 4 sees it.
        (2, token[2], (0, 1, 2)),
        (4, token[4], (0, 1, 2, 3, 4)),
    ]


def test_guidance_by_place_and_lengths() -> None:
    grid = Grid(3, 4)
    condition = FakeCondition(torch.tensor([5, 6]), grid)
    model = Witness(conditional_ar(grid=grid))
    args = (noise(2, 12), Sampling(Guidance(4.0, "interval", 0.5, 1.0), temperature=0))
    tokens_bn, passes = zipar_prefix(model, condition, condition.null(), 10, *args, ZipAR(2))
    plain_bn, _ = ar_prefix(conditional_ar(grid=grid), condition, condition.null(), 10, *args)
    assert torch.equal(tokens_bn, plain_bn)  # these logits depend on the label alone
    assert (tokens_bn[:, 10:] == MASK).all() and passes == 6 and set(model.batches) == {4}


def test_rows_are_told_as_they_end_and_a_callback_cancels() -> None:
    told: list[tuple[int, int, int]] = []
    condition = FakeCondition(torch.tensor([0]), TALL)
    args = (condition, condition, 14, noise(1, 15), Sampling(), ZipAR(2))

    def note(step: Step) -> bool:
        told.append((step.index, step.total, int((step.tokens_bn != MASK).sum())))
        return step.index < 5

    with pytest.raises(Cancelled, match="cancelled after prefix 5 of 5"):
        zipar_prefix(Witness(table_ar(grid=TALL)), *args, note)
    assert [index for index, _, _ in told] == [1, 2, 3, 4, 5] and told[-1] == (5, 5, 14)


def test_mistakes() -> None:
    condition = FakeCondition(torch.tensor([0]), TALL)
    args = (condition, condition, 15, noise(1, 15), Sampling())
    with pytest.raises(ValueError, match="method zipar: a FakeAR takes tokens in raster order only; use method ar"):
        zipar_prefix(table_ar(grid=TALL), *args, ZipAR())
    with pytest.raises(ValueError, match="window 0: must be at least 1 column"):
        ZipAR(0)
    with pytest.raises(ValueError, match="window 4: a 5x3 grid has 3 columns; use at most as many"):
        zipar_prefix(Witness(table_ar(grid=TALL)), *args, ZipAR(4))
    assert (ZipAR().columns(Grid(9, 16)), ZipAR().columns(TALL)) == (4, 1)


@pytest.fixture(scope="module", params=["class", "text"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair({**({"num_classes": 3} if request.param == "class" else TEXT), "n_layer": 2}).ar


def asked(model: Any, images: int, grid: Grid) -> Any:
    if model.classes is not None:
        return model.condition([label % 3 for label in range(images)], grid)
    mask = torch.ones(images, 16)
    mask[1:, :5] = 0
    return model.condition((torch.randn(images, 16, 384, generator=torch.Generator().manual_seed(1)), mask), grid)


@torch.inference_mode()
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("grid", [WIDE, TALL])
def test_llamagen_with_a_full_window_draws_the_plain_tokens(model: Any, images: int, grid: Grid) -> None:
    condition = asked(model, images, grid)
    args = (condition, condition.null(), 15, noise(images, 15), Sampling(Guidance(2.0)))
    tokens_bn, passes = ar_prefix(model, *args)
    found_bn, count = zipar_prefix(model, *args, ZipAR(grid.width))
    assert torch.equal(found_bn, tokens_bn) and count == passes == 15
    assert zipar_prefix(model, *args, ZipAR(1))[1] == grid.height - 1 + grid.width


@torch.inference_mode()
def test_llamagen_sees_what_is_known_and_nothing_else(model: Any) -> None:
    condition = asked(model, 2, TALL)
    tokens_bn = torch.randint(0, 12, (2, 15), generator=torch.Generator().manual_seed(2))
    whole = model.score(tokens_bn, condition)
    _, state = model.prefill(condition, 15)
    known_n = torch.arange(15) < 6
    first = model.decode_at(tokens_bn[:, [3, 0, 5, 1, 2, 4]], [3, 0, 5, 1, 2, 4], known_n, state)
    torch.testing.assert_close(first, whole[:, [4, 1, 6, 2, 3, 5]], rtol=0, atol=1e-5)

    # A stand-in is seen by itself alone, and its place is written anew.
    known_n[6] = True
    model.decode_at(torch.full((2, 1), 7), [8], known_n, state)
    second = model.decode_at(tokens_bn[:, 6:7], [6], known_n, state)
    torch.testing.assert_close(second, whole[:, 7:8], rtol=0, atol=1e-5)
    known_n[7] = known_n[8] = True
    third = model.decode_at(tokens_bn[:, 7:9], [7, 8], known_n, state)
    torch.testing.assert_close(third, whole[:, 8:10], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="the cache holds 15 image tokens, 16 are needed"):
        model.decode_at(tokens_bn[:, :1], [15], torch.ones(16, dtype=torch.bool), state)


def test_a_pipeline_repeats_it_and_says_that_it_is_not_exact() -> None:
    pipe = class_pair()
    plain = pipe("bag", seed=0, method="ar", output_type="tokens")
    full = pipe("bag", seed=0, method="zipar", window=4, output_type="tokens")
    assert torch.equal(full.tokens, plain.tokens) and full.lossy is None
    made = pipe("bag", seed=0, method="zipar", output_type="tokens")
    assert made.phases.passes["prefix"] == 7 and made.settings["zipar"] == {"window": 1}
    assert made.lossy == "the AR model's rows are written side by side, each 1 of 4 columns ahead of the next"

    from hybrid.config import DefaultsConfig
    from hybrid.request import as_defaults, with_settings

    again = class_pair()
    again.defaults = as_defaults(full.settings, pipe.defaults)
    assert (again.defaults.method, again.defaults.window) == ("zipar", 4)
    assert torch.equal(again("bag", seed=0, output_type="tokens").tokens, full.tokens)
    for settings in (DefaultsConfig(method="zipar"), with_settings(pipe.defaults, {"method": "zipar"})):
        again.defaults = settings  # without a window: its own
        assert again("bag", seed=0, output_type="tokens").phases.passes["prefix"] == 7


def test_its_window_of_columns_is_no_other_methods() -> None:
    """A pairing, or a picture, whose default is zipar says nothing about how many tokens are verified at once."""
    from hybrid.config import DefaultsConfig
    from hybrid.request import find_judge

    nothing = dict.fromkeys(("rounds", "redraw", "window", "relax", "draft"))
    for defaults, expected in (
        (DefaultsConfig(method="zipar", window=4), Verify().window),
        (DefaultsConfig(method="exact", window=4), 4),
    ):
        verify, _ = find_judge("exact", nothing, defaults)
        assert verify is not None and verify.window == expected
