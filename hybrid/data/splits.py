"""Which pictures a run draws from and which ones it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.data.folder import DataFolder

EVAL_PICTURES = 256


def group_weights(items: Sequence[Mapping[str, Any]]) -> Tensor:
    """Weights that make every concept group equally likely, whatever its number of pictures.

    Raises:
        ValueError: pictures without a group.
    """
    if not all("group" in item for item in items):
        raise ValueError("balance: the pictures of this data folder have no groups; use false")
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item["group"]] = sizes.get(item["group"], 0) + 1
    return torch.tensor([1 / sizes[item["group"]] for item in items])


def favour(weights: Tensor, favoured: Sequence[bool], share: float) -> Tensor:
    """Weights rescaled so that the favoured items get ``share`` of all draws.

    Raises:
        ValueError: nothing, or everything, is favoured.
    """
    chosen = torch.tensor(favoured)
    if not bool(chosen.any()) or bool(chosen.all()):
        raise ValueError(f"everyday: {int(chosen.sum())} of {len(chosen)} pictures are of everyday words; use 0")
    inside, outside = weights[chosen].sum(), weights[~chosen].sum()
    return torch.where(chosen, weights * share / inside, weights * (1 - share) / outside)


def pick(folder: DataFolder, split: str, sets: Sequence[str] | None) -> NDArray[np.int64]:
    """Places of a split's pictures, only those of the named sets where ``sets`` is given.

    Raises:
        ValueError: no picture is left, or a name is not among the folder's sets.
    """
    found = folder.indices(split)
    if sets is None:
        return found
    known = sorted({str(item["set"]) for item in folder.items if "set" in item})
    unknown = [name for name in sets if name not in known]
    chosen = np.asarray([place for place in found if folder.items[place].get("set") in sets], dtype=np.int64)
    if unknown or not len(chosen):
        wrong = f"no set is called {unknown[0]!r}" if unknown else f"no {split} picture is of {list(sets)}"
        raise ValueError(f"sets: {wrong}; {folder.path} has {', '.join(known) or 'no sets'}")
    return chosen


def held_out(folder: DataFolder, sets: Sequence[str] | None) -> NDArray[np.int64]:
    """The pictures that evaluation looks at: up to EVAL_PICTURES, spread over the split that no model trains on."""
    split = "heldout" if any(item["split"] == "heldout" for item in folder.items) else "test"
    return spread(pick(folder, split, sets), EVAL_PICTURES)


def spread(pictures: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Up to ``number`` of the pictures, from all parts of their order."""
    count = min(number, len(pictures))
    return pictures[np.arange(count) * len(pictures) // max(1, count)]


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample belongs to the ``share`` that no model trains on, by the sha256 of its key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64
