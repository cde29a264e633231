"""A small convolutional image tokenizer with finite scalar quantisation (Mentzer et al., arXiv 2309.15505).

It trains on a CPU in minutes and its codebook cannot collapse. The codebook is written out explicitly, so that
alignment and training treat it like any VQ codebook: code vectors are the grid points of the bounded latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.checkpoint import fit, read_weights, source_name, unwrap
from hybrid.config import parse
from hybrid.types import Grid, require_no_mask


class FSQConfig(BaseModel):
    """Fields of a tokenizer's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: int = 4
    width: int = 144
    blocks: int = 4
    levels: tuple[int, ...] = (8, 5, 5, 5)
    channels: int = 3


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def fsq_codebook(levels: tuple[int, ...]) -> Tensor:
    """All grid points (k, len(levels)), each coordinate in [-1, 1]; the last level varies fastest."""
    axes = [torch.linspace(-1, 1, level) for level in levels]
    return torch.cartesian_prod(*axes).reshape(-1, len(levels))


class FSQTokenizer(nn.Module):
    """Pixel-unshuffle, residual blocks on the token grid, a tanh-bounded latent, and the way back.

    Attributes:
        codebook_kd: (k, levels) code vectors.
        factor: pixels per token along each side.
    """

    codebook_kd: Tensor
    config: dict[str, Any]

    def __init__(self, *, factor: int, width: int, blocks: int, levels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.factor, self.levels, self.channels = factor, tuple(levels), channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(channels * factor**2, width, 3, padding=1),
            *(Residual(width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(width, len(levels), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(levels), width, 3, padding=1),
            *(Residual(width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(width, 16 * factor**2, 3, padding=1),
            nn.PixelShuffle(factor),
            nn.SiLU(),
            nn.Conv2d(16, channels, 3, padding=1),
        )
        self.register_buffer("codebook_kd", fsq_codebook(self.levels))

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return prod(self.levels)

    def latent(self, images_bchw: Tensor) -> Tensor:
        """The bounded latent (b, levels, h, w) before quantisation, each coordinate in (-1, 1)."""
        height, width = images_bchw.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"image {height}x{width}: both sides must be multiples of {self.factor}")
        if self.channels == 1:
            images_bchw = images_bchw.mean(1, keepdim=True)
        return torch.tanh(self.encoder(images_bchw))

    def quantise(self, latent: Tensor) -> Tensor:
        """Nearest grid point of each coordinate."""
        steps = (torch.tensor(self.levels, device=latent.device, dtype=latent.dtype) - 1)[:, None, None] / 2
        return torch.round((latent + 1) * steps) / steps - 1

    def encode(self, images_bchw: Tensor) -> Tensor:
        """RGB images in [-1, 1] to tokens_bn, each the nearest code of its place."""
        steps = torch.tensor(self.levels, device=images_bchw.device) - 1
        levels = torch.round((self.latent(images_bchw).float() + 1) * steps[:, None, None] / 2).long()
        index = torch.zeros_like(levels[:, 0])
        for axis, level in enumerate(self.levels):
            index = index * level + levels[:, axis]
        return index.flatten(1)

    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        """Tokens to RGB images in [-1, 1]."""
        require_no_mask(tokens_bn)
        if tokens_bn.shape[1] != grid.places:
            raise ValueError(f"{tokens_bn.shape[1]} tokens do not fill a {grid} grid")
        if int(tokens_bn.max()) >= self.codebook_size or int(tokens_bn.min()) < 0:
            raise ValueError(f"token ids must be 0..{self.codebook_size - 1}")
        codes = self.codebook_kd[tokens_bn].transpose(1, 2).unflatten(2, (grid.height, grid.width))
        return self.render(codes)

    def render(self, codes: Tensor) -> Tensor:
        """Code vectors (b, levels, h, w) to RGB images."""
        images = self.decoder(codes)
        return images.expand(-1, 3, -1, -1) if self.channels == 1 else images


def build(config: FSQConfig) -> FSQTokenizer:
    """The tokenizer of a configuration, with fresh weights."""
    return FSQTokenizer(**config.model_dump())


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> FSQTokenizer:
    """See ``hybrid.adapters.load``. The configuration comes from the file's metadata where none is given."""
    if weights is None:
        raise ValueError("fsq: no weights given")
    state, metadata = read_weights(weights)
    fields = config if config is not None else metadata.get("config", {})
    if isinstance(fields, str):
        raise ValueError(f"fsq has no named configuration {fields!r}; pass its fields as a mapping")
    state = unwrap(state, expect="codebook_kd")
    settings = parse(FSQConfig, fields, "fsq config")
    with torch.device("meta"):
        model = build(settings)
    fit(model, state, source=source_name(weights), dtype=dtype, device=device)
    model.config = settings.model_dump()
    return model.eval()


def create(config: str | Mapping[str, Any]) -> tuple[FSQTokenizer, dict[str, Any]]:
    """A fresh tokenizer for training, and its configuration in full."""
    if isinstance(config, str):
        raise ValueError(f"fsq has no named configuration {config!r}; pass its fields as a mapping")
    fields = parse(FSQConfig, config, "fsq config")
    return build(fields), fields.model_dump()
