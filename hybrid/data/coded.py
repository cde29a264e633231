"""Coded pictures, as AR and masked training read them: what every kind of storage offers, and data folders doing it.

Knows pictures by number. Which of them a training step takes is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.data.codes import CaptionTable
from hybrid.data.concepts import EVERYDAY
from hybrid.data.folder import DataError, DataFolder
from hybrid.data.splits import favour, group_weights, held_out, pick
from hybrid.types import Grid


class CodedPictures(Protocol):
    """Pictures of one grid as tokens, with what each is asked by.

    Attributes:
        grid: their token grid.
        views: how many crops of each picture there are; 0 is the plain one.
        train: numbers of the pictures to train on.
        held: numbers of the pictures that evaluation looks at.
        weights: how likely each of ``train`` is drawn, or None for epochs that show each once.
    """

    grid: Grid
    views: int
    train: NDArray[np.int64]
    held: NDArray[np.int64]
    weights: Tensor | None

    def tokens(self, pictures: Sequence[int], views: Sequence[int]) -> Tensor:
        """tokens_bn of one view of each picture."""
        ...

    def prompts(self, pictures: Sequence[int], choices: Sequence[float]) -> Any:
        """Each picture's label or one of its captions, chosen by a number in [0, 1); 0 is the first."""
        ...


class FolderPictures:
    """A data folder's pictures under cached codes and caption embeddings: ``CodedPictures`` of one grid.

    Args:
        folder: the data folder.
        codes: (pictures, views, n).
        captions: embeddings of its captions, or None where pictures are asked by label.
        sets: take only pictures of these sets.
        balance: make every concept group equally likely.
        everyday: share of draws for everyday words.
    """

    def __init__(
        self,
        folder: DataFolder,
        codes: NDArray[Any],
        captions: CaptionTable | None,
        *,
        sets: Sequence[str] | None = None,
        balance: bool = False,
        everyday: float = 0.0,
    ) -> None:
        self.folder, self.codes, self.captions = folder, codes, captions
        _, _, height, width, _ = folder.images.shape
        factor = isqrt(height * width // codes.shape[2])
        self.grid, self.views = Grid(height // factor, width // factor), codes.shape[1]
        self.train, self.held = pick(folder, "train", sets), held_out(folder, sets)
        items = [folder.items[index] for index in self.train]
        self.weights = group_weights(items) if balance else None
        if everyday:
            asked = [not set(EVERYDAY).isdisjoint(item.get("captions") or ()) for item in items]
            if not any(asked):
                raise DataError(f"{folder.path}: everyday: none of its pictures has an everyday word; leave it out")
            self.weights = favour(torch.ones(len(items)) if self.weights is None else self.weights, asked, everyday)
        if captions is not None:
            number = {caption: place for place, caption in enumerate(captions.captions)}
            self.caption_ids = [[number[caption] for caption in item["captions"]] for item in folder.items]

    def tokens(self, pictures: Sequence[int], views: Sequence[int]) -> Tensor:
        """See ``CodedPictures``."""
        return torch.from_numpy(self.codes[list(pictures), list(views)].astype(np.int64))

    def prompts(self, pictures: Sequence[int], choices: Sequence[float]) -> list[int] | tuple[Tensor, Tensor]:
        """See ``CodedPictures``."""
        if self.captions is None:
            return [int(self.folder.items[picture]["label"]) for picture in pictures]
        known = [self.caption_ids[picture] for picture in pictures]
        chosen = [ids[int(choice * len(ids))] for ids, choice in zip(known, choices, strict=True)]
        embedding = torch.from_numpy(self.captions.embedding_csd[chosen]).float()
        return embedding, torch.from_numpy(self.captions.mask_cs[chosen])
