"""Decoding in tiles (hybrid.tiling)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pairs import class_pair
from torch import Tensor, nn

from hybrid.tiling import decode, fade, spans
from hybrid.types import Grid


class Convolutions(nn.Module):
    """A decoder of two pixels for each token that sees ``reach`` tokens far, and nothing else."""

    factor = 2

    def __init__(self, reach: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codebook_kd = torch.randn(12, 4)
        self.layers = nn.Sequential(
            nn.Conv2d(4, 12, 2 * reach + 1, padding=reach), nn.Tanh(), nn.PixelShuffle(2)
        ).requires_grad_(False)
        self.grids: list[Grid] = []

    def encode(self, images_bchw: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        self.grids.append(grid)
        return self.layers(self.codebook_kd[tokens_bn].transpose(1, 2).unflatten(2, (grid.height, grid.width)))


def tokens(grid: Grid, images: int = 2) -> Tensor:
    return torch.randint(0, 12, (images, grid.places), generator=torch.Generator().manual_seed(1))


def test_tiles_cover_a_side_evenly() -> None:
    assert spans(8, 8, 2) == [(0, 8)]
    assert spans(9, 8, 2) == [(0, 8), (1, 9)]
    assert spans(20, 8, 2) == [(0, 8), (6, 14), (12, 20)]
    for tile in (8, 9, 13, 32):
        for length in range(1, 150):
            found = spans(length, tile, tile // 4)
            assert found[0][0] == 0 and found[-1][1] == length
            assert all(end - start == min(tile, length) for start, end in found)
            for before, after in pairwise(found):
                assert before[0] < after[0] <= before[1] - tile // 4


def test_weights_sum_to_one() -> None:
    for tile in (8, 9, 13, 32):
        for length in range(1, 150):
            total = torch.zeros(length * 2)
            for start, end in spans(length, tile, tile // 4):
                total[start * 2 : end * 2] += fade(start, end, length, tile, tile // 4, 2)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_a_tile_as_large_as_the_picture_is_the_picture() -> None:
    model, grid = Convolutions(1), Grid(6, 9)
    whole = model.decode(tokens(grid), grid)
    for tile in (None, 18, 64):
        assert torch.equal(decode(model, tokens(grid), grid, tile=tile), whole)
    assert model.grids == [grid] * 4


def test_a_decoder_that_sees_no_further_than_the_margin_gives_the_same_pixels() -> None:
    grid = Grid(21, 35)
    near, far = Convolutions(1), Convolutions(6)
    found = decode(near, tokens(grid), grid, tile=32)  # 16 tokens, of which 4 are shared and 1 is the margin
    assert all(part == Grid(16, 16) for part in near.grids) and len(near.grids) == 2 * 3
    torch.testing.assert_close(found, near.decode(tokens(grid), grid), rtol=0, atol=1e-6)
    seams = (decode(far, tokens(grid), grid, tile=32) - far.decode(tokens(grid), grid)).abs().amax((0, 1))
    assert seams.max() > 1e-3
    assert seams[:8, :8].max() < 1e-6  # the first corner's tile alone, far from its other sides


def test_mistakes() -> None:
    model, grid = Convolutions(1), Grid(20, 20)
    for tile in (14, 33, 0):
        with pytest.raises(ValueError, match=f"tile {tile}: must be a multiple of 2 pixels, from 16"):
            decode(model, tokens(grid), grid, tile=tile)


def test_a_pipeline_decodes_in_tiles() -> None:
    pipe = class_pair()
    whole = pipe("bag", seed=0, height=24, width=40, output_type="pt")
    tiled = pipe("bag", seed=0, height=24, width=40, output_type="pt", tile=16)
    assert torch.equal(tiled.tokens, whole.tokens) and tiled.images.shape == (1, 3, 24, 40)
    assert (whole.settings["tile"], tiled.settings["tile"]) == (None, 16)
    assert not torch.equal(tiled.images, whole.images)
    assert torch.equal(*(pipe("bag", seed=0, output_type="pt", tile=tile).images for tile in (None, 16)))


def test_the_benchmark_compares_with_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    from hybrid.benchmarks import tiling as benchmark

    picture = benchmark.drawn_picture(16)
    assert picture.shape == (1, 3, 16, 16) and picture.abs().max() <= 1
    tokenizer = class_pair().tokenizer
    whole, small, large = benchmark.measure(tokenizer, benchmark.drawn_picture(64), [16, 64], repeats=1)
    assert (whole["tile"], whole["psnr"], large["psnr"], large["largest"]) == (None,) * 4
    assert small["psnr"] > 10 and 0 < small["largest"] < 2
    assert benchmark.main(["fashion", "--size", "63"]) == 2
    assert "tiling: size 63x63: width and height must be multiples of 2" in capsys.readouterr().err
