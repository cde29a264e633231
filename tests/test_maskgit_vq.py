"""MaskGIT's VQGAN against the original's values, its full-size shapes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.maskgit_vq import MaskGITVQ, MaskGITVQConfig, build
from hybrid.types import MASK, Grid, ImageTokenizer

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "maskgit_vq.safetensors"
SHAPES: dict[str, list[int]] = json.loads((GOLDEN / "layer_shapes.json").read_text())["maskgit-vq"]


def golden() -> tuple[MaskGITVQ, dict[str, Tensor]]:
    return load("maskgit-vq", FILE), load_file(FILE)


def bare_weights() -> dict[str, Tensor]:
    return {key.removeprefix("model."): t for key, t in load_file(FILE).items() if key.startswith("model.")}


def full_size() -> dict[str, Any]:
    return {key: torch.empty(shape, device="meta") for key, shape in SHAPES.items()}


def test_equals_the_original() -> None:
    """Whose pixels are in [0, 1]; 6×4 tokens of 2×2 pixels."""
    tokenizer, values = golden()
    grid = Grid(*values["codes"].shape[1:])
    assert grid == Grid(6, 4) and tokenizer.factor == 2
    assert torch.equal(tokenizer.encode(2 * values["image"] - 1), values["codes"].flatten(1))
    for codes, pixels in (("codes", "reconstruction"), ("random_codes", "decoded")):
        images = tokenizer.decode(values[codes].flatten(1), grid)
        torch.testing.assert_close((images + 1) / 2, values[pixels], atol=1e-4, rtol=0)


def test_is_an_image_tokenizer_in_eval_mode() -> None:
    tokenizer, values = golden()
    assert isinstance(tokenizer, ImageTokenizer) and not tokenizer.training
    assert torch.equal(tokenizer.codebook_kd, values["model.quantize.embedding.weight"].float())
    assert not tokenizer.codebook_kd.requires_grad
    assert not tokenizer.decode(values["codes"].flatten(1), Grid(6, 4)).requires_grad


def test_one_image_of_a_batch_equals_it_alone() -> None:
    tokenizer, values = golden()
    tokens = torch.cat([values["random_codes"], values["codes"]]).flatten(1)
    alone, together = tokenizer.decode(tokens[1:], Grid(6, 4)), tokenizer.decode(tokens, Grid(6, 4))[1:]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_full_size_shapes_by_name_and_as_the_weights_tell_them() -> None:
    for name in ("f16-256", None):
        tokenizer = load("maskgit-vq", full_size(), name, device="meta")
        assert {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()} == SHAPES
        assert tokenizer.factor == 16 and tokenizer.config == MaskGITVQConfig().model_dump()


def test_loads_the_originals_file(tmp_path: Path) -> None:
    weights = {key: tensor.float() for key, tensor in bare_weights().items()}
    torch.save(weights, tmp_path / "maskgit-vqgan-imagenet-f16-256.bin")
    loaded = load("maskgit-vq", tmp_path / "maskgit-vqgan-imagenet-f16-256.bin").state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[key], weights[key]) for key in loaded)


@torch.no_grad()
def test_bfloat16_stays_close_and_keeps_its_codebook_in_float32() -> None:
    tokenizer, values = load("maskgit-vq", FILE, dtype=torch.bfloat16), load_file(FILE)
    assert tokenizer.codebook_kd.dtype == torch.float32
    images = tokenizer.decode(values["codes"].flatten(1), Grid(6, 4))
    assert ((images.float() + 1) / 2 - values["reconstruction"]).abs().mean() < 0.05
    agree = tokenizer.encode(2 * values["image"] - 1) == values["codes"].flatten(1)
    assert agree.float().mean() > 0.9


def test_wrong_pictures_and_tokens_are_named() -> None:
    tokenizer, grid = golden()[0], Grid(2, 2)
    with pytest.raises(ValueError, match=r"^images have 1 channels, expected 3 \(RGB\)$"):
        tokenizer.encode(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"^images are 4x5: height and width must be multiples of 2$"):
        tokenizer.encode(torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"^tokens \(1, 3\) do not fill a 2x2 grid: expected \(b, 4\)$"):
        tokenizer.decode(torch.zeros(1, 3, dtype=torch.long), grid)
    with pytest.raises(ValueError, match=r"^1 of 4 places were never written"):
        tokenizer.decode(torch.tensor([[0, 1, MASK, 2]]), grid)
    with pytest.raises(ValueError, match=r"^token 64 is not in the codebook of 64 codes \(0\.\.63\)$"):
        tokenizer.decode(torch.tensor([[0, 1, 64, 2]]), grid)


def test_a_wrong_configuration_family_or_size_is_named() -> None:
    state = bare_weights()
    with pytest.raises(ValueError, match=r"^maskgit-vq: no weights given$"):
        load("maskgit-vq", None)
    with pytest.raises(ValueError, match=r"^maskgit-vq: unknown configuration 'f8'; known: f16-256$"):
        load("maskgit-vq", state, "f8")
    with pytest.raises(ValueError, match=r"^maskgit-vq config: unknown key 'channel_mults'; did you mean 'channel_mul"):
        load("maskgit-vq", state, {"channel_mults": [1, 2]})
    with pytest.raises(ValueError, match=r"^maskgit-vq config: hidden_channels: [^\n]*multiple of 32 \(got 48\)$"):
        load("maskgit-vq", state, {"hidden_channels": 48})
    with pytest.raises(ValueError, match=r"^weights in memory: missing \d+ of \d+ keys: [^\n]+$"):
        load("maskgit-vq", state, "f16-256")
    small = MaskGITVQConfig(hidden_channels=32, channel_mult=(2, 1), num_res_blocks=1, z_channels=8, num_embeddings=65)
    with pytest.raises(
        ValueError, match=r"^weights in memory: quantize\.embedding\.weight expected \(65, 8\), got \(64, 8\)$"
    ):
        load("maskgit-vq", state, small.model_dump())
    with pytest.raises(ValueError, match=r"^llamagen_vq\.safetensors: has no decoder\.up\.1\.upsample_conv\.weight; "):
        load("maskgit-vq", GOLDEN / "llamagen_vq.safetensors")


@pytest.mark.parametrize("part", ["encoder.conv_in", "encoder.down.1", "decoder.mid", "decoder.up.0", "quantize"])
def test_weights_without_one_of_their_parts_are_refused_in_one_line(part: str) -> None:
    state = {key: tensor for key, tensor in bare_weights().items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no|unexpected) [^\n]+$"):
        load("maskgit-vq", state)


def test_the_full_size_has_54_5_million_parameters() -> None:
    with torch.device("meta"):
        tokenizer = build(MaskGITVQConfig())
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6 == pytest.approx(54.5, abs=0.1)
