"""Prompts, sizes and image codes as ids of Lumina-mGPT's vocabulary. This file knows no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.types import Grid, Prompts

from .text import require_text

SIZE_PIXELS = 32
"""What size tokens count."""


@dataclass(frozen=True)
class Ids:
    """Where a vocabulary keeps what an image and a prompt are made of; the defaults are Lumina-mGPT 1.0's.

    Attributes:
        code: id of image code 0; the others follow.
        image_start, new_line: before an image, and after each row of it.
        sizes: number of ``SIZE_PIXELS`` on a side -> its token's id; empty where only a tokenizer file would tell.
        begin, end_of_turn: around a prompt; None where only a tokenizer file would tell.
        token_pixels: side of a code in pixels.
    """

    code: int = 4
    image_start: int = 8197
    new_line: int = 8803
    sizes: Mapping[int, int] = field(default_factory=lambda: {number: 8804 + number for number in range(1, 1000)})
    begin: int | None = 0
    end_of_turn: int | None = 8710
    token_pixels: int = 16


PROMPT = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"


@dataclass(frozen=True)
class LuminaCondition:
    """Tokenised prompts.

    Attributes:
        prompts: 1-D ids of each image's prompt, empty where the condition is dropped.
        grid: the token grid.
    """

    prompts: tuple[Tensor, ...]
    grid: Grid

    def __len__(self) -> int:
        return len(self.prompts)

    def null(self) -> LuminaCondition:
        return replace(self, prompts=tuple(ids[:0] for ids in self.prompts))

    def cat(self, other: LuminaCondition) -> LuminaCondition:
        if self.grid != other.grid:
            raise ValueError(f"grids {self.grid} and {other.grid} cannot share a batch")
        return replace(self, prompts=self.prompts + other.prompts)


def lumina_condition(
    prompts: Prompts, grid: Grid, tokenizer: Any, vocabulary_size: int, ids: Ids, device: torch.device
) -> LuminaCondition:
    """Captions, or 1-D ids with begin and end of turn, as a condition.

    Args:
        prompts: captions, for which ``tokenizer`` is needed, or tensors of ids.
        grid: the token grid.
        tokenizer: a ``tokenizers.Tokenizer``, or None where only ids are passed.
        vocabulary_size: number of ids.
        ids: where the vocabulary keeps what an image is made of.
        device: where the ids go.

    Raises:
        ValueError: as ``size_ids`` and ``caption_ids``; prompts of another kind, ids outside the vocabulary.
    """
    if max(size_ids(grid, ids)) >= vocabulary_size:
        raise ValueError(f"grid {grid}: the vocabulary of {vocabulary_size} ids has no size tokens for it")
    if isinstance(prompts, str):
        raise ValueError("prompts: expected a list of captions or of 1-D tensors of token ids, got one string")
    rows = []
    for prompt in prompts:
        row = caption_ids(prompt, grid, tokenizer, ids) if isinstance(prompt, str) else prompt
        if not isinstance(row, Tensor) or row.ndim != 1 or row.is_floating_point():
            what = f"{tuple(row.shape)} {row.dtype}" if isinstance(row, Tensor) else repr(row)
            raise ValueError(f"prompt {what}: lumina takes a caption or a 1-D tensor of token ids")
        if len(row) and not 0 <= int(row.min()) <= int(row.max()) < vocabulary_size:
            raise ValueError(
                f"prompt: token ids {int(row.min())}..{int(row.max())} are not in 0..{vocabulary_size - 1}"
            )
        rows.append(row.to(device, torch.long))
    return LuminaCondition(tuple(rows), grid)


def caption_ids(caption: str, grid: Grid, tokenizer: Any, ids: Ids) -> Tensor:
    """A caption in the words that Lumina-mGPT was trained with, between begin and end of turn.

    Raises:
        ValueError: no tokenizer, or one that does not tell what begins a prompt; a caption that is no text.
    """
    require_text([caption])
    if tokenizer is None:
        raise ValueError("captions need the vocabulary: set text_tokenizer (tokenizer.json), or pass token ids")
    if ids.begin is None or ids.end_of_turn is None:
        raise ValueError(
            "captions need the token that begins a prompt: put tokenizer_config.json beside tokenizer.json"
        )
    width, height = grid.width * ids.token_pixels, grid.height * ids.token_pixels
    text = PROMPT.format(width=width, height=height, prompt=caption)
    return torch.tensor([ids.begin, *tokenizer.encode(text, add_special_tokens=False).ids, ids.end_of_turn])


def size_ids(grid: Grid, ids: Ids) -> tuple[int, int]:
    """Ids of a grid's height and width.

    Raises:
        ValueError: sides that no size token names, or the vocabulary's size tokens are not known.
    """
    if not ids.sizes:
        raise ValueError("the size tokens are not known: put tokenizer.json beside the weights, or set text_tokenizer")
    tokens = SIZE_PIXELS // ids.token_pixels
    if grid.height % tokens or grid.width % tokens:
        raise ValueError(f"grid {grid}: both sides must be multiples of {tokens} tokens ({SIZE_PIXELS} pixels)")
    height, width = ids.sizes.get(grid.height // tokens), ids.sizes.get(grid.width // tokens)
    if height is None or width is None:
        raise ValueError(f"grid {grid}: size tokens end at {max(ids.sizes) * tokens} tokens a side")
    return height, width


def read_tokenizer(path: Path) -> Any:
    """A ``tokenizers.Tokenizer`` from its file.

    Raises:
        ValueError: not such a file.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None


def check_codes(vocabulary: Mapping[str, int], offset: int, codes: int) -> None:
    """Compare a vocabulary's image codes, named ``IMGIMG`` + number with A to J for 0 to 9 + ``Z``, with code + offset.

    Raises:
        ValueError: another number of codes, or one that stands elsewhere.
    """
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    table = {
        int(name[6:-1].translate(digits)): number
        for name, number in vocabulary.items()
        if name.startswith("IMGIMG") and name.endswith("Z") and name[6:-1].translate(digits).isdecimal()
    }
    if len(table) != codes:
        raise ValueError(f"vocabulary: expected {codes} image codes (IMGIMG…Z), got {len(table)}")
    wrong = next((code for code in range(codes) if table.get(code) != code + offset), None)
    if wrong is not None:
        raise ValueError(f"vocabulary: image code {wrong} expected id {wrong + offset}, got {table.get(wrong)}")
