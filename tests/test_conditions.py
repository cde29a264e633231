"""Class labels and captions as conditions: what they hold, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.adapters.conditions import CaptionEmbedding, class_condition, text_condition
from hybrid.types import Grid

CPU, GRID = torch.device("cpu"), Grid(2, 3)


def labels(prompts: Any) -> Any:
    return class_condition(prompts, 10, GRID, CPU)


def text(prompts: Any, encoder: Any = None) -> Any:
    return text_condition(prompts, encoder, 4, 8, GRID, CPU)


class Encoder:
    """Embeds a caption as as many ones as it has letters, at most 4."""

    def encode(self, captions: Any) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(caption) for caption in captions])
        mask = (torch.arange(4) >= 4 - lengths[:, None]).long()
        return mask[..., None].expand(-1, -1, 8).float(), mask


@pytest.mark.parametrize(
    "prompts", [[0, 9], (0, 9), torch.tensor([0, 9]), [torch.tensor(0), torch.tensor([9])], np.array([0, 9])]
)
def test_labels_come_in_many_forms(prompts: Any) -> None:
    condition = labels(prompts)
    assert condition.labels_b.tolist() == [0, 9] and condition.labels_b.dtype == torch.long
    assert len(condition) == 2 and condition.grid == GRID


def test_null_cat_and_drop_of_labels() -> None:
    condition = labels([1, 2])
    assert condition.null().labels_b.tolist() == [10, 10]
    assert condition.cat(condition.null()).labels_b.tolist() == [1, 2, 10, 10]
    assert condition.drop(torch.tensor([True, False])).labels_b.tolist() == [10, 2]
    assert condition.labels_b.tolist() == [1, 2]


def test_null_cat_and_drop_of_captions() -> None:
    condition = text(["ab", "abcd"], Encoder())
    assert condition.mask_bs.tolist() == [[False, False, True, True], [True] * 4]
    both = condition.cat(condition.null())
    assert both.null_b.tolist() == [False, False, True, True] and len(both) == 4
    assert torch.equal(both.mask_bs[:2], both.mask_bs[2:])  # dropped, but under the caption's own mask
    assert condition.drop(torch.tensor([True, False])).null_b.tolist() == [True, False]
    assert condition.null().drop(torch.tensor([False, False])).null_b.all()


def test_conditions_of_two_grids_do_not_mix() -> None:
    other = class_condition([1], 10, Grid(3, 2), CPU)
    with pytest.raises(ValueError, match=r"^conditions of a 2x3 and a 3x2 grid cannot share a batch$"):
        labels([1]).cat(other)
    with pytest.raises(ValueError, match=r"^conditions of a 2x3 and a 3x2 grid cannot share a batch$"):
        text(["a"], Encoder()).cat(text_condition(["a"], Encoder(), 4, 8, Grid(3, 2), CPU))


@pytest.mark.parametrize("prompt", ["sneaker", "7", 1.5, torch.tensor(1.5), torch.tensor([1, 2]), None])
def test_a_class_model_takes_integers_only(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"^prompt .*: a class-conditional model takes integer labels 0\.\.9$"):
        labels([1, prompt])


@pytest.mark.parametrize("label", [-1, 10, torch.tensor(10)])
def test_labels_out_of_range_are_named(label: Any) -> None:
    with pytest.raises(ValueError, match=r"^class label (-1|10) is outside 0\.\.9$"):
        labels([3, label])


def test_a_class_model_refuses_embeddings() -> None:
    with pytest.raises(ValueError, match=r"^a class-conditional model takes class labels, not text embeddings$"):
        labels((torch.zeros(2, 4, 8), torch.ones(2, 4)))


def test_one_string_is_not_a_list_of_prompts() -> None:
    for condition in (labels, text):
        with pytest.raises(ValueError, match=r"^prompts 'a red apple': expected a list of prompts$"):
            condition("a red apple")


@pytest.mark.parametrize("prompt", [3, torch.tensor([5, 6, 7]), None])
def test_a_text_model_takes_strings_only(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"^prompt .*: a text-conditional model takes captions as strings$"):
        text(["a", prompt], Encoder())


def test_captions_need_an_encoder() -> None:
    with pytest.raises(ValueError, match=r"^captions need a text encoder: set the model's text_encoder or pass "):
        text(["a red apple"])


def test_captions_may_be_a_tuple() -> None:
    assert torch.equal(text(("ab", "abcd"), Encoder()).mask_bs, text(["ab", "abcd"], Encoder()).mask_bs)


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 5, 8), (2, 8)])
def test_embeddings_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^text embeddings: expected \(b, 4, 8\), got \(2, "):
        text((torch.zeros(shape), torch.ones(2, 4)))


def test_a_mask_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"^text mask: expected \(2, 4\), got \(2, 3\)$"):
        text((torch.zeros(2, 4, 8), torch.ones(2, 3)))


def test_padding_is_zeroed() -> None:
    mask = torch.tensor([[0, 0, 1, 1]])
    condition = text((torch.ones(1, 4, 8), mask))
    assert torch.equal(condition.embedding_bsd, mask[..., None].expand(1, 4, 8).float())


def test_a_dropped_caption_is_the_learned_embedding_whatever_it_said() -> None:
    torch.manual_seed(0)
    embed = CaptionEmbedding(4, 8, 16)
    one, other = text(["ab"], Encoder()), text(["abcd"], Encoder())
    assert torch.equal(embed(one.null()), embed(other.null()))
    assert torch.equal(embed(one.null())[0], embed.cap_proj(embed.uncond_embedding))
    assert torch.equal(embed(one.cat(one.null()))[0], embed(one)[0])
