"""The VQ autoencoder of the taming family.

LlamaGen's tokenizer, Chameleon's VQGAN and MoVQGAN are one architecture (Esser et al., arXiv 2012.09841) with other
key names, other attention levels and, in MoVQGAN, norms that look at the latent (Zheng et al., arXiv 2209.09002). One
``VQTokenizer`` serves all; a ``Layout`` gives its submodules the names of the original files. This file knows tensors
and layers; ``vq.py`` knows the originals' configurations and files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.types import Grid, require_codes

NORM_GROUPS = 32

SEARCH_PLACES = 4096
"""Places whose nearest code is sought at once: bounds the table of distances to 256 MiB at 16384 codes."""

MakeNorm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Layout:
    """How an original names its submodules. ``coarse_first``: the decoder's levels count from the latent's side."""

    down: str
    up: str
    blocks: str
    mid: tuple[str, str, str]
    coarse_first: bool


LLAMAGEN = Layout(down="conv_blocks", up="conv_blocks", blocks="res", mid=("0", "1", "2"), coarse_first=True)
TAMING = Layout(down="down", up="up", blocks="block", mid=("block_1", "attn_1", "block_2"), coarse_first=False)


class VQTokenizer(nn.Module):
    """A convolutional VQ autoencoder: the core's ``ImageTokenizer``.

    Args:
        width: channels at full resolution; level i has ``width * multiples[i]``.
        encoder_multiples: one per level, finest first; each level but the last halves the sides.
        decoder_multiples: the same for the decoder.
        blocks: residual blocks per encoder level (the decoder has one more).
        latent_width: channels of the encoder's output and the decoder's input.
        codebook_size: number of codes.
        code_width: length of a code vector.
        l2_norm: codes and latents are compared, and codes looked up, at unit length.
        attention_levels: levels with self-attention after each block (the middle always has it).
        layout: submodule names of the original.
        spatial_norm: the decoder's norms are modulated by the quantised latent (MoVQGAN).

    Attributes:
        factor: pixels per token along a side.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        width: int,
        encoder_multiples: Sequence[int],
        decoder_multiples: Sequence[int],
        blocks: int,
        latent_width: int,
        codebook_size: int,
        code_width: int,
        l2_norm: bool,
        attention_levels: Collection[int],
        layout: Layout,
        spatial_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(encoder_multiples) != len(decoder_multiples):
            raise ValueError(f"encoder has {len(encoder_multiples)} levels, decoder {len(decoder_multiples)}")
        if width % NORM_GROUPS:
            raise ValueError(f"width {width} is not a multiple of the norm's {NORM_GROUPS} groups")
        self.factor = 2 ** (len(encoder_multiples) - 1)
        self.spatial_norm = spatial_norm
        norm = (lambda channels: SpatialNorm(channels, code_width)) if spatial_norm else group_norm
        fine_to_coarse = [width * multiple for multiple in encoder_multiples]
        self.encoder = Encoder(width, fine_to_coarse, blocks, latent_width, attention_levels, layout)
        fine_to_coarse = [width * multiple for multiple in decoder_multiples]
        self.decoder = Decoder(fine_to_coarse, blocks + 1, latent_width, attention_levels, layout, norm)
        self.quantize = Codebook(codebook_size, code_width, l2_norm)
        self.quant_conv = nn.Conv2d(latent_width, code_width, 1)
        self.post_quant_conv = nn.Conv2d(code_width, latent_width, 1)

    @property
    def codebook_kd(self) -> Tensor:
        """The codes as the decoder receives them (at unit length where the model normalises), in float32."""
        return self.codes_kd().detach()

    def codes_kd(self) -> Tensor:
        """``codebook_kd`` with gradients, for training."""
        return self.quantize.vectors_kd()

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.quantize.embedding.num_embeddings

    @property
    def last_layer(self) -> Tensor:
        """The weights that give the decoder's pixels."""
        return self.decoder.conv_out.weight

    def freeze_codes(self) -> None:
        """Take the gradients of all that decides a picture's codes: what is left to train is the decoder."""
        for part in (self.encoder, self.quant_conv, self.quantize):
            part.requires_grad_(False)

    def prepare(self) -> None:
        """Before inference on a CPU: the decoder's weights in the layout in which its convolutions run faster there
        (VQ-16 at 256² on two cores: 1.1 times in float32, 1.2 times in bfloat16). Training is slower in it."""
        if self.last_layer.device.type == "cpu":
            self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    @torch.no_grad()
    def encode(self, images_bchw: Tensor) -> Tensor:
        """RGB images in [-1, 1] to tokens_bn in raster order; the grid is (h / factor, w / factor).

        Raises:
            ValueError: not RGB, or sides that are not multiples of ``factor``.
        """
        return self.quantize.nearest(self._encoded(images_bchw).flatten(2).transpose(1, 2))

    def latent(self, images_bchw: Tensor) -> Tensor:
        """What the quantiser compares with the codes (b, d, h, w), in float32, with gradients; for training.

        Raises:
            ValueError: as ``encode``.
        """
        return self.quantize.comparable(self._encoded(images_bchw), dim=1)

    def quantise(self, latent_bdhw: Tensor) -> Tensor:
        """The nearest codes in place of a latent, with gradients for the codebook only."""
        ids_bn = self.quantize.nearest(latent_bdhw.flatten(2).transpose(1, 2))
        codes_bnd = self.quantize.comparable(self.quantize.embedding(ids_bn), dim=-1)
        return codes_bnd.transpose(1, 2).unflatten(2, latent_bdhw.shape[2:])

    def render(self, codes_bdhw: Tensor) -> Tensor:
        """Code vectors (b, d, h, w) to RGB images."""
        context = (codes_bdhw,) if self.spatial_norm else ()
        return self.decoder(self.post_quant_conv(codes_bdhw), *context)

    def _encoded(self, images_bchw: Tensor) -> Tensor:
        require_rgb(images_bchw, self.factor)
        return self.quant_conv(self.encoder(images_bchw.to(self.quant_conv.weight)))

    @torch.no_grad()
    def decode(self, tokens_bn: Tensor, grid: Grid) -> Tensor:
        """Tokens to RGB images_bchw in [-1, 1] (not clamped), ``factor`` pixels per token and side.

        Raises:
            ValueError: MASK or ids outside the codebook among the tokens, or tokens that do not fill the grid.
        """
        codebook_kd = self.codebook_kd
        require_codes(tokens_bn, grid, len(codebook_kd))
        codes_bnd = codebook_kd[tokens_bn.to(codebook_kd.device)].to(self.post_quant_conv.weight.dtype)
        return self.render(codes_bnd.transpose(1, 2).unflatten(2, (grid.height, grid.width)).contiguous())


def require_rgb(images_bchw: Tensor, factor: int) -> None:
    """Raise ValueError where images are not RGB, or their sides no multiples of ``factor`` pixels."""
    _, channels, height, width = images_bchw.shape
    if channels != 3:
        raise ValueError(f"images have {channels} channels, expected 3 (RGB)")
    if height % factor or width % factor or not height * width:
        raise ValueError(f"images are {height}x{width}: height and width must be multiples of {factor}")


class Codebook(nn.Module):
    """The table of codes and the nearest-neighbour search, both in float32 whatever the weights' type."""

    def __init__(self, size: int, width: int, l2_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.l2_norm = l2_norm

    def comparable(self, vectors: Tensor, *, dim: int) -> Tensor:
        """Latents or codes as they are compared: in float32 and, with ``l2_norm``, at unit length along ``dim``."""
        return F.normalize(vectors.float(), dim=dim) if self.l2_norm else vectors.float()

    def vectors_kd(self) -> Tensor:
        """The effective codes."""
        return self.comparable(self.embedding.weight, dim=-1)

    @torch.no_grad()
    def nearest(self, latent_bnd: Tensor) -> Tensor:
        """Ids tokens_bn of the codes at the least Euclidean distance."""
        vectors_kd = self.vectors_kd()
        half_norm_k = vectors_kd.square().sum(-1) / 2
        latent = self.comparable(latent_bnd.flatten(0, 1), dim=-1)
        # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z| is the same for every code.
        ids = [(part @ vectors_kd.T - half_norm_k).argmax(-1) for part in latent.split(SEARCH_PLACES)]
        return torch.cat(ids).view(latent_bnd.shape[:2])


class Encoder(nn.Module):
    """Image to latent: levels from fine to coarse, then the middle."""

    def __init__(
        self,
        width: int,
        widths: Sequence[int],
        blocks: int,
        latent_width: int,
        attention_levels: Collection[int],
        layout: Layout,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        levels = nn.ModuleList()
        for i, (before, after) in enumerate(zip((width, *widths), widths, strict=False)):
            level = Level(before, after, blocks, i in attention_levels, layout.blocks, group_norm)
            if i < len(widths) - 1:
                level.downsample = Downsample(after)
            levels.append(level)
        self.down_name = layout.down
        self.add_module(layout.down, levels)
        self.mid = middle(widths[-1], layout, group_norm)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in getattr(self, self.down_name):
            x = level(x)
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latent to image: the middle, then levels from coarse to fine. ``context`` goes to every norm."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        latent_width: int,
        attention_levels: Collection[int],
        layout: Layout,
        norm: MakeNorm,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_width, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], layout, norm)
        levels: list[Level] = []
        for i in reversed(range(len(widths))):
            before = widths[min(i + 1, len(widths) - 1)]
            level = Level(before, widths[i], blocks, i in attention_levels, layout.blocks, norm)
            if i:
                level.upsample = Upsample(widths[i])
            levels.append(level)
        self.up_name = layout.up
        self.coarse_first = layout.coarse_first
        self.add_module(layout.up, nn.ModuleList(levels if layout.coarse_first else reversed(levels)))
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid.values():
            x = block(x, *context)
        levels = getattr(self, self.up_name)
        for level in levels if self.coarse_first else reversed(levels):
            x = level(x, *context)
        return self.conv_out(F.silu(self.norm_out(x, *context)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it, then a resampling."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool, name: str, norm: MakeNorm) -> None:
        super().__init__()
        self.blocks_name = name
        self.add_module(name, nn.ModuleList(ResBlock(after if i else before, after, norm) for i in range(blocks)))
        self.attn = nn.ModuleList(Attention(after, norm) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        for i, block in enumerate(getattr(self, self.blocks_name)):
            x = block(x, *context)
            if self.attn:
                x = self.attn[i](x, *context)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


def middle(width: int, layout: Layout, norm: MakeNorm) -> nn.ModuleDict:
    """Block, attention, block, under the original's names."""
    parts = (ResBlock(width, width, norm), Attention(width, norm), ResBlock(width, width, norm))
    return nn.ModuleDict(dict(zip(layout.mid, parts, strict=True)))


class ResBlock(nn.Module):
    """norm, swish, convolution, twice, beside a shortcut."""

    def __init__(self, before: int, after: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm1 = norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, *context)))
        y = self.conv2(F.silu(self.norm2(y, *context)))
        return self.nin_shortcut(x) + y


class Attention(nn.Module):
    """Self-attention with one head over all places."""

    def __init__(self, width: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        y = self.norm(x, *context)
        q, k, v = (part(y).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Half the sides. The padding is on the right and at the bottom only, as in taming."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the sides, nearest, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(width: int) -> nn.Module:
    """The family's norm."""
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)


class SpatialNorm(nn.Module):
    """A group norm scaled and shifted, place by place, by the quantised latent (MoVQGAN, arXiv 2209.09002)."""

    def __init__(self, width: int, latent_width: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(width)
        self.conv_y = nn.Conv2d(latent_width, width, 1)
        self.conv_b = nn.Conv2d(latent_width, width, 1)

    def forward(self, x: Tensor, latent_bdhw: Tensor) -> Tensor:
        # A 1x1 convolution commutes with nearest interpolation, and is cheaper before it.
        scale, shift = (F.interpolate(conv(latent_bdhw), size=x.shape[-2:]) for conv in (self.conv_y, self.conv_b))
        return self.norm_layer(x) * scale + shift
