"""MiniLM as a caption encoder, with its real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hybrid.adapters import load
from hybrid.adapters.text import MiniLM, pad_left

LONG = "a very long caption about a red apple that lies on a wooden table beside a green pear and a banana"


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return load("minilm", None)


def sentence(embedding_bsd: Tensor, mask_bs: Tensor) -> Tensor:
    return embedding_bsd.sum(1) / mask_bs.sum(1, keepdim=True)


def test_padding_moves_to_the_left() -> None:
    embedding, mask = pad_left(torch.arange(1.0, 7).view(2, 3, 1), [3, 1], 4)
    assert embedding[..., 0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 4]]
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_captions_are_padded_on_the_left_with_zeros(minilm: MiniLM) -> None:
    embedding, mask = minilm.encode(["a red apple", "apple"])
    assert embedding.shape == (2, 16, 384) and mask.shape == (2, 16)
    assert mask.tolist() == [[0] * 11 + [1] * 5, [0] * 13 + [1] * 3]  # [CLS] and [SEP] count
    assert not embedding[mask == 0].any()
    assert embedding[mask == 1].abs().sum(-1).min() > 0


def test_long_captions_are_cut(minilm: MiniLM) -> None:
    embedding, mask = minilm.encode([LONG, LONG + " and more"])
    assert mask.all()
    assert torch.equal(embedding[0], embedding[1])
    short, mask = load("minilm", None, {"tokens": 6}).encode([LONG])
    assert short.shape == (1, 6, 384) and mask.all()


def test_one_caption_of_a_batch_equals_it_alone(minilm: MiniLM) -> None:
    captions = ["apple", "a red apple", LONG]
    together = minilm.encode(captions)
    for row, caption in enumerate(captions):
        alone = minilm.encode([caption])
        torch.testing.assert_close(alone[0][0], together[0][row], atol=1e-5, rtol=0)
        assert torch.equal(alone[1][0], together[1][row])


def test_close_captions_lie_closer_than_unrelated_ones(minilm: MiniLM) -> None:
    apple, fruit, plane = sentence(*minilm.encode(["a red apple", "a ripe red fruit", "an aeroplane taking off"]))
    assert cosine_similarity(apple, fruit, dim=0) > cosine_similarity(apple, plane, dim=0) + 0.2


def test_pooled_is_the_sentence_embedding_scaled_to_a_network_s_input() -> None:
    captions = ["a red apple", LONG]
    embedding, mask = load("minilm", None, {"pooled": True}).encode(captions)
    assert embedding.shape == (2, 1, 384) and mask.tolist() == [[1], [1]]
    torch.testing.assert_close(embedding.square().mean(-1), torch.ones(2, 1))
    means = sentence(*load("minilm", None).encode(captions))
    torch.testing.assert_close(cosine_similarity(embedding[:, 0], means), torch.ones(2))


def test_is_frozen_and_its_output_may_enter_a_trained_layer(minilm: MiniLM) -> None:
    assert not minilm.training and not any(parameter.requires_grad for parameter in minilm.parameters())
    embedding, _ = minilm.encode(["apple"])
    layer = torch.nn.Linear(384, 2)
    layer(embedding).sum().backward()
    assert layer.weight.grad is not None


def test_dtype_is_that_of_the_embeddings(minilm: MiniLM) -> None:
    half = load("minilm", None, dtype=torch.bfloat16)
    embedding, _ = half.encode(["a red apple"])
    assert embedding.dtype == torch.bfloat16 and minilm.encode(["a"])[0].dtype == torch.float32
    torch.testing.assert_close(embedding.float(), minilm.encode(["a red apple"])[0], atol=0.1, rtol=0)


def test_what_is_no_text_is_refused(minilm: MiniLM) -> None:
    with pytest.raises(ValueError, match=r"^caption '\\udcff apple': not valid Unicode$"):
        minilm.encode(["\udcff apple"])


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no tokenizer\.json; expected a folder of all-MiniLM-L6-v2$"):
        load("minilm", tmp_path)
    with pytest.raises(ValueError, match=r"^minilm: weights must be a folder \(or None\) and config a mapping$"):
        load("minilm", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^minilm config: unknown key 'token'; did you mean 'tokens'\?$"):
        load("minilm", None, {"token": 8})
