"""Transcoding through pixels, with tokenizers whose pixels are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import FakeAR, FakeTokenizer, always_ar, table_ar, uniform_masked
from torch import Tensor

from hybrid.align import align
from hybrid.phases import Fill
from hybrid.pipeline import HybridPipeline
from hybrid.sampler import HybridSampler
from hybrid.transcode import carry_over, same_picture, whole_rows
from hybrid.types import FROM_AR, MASK, Grid
from hybrid.verify import Verify


class Painter(FakeTokenizer):
    """A fake whose tokens are squares of two pixels, and that shows what it was asked to encode."""

    factor = 2

    def encode(self, images_bchw: Tensor) -> Tensor:
        self.seen = images_bchw
        return super().encode(images_bchw)


class Coarse(Painter):
    """Tokens of four pixels a side."""

    factor = 4

    def encode(self, images_bchw: Tensor) -> Tensor:
        return super().encode(images_bchw[..., ::2, ::2])

    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        return super().decode(tokens_bn, grid).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_grids_of_the_same_picture() -> None:
    assert same_picture(Grid(8, 4), 2, 4) == Grid(4, 2)
    assert same_picture(Grid(4, 2), 4, 2) == Grid(8, 4)
    with pytest.raises(
        ValueError, match="a picture of 4x6 pixels is no whole number of the AR model's tokens of 4 pixel"
    ):
        same_picture(Grid(3, 2), 2, 4)


@pytest.mark.parametrize(
    ("length", "grid", "factor", "other", "rows"),
    [
        (4, Grid(4, 4), 2, 2, 1),
        (6, Grid(4, 4), 2, 2, 2),
        (5, Grid(4, 4), 2, 2, 1),
        (1, Grid(4, 4), 2, 2, 0),
        (15, Grid(4, 4), 2, 2, 4),
        (8, Grid(8, 4), 2, 4, 2),  # two small rows make a large one
        (5, Grid(8, 4), 2, 4, 2),
        (3, Grid(8, 4), 2, 4, 0),
        (2, Grid(4, 2), 4, 2, 1),
    ],
)
def test_prefixes_are_whole_rows_of_both(length: int, grid: Grid, factor: int, other: int, rows: int) -> None:
    assert whole_rows(length, grid, factor, other) == rows * grid.width


def test_rows_are_decoded_as_a_picture_of_their_own_and_encoded_anew() -> None:
    source, target = Painter(16), Painter(8, paint=0.5)
    tokens = torch.randint(16, (2, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 8:] = MASK
    made = carry_over(tokens, 8, source=source, source_grid=Grid(4, 4), target=target, target_grid=Grid(4, 4))
    assert target.seen.shape == (2, 3, 4, 8)
    brightness = source.codebook_kd[tokens[:, :8], 0]
    wanted = (brightness[..., None] / 0.5 - target.codebook_kd[:, 0]).abs().argmin(-1)
    assert torch.equal(made[:, :8], wanted) and (made[:, 8:] == MASK).all()


def test_other_sizes_of_tokens() -> None:
    source, target = Painter(16), Coarse(16)
    tokens = torch.full((1, 32), MASK)
    tokens[:, :16] = torch.tensor([3, 3, 5, 5, 3, 3, 5, 5]).repeat(2)  # two rows of 8: squares of one code
    made = carry_over(tokens, 16, source=source, source_grid=Grid(4, 8), target=target, target_grid=Grid(2, 4))
    assert made.tolist() == [[3, 5, 3, 5, MASK, MASK, MASK, MASK]]


def line(ar: FakeAR | None = None, target: Any = None) -> HybridSampler:
    target = target or Painter(8, paint=0.5)
    masked = uniform_masked(len(target.codebook_kd))
    return HybridSampler(ar or table_ar(), masked, target, ar_tokenizer=Painter(16), lossy="pixels")


def test_the_line_keeps_the_carried_rows_and_says_that_they_are_lossy() -> None:
    made = line(always_ar(15)).generate([0, 1], seeds=[0, 1], ar_fraction=0.3)  # 5 of 16 tokens: one row
    assert made.tokens[:, :4].tolist() == [[7] * 4] * 2  # the brightest code there is
    assert (made.origin[:, :4] == FROM_AR).all() and (made.origin[:, 4:] > 0).all()
    assert made.settings["ar_tokens"] == 4 and made.settings["ar_fraction"] == 0.25
    assert made.lossy == "the AR rows were decoded and encoded anew by the other tokenizer"
    assert int(made.tokens.max()) < 8 and made.images.shape == (2, 3, 8, 8)


def test_pure_methods_lose_nothing_and_use_their_own_tokenizer() -> None:
    ar = line(always_ar(15)).generate([0], seeds=[0], ar_fraction=1)
    assert ar.lossy is None and (ar.images == 1).all() and ar.tokens.unique().tolist() == [15]
    assert line().generate([0], seeds=[0], ar_fraction=0).lossy is None


def test_grids_of_two_sizes_go_through_the_line() -> None:
    sampler = line(always_ar(15, grid=Grid(8, 8)), Coarse(8))
    made = sampler.generate([0], seeds=[0], ar_fraction=0.5)
    assert made.grid == Grid(4, 4) and made.settings["ar_tokens"] == 32
    assert made.tokens[0, :8].tolist() == [7] * 8 and made.phases.passes["prefix"] == 32
    whole = sampler.generate([0], seeds=[0], ar_fraction=1)
    assert whole.grid == Grid(8, 8) and whole.tokens.shape == whole.origin.shape == (1, 64)
    assert whole.images.shape == made.images.shape == (1, 3, 16, 16)


def test_a_size_is_the_masked_models_where_the_ar_model_draws_alone() -> None:
    sampler = line(always_ar(15, grid=Grid(8, 8)), Coarse(8))
    made = sampler.generate([0], seeds=[0], grid=Grid(2, 3), ar_fraction=1)
    assert made.grid == Grid(4, 6) and made.images.shape == (1, 3, 8, 12)


def test_a_share_that_becomes_all_rows_is_the_ar_models_alone() -> None:
    for sampler, grid in ((line(), Grid(4, 4)), (line(table_ar(grid=Grid(8, 8)), Coarse(8)), Grid(8, 8))):
        whole = sampler.generate([0], seeds=[0], ar_fraction=1)
        near = sampler.generate([0], seeds=[0], ar_fraction=0.95)
        assert near.grid == grid and near.lossy is None
        assert torch.equal(near.tokens, whole.tokens) and torch.equal(near.images, whole.images)
        assert near.settings == whole.settings and near.phases.passes == whole.phases.passes


def test_contradictions_are_named() -> None:
    with pytest.raises(ValueError, match="ar_tokens 5: transcoding carries whole rows only; use 4 or ar_fraction"):
        line().generate([0], seeds=[0], ar_tokens=5)
    with pytest.raises(ValueError, match="13 steps for 12 places"):
        line().generate([0], seeds=[0], ar_tokens=4, fill=Fill(steps=13))
    with pytest.raises(ValueError, match="one tokenizer for both models, not 'pixels' alignment"):
        HybridSampler(
            table_ar(8), uniform_masked(8), Painter(8), ar_tokenizer=Painter(8, paint=0.5), lossy="pixels"
        ).generate([0], seeds=[0], ar_fraction=1, verify=Verify())
    with pytest.raises(ValueError, match=r"lossy pixels: the AR model's tokenizer has no factor \(pixels per token\)"):
        align(FakeTokenizer(), Painter(), lossy="pixels")
    with pytest.raises(ValueError, match=r"or transcode whole rows through pixels \(lossy: pixels\)"):
        align(Painter(16), Painter(16, paint=0.5), lossy=True)


@pytest.mark.parametrize("asked", [{"ar_fraction": 0.5}, {"ar_tokens": 32}, {"ar_fraction": 0.7}])
def test_the_default_passes_are_at_most_the_places_that_the_carried_rows_leave(asked: dict[str, Any]) -> None:
    sampler = line(always_ar(15, grid=Grid(8, 8)), Coarse(8))
    pipe = HybridPipeline(
        sampler.tokenizer, ar=sampler.ar, masked=sampler.masked, ar_tokenizer=Painter(16), lossy="pixels"
    )
    made = pipe([0], seed=0, output_type="tokens", **asked)
    left = 4 if asked.get("ar_fraction") == 0.7 else 8  # of 16 places
    assert made.phases.passes["fill"] == min(pipe.defaults.steps, left) > 1
