"""Which token grid a picture is cut to, and how: buckets of aspect ratios, resizing, centre and ten crops.

Pure functions on sizes and PIL pictures; knows neither files nor tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from hybrid.types import Grid

FULL = 0.9
"""A bucket has at least this share of the square's tokens."""


def bucket_grids(side: int, *, step: int = 1, ratio: float = 2.0) -> list[Grid]:
    """The square grid of a side and wider and taller ones of about as many tokens, never more.

    Args:
        side: of the square, in tokens.
        step: both sides of every grid are multiples of it.
        ratio: the longer side is at most this many times the shorter one.

    Raises:
        ValueError: a side that is no multiple of the step, or a ratio below 1.
    """
    if side < 1 or step < 1 or side % step:
        raise ValueError(f"a square of {side} tokens a side is no multiple of the step {step}")
    if not 1 <= ratio < math.inf:
        raise ValueError(f"ratio {ratio:g}: must be at least 1, the longer side over the shorter one")
    found = [Grid(side, side)]
    for short in range(side - step, 0, -step):
        long = min(side * side // short, math.floor(ratio * short)) // step * step
        if long > short and short * long >= FULL * side * side:
            found += [Grid(short, long), Grid(long, short)]
    return found


def nearest_grid(width: int, height: int, grids: Sequence[Grid]) -> Grid:
    """The grid whose aspect ratio is nearest to a picture's, by the factor between the two; the first of equals."""
    return min(grids, key=lambda grid: abs(math.log(width * grid.height / (height * grid.width))))


@dataclass(frozen=True)
class Views:
    """The crops of each picture that are encoded; view 0 is a centre crop.

    Attributes:
        flip: the mirrored centre crop as a second view.
        ten_crop: for each scale, the picture is cut to that many times the size, and centre, corners (top left, top
            right, bottom left, bottom right) and the five mirrored are ten views. LlamaGen's are 1.1 and 1.05.
    """

    flip: bool = False
    ten_crop: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.flip and self.ten_crop:
            raise ValueError("ten crops are mirrored already: leave flip out")
        for scale in self.ten_crop:
            if not 1 <= scale <= 2:
                raise ValueError(f"ten-crop scale {scale:g}: must be in 1..2, the picture's size over the crop's")

    def __len__(self) -> int:
        return 10 * len(self.ten_crop) if self.ten_crop else 1 + self.flip

    def crops(self, picture: Image.Image, height: int, width: int) -> list[Image.Image]:
        """All views of a picture, each ``height`` × ``width`` pixels."""
        if not self.ten_crop:
            plain = centre_crop(picture, height, width)
            return [plain, ImageOps.mirror(plain)] if self.flip else [plain]
        found = []
        for scale in self.ten_crop:
            below, right = int(height * scale), int(width * scale)
            larger = centre_crop(picture, below, right)
            below, right = below - height, right - width
            corners = [(right // 2, below // 2), (0, 0), (right, 0), (0, below), (right, below)]
            five = [larger.crop((left, top, left + width, top + height)) for left, top in corners]
            found += [*five, *(ImageOps.mirror(crop) for crop in five)]
        return found


def centre_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of this shape, resized to ``height`` × ``width``.

    Pictures of twice the size or more are first halved by averaging, then resized bicubically, as ADM does (Dhariwal
    and Nichol, arXiv 2105.05233) and LlamaGen after it.
    """
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
