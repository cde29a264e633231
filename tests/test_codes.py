"""Codes and caption embeddings: cached beside the pictures, under names that tell what made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from hybrid.adapters import load
from hybrid.data.codes import embed_captions, extract_codes, to_images, weights_name
from hybrid.data.folder import DataError, DataFolder
from hybrid.data.splits import spread
from hybrid.types import Grid


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder.open(tiny.data_folder(tmp_path / "data"))


def test_codes_are_the_tokenizers_own_and_cached_under_its_weights(folder: DataFolder) -> None:
    tokenizer = load("fsq", tiny.tokenizer_file(folder.path))
    done: list[tuple[int, int]] = []
    codes = extract_codes(folder, tokenizer, batch=5, progress=lambda *now: done.append(now))
    assert codes.shape == (tiny.PICTURES, tiny.VIEWS, tiny.PLACES) and done[-1] == (24, 24)
    expected = tokenizer.encode(to_images(folder.images[3]))
    assert np.array_equal(codes[3], expected.numpy())
    assert tokenizer.decode(expected, Grid(4, 4)).shape == (2, 3, tiny.SIDE, tiny.SIDE)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("encoded again")

    tokenizer.encode = refuse
    assert np.array_equal(extract_codes(folder, tokenizer), codes)
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1e-3)
    with pytest.raises(AssertionError, match="encoded again"):
        extract_codes(folder, tokenizer)


def test_fewer_views_have_their_own_cache(folder: DataFolder) -> None:
    tokenizer = load("fsq", tiny.tokenizer_file(folder.path))
    every, one = extract_codes(folder, tokenizer, views=9), extract_codes(folder, tokenizer, views=1)
    assert one.shape[1] == 1 and np.array_equal(one[:, 0], every[:, 0])
    names = sorted(path.name for path in folder.path.glob("codes-*"))
    assert names == [f"codes-{weights_name(tokenizer)}-{views}.npy" for views in (1, 2)]


def test_more_codes_than_sixteen_bits_hold_are_kept_whole(folder: DataFolder) -> None:
    class Large:
        codebook_kd = torch.zeros(70_001, 1)

        def encode(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), 70_000)

        def state_dict(self) -> dict[str, Tensor]:
            return {"codes": self.codebook_kd}

    codes = extract_codes(folder, Large(), views=1)
    assert codes.dtype == np.uint32 and (codes == 70_000).all()


def test_grey_pictures_become_rgb() -> None:
    images = to_images(np.array([[[[0], [255]]]], dtype=np.uint8))
    assert images.shape == (1, 3, 1, 2) and images[0, :, 0].tolist() == [[-1.0, 1.0]] * 3


class Encoder:
    """Embeds a caption as its length, in two tokens of which the first is padding."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.seen += captions
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        embedding = torch.stack((torch.zeros(len(captions)), lengths), dim=1)[..., None].expand(-1, -1, 3)
        return embedding, torch.tensor([[0, 1]] * len(captions))


def test_captions_are_embedded_once_each(tmp_path: Path) -> None:
    records = tiny.items(captions=True)
    records[1]["captions"] = records[0]["captions"]
    folder = DataFolder.open(tiny.data_folder(tmp_path / "data", records))
    encoder = Encoder()
    table = embed_captions(folder, encoder, name="lengths", batch=4)
    assert len(table.captions) == len(set(table.captions)) == len(encoder.seen) == 22
    place = table.captions.index("thing 10")
    assert table.embedding_csd[place].tolist() == [[0.0] * 3, [8.0] * 3]
    assert table.mask_cs[place].tolist() == [False, True]
    again = embed_captions(folder, encoder, name="lengths")
    assert len(encoder.seen) == 22 and np.array_equal(again.embedding_csd, table.embedding_csd)
    embed_captions(folder, encoder, name="other")
    assert len(encoder.seen) == 44


@pytest.mark.parametrize("captions", [[], ["fine", ""]])
def test_an_empty_caption_is_one_clear_line(tmp_path: Path, captions: list[str]) -> None:
    records = tiny.items(captions=True)
    records[5]["captions"] = captions
    folder = DataFolder.open(tiny.data_folder(tmp_path / "data", records))
    with pytest.raises(DataError, match=r"picture 5 \(thing 5\) has an empty caption") as caught:
        embed_captions(folder, Encoder(), name="x")
    assert "\n" not in str(caught.value)


def test_unreadable_pictures_are_one_clear_line(tmp_path: Path) -> None:
    path = tiny.data_folder(tmp_path / "data")
    images = path / "images.npy"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"images\.npy: cannot be mapped, truncated\?.*hybrid-data emoji or fashion built"
    ) as caught:
        DataFolder.open(path)
    assert "\n" not in str(caught.value)


def test_pictures_to_judge_by_are_of_all_parts_of_their_order() -> None:
    for count, number in ((511, 256), (272, 256), (256, 256), (3, 256), (1000, 10)):
        chosen = spread(np.arange(count) * 2, number)
        assert len(chosen) == min(count, number) == len(set(chosen.tolist()))
        gaps = np.diff(chosen) // 2
        assert chosen[0] == 0 and chosen[-1] >= 2 * (count - 1 - count // number - 1)
        assert set(gaps.tolist()) <= {count // number, -(-count // number)} or count < number
    assert spread(np.arange(0), 5).tolist() == []


def test_balance_without_groups_is_refused(tmp_path: Path) -> None:
    records = [{key: value for key, value in item.items() if key != "group"} for item in tiny.items()]
    data = tiny.data_folder(tmp_path / "groupless", records)
    with pytest.raises(ValueError, match="balance: the pictures of this data folder have no groups; use false"):
        tiny.task("ar", data, balance=True)
