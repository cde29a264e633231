"""Small pictures in the three layouts that code shards are made of, and an encoder for their captions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIZES = ((8, 8), (20, 12), (9, 16), (32, 31), (6, 10))
"""Width and height; 8×8 pixels make the 4×4 grid of the tiny tokenizer."""


def picture(number: int) -> Image.Image:
    """Noise, of a size that the number chooses."""
    width, height = SIZES[number % len(SIZES)]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def class_folders(folder: Path, number: int = 20) -> Path:
    """Pictures in folders of three classes, zebra last."""
    for place in range(number):
        parent = folder / ("zebra", "ant", "bee")[place % 3]
        parent.mkdir(parents=True, exist_ok=True)
        (parent / f"{place:03}.png").write_bytes(png(picture(place)))
    return folder


def captioned(folder: Path, number: int = 20) -> Path:
    """Pictures with captions in text files beside them."""
    folder.mkdir(parents=True)
    for place in range(number):
        (folder / f"{place:03}.png").write_bytes(png(picture(place)))
        (folder / f"{place:03}.txt").write_text(f"thing {place}\n")
    return folder


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A .tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


class Lengths(nn.Module):
    """Embeds a caption as one vector a word, the word's length three times, in five places."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.seen += captions
        embedding, mask = torch.zeros(len(captions), 5, 3), torch.zeros(len(captions), 5, dtype=torch.long)
        for row, caption in enumerate(captions):
            lengths = torch.tensor([float(len(word)) for word in caption.split()])
            embedding[row, 5 - len(lengths) :] = lengths[:, None]
            mask[row, 5 - len(lengths) :] = 1
        return embedding, mask


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
