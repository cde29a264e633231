"""Uploaded pictures, checked before anything large is decoded."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from hybrid.pictures import require_eight_bits
from hybrid.serve.jobs import Edit

FORMATS = ("PNG", "JPEG", "WEBP")


def read_edit(image: bytes, mask: bytes, size: tuple[int, int]) -> Edit:
    """A picture and its mask.

    Args:
        image, mask: files.
        size: pixels (width, height) that both must have.

    Raises:
        ValueError: a file that is no PNG, JPEG or WebP, not of the size, or of more than eight bits a channel.
    """
    return Edit(_picture(image, "image", size), _mask(_picture(mask, "mask", size)))


def _picture(data: bytes, field: str, size: tuple[int, int]) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.size != size:
            raise ValueError(
                f"{field}: is {picture.width}x{picture.height} pixels; this model needs {size[0]}x{size[1]}"
            )
        require_eight_bits(picture, field)
        picture.load()
    except UnidentifiedImageError:
        raise ValueError(f"{field}: not a PNG, JPEG or WebP picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{field}: not a readable picture ({error})") from None
    return picture


def _mask(picture: Image.Image) -> Image.Image:
    """White where the picture is drawn anew: where the upload is transparent or, if nothing of it is, white."""
    alpha = picture.convert("RGBA").getchannel("A")
    if any(alpha.histogram()[:255]):
        return alpha.point(lambda value: 255 if value < 128 else 0)
    return picture.convert("L")
