"""MaskGIT's VQGAN (Chang et al., arXiv 2202.04200) in its PyTorch form: 1024 codes of width 256, f16.

The file is ``maskgit-vqgan-imagenet-f16-256.bin``, converted from google-research/maskgit's weights by open-muse's
script; RAR and RandAR read the same one. Beside the taming family's autoencoder it has no attention, no convolutions
around the codebook, average pooling instead of strided convolutions, and pixels in [0, 1]; images here are in [-1, 1]
like everywhere. One oddity is part of the trained weights: a block that changes the width adds a projection of its own
output, not of its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.types import Grid, require_codes

from .loading import load_network, shape_of
from .taming import NORM_GROUPS, Codebook, group_norm, require_rgb


class MaskGITVQConfig(BaseModel):
    """The original's fields that shape the network, by their names there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_channels: int = Field(default=128, gt=0, multiple_of=NORM_GROUPS)
    channel_mult: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), min_length=2)
    num_res_blocks: int = Field(default=2, gt=0)
    z_channels: int = Field(default=256, gt=0)
    num_embeddings: int = Field(default=1024, gt=0)


CONFIGS: dict[str, dict[str, Any]] = {"f16-256": {}}


class ResBlock(nn.Module):
    """norm, swish, convolution, twice, beside a shortcut; see the module's docstring for the one of another width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm2 = group_norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


def res_blocks(count: int, before: int, after: int) -> nn.ModuleList:
    """Blocks of which the first changes the width."""
    return nn.ModuleList(ResBlock(after if i else before, after) for i in range(count))


class Level(nn.Module):
    """Residual blocks at one resolution; a decoder's level ends in a convolution behind its upsampling."""

    def __init__(self, blocks: int, before: int, after: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = res_blocks(blocks, before, after)
        self.upsample_conv = nn.Conv2d(after, after, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Image to latent: levels from fine to coarse, with 2×2 averages between them, then the middle."""

    def __init__(self, width: int, widths: Sequence[int], blocks: int, latent_width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        befores = (width, *widths)
        self.down = nn.ModuleList(Level(blocks, befores[i], after) for i, after in enumerate(widths))
        self.mid = res_blocks(blocks, widths[-1], widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latent to image: the middle, then levels from coarse to fine; they are numbered from the finest."""

    def __init__(self, widths: Sequence[int], blocks: int, latent_width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_width, widths[-1], 3, padding=1)
        self.mid = res_blocks(blocks, widths[-1], widths[-1])
        befores = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(Level(blocks, befores[i], after, upsample=i > 0) for i, after in enumerate(widths))
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQ(nn.Module):
    """The tokenizer. Implements ``hybrid.types.ImageTokenizer``.

    Attributes:
        factor: pixels per token along a side.
    """

    config: dict[str, Any]

    def __init__(self, *, width: int, multiples: Sequence[int], blocks: int, latent_width: int, codes: int) -> None:
        super().__init__()
        widths = [width * multiple for multiple in multiples]
        self.factor = 2 ** (len(widths) - 1)
        self.encoder = Encoder(width, widths, blocks, latent_width)
        self.decoder = Decoder(widths, blocks, latent_width)
        self.quantize = Codebook(codes, latent_width, l2_norm=False)

    @property
    def codebook_kd(self) -> Tensor:
        """The codes in float32."""
        return self.quantize.vectors_kd().detach()

    @torch.no_grad()
    def encode(self, images_bchw: Tensor) -> Tensor:
        """RGB images in [-1, 1] to tokens_bn in raster order; the grid is (h / factor, w / factor).

        Raises:
            ValueError: not RGB, or sides that are not multiples of ``factor``.
        """
        require_rgb(images_bchw, self.factor)
        latent_bdhw = self.encoder(((images_bchw + 1) / 2).to(self.encoder.conv_in.weight))
        return self.quantize.nearest(latent_bdhw.flatten(2).transpose(1, 2))

    @torch.no_grad()
    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        """Tokens to RGB images_bchw in [-1, 1] (not clamped), ``factor`` pixels per token and side.

        Raises:
            ValueError: MASK or ids outside the codebook among the tokens, or tokens that do not fill the grid.
        """
        codebook_kd = self.codebook_kd
        require_codes(tokens_bn, grid, len(codebook_kd))
        codes_bnd = codebook_kd[tokens_bn.to(codebook_kd.device)].to(self.decoder.conv_in.weight.dtype)
        codes_bdhw = codes_bnd.transpose(1, 2).unflatten(2, (grid.height, grid.width)).contiguous()
        return 2 * self.decoder(codes_bdhw) - 1


def build(config: MaskGITVQConfig) -> MaskGITVQ:
    """The tokenizer of a configuration, with uninitialised weights."""
    return MaskGITVQ(
        width=config.hidden_channels,
        multiples=config.channel_mult,
        blocks=config.num_res_blocks,
        latent_width=config.z_channels,
        codes=config.num_embeddings,
    )


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The configuration, which a state dict's shapes tell completely.

    Raises:
        ValueError: a weight that tells one of the fields is missing.
    """
    levels = 1 + max((int(key.split(".")[2]) for key in state if key.startswith("decoder.up.")), default=-1)
    blocks = {key.split(".")[4] for key in state if key.startswith("encoder.down.0.block.")}
    width = shape_of(state, "encoder.conv_in.weight", source)[0]
    codes, latent_width = shape_of(state, "quantize.embedding.weight", source)
    ends = (shape_of(state, f"encoder.down.{level}.block.0.conv1.weight", source)[0] for level in range(levels))
    return {
        "hidden_channels": width,
        "channel_mult": tuple(end // width for end in ends),
        "num_res_blocks": len(blocks),
        "z_channels": latent_width,
        "num_embeddings": codes,
    }


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> MaskGITVQ:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "maskgit-vq",
        weights,
        config,
        sizes=CONFIGS,
        fields=MaskGITVQConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
