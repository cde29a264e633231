"""MaskGIL from LlamaGen's weights: every row where it belongs, and the command from file to file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hybrid.adapters import load
from hybrid.adapters.maskgil import MaskGILConfig, build
from hybrid.adapters.maskgil_init import from_llamagen, init_from_file, masked_config
from hybrid.adapters.transformer_config import CONFIGS, TransformerConfig
from hybrid.checkpoint import read_weights
from hybrid.init_cli import main
from hybrid.types import MASK, Grid

GOLDEN = Path(__file__).parent / "golden"
FILES = {kind: GOLDEN / f"llamagen_{kind}.safetensors" for kind in ("c2i", "t2i")}
SHAPES = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
FULL_SIZES = [name.removeprefix("llamagen-") for name in SHAPES if name.startswith(("llamagen-c2i", "llamagen-t2i"))]
TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0}


def golden(kind: str) -> tuple[dict[str, Tensor], TransformerConfig]:
    with safe_open(FILES[kind], "pt") as file:
        state = {key[6:]: file.get_tensor(key) for key in file.keys() if key.startswith("model.")}  # noqa: SIM118
        return state, TransformerConfig(**json.loads(file.metadata()["config"]))


def prompts(kind: str) -> Any:
    with safe_open(FILES[kind], "pt") as file:
        if kind == "c2i":
            return file.get_tensor("labels")
        return file.get_tensor("caption_emb"), file.get_tensor("caption_mask")


@pytest.mark.parametrize("kind", FILES)
def test_every_row_has_its_place(kind: str) -> None:
    state, config = golden(kind)
    made = from_llamagen(state, config)
    codes = state["tok_embeddings.weight"]
    assert torch.equal(made["tok_emb.weight"][:64], codes)
    torch.testing.assert_close(made["tok_emb.weight"][64], codes.float().mean(0).half())
    if kind == "c2i":
        assert torch.equal(made["tok_emb.weight"][65:], state["cls_embedding.embedding_table.weight"])
    else:
        assert len(made["tok_emb.weight"]) == 65
        assert torch.equal(made["cls_embedding.uncond_embedding"], state["cls_embedding.uncond_embedding"])
    assert torch.equal(made["output.weight"][:64], state["output.weight"]) and not made["output.weight"][64].any()
    assert all(torch.equal(made[key], state[key]) for key in state if key.startswith(("layers.", "norm.")))
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}


@pytest.mark.parametrize("kind", FILES)
@torch.no_grad()
def test_one_layer_sees_at_the_last_place_what_llamagen_sees_there(kind: str) -> None:
    """With one layer the last place's row is the same with and without a causal mask, for class, caption and null."""
    state, config = golden(kind)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("layers.1.")}
    config = config.model_copy(update={"n_layer": 1})
    causal = load("llamagen", state, config.model_dump())
    masked = load("maskgil", from_llamagen(state, config), masked_config(config).model_dump())
    tokens = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(0))
    for drop in (False, True):
        ours, theirs = masked.condition(prompts(kind)), causal.condition(prompts(kind))
        ours, theirs = (ours.null(), theirs.null()) if drop else (ours, theirs)
        _, cache = causal.prefill(theirs, 16)
        expected = causal.decode(tokens, torch.zeros(3, dtype=torch.long), cache)[:, -1]
        torch.testing.assert_close(masked.logits(tokens, ours)[:, -1], expected, **TOLERANCE)


@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_size_shapes(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[f"llamagen-{name}"].items()}
    made, config = init_from_file(state, name)
    assert isinstance(config, MaskGILConfig) and config.rope == "2d"
    assert config.grid == TransformerConfig(**CONFIGS[name]).grid
    with torch.device("meta"):
        expected = build(config).state_dict()
    assert {key: tensor.shape for key, tensor in made.items()} == {key: t.shape for key, t in expected.items()}
    assert not any("_norm.weight" in key and ("q_norm" in key or "k_norm" in key) for key in made)


@pytest.mark.parametrize("kind", FILES)
@torch.no_grad()
def test_the_command_from_file_to_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "start.safetensors"
    assert main([str(FILES[kind]), "-o", str(out)]) == 0
    said = {"c2i": "10 classes", "t2i": "captions"}[kind]
    assert capsys.readouterr().out.endswith(f"64 codes, 4x4 grid, {said}\n")
    net = load("maskgil", out)
    state, config = golden(kind)
    assert net.config == masked_config(config).model_dump() and net.grid == Grid(4, 4)
    assert read_weights(out)[1]["kind"] == "maskgil"
    assert torch.equal(net.layers[1].attention.wqkv.weight, state["layers.1.attention.wqkv.weight"].float())
    logits = net.logits(torch.full((3, 16), MASK), net.condition(prompts(kind)))
    assert logits.shape == (3, 16, 64) and torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", FILES)
@torch.no_grad()
def test_one_network_for_both_starts_as_the_ar_model(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Token by token it is LlamaGen to the bit; its fill is another reading with the same head."""
    out = tmp_path / "start.safetensors"
    assert main([str(FILES[kind]), "-o", str(out), "--kind", "unified"]) == 0
    assert ": one network for both phases, " in capsys.readouterr().out
    net, (state, config) = load("unified", out), golden(kind)
    ar = load("llamagen", state, config.model_dump())
    tokens = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(0))
    ours, theirs = net.condition(prompts(kind)), ar.condition(prompts(kind))
    assert torch.equal(net.score(tokens, ours), ar.score(tokens, theirs))
    assert torch.equal(net.output_masked.weight, net.output.weight)
    tokens[:, 5:] = MASK
    logits = net.logits(tokens, ours)
    assert logits.shape == (3, 16, 64) and torch.isfinite(logits).all()


def test_the_command_reads_the_original_file_format_by_its_sizes_name(tmp_path: Path, monkeypatch: Any) -> None:
    state, config = golden("c2i")
    torch.save({"model": state, "freqs_cis": torch.zeros(1), "steps": 3}, tmp_path / "c2i_L_384.pt")
    monkeypatch.setitem(CONFIGS, "c2i-L-384", config.model_dump())
    out = tmp_path / "start.safetensors"
    assert main([str(tmp_path / "c2i_L_384.pt"), "-o", str(out), "--config", "c2i-L-384"]) == 0
    assert load("maskgil", out).grid == Grid(4, 4)


def test_mistakes_are_one_line_and_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: Any) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("hybrid-init-maskgil: ") and said.count("\n") == 1
        return said.removeprefix("hybrid-init-maskgil: ").rstrip()

    out = tmp_path / "out.safetensors"
    assert refused(FILES["c2i"], "-o", tmp_path / "out.pt").endswith(
        "out.pt: expected a name that ends in .safetensors"
    )
    assert refused(tmp_path / "no.pt", "-o", out).startswith("no.pt: no such file or folder: ")
    other = refused(GOLDEN / "halton_c2i.safetensors", "-o", out)
    assert other.startswith("halton_c2i.safetensors: has no tok_embeddings.weight; its keys are ")
    assert refused(FILES["c2i"], "-o", out, "--config", "c2i-L").startswith("llamagen: unknown configuration 'c2i-L'; ")
    wrong = refused(FILES["c2i"], "-o", out, "--config", "c2i-B-256")
    assert wrong.startswith("llamagen_c2i.safetensors: missing 70 of 88 keys: ")
    assert not list(tmp_path.iterdir())
    (tmp_path / "in.safetensors").write_bytes(FILES["c2i"].read_bytes())
    same = tmp_path / "in.safetensors"
    assert refused(same, "-o", same).endswith("in.safetensors: is a file to be read; name another one")
