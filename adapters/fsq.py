"""A small convolutional image tokenizer with finite scalar quantisation (Mentzer et al., arXiv 2309.15505).

It trains on a CPU in minutes and its codebook cannot collapse. The codebook is written out explicitly, so that
alignment and training treat it like any VQ codebook: code vectors are the grid points of the bounded latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.checkpoint import fit, read_weights, source_name, unwrap
from hybrid.config import parse
from hybrid.types import Grid, require_codes

from .families import MARKERS


class FSQConfig(BaseModel):
    """Fields of a tokenizer's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: int = Field(default=4, ge=1)
    width: int = Field(default=144, ge=1)
    blocks: int = Field(default=4, ge=0)
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(8, 5, 5, 5), min_length=1)
    channels: Literal[1, 3] = 3


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

    @property
    def last_layer(self) -> Tensor:
        """The weights that give the decoder's pixels."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def freeze_codes(self) -> None:
        """Take the gradients of all that decides a picture's codes: what is left to train is the decoder."""
        self.encoder.requires_grad_(False)

    def latent(self, images_bchw: Tensor) -> Tensor:
        """The bounded latent (b, levels, h, w) of RGB images before quantisation, each coordinate in [-1, 1].

        Raises:
            ValueError: not RGB, or sides that are not multiples of ``factor``.
        """
        _, channels, height, width = images_bchw.shape
        if channels != 3:
            raise ValueError(f"images have {channels} channels, expected 3 (RGB)")
        if height % self.factor or width % self.factor:
            raise ValueError(f"images are {height}x{width}: height and width must be multiples of {self.factor}")
        if self.channels == 1:
            images_bchw = images_bchw.mean(1, keepdim=True)
        return torch.tanh(self.encoder(images_bchw))

    def quantise(self, latent: Tensor) -> Tensor:
        """Nearest grid point of each coordinate."""
        steps = (torch.tensor(self.levels, device=latent.device, dtype=latent.dtype) - 1)[:, None, None] / 2
        return torch.round((latent + 1) * steps) / steps - 1

    @torch.no_grad()
    def encode(self, images_bchw: Tensor) -> Tensor:
        """RGB images in [-1, 1] to tokens_bn in raster order, each the nearest code of its place.

        Raises:
            ValueError: as ``latent``.
        """
        steps = torch.tensor(self.levels, device=images_bchw.device) - 1
        latent = self.latent(images_bchw.to(next(self.parameters()).dtype)).float()
        levels = torch.round((latent + 1) * steps[:, None, None] / 2).long()
        index = torch.zeros_like(levels[:, 0])
        for axis, level in enumerate(self.levels):
            index = index * level + levels[:, axis]
        return index.flatten(1)

    @torch.no_grad()
    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        """Tokens to RGB images_bchw in [-1, 1] (not clamped), ``factor`` pixels per token and side.

        Raises:
            ValueError: MASK or ids outside the codebook among the tokens, or tokens that do not fill the grid.
        """
        require_codes(tokens_bn, grid, self.codebook_size)
        codes = self.codebook_kd[tokens_bn].transpose(1, 2).unflatten(2, (grid.height, grid.width))
        return self.render(codes.to(next(self.parameters()).dtype))

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
    """See ``hybrid.adapters.load``. The configuration comes from the file's metadata where none is given.

    The codebook stays in float32 and exact, whatever the type of the file and of the other weights.

    Raises:
        ValueError: a codebook that is not the grid of the configuration's levels.
    """
    if weights is None:
        raise ValueError("fsq: no weights given")
    state, metadata = read_weights(weights)
    fields = config if config is not None else metadata.get("config", {})
    if isinstance(fields, str):
        raise ValueError(f"fsq has no named configuration {fields!r}; pass its fields as a mapping")
    source = source_name(weights)
    state = unwrap(state, expect=MARKERS["fsq"], source=source)
    settings = parse(FSQConfig, fields, "fsq config")
    with torch.device("meta"):
        model = build(settings)
    fit(model, state, source=source, dtype=dtype, device=device)
    exact = fsq_codebook(settings.levels).to(device)
    if exact.is_meta:  # only shapes are asked for
        model.config = settings.model_dump()
        return model.eval()
    if not torch.allclose(model.codebook_kd.float(), exact, atol=1e-2):  # bfloat16 files round it by up to 0.004
        raise ValueError(f"{source}: codebook_kd is not the grid of levels {settings.levels}")
    model.codebook_kd = exact
    model.config = settings.model_dump()
    return model.eval()


def create(config: str | Mapping[str, Any]) -> tuple[FSQTokenizer, dict[str, Any]]:
    """A fresh tokenizer for training, and its configuration in full."""
    if isinstance(config, str):
        raise ValueError(f"fsq has no named configuration {config!r}; pass its fields as a mapping")
    fields = parse(FSQConfig, config, "fsq config")
    return build(fields), fields.model_dump()
