"""How close drawn pictures come to training pictures, held against how close real held-out pictures come.

Pure functions of tokens and features, plus a picture of the closest pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAIRS, COLUMNS = 24, 12
SAME = 0.9
SIDE, GAP, TEXT, LABEL = 96, 6, 20, 70
"""Of the picture of pairs, in pixels: of a picture, between two, under a pair, left of a row."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each picture.

    Attributes:
        value_n: share of equal tokens, or cosine of features.
        place_n: which training picture.
    """

    value_n: NDArray[np.float64]
    place_n: NDArray[np.int64]


def nearest_by_tokens(tokens_nk: NDArray[np.uint16], train_pvk: NDArray[np.uint16]) -> Nearest:
    """By the share of equal tokens, over all views v of the training pictures p."""
    values, places = [], []
    flat = train_pvk.reshape(-1, train_pvk.shape[-1])
    for row in tokens_nk:
        equal = np.concatenate([(flat[start : start + 8192] == row).mean(1) for start in range(0, len(flat), 8192)])
        best = int(equal.argmax())
        values.append(equal[best])
        places.append(best // train_pvk.shape[1])
    return Nearest(np.asarray(values, dtype=np.float64), np.asarray(places, dtype=np.int64))


def nearest_by_features(features_nd: NDArray[Any], train_pd: NDArray[Any]) -> Nearest:
    """By the cosine of feature vectors."""
    cosine = _unit(features_nd) @ _unit(train_pd).T
    place = cosine.argmax(1)
    return Nearest(cosine[np.arange(len(place)), place].astype(np.float64), place.astype(np.int64))


def closeness(drawn: Nearest, real: Nearest) -> dict[str, float]:
    """How drawn pictures lie to training pictures, beside real held-out ones.

    ``below_first_percentile`` is the share whose distance (1 − value) is below the 1st percentile of the real pictures'
    distances: 0.01 is what pictures that memorise nothing would give.
    """
    limit = float(np.quantile(1 - real.value_n, 0.01))
    return {
        "median": float(np.median(drawn.value_n)),
        "real_median": float(np.median(real.value_n)),
        "real_first_percentile_distance": limit,
        "below_first_percentile": float((1 - drawn.value_n < limit).mean()),
    }


def closest_pairs(
    pictures: NDArray[np.uint8], train: NDArray[np.uint8], nearest: Nearest, count: int = PAIRS
) -> Image.Image:
    """The drawn pictures closest to training, each above the training picture it comes closest to and how close.

    Args:
        pictures: uint8 (n, h, w, 3), drawn.
        train: uint8 (n, h, w, 1 or 3), the nearest training picture of each.
        nearest: its values order the pairs.
        count: pairs.
    """
    chosen = np.argsort(-nearest.value_n, kind="stable")[:count]
    columns = min(COLUMNS, len(chosen))
    block = 2 * (SIDE + GAP) + TEXT
    page = Image.new(
        "RGB", (LABEL + columns * (SIDE + GAP) + GAP, -(-len(chosen) // columns) * (block + GAP) + GAP), "white"
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for place, number in enumerate(chosen):
        left, top = LABEL + place % columns * (SIDE + GAP), GAP + place // columns * (block + GAP)
        for row, (name, source) in enumerate((("drawn", pictures), ("training", train))):
            y = top + row * (SIDE + GAP)
            page.paste(_image(source[number]), (left, y))
            pen.rectangle((left - 1, y - 1, left + SIDE, y + SIDE), outline="#b8b8b8")
            if place % columns == 0:
                pen.text((GAP, y + SIDE / 2), name, fill="black", font=font, anchor="lm")
        share = f"{100 * nearest.value_n[number]:.0f} %"
        pen.text((left + SIDE / 2, top + 2 * (SIDE + GAP)), share, fill="black", font=font, anchor="ma")
    return page


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return Image.fromarray(np.ascontiguousarray(rgb)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _unit(x_nd: NDArray[Any]) -> NDArray[np.float32]:
    x = x_nd.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
