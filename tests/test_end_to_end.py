"""Every shipped pairing, loaded from the originals' files at small size, drawing by every method that it allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import write_pair

from hybrid.pipeline import HybridPipeline
from hybrid.request import FILLING
from hybrid.types import FROM_AR

CLASSES = {"llamagen-halton-384": 8, "llamagen-randar-256": 6, "llamagen-arpg-256": 6, "rar-randar-256": 6}
"""Pairings by class names, with the side of their small grids."""

AR_ONLY = ("llamagen-t2i-256", "llamagen-t2i-512", "lumina-mgpt-768", "lumina-mgpt-2")
HYBRIDS = (*CLASSES, "lumina-maskgil-768")
BOTH = ("hybrid", "ar", "masked", "refined", "exact", "relaxed", "jacobi")


@pytest.fixture(scope="module", params=(*HYBRIDS, *AR_ONLY))
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridPipeline]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_WEIGHTS", str(folder))
        yield HybridPipeline.from_pretrained(request.param, overrides=write_pair(request.param, folder))


def prompts(pipe: HybridPipeline) -> list[Any]:
    return ["goldfish", 3] if pipe.name in CLASSES else ["a red apple", "a green pear"]


# Rounding differs with the batch; among the 8 likeliest codes it does not decide, as it might among 16384.
SHARP = {"top_k": 8, "output_type": "pt"}


def test_a_batch_equals_one_by_one_by_every_method(pipe: HybridPipeline) -> None:
    asked = prompts(pipe)
    for method in BOTH if pipe.name in HYBRIDS else ("ar", "jacobi"):
        how: dict[str, Any] = {"steps": 4, **SHARP} if method in FILLING else SHARP
        together = pipe(asked, method=method, seed=5, **how)
        alone = pipe(asked[1], method=method, seed=6, **how)
        assert torch.equal(together.tokens[1], alone.tokens[0]), method
        torch.testing.assert_close(together.images[1:], alone.images, atol=1e-4, rtol=0)
        grid = together.grid
        side = CLASSES.get(pipe.name)
        assert side is None or (grid.height, grid.width) == (side, side)
        factor = pipe.tokenizer.factor
        assert together.images.shape == (2, 3, grid.height * factor, grid.width * factor)
        assert together.lossy is None and together.images.isfinite().all()
        written = {"hybrid": grid.places // 4, "ar": grid.places, "masked": 0}.get(method)
        assert written is None or ((together.origin == FROM_AR).sum(1) == written).all(), method


@pytest.mark.parametrize("pipe", ["lumina-mgpt-2", "lumina-maskgil-768"], indirect=True)
def test_a_saved_copy_reads_captions_as_the_original_folder_does(pipe: HybridPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = HybridPipeline.from_pretrained(tmp_path)
    how: dict[str, Any] = SHARP if pipe.masked is None else {"ar_fraction": 0.25, "steps": 4, **SHARP}
    for entry in ("a red apple", "a green pear"):
        one, other = (model(entry, seed=1, **how) for model in (pipe, again))
        assert torch.equal(one.tokens, other.tokens)
    assert not any(key.startswith("text_encoder") for key in getattr(pipe.masked, "state_dict", dict)())


@pytest.mark.parametrize("pipe", AR_ONLY, indirect=True)
def test_what_needs_a_model_that_is_absent_is_refused(pipe: HybridPipeline) -> None:
    for method in ("hybrid", "masked", "refined", "exact"):
        with pytest.raises(ValueError, match=r"^[^\n]*masked model[^\n]*$"):
            pipe(prompts(pipe), method=method)


# Bad input: each file of a pairing, spoilt


def spoilt(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pairing's files, to be spoilt, and the overrides that load them."""
    monkeypatch.setenv("HYBRID_WEIGHTS", str(folder))
    return write_pair(name, folder)


def refused(name: str, overrides: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        HybridPipeline.from_pretrained(name, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_another_family_size_or_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "llamagen-halton-384"
    overrides = spoilt(name, tmp_path, monkeypatch)
    ar, masked = tmp_path / "c2i_L_384.pt", tmp_path / "ImageNet_384_large.pth"
    whole = ar.read_bytes()
    ar.write_bytes(masked.read_bytes())
    assert refused(name, overrides).startswith("c2i_L_384.pt: has no tok_embeddings.weight; its keys are ")
    ar.write_bytes(whole)
    wider = overrides | {"ar": overrides["ar"] | {"config": overrides["ar"]["config"] | {"vocab_size": 128}}}
    assert refused(name, wider) == ("c2i_L_384.pt: tok_embeddings.weight expected (128, 32), got (64, 32) (2 differ)")
    larger = overrides | {"ar": overrides["ar"] | {"config": "c2i-L-384"}}
    assert "missing " in refused(name, larger) and refused(name, larger).startswith("c2i_L_384.pt: ")
    state = torch.load(tmp_path / "vq_ds16_c2i.pt", weights_only=True)
    state["model"]["quantize.embedding.weight"] = state["model"]["quantize.embedding.weight"][:32].clone()
    torch.save(state, tmp_path / "vq_ds16_c2i.pt")
    assert refused(name, overrides) == ("vq_ds16_c2i.pt: quantize.embedding.weight expected (64, 8), got (32, 8)")
    guessed = overrides | {"tokenizer": overrides["tokenizer"] | {"config": None}}
    assert refused(name, guessed) == "the AR model has 64 codes, its tokenizer 32"


def test_truncated_files_and_pickles_that_want_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "rar-randar-256"
    overrides = spoilt(name, tmp_path, monkeypatch)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert refused(name, overrides).startswith(f"{path.name}: truncated")
        path.write_bytes(whole)
    torch.save({"model": {"weight": print}}, tmp_path / "rar_l.bin")
    assert refused(name, overrides).startswith("rar_l.bin: asks to run code on reading (")


def test_folders_without_a_shard_or_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = spoilt("lumina-maskgil-768", tmp_path, monkeypatch)
    lumina, t5 = tmp_path / "Lumina-mGPT-7B-768", tmp_path / "flan-t5-xl"
    (t5 / "tokenizer.json").rename(tmp_path / "kept.json")
    message = refused("lumina-maskgil-768", overrides)
    assert message == f"{t5}: neither tokenizer.json nor spiece.model; captions need one of them"
    (tmp_path / "kept.json").rename(t5 / "tokenizer.json")
    (lumina / "tokenizer.json").unlink()
    pipe = HybridPipeline.from_pretrained("lumina-maskgil-768", overrides=overrides)
    with pytest.raises(ValueError, match=rf"^{lumina}: no tokenizer\.json, which captions need; [^\n]*$"):
        pipe("a red apple")
    shard = sorted(lumina.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^Lumina-mGPT-7B-768: missing 1 of \d+ shards: {shard.name}$"):
        HybridPipeline.from_pretrained("lumina-maskgil-768", overrides=overrides)


@pytest.mark.parametrize("pipe", ["lumina-mgpt-768", "llamagen-randar-256"], indirect=True)
def test_sizes_that_the_grid_cannot_hold(pipe: HybridPipeline) -> None:
    factor = pipe.tokenizer.factor
    asked, message = ((3, 4), r"grid 3x4: both sides must be multiples of 2 tokens \(32 pixels\)")
    if pipe.name in CLASSES:
        asked, message = (3, 4), r"[^\n]*3x4[^\n]*6x6[^\n]*"
    for method in ("ar", "hybrid") if pipe.masked is not None else ("ar",):
        if (pipe.name, method) != ("llamagen-randar-256", "ar"):  # LlamaGen alone draws any grid
            with pytest.raises(ValueError, match=rf"^{message}$"):
                pipe(prompts(pipe)[0], method=method, height=asked[0] * factor, width=asked[1] * factor)
    with pytest.raises(ValueError, match=r"^[^\n]*height[^\n]*$"):
        pipe(prompts(pipe)[0], method="ar", height=factor * 2 + 1, width=factor * 2)
