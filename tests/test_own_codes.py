"""From pictures of one's own to a hybrid, by the commands: codes of each public tokenizer's file, a MaskGIL trained on
them, and a public AR model completed by it. Everything is small and random, in the originals' file formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from originals import write_pair
from PIL import Image
from tiny_pictures import picture

from hybrid.adapters.lumina_prompt import SIZE_PIXELS
from hybrid.data.cli import main as data_command
from hybrid.data.shards import CodeShards, parse_grid
from hybrid.pipeline import HybridPipeline
from hybrid.train_cli import main as train_command
from hybrid.types import FROM_AR

SMALL = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 16, "rope": "2d", "qk_norm": True, "post_norm": True}
T5 = {"kind": "t5", "weights": "flan-t5-xl", "config": {"tokens": 120}}
CAPTIONED = ("lumina-maskgil-768", "lumina-mgpt-2")


def pictures(folder: Path, side: int, *, captions: bool) -> Path:
    """Six square pictures and three that are wider; in two classes, or with captions beside them."""
    for number in range(9):
        parent = folder if captions else folder / ("ant", "bee")[number % 2]
        parent.mkdir(parents=True, exist_ok=True)
        image = picture(number).resize((side, side) if number % 3 else (4 * side, side), Image.Resampling.NEAREST)
        image.save(parent / f"{number:02}.png")
        if captions:
            (parent / f"{number:02}.txt").write_text("a red apple\n" if number % 2 else "a green pear\n")
    return folder


def extracted(folder: Path, tokenizer: dict[str, Any], factor: int, side: int, *, captions: bool) -> CodeShards:
    """Codes of pictures by a pairing's own tokenizer file, in buckets around squares of ``side`` tokens."""
    source = pictures(folder / "pictures", side * factor, captions=captions)
    settings = folder / "tokenizer.yaml"
    settings.write_text(yaml.safe_dump(json.loads(json.dumps(tokenizer["config"]))))
    named = f"{tokenizer['kind']}:{folder / tokenizer['weights']}:{settings}"
    buckets = ["--buckets", str(side * factor), "--bucket-step", str(side // 2 * factor), "--max-ratio", "4"]
    options = ["--tokenizer", named, *buckets, "--held-out", "0.5", "--device", "cpu"]
    options += ["--text", f"t5:{folder / 'flan-t5-xl'}"] if captions else []
    assert data_command(["codes", str(source), "--out", str(folder / "codes"), *options]) == 0
    return CodeShards(folder / "codes")


def trained(folder: Path, codes: int, places: int, *, captions: bool) -> Path:
    """The weights of a MaskGIL after three steps on those codes."""
    how: dict[str, Any] = {"model_type": "c2i", "num_classes": 1000}
    if captions:
        how = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 24, "condition_rope": "keep"}
    model = {"kind": "maskgil", "config": {**SMALL, **how, "vocab_size": codes, "block_size": places}}
    loop = {"steps": 3, "batch_size": 2, "lr": 1e-3, "warmup": 1, "precision": "no", "device": "cpu"}
    recipe = {"task": "masked", "data": "own", "model": model, "loop": loop, "prefix_share": 0.5}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    files = ["--data", str(folder / "codes"), "--out", str(folder / "run")]
    assert train_command([str(folder / "recipe.yaml"), *files]) == 0
    return folder / "run" / "model.safetensors"


@pytest.mark.parametrize("name", ["llamagen-halton-384", "rar-randar-256", *CAPTIONED])
def test_a_masked_model_is_trained_on_own_codes_and_completes_a_public_ar(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRID_WEIGHTS", str(tmp_path))
    overrides, captions = write_pair(name, tmp_path), name in CAPTIONED
    if name == "lumina-mgpt-2":
        write_pair("lumina-maskgil-768", tmp_path)  # its T5
    pair = HybridPipeline.from_pretrained(name, overrides=overrides)
    factor, codes = pair.tokenizer.factor, len(pair.tokenizer.codebook_kd)
    side = 2 * SIZE_PIXELS // factor if captions else pair.masked.grid.height
    shards = extracted(tmp_path, overrides["tokenizer"], factor, side, captions=captions)
    assert shards.meta["tokenizer"]["kind"] == overrides["tokenizer"]["kind"] and len(shards.meta["grids"]) > 1
    places = max(parse_grid(grid).places for grid in shards.meta["grids"])

    weights = trained(tmp_path, codes, places, captions=captions)
    parts = overrides | {"masked": {"kind": "maskgil", "weights": str(weights), "config": None}}
    pipe = HybridPipeline.from_pretrained(name, overrides=parts | ({"text": T5} if captions else {}))
    prompt = "a red apple" if captions else 1
    drawn = pipe(prompt, method="hybrid", ar_fraction=0.25, steps=3, top_k=8, output_type="pt")
    assert drawn.lossy is None and drawn.images.isfinite().all()
    assert 0 <= drawn.tokens.min() <= drawn.tokens.max() < codes
    assert int((drawn.origin == FROM_AR).sum()) == drawn.grid.places // 4
