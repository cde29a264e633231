"""Token codes of a data folder's pictures and embeddings of its captions, cached beside the pictures.

Files are named by what made them (``codes-<sha>.npy``), so that another tokenizer never reuses them by mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid.data.folder import DataError, DataFolder
from hybrid.whole_files import replacing


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write a ``.npy`` file whole or not at all.

    Raises:
        OSError: one line with the file where it cannot be written.
    """
    try:
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, values)
    except OSError as error:  # numpy's own of a full disk counts elements and says no more
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None


def to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 pixels (b, h, w, 1 or 3) to RGB images (b, 3, h, w) in [-1, 1]."""
    images = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    return images.expand(-1, 3, -1, -1)


def weights_name(module: nn.Module) -> str:
    """Eight hex digits of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def code_type(tokenizer: Any) -> type[np.unsignedinteger[Any]]:
    """What holds every code of a tokenizer: uint16, or uint32 for more than 65,536 of them."""
    return np.uint16 if len(tokenizer.codebook_kd) <= 2**16 else np.uint32


@torch.inference_mode()
def extract_codes(
    folder: DataFolder,
    tokenizer: Any,
    *,
    views: int | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[Any]:
    """Codes (pictures, views, n) of a data folder, from its cache where they exist.

    Args:
        folder: pictures.
        tokenizer: an ``ImageTokenizer`` that is a module.
        views: how many views of each picture to encode; None means all.
        batch: pictures per forward pass.
        progress: called with (done, total) pictures.
    """
    wanted = min(views or folder.images.shape[1], folder.images.shape[1])
    kind = code_type(tokenizer)
    path = folder.path / f"codes-{weights_name(tokenizer)}-{wanted}{'-wide' if kind is np.uint32 else ''}.npy"
    if path.exists():
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be mapped, truncated? ({error}); remove it to make it anew") from None
    device = tokenizer.codebook_kd.device
    pictures = folder.images[:, :wanted].reshape(-1, *folder.images.shape[2:])
    first = tokenizer.encode(to_images(pictures[:1]).to(device))
    codes = np.empty((len(pictures), first.shape[1]), dtype=kind)
    for start in range(0, len(pictures), batch):
        images = to_images(pictures[start : start + batch]).to(device)
        codes[start : start + batch] = tokenizer.encode(images).cpu().numpy()
        if progress is not None:
            progress(min(start + batch, len(pictures)), len(pictures))
    save_array(path, codes.reshape(len(folder), wanted, -1))
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class CaptionTable:
    """Embeddings of every distinct caption of a data folder.

    Attributes:
        captions: the distinct captions.
        embedding_csd: (captions, s, d) float16, left-padded.
        mask_cs: True at real tokens.
    """

    captions: list[str]
    embedding_csd: NDArray[np.float16]
    mask_cs: NDArray[np.bool_]


@torch.inference_mode()
def embed_captions(
    folder: DataFolder, encoder: Any, *, name: str, settings: str = "", batch: int = 256
) -> CaptionTable:
    """Embed all captions of a folder once; later calls with the same encoder and settings read them from its cache."""
    for place, item in enumerate(folder.items):
        if not item.get("captions") or not all(item["captions"]):
            name = item.get("name", place)
            raise DataError(f"{folder.path}: picture {place} ({name}) has an empty caption; build the data anew")
    captions = sorted({caption for item in folder.items for caption in item["captions"]})
    digest = hashlib.sha256("\n".join([name, settings, *captions]).encode()).hexdigest()[:8]
    path = folder.path / f"captions-{name}-{digest}.npy"
    masks = path.with_name(path.stem + "-mask.npy")
    if not (path.exists() and masks.exists()):
        parts = [encoder.encode(captions[start : start + batch]) for start in range(0, len(captions), batch)]
        for target, values in (
            (masks, torch.cat([mask for _, mask in parts]).bool()),
            (path, torch.cat([embedding for embedding, _ in parts]).half()),
        ):
            save_array(target, values.cpu().numpy())
    return CaptionTable(captions, np.load(path, mmap_mode="r"), np.load(masks, mmap_mode="r"))
