"""Conditions that LlamaGen, MaskGIL and Halton-MaskGIT share: class labels and embedded captions.

This file knows how labels and captions become tensors. It does not know any network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.types import Grid, Prompts, TextEncoder


def shared_grid(one: Grid, other: Grid) -> Grid:
    """The grid of two conditions that go into one batch.

    Raises:
        ValueError: they differ.
    """
    if one != other:
        raise ValueError(f"conditions of a {one} and a {other} grid cannot share a batch")
    return one


@dataclass(frozen=True)
class ClassCondition:
    """Class labels.

    Attributes:
        labels_b: class of each image; the null class where the condition is dropped.
        null_label: the null class.
        grid: the token grid.
    """

    labels_b: Tensor
    null_label: int
    grid: Grid

    def __len__(self) -> int:
        return len(self.labels_b)

    def null(self) -> ClassCondition:
        """The same number of images, all of the null class."""
        return replace(self, labels_b=torch.full_like(self.labels_b, self.null_label))

    def cat(self, other: ClassCondition) -> ClassCondition:
        """These images followed by the other ones.

        Raises:
            ValueError: the grids differ.
        """
        grid = shared_grid(self.grid, other.grid)
        return replace(self, labels_b=torch.cat((self.labels_b, other.labels_b)), grid=grid)

    def drop(self, drop_b: Tensor) -> ClassCondition:
        """Null the images where ``drop_b`` is True (condition dropout in training)."""
        return replace(self, labels_b=torch.where(drop_b, self.null_label, self.labels_b))


@dataclass(frozen=True)
class TextCondition:
    """Embedded captions.

    Attributes:
        embedding_bsd: token embeddings, left-padded, zero where padded.
        mask_bs: True at real tokens.
        null_b: True where the learned unconditional embedding stands in, under the caption's own mask.
        grid: the token grid.
    """

    embedding_bsd: Tensor
    mask_bs: Tensor
    null_b: Tensor
    grid: Grid

    def __len__(self) -> int:
        return len(self.embedding_bsd)

    def null(self) -> TextCondition:
        """The same images without their captions, under the captions' masks (LlamaGen)."""
        return replace(self, null_b=torch.ones_like(self.null_b))

    def cat(self, other: TextCondition) -> TextCondition:
        """These images followed by the other ones.

        Raises:
            ValueError: the grids differ.
        """
        return replace(
            self,
            embedding_bsd=torch.cat((self.embedding_bsd, other.embedding_bsd)),
            mask_bs=torch.cat((self.mask_bs, other.mask_bs)),
            null_b=torch.cat((self.null_b, other.null_b)),
            grid=shared_grid(self.grid, other.grid),
        )

    def drop(self, drop_b: Tensor) -> TextCondition:
        """Null the images where ``drop_b`` is True (condition dropout in training)."""
        return replace(self, null_b=self.null_b | drop_b)


def is_embedded(prompts: Prompts) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether prompts are the pair (embedding_bsd, mask_bs) rather than a sequence that happens to be a tuple."""
    pair = isinstance(prompts, tuple) and len(prompts) == 2
    return pair and all(isinstance(part, Tensor) and part.dim() > 0 for part in prompts)


def refuse_one_string(prompts: Prompts) -> None:
    """Raise where one string stands in for a list of prompts: its letters would each become a caption."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts {prompts!r}: expected a list of prompts")


def class_condition(prompts: Prompts, classes: int, grid: Grid, device: torch.device) -> ClassCondition:
    """Labels 0..classes-1 as a condition whose null class is ``classes``.

    Raises:
        ValueError: a prompt that is no integer, or a label out of range.
    """
    refuse_one_string(prompts)
    if is_embedded(prompts):
        raise ValueError("a class-conditional model takes class labels, not text embeddings")
    labels = []
    for prompt in prompts:
        try:
            label = index(prompt)  # type: ignore[arg-type]  # what is no integer is refused just below
        except TypeError:
            wanted = f"a class-conditional model takes integer labels 0..{classes - 1}"
            raise ValueError(f"prompt {prompt!r}: {wanted}") from None
        if not 0 <= label < classes:
            raise ValueError(f"class label {label} is outside 0..{classes - 1}")
        labels.append(label)
    return ClassCondition(torch.tensor(labels, device=device, dtype=torch.long), classes, grid)


def text_condition(
    prompts: Prompts, encoder: TextEncoder | None, tokens: int, width: int, grid: Grid, device: torch.device
) -> TextCondition:
    """Captions or ready-made (embedding_bsd, mask_bs) as a condition.

    Args:
        prompts: strings, for which ``encoder`` is needed, or the pair of tensors.
        encoder: embeds captions; None where only embeddings are passed.
        tokens: text tokens the model was built for.
        width: width of its text embeddings.
        grid: the token grid.
        device: where the tensors go.

    Raises:
        ValueError: prompts that are no strings, captions without an encoder, or embeddings of another shape.
    """
    refuse_one_string(prompts)
    if is_embedded(prompts):
        embedding, mask = prompts
    else:
        captions: list[Any] = list(prompts)
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(f"prompt {caption!r}: a text-conditional model takes captions as strings")
        if encoder is None:
            raise ValueError("captions need a text encoder: set the model's text_encoder or pass (embedding, mask)")
        embedding, mask = encoder.encode(captions)
    if embedding.shape[1:] != (tokens, width):
        raise ValueError(f"text embeddings: expected (b, {tokens}, {width}), got {tuple(embedding.shape)}")
    if mask.shape != embedding.shape[:2]:
        raise ValueError(f"text mask: expected {tuple(embedding.shape[:2])}, got {tuple(mask.shape)}")
    mask = mask.to(device).bool()
    embedding = embedding.to(device) * mask[..., None].to(embedding.dtype)
    return TextCondition(embedding, mask, torch.zeros(len(mask), dtype=torch.bool, device=device), grid)


class ClassEmbedding(nn.Module):
    """One table of classes, the null class last (LlamaGen's key names)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, condition: ClassCondition) -> Tensor:
        return self.embedding_table(condition.labels_b)[:, None]


class Projection(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """Projects caption embeddings to the model's width; a learned embedding stands for 'no caption'."""

    def __init__(self, tokens: int, width: int, dim: int) -> None:
        super().__init__()
        self.cap_proj = Projection(width, dim)
        self.uncond_embedding = nn.Parameter(torch.randn(tokens, width) / width**0.5)

    def forward(self, condition: TextCondition) -> Tensor:
        embedding = condition.embedding_bsd.to(self.uncond_embedding.dtype)
        return self.cap_proj(torch.where(condition.null_b[:, None, None], self.uncond_embedding, embedding))
