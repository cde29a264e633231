"""The FSQ tokenizer: its codebook, round trips on codes, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.fsq import FSQTokenizer, create, fsq_codebook
from hybrid.checkpoint import save_weights
from hybrid.types import MASK, Grid, ImageTokenizer

SMALL = {"factor": 2, "width": 8, "blocks": 1, "levels": (5, 4, 3)}


def tokenizer(**fields: Any) -> FSQTokenizer:
    torch.manual_seed(0)
    return create(SMALL | fields)[0].eval()


def pictures(height: int = 8, width: int = 12, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def spread(net: FSQTokenizer) -> FSQTokenizer:
    """Weights that make the latent reach all over its range."""
    net.encoder[-1].weight.data *= 20
    return net


@pytest.mark.parametrize("levels", [(5, 4, 3), (16,), (8, 5, 5, 5)])
def test_the_codebook_is_every_grid_point_once(levels: tuple[int, ...]) -> None:
    codebook = fsq_codebook(levels)
    assert codebook.shape == (torch.tensor(levels).prod(), len(levels))
    assert len(codebook.unique(dim=0)) == len(codebook)
    assert codebook.min() == -1 and codebook.max() == 1
    assert (codebook[1] - codebook[0]).nonzero().flatten().tolist() == [len(levels) - 1]  # the last varies fastest


@pytest.mark.parametrize("levels", [(5, 4, 3), (16,), (8, 5, 5, 5)])
def test_code_vectors_quantise_to_themselves(levels: tuple[int, ...]) -> None:
    net = tokenizer(levels=levels)
    codes = net.codebook_kd.T[None, :, :, None]
    torch.testing.assert_close(net.quantise(codes), codes, atol=1e-6, rtol=0)
    torch.testing.assert_close(net.quantise(codes * 0.97 + 0.01), codes, atol=1e-6, rtol=0)


@torch.no_grad()
def test_encoding_gives_the_nearest_code_of_the_bounded_latent() -> None:
    net = spread(tokenizer())
    latent = net.latent(pictures())
    assert latent.shape == (2, 3, 4, 6) and latent.abs().max() <= 1
    distances = torch.cdist(latent.flatten(2).transpose(1, 2), net.codebook_kd)
    tokens = net.encode(pictures())
    assert torch.equal(tokens, distances.argmin(-1))
    assert len(tokens.unique()) > 10
    rounded = net.codebook_kd[tokens].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(net.quantise(latent), rounded, atol=1e-6, rtol=0)


@torch.no_grad()
def test_codes_survive_the_round_trip_through_the_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tokenizer()
    tokens = torch.arange(60)[None]
    latent = net.codebook_kd[tokens].transpose(1, 2).unflatten(2, (6, 10))
    monkeypatch.setattr(net, "latent", lambda images: latent)
    assert torch.equal(net.encode(pictures()), tokens)


def test_decoding_renders_the_code_vectors_row_by_row() -> None:
    net = tokenizer()
    tokens = torch.arange(24).view(1, 24)
    images = net.decode(tokens, Grid(4, 6))
    assert images.shape == (1, 3, 8, 12) and not images.requires_grad
    codes = net.codebook_kd[tokens].view(1, 4, 6, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, net.render(codes).detach(), atol=1e-6, rtol=0)


def test_is_an_image_tokenizer() -> None:
    net = tokenizer()
    assert isinstance(net, ImageTokenizer)
    assert net.codebook_size == len(net.codebook_kd) == 60


def test_one_channel_reads_and_gives_grey_rgb() -> None:
    net = spread(tokenizer(channels=1))
    grey = pictures().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.equal(net.encode(grey), net.encode(pictures()))
    images = net.decode(net.encode(grey), Grid(4, 6))
    assert images.shape == (2, 3, 8, 12)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_gradients_reach_the_encoder_through_the_latent() -> None:
    net = tokenizer()
    net.render(net.latent(pictures())).square().mean().backward()
    assert net.encoder[1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("given", ["file", "folder", "mapping"])
def test_saved_weights_tell_their_configuration(tmp_path: Path, given: str) -> None:
    torch.manual_seed(0)
    net, fields = create(SMALL | {"channels": 1})
    path = tmp_path / "model.safetensors"
    save_weights(path, net.state_dict(), metadata={"kind": "fsq", "config": fields})
    mapping = {"state_dict": net.state_dict(), "config": fields}
    again = load("fsq", {"file": path, "folder": tmp_path, "mapping": mapping}[given])
    assert not again.training and again.config == fields
    tokens = net.encode(pictures())
    assert torch.equal(again.encode(pictures()), tokens)
    assert torch.equal(again.decode(tokens, Grid(4, 6)), net.decode(tokens, Grid(4, 6)))


def test_half_precision_files_and_models_keep_the_exact_codebook(tmp_path: Path) -> None:
    net = spread(tokenizer())
    state = {key: tensor.half() for key, tensor in net.state_dict().items()}
    again = load("fsq", state, SMALL, dtype=torch.bfloat16)
    assert torch.equal(again.codebook_kd, net.codebook_kd)
    tokens = net.encode(pictures())
    images = again.decode(tokens, Grid(4, 6))
    assert images.dtype == torch.bfloat16
    torch.testing.assert_close(images.float(), net.decode(tokens, Grid(4, 6)), atol=0.05, rtol=0)
    assert (again.encode(pictures()) == tokens).float().mean() > 0.7


def test_levels_of_another_order_are_refused() -> None:
    state = tokenizer().state_dict()
    with pytest.raises(ValueError, match=r"^weights in memory: codebook_kd is not the grid of levels \(3, 4, 5\)$"):
        load("fsq", state, SMALL | {"levels": (3, 4, 5)})


def test_wrong_configurations_are_named() -> None:
    state = tokenizer().state_dict()
    with pytest.raises(ValueError, match=r"^fsq config: unknown key 'level'; did you mean 'levels'\?$"):
        load("fsq", state, {"level": (5, 4, 3)})
    with pytest.raises(ValueError, match=r"^fsq config: levels\.1: .* greater than or equal to 2 \(got 1\)$"):
        create(SMALL | {"levels": (5, 1)})
    for make in (lambda: create("small"), lambda: load("fsq", state, "small")):
        with pytest.raises(ValueError, match=r"^fsq has no named configuration 'small'; pass its fields as a mapping$"):
            make()
    with pytest.raises(ValueError, match=r"^weights in memory: encoder\.1\.weight expected \(16, 12, 3, 3\), got "):
        load("fsq", state, SMALL | {"width": 16})
    with pytest.raises(ValueError, match=r"^fsq: no weights given$"):
        load("fsq", None)
    golden = Path(__file__).parent / "golden" / "llamagen_c2i.safetensors"
    with pytest.raises(ValueError, match=r"^llamagen_c2i\.safetensors: has no codebook_kd; its keys are "):
        load("fsq", golden)


def test_decode_refuses_places_never_written_ids_out_of_range_and_another_grid() -> None:
    net, tokens = tokenizer(), torch.zeros(1, 24, dtype=torch.long)
    tokens[0, 5] = MASK
    with pytest.raises(ValueError, match=r"^1 of 24 places were never written; nothing to decode there$"):
        net.decode(tokens, Grid(4, 6))
    for wrong in (60, -2):
        tokens[0, 5] = wrong
        with pytest.raises(ValueError, match=rf"^token {wrong} is not in the codebook of 60 codes \(0\.\.59\)$"):
            net.decode(tokens, Grid(4, 6))
    with pytest.raises(ValueError, match=r"^tokens \(1, 24\) do not fill a 5x6 grid: expected \(b, 30\)$"):
        net.decode(tokens, Grid(5, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_refuses_sides_that_are_not_whole_tokens_and_other_channels(channels: int) -> None:
    net = tokenizer(channels=channels)
    with pytest.raises(ValueError, match=r"^images are 8x13: height and width must be multiples of 2$"):
        net.encode(pictures(8, 13))
    with pytest.raises(ValueError, match=r"^images have 4 channels, expected 3 \(RGB\)$"):
        net.encode(pictures(channels=4))
