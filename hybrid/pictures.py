"""Tensors to pictures: PIL images and sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
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


def from_pil(picture: Image.Image | str | Path | Tensor) -> Tensor:
    """A picture (PIL, file or RGB tensor in [-1, 1]) as (3, h, w) in [-1, 1]; transparency becomes white.

    Raises:
        ValueError: a file that is missing or no picture, more than eight bits a channel, a tensor of another shape.
    """
    if isinstance(picture, Tensor):
        return _one(picture, 3, "image: a tensor must be (3, h, w)")
    opened = _open(picture)
    if opened.mode in ("RGBA", "LA", "P"):
        opened = opened.convert("RGBA")
        opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened)
    pixels = torch.from_numpy(np.array(opened.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def mask_from_pil(picture: Image.Image | str | Path | Tensor) -> Tensor:
    """A mask as bool (h, w): True where a picture (PIL or file) is lighter than mid-grey, and where a tensor is True or
    above 0.5.

    Raises:
        ValueError: as ``from_pil``.
    """
    if isinstance(picture, Tensor):
        return _one(picture, 1, "mask: a tensor must be (h, w)")[0] > 0.5
    return torch.from_numpy(np.array(_open(picture).convert("L"))) > 127


def require_eight_bits(picture: Image.Image, source: str) -> None:
    """Raise ValueError for a picture of more bits a channel: Pillow's conversions cut off what is above 255."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{source}: its mode is {picture.mode}; save it with eight bits a channel")


def _one(tensor: Tensor, channels: int, told: str) -> Tensor:
    """A tensor (channels, h, w), of which leading ones may be left out or added."""
    shape = tuple(tensor.shape)
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    shape = (1, *shape) if len(shape) == 2 and channels == 1 else shape
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"{told}, got {tuple(tensor.shape)}")
    return tensor.reshape(shape)


def _open(picture: Image.Image | str | Path) -> Image.Image:
    if isinstance(picture, Image.Image):
        require_eight_bits(picture, "picture")
        return picture
    if not isinstance(picture, (str, Path)):
        raise ValueError(f"a picture must be a PIL image, a file or a tensor, got {type(picture).__name__}")
    try:
        with Image.open(picture) as opened:
            require_eight_bits(opened, str(picture))
            opened.load()
            return opened.copy()
    except FileNotFoundError:
        raise ValueError(f"{picture}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{picture}: not a picture in a known format") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{picture}: not a readable picture ({error})") from None
