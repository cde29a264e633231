"""Buckets of aspect ratios, and the crops of a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from hybrid.data.buckets import FULL, Views, bucket_grids, centre_crop, nearest_grid
from hybrid.types import Grid


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_grids_of_256_tokens() -> None:
    wide = [Grid(15, 17), Grid(14, 18), Grid(13, 19), Grid(12, 21), Grid(11, 22)]
    tall = [Grid(grid.width, grid.height) for grid in wide]
    assert bucket_grids(16) == [Grid(16, 16), *(grid for pair in zip(wide, tall, strict=True) for grid in pair)]
    assert bucket_grids(32, step=2)[1:4] == [Grid(30, 34), Grid(34, 30), Grid(28, 36)]
    assert bucket_grids(16, ratio=1) == [Grid(16, 16)]


@pytest.mark.parametrize(("side", "step", "ratio"), [(4, 1, 2.0), (24, 1, 1.5), (32, 2, 2.0), (48, 4, 3.0)])
def test_every_grid_is_within_the_bounds(side: int, step: int, ratio: float) -> None:
    grids = bucket_grids(side, step=step, ratio=ratio)
    assert len(set(grids)) == len(grids) > 1
    for grid in grids:
        assert FULL * side**2 <= grid.places <= side**2
        assert grid.height % step == grid.width % step == 0
        assert max(grid.height, grid.width) <= ratio * min(grid.height, grid.width)
        assert Grid(grid.width, grid.height) in grids


def test_pictures_go_to_the_nearest_ratio() -> None:
    grids = bucket_grids(16)
    assert nearest_grid(500, 500, grids) == Grid(16, 16)
    assert nearest_grid(4000, 1000, grids) == Grid(11, 22) and nearest_grid(10, 400, grids) == Grid(22, 11)
    assert nearest_grid(640, 480, grids) == Grid(14, 18)  # 1.333: 18/14 is 1.286, 19/13 is 1.462
    random = np.random.default_rng(0)
    for width, height in random.integers(50, 800, (200, 2)).tolist():
        chosen = nearest_grid(width, height, grids)
        # Nearest by the factor that the picture would have to be stretched by.
        factors = [max(width / height / (g.width / g.height), g.width / g.height / (width / height)) for g in grids]
        assert factors[grids.index(chosen)] == pytest.approx(min(factors))
        mirrored = nearest_grid(height, width, grids)
        assert math.isclose(mirrored.width / mirrored.height, chosen.height / chosen.width)


def test_a_picture_of_the_size_is_not_touched() -> None:
    picture = noise(6, 10)
    assert np.array_equal(centre_crop(picture, 6, 10), picture)


def test_the_centre_is_kept() -> None:
    panels = Image.fromarray(np.repeat(np.array([[[10] * 3, [99] * 3, [200] * 3]], dtype=np.uint8), 8, 0).repeat(8, 1))
    assert panels.size == (24, 8)
    assert np.array_equal(centre_crop(panels, 8, 8), np.full((8, 8, 3), 99))
    assert np.array_equal(centre_crop(panels.rotate(90, expand=True), 8, 8), np.full((8, 8, 3), 99))
    assert centre_crop(noise(37, 61), 12, 20).size == (20, 12) and centre_crop(noise(5, 3), 12, 20).size == (20, 12)


def test_large_pictures_are_halved_by_averaging() -> None:
    small = np.asarray(noise(8, 8))
    blocks = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    assert np.array_equal(centre_crop(blocks, 8, 8), small)


def test_ten_crops() -> None:
    picture = noise(12, 18)  # 1.5 times the crop of 8 x 12, so that nothing is resized
    pixels = np.asarray(picture)
    crops = [np.asarray(crop) for crop in Views(ten_crop=(1.5,)).crops(picture, 8, 12)]
    assert len(crops) == len(Views(ten_crop=(1.5,))) == 10 and len(Views(ten_crop=(1.1, 1.05))) == 20
    for crop, (top, left) in zip(crops, ((2, 3), (0, 0), (0, 6), (4, 0), (4, 6)), strict=False):
        assert np.array_equal(crop, pixels[top : top + 8, left : left + 12])
    for crop, mirrored in zip(crops[:5], crops[5:], strict=True):
        assert np.array_equal(mirrored, crop[:, ::-1])


def test_plain_and_mirrored_views() -> None:
    picture = noise(8, 8)
    (plain,) = Views().crops(picture, 8, 8)
    views = Views(flip=True).crops(picture, 8, 8)
    assert len(Views()) == 1 and len(Views(flip=True)) == len(views) == 2
    assert np.array_equal(views[0], plain) and np.array_equal(views[1], np.asarray(plain)[:, ::-1])


def test_contradictions_are_named() -> None:
    with pytest.raises(ValueError, match="a square of 16 tokens a side is no multiple of the step 3"):
        bucket_grids(16, step=3)
    with pytest.raises(ValueError, match=r"ratio 0\.5: must be at least 1"):
        bucket_grids(16, ratio=0.5)
    with pytest.raises(ValueError, match=r"ratio inf: must be at least 1"):
        bucket_grids(16, ratio=float("inf"))
    with pytest.raises(ValueError, match="ten crops are mirrored already"):
        Views(flip=True, ten_crop=(1.1,))
    with pytest.raises(ValueError, match=r"ten-crop scale 0\.9: must be in 1\.\.2"):
        Views(ten_crop=(0.9,))
