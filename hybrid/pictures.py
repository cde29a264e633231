"""Tensors to pictures: PIL images and sheets of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor


def to_pil(image_chw: Tensor) -> Image.Image:
    """An RGB image in [-1, 1] as 8-bit PIL; overshoot of the decoder is cut off."""
    pixels = ((image_chw.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def sheet(images_chw: Sequence[Tensor], *, columns: int, gap: int = 2) -> Image.Image:
    """Images of one size in rows of ``columns``, on white."""
    pictures = [to_pil(image) for image in images_chw]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for place, picture in enumerate(pictures):
        page.paste(picture, ((place % columns) * (width + gap), (place // columns) * (height + gap)))
    return page
