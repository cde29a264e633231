"""Image tokenizers against the originals' values, full-size shapes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import refused
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from hybrid.adapters import load
from hybrid.adapters.vq import create_taming
from hybrid.align import align
from hybrid.types import MASK, Grid, ImageTokenizer

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"llamagen-vq": "llamagen_vq", "chameleon-vq": "chameleon_vq", "movqgan": "movqgan"}
WRAPPER = {"llamagen-vq": "model.", "chameleon-vq": "state_dict.", "movqgan": "state_dict."}
SHAPES = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
FULL_SIZES = [
    ("llamagen-vq", "llamagen-VQ-16", "VQ-16", 16),
    ("llamagen-vq", "llamagen-VQ-8", "VQ-8", 8),
    ("chameleon-vq", "chameleon-vqgan", "chameleon-vqgan", 16),
    ("movqgan", "movqgan-270M", "movqgan-270M", 8),
]


def golden(kind: str) -> tuple[Any, dict[str, Tensor]]:
    path = GOLDEN / f"{KINDS[kind]}.safetensors"
    return load(kind, path), load_file(path)


def bare_weights(kind: str) -> dict[str, Tensor]:
    prefix = WRAPPER[kind]
    tensors = load_file(GOLDEN / f"{KINDS[kind]}.safetensors")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_original(kind: str) -> None:
    tokenizer, values = golden(kind)
    grid = Grid(*values["codes"].shape[1:])
    assert grid.height != grid.width
    assert torch.equal(tokenizer.encode(values["image"]), values["codes"].flatten(1))
    for codes, pixels in (("codes", "reconstruction"), ("random_codes", "decoded")):
        images = tokenizer.decode(values[codes].flatten(1), grid)
        torch.testing.assert_close(images, values[pixels], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_is_an_image_tokenizer_in_eval_mode(kind: str) -> None:
    tokenizer, values = golden(kind)
    assert tokenizer.factor == values["image"].shape[2] // values["codes"].shape[1]
    assert not tokenizer.training
    grid = Grid(*values["codes"].shape[1:])
    assert not tokenizer.decode(values["codes"].flatten(1), grid).requires_grad
    assert isinstance(tokenizer, ImageTokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_of_a_batch_equals_it_alone(kind: str) -> None:
    tokenizer, values = golden(kind)
    tokens = torch.cat([values["random_codes"], values["codes"]]).flatten(1)
    grid = Grid(*values["codes"].shape[1:])
    alone, together = tokenizer.decode(tokens[1:], grid), tokenizer.decode(tokens, grid)[1:]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_the_codebook_is_the_one_the_decoder_sees() -> None:
    raw = bare_weights("llamagen-vq")["quantize.embedding.weight"].float()
    tokenizer, _ = golden("llamagen-vq")
    torch.testing.assert_close(tokenizer.codebook_kd, F.normalize(raw, dim=-1))
    chameleon, _ = golden("chameleon-vq")
    assert torch.equal(chameleon.codebook_kd, bare_weights("chameleon-vq")["quantize.embedding.weight"].float())
    plain = load("llamagen-vq", bare_weights("llamagen-vq"), {"codebook_l2_norm": False})
    assert torch.equal(plain.codebook_kd, raw)


@pytest.mark.parametrize(("kind", "name", "size", "factor"), FULL_SIZES)
@pytest.mark.parametrize("inferred", [False, True])
def test_full_size_shapes(kind: str, name: str, size: str, factor: int, inferred: bool) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
    tokenizer = load(kind, state, None if inferred else size, device="meta")
    shapes = {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    assert shapes == {key: shape for key, shape in SHAPES[name].items() if key != "quantize.codebook_used"}
    assert tokenizer.factor == factor


@pytest.mark.parametrize(("kind", "name", "size", "factor"), FULL_SIZES[2:])
def test_a_fresh_model_of_taming_has_the_shapes_of_its_size(kind: str, name: str, size: str, factor: int) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
    read_off = json.loads(json.dumps(load(kind, state, device="meta").config))
    for config in (size, read_off, {"model": {"params": read_off}}):
        with torch.device("meta"):
            made = create_taming(kind, config)
        shapes = {key: list(tensor.shape) for key, tensor in made.state_dict().items()}
        assert shapes == SHAPES[name] and made.factor == factor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("VQ-16", "movqgan config: unknown size 'VQ-16'; known: movqgan-270M"),
        ({"n_embeds": 4}, "movqgan config: unknown field 'n_embeds'; did you mean 'n_embed'?"),
        (
            {"n_embed": 4, "ddconfig": {"ch": 32, "ch_mult": [1], "attention_levels": []}},
            "movqgan config: missing embed_dim, num_res_blocks, z_channels",
        ),
    ],
)
def test_a_fresh_model_of_taming_is_told_in_full(config: Any, message: str) -> None:
    assert refused(lambda: create_taming("movqgan", config)) == message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_loads_the_original_file_format(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"original{suffix}"
    extra = {"optimizer": {"step": torch.ones(1)}}
    torch.save({WRAPPER[kind][:-1]: bare_weights(kind) | {"quantize.codebook_used": torch.zeros(65536)}} | extra, path)
    tokenizer, (expected, _) = load(kind, path), golden(kind)
    assert all(torch.equal(tensor, expected.state_dict()[key]) for key, tensor in tokenizer.state_dict().items())


def test_a_training_file_of_taming_keeps_its_losses_to_itself() -> None:
    state = bare_weights("chameleon-vq") | {"loss.discriminator.main.0.weight": torch.zeros(1)}
    assert load("chameleon-vq", {"state_dict": state}).factor == 2


def test_the_yaml_of_taming_may_be_given_whole() -> None:
    params = {"ddconfig": {"resolution": 64, "attn_resolutions": [], "ch": 32}, "n_embed": 64, "lossconfig": {}}
    assert load("chameleon-vq", bare_weights("chameleon-vq"), {"model": {"params": params}}).factor == 2


def test_bfloat16_stays_close() -> None:
    tokenizer = load("llamagen-vq", GOLDEN / "llamagen_vq.safetensors", dtype=torch.bfloat16)
    _, values = golden("llamagen-vq")
    images = tokenizer.decode(values["codes"].flatten(1), Grid(4, 6))
    assert images.dtype == torch.bfloat16
    assert (images.float() - values["reconstruction"]).abs().mean() < 0.02
    assert tokenizer.encode(values["image"]).shape == (2, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_refuses_places_never_written_and_ids_out_of_range(kind: str) -> None:
    tokenizer, values = golden(kind)
    tokens = values["codes"].flatten(1).clone()
    grid = Grid(*values["codes"].shape[1:])
    tokens[0, 3] = MASK
    with pytest.raises(
        ValueError, match=rf"^1 of {tokens.numel()} places were never written; nothing to decode there$"
    ):
        tokenizer.decode(tokens, grid)
    for wrong in (64, -2):
        tokens[0, 3] = wrong
        with pytest.raises(ValueError, match=rf"^token {wrong} is not in the codebook of 64 codes \(0\.\.63\)$"):
            tokenizer.decode(tokens, grid)


def test_decode_refuses_tokens_that_do_not_fill_the_grid() -> None:
    tokenizer, values = golden("llamagen-vq")
    with pytest.raises(ValueError, match=r"^tokens \(2, 24\) do not fill a 5x6 grid: expected \(b, 30\)$"):
        tokenizer.decode(values["codes"].flatten(1), Grid(5, 6))


def test_encode_refuses_sides_that_are_not_whole_tokens_and_other_channels() -> None:
    tokenizer, _ = golden("llamagen-vq")
    with pytest.raises(ValueError, match=r"^images are 8x13: height and width must be multiples of 2$"):
        tokenizer.encode(torch.zeros(1, 3, 8, 13))
    with pytest.raises(ValueError, match=r"^images have 4 channels, expected 3 \(RGB\)$"):
        tokenizer.encode(torch.zeros(1, 4, 8, 12))


def test_another_codebook_size_is_named() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["llamagen-VQ-16"].items()}
    state["quantize.embedding.weight"] = torch.empty(8192, 8, device="meta")
    with pytest.raises(ValueError, match=r": quantize\.embedding\.weight expected \(16384, 8\), got \(8192, 8\)$"):
        load("llamagen-vq", state, "VQ-16", device="meta")


def test_another_size_or_family_or_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"^weights in memory: unknown size 'VQ-32'; known: VQ-16, VQ-8$"):
        load("llamagen-vq", bare_weights("llamagen-vq"), "VQ-32")
    with pytest.raises(ValueError, match=r"^weights in memory: missing \d+ of \d+ keys: "):
        load("llamagen-vq", bare_weights("llamagen-vq"), "VQ-16")
    with pytest.raises(ValueError, match=r"^chameleon_vq\.safetensors: has no encoder\.conv_blocks\.0\.[^\n]*$"):
        load("llamagen-vq", GOLDEN / "chameleon_vq.safetensors")
    with pytest.raises(ValueError, match=r"^movqgan\.safetensors: has no decoder\.mid\.block_1\.norm1\.weight[^\n]*$"):
        load("chameleon-vq", GOLDEN / "movqgan.safetensors")
    with pytest.raises(ValueError, match=r": unknown field 'codebok_size'; did you mean 'codebook_size'\?$"):
        load("llamagen-vq", bare_weights("llamagen-vq"), {"codebok_size": 64})
    with pytest.raises(ValueError, match=r": double_z expected False, got True$"):
        load("movqgan", bare_weights("movqgan"), {"ddconfig": {"double_z": True}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["encoder", "decoder", "quantize", "encoder.conv_in"])
def test_a_file_without_one_of_its_parts_is_refused_in_one_line(kind: str, part: str) -> None:
    state = {key: tensor for key, tensor in bare_weights(kind).items() if not key.startswith(part)}
    with pytest.raises(ValueError, match=r"^weights in memory: (missing|has no) [^\n]+$"):
        load(kind, state)


@pytest.mark.parametrize("kind", KINDS)
def test_preparing_for_inference_changes_the_layout_and_nothing_else(kind: str) -> None:
    plain, prepared = golden(kind)[0], golden(kind)[0]
    prepared.prepare()
    images, grid = golden(kind)[1]["image"], Grid(*golden(kind)[1]["codes"].shape[1:])
    tokens = plain.encode(images)
    assert torch.equal(prepared.encode(images), tokens)
    torch.testing.assert_close(prepared.decode(tokens, grid), plain.decode(tokens, grid), rtol=0, atol=1e-5)
    assert prepared.last_layer.is_contiguous(memory_format=torch.channels_last)
    assert align(plain, prepared).kind == "identity"
    for name, tensor in plain.state_dict().items():
        assert torch.equal(prepared.state_dict()[name], tensor)
