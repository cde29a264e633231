"""Three runs as a pair: what is read from where, what is refused, and that the pipeline draws with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pairs
import pytest
import torch

from hybrid import HybridPipeline
from hybrid.adapters import unified
from hybrid.checkpoint import read_weights, save_weights
from hybrid.pack_cli import main

PARTS = ("tokenizer", "ar", "masked")
SHAPE = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 8, "vocab_size": 12, "block_size": 16}


def runs(folder: Path, pipeline: HybridPipeline) -> list[str]:
    """A finished run, one with a best evaluation only, and one that was stopped."""
    names = ("tokenizer/model.safetensors", "ar/best.safetensors", "masked/step-0000007/ema.safetensors")
    for part, name in zip(PARTS, names, strict=True):
        module = getattr(pipeline, part)
        metadata = {"kind": pipeline.kinds[part], "config": module.config}
        save_weights(folder / name, module.state_dict(), metadata=metadata)
    return [str(folder / part) for part in PARTS]


def settings(path: Path, **fields: Any) -> str:
    """A file for --defaults; JSON is YAML."""
    path.write_text(json.dumps(fields))
    return str(path)


def test_a_packed_pair_draws_as_its_parts_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = pairs.class_pair()
    asked = settings(tmp_path / "pair.yaml", classes=pairs.CLASSES, defaults={"steps": 3, "noise": 1.0})
    out = tmp_path / "packed"
    assert main([*runs(tmp_path, pipeline), "--defaults", asked, "--out", str(out)]) == 0
    assert "masked: maskgil, 0.0M parameters" in (text := capsys.readouterr().out) and f"done: {out}" in text
    packed = HybridPipeline.from_pretrained(out)
    assert (packed.defaults.steps, packed.defaults.noise, packed.classes) == (3, 1.0, pairs.CLASSES)
    for part in PARTS:
        state = getattr(pipeline, part).state_dict()
        stored = read_weights(out / part / "model.safetensors")[0]
        assert all(torch.equal(stored[key], value.half()) for key, value in state.items())
    for part in PARTS:
        getattr(pipeline, part).load_state_dict(getattr(packed, part).state_dict())
    options = {"seed": 3, "output_type": "tokens", "steps": 3, "noise": 1.0}
    assert torch.equal(packed("Bag", **options).tokens, pipeline("Bag", **options).tokens)


def test_another_pairs_index_gives_its_settings_and_the_card_stays(tmp_path: Path) -> None:
    pipeline = pairs.text_pair()
    pipeline.save_pretrained(tmp_path / "first")
    (tmp_path / "card.md").write_text("# Mine\n")
    given = runs(tmp_path, pairs.text_pair(seed=1))
    like = ["--defaults", str(tmp_path / "first" / "model_index.json"), "--out", str(tmp_path / "packed")]
    assert main([*given, *like, "--card", str(tmp_path / "card.md")]) == 0
    assert main([*given, *like]) == 0, "a pair may be packed anew"
    assert (tmp_path / "packed" / "README.md").read_text() == "# Mine\n"
    first, packed = (json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("first", "packed"))
    assert packed == first


def test_one_run_named_twice_is_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = runs(tmp_path, pairs.class_pair())[0]
    network, fields = unified.create({**SHAPE, "num_classes": len(pairs.CLASSES)})
    save_weights(tmp_path / "one.safetensors", network.state_dict(), metadata={"kind": "unified", "config": fields})
    one, asked = str(tmp_path / "one.safetensors"), settings(tmp_path / "pair.yaml", classes=pairs.CLASSES)
    out = tmp_path / "packed"
    assert main([tokenizer, one, one, "--defaults", asked, "--out", str(out)]) == 0
    assert "masked: unified, the same network as ar\n" in capsys.readouterr().out
    assert not (out / "masked").exists()
    packed = HybridPipeline.from_pretrained(out)
    assert packed.masked is packed.ar


def test_what_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, ar, masked = runs(tmp_path / "classes", pairs.class_pair())
    text = runs(tmp_path / "text", pairs.text_pair())
    plain = settings(tmp_path / "plain.yaml")
    short = settings(tmp_path / "short.yaml", text={"kind": "minilm", "config": {"tokens": 8}})
    names = settings(tmp_path / "names.yaml", classes=["one"])
    typing_error = settings(tmp_path / "typo.yaml", defaults={"step": 3})
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, {"w": torch.zeros(1)})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for parts, options, message in (
        ([tokenizer, masked, ar], ["--defaults", plain], "masked: is maskgil, which cannot be the pair's ar"),
        ([ar, ar, masked], ["--defaults", plain], "ar: is llamagen, which cannot be the pair's tokenizer"),
        ([tokenizer, str(bare), masked], ["--defaults", plain], "bare.safetensors: does not say of which kind it is"),
        ([tokenizer, str(tmp_path / "no"), masked], [], "no: no model.safetensors, best.safetensors or step-N"),
        ([tokenizer, ar, masked], ["--defaults", names], "ar: has 3 classes, the defaults name 1"),
        ([tokenizer, ar, masked], ["--defaults", short], "ar: is class-conditional; leave text out of the defaults"),
        (text, ["--defaults", plain], "ar: reads captions; name its encoder in the defaults"),
        (text, ["--defaults", short], "ar: reads (16, 384) embeddings, text gives (8, 384)"),
        ([tokenizer, ar, masked], ["--defaults", typing_error], "unknown key 'defaults.step'; did you mean 'steps'?"),
        ([tokenizer, ar, masked], ["--card", str(tmp_path / "none.md")], "none.md"),
    ):
        assert main([*parts, *options, "--out", str(tmp_path / "packed")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("hybrid-pack: ")
    assert not (tmp_path / "packed").exists()
    assert main([tokenizer, ar, masked, "--out", str(tmp_path / "full")]) == 2
    assert "full: exists and is no pair; give another --out or move it away" in capsys.readouterr().err
