"""Names of weights as paths, and the shipped pairing whose files are found by them."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from hybrid.adapters import load
from hybrid.config import ComponentConfig, PairConfig, parse, read_yaml
from hybrid.phases import Fill, Sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.types import Grid
from hybrid.weights import PUBLISHED, resolve_weights

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
SHIPPED = Path(str(files("hybrid.configs"))) / "llamagen-halton-384.yaml"


@pytest.fixture(autouse=True)
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's folder of weights nor what happens to lie in the current directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("HYBRID_WEIGHTS", raising=False)


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    return path


def test_a_bare_name_is_found_beside_its_configuration_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = folder(tmp_path / "base", "a.pt"), folder(tmp_path / "models", "a.pt", "b.pt")
    here = folder(tmp_path / "here", "a.pt", "b.pt", "c.pt")
    assert resolve_weights("c.pt", base).resolve() == here / "c.pt"
    monkeypatch.setenv("HYBRID_WEIGHTS", str(models))
    assert resolve_weights("a.pt", base) == base / "a.pt"
    assert resolve_weights("b.pt", base) == models / "b.pt"
    with pytest.raises(
        ValueError,
        match=r"^c\.pt: neither beside the configuration nor in HYBRID_WEIGHTS "
        rf"\({re.escape(str(models))}\); put it there, ",
    ):
        resolve_weights("c.pt", base)  # the variable replaces the current directory


def test_the_variable_may_start_at_home_and_a_folder_is_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "models")
    folder(tmp_path / "models" / "sharded")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HYBRID_WEIGHTS", "~/models")
    assert resolve_weights("sharded", tmp_path / "base") == tmp_path / "models" / "sharded"
    assert resolve_weights("~/x/y.pt", tmp_path / "base") == tmp_path / "x" / "y.pt"


def test_paths_stay_relative_to_their_configuration(tmp_path: Path) -> None:
    base = tmp_path / "base"
    assert resolve_weights("ar/model.safetensors", base) == base / "ar" / "model.safetensors"
    assert resolve_weights("../a.pt", base) == base / ".." / "a.pt"
    assert resolve_weights("/models/a.pt", base) == Path("/models/a.pt")


def test_a_missing_file_is_told_where_it_is_published_and_both_ways_to_provide_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_weights("ImageNet_384_large.pth", tmp_path)
    assert str(caught.value) == (
        "ImageNet_384_large.pth: neither beside the configuration nor in the current directory "
        f"({Path.cwd()}); it is published at "
        "https://huggingface.co/llvictorll/Halton-MaskGIT: put it there, or set HYBRID_WEIGHTS to its folder, or write "
        "hf://llvictorll/Halton-MaskGIT/ImageNet_384_large.pth as its weights to have it downloaded"
    )
    with pytest.raises(
        ValueError,
        match=r"^mine\.pt: neither beside the configuration nor in [^\n]*, "
        r"or write hf://owner/repo/mine\.pt as its weights$",
    ):
        resolve_weights("mine.pt", tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "Lumina-mGPT-7B-768",
            "it is a folder: hf download Alpha-VLLM/Lumina-mGPT-7B-768 --local-dir Lumina-mGPT-7B-768",
        ),
        ("Lumina-mGPT-2.0", "it is a folder: hf download Alpha-VLLM/Lumina-mGPT-2.0 --local-dir Lumina-mGPT-2.0"),
        ("flan-t5-xl", "it is a folder: hf download google/flan-t5-xl --local-dir flan-t5-xl"),
        ("movqgan_270M.ckpt", "it is published at https://huggingface.co/ai-forever/MoVQGAN: put it there"),
        ("vqgan.ckpt", "it is part of Meta's Chameleon release (https://github.com/facebookresearch/chameleon)"),
        ("ImageNet_384_xlarge.pth", "or write hf://owner/repo/ImageNet_384_xlarge.pth as its weights"),
    ],
)
def test_folders_and_files_are_told_where_their_authors_have_them(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_weights(name, tmp_path)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_every_missing_file_of_a_shipped_pairing_has_a_place(tmp_path: Path) -> None:
    """No message of theirs says owner/repo, but for what nobody has published."""
    pairs = [yaml.safe_load(path.read_text()) for path in SHIPPED.parent.glob("*.yaml")]
    parts = [
        pair[part]
        for pair in pairs
        for part in ("ar", "masked", "tokenizer", "text")
        if "task" not in pair and part in pair
    ]
    names = {part["weights"] for part in parts if "weights" in part}
    untold = set()
    for name in names:
        with pytest.raises(ValueError) as caught:
            resolve_weights(name, tmp_path)
        if "owner/repo" in str(caught.value):
            untold.add(name)
    assert len(names) > 10 and untold == {"maskgil-lumina.safetensors"}


def test_hub_names_go_through_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "cache" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve_weights("hf://org/repo/sub/a.pt", tmp_path) == tmp_path / "cache" / "sub" / "a.pt"
    assert asked == [("org/repo", "sub/a.pt")]


def test_a_hub_file_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("Cannot find the file in the cache.\nMore than one line.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError) as caught:
        resolve_weights("hf://org/repo/sub/a.pt", tmp_path)
    assert str(caught.value) == (
        "hf://org/repo/sub/a.pt: cannot be had from the Hub (Cannot find the file in the cache); try again online, or "
        "download sub/a.pt from https://huggingface.co/org/repo into the folder that HYBRID_WEIGHTS names and write "
        "a.pt as its weights"
    )


@pytest.mark.parametrize("name", ["hf://", "hf://org", "hf://org/repo", "hf://org/repo/"])
def test_half_a_hub_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected hf://owner/repo/file$"):
        resolve_weights(name, tmp_path)


def test_the_hub_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"^hf://FoundationVision/LlamaGen/c2i_L_384\.pt: cannot be had [^\n]*$"):
        resolve_weights("hf://FoundationVision/LlamaGen/c2i_L_384.pt", tmp_path)


# The shipped pairing


def shipped() -> PairConfig:
    return parse(PairConfig, read_yaml(SHIPPED), str(SHIPPED))


def test_the_pairings_files_are_published_under_their_names() -> None:
    pair = shipped()
    for part in (pair.ar, pair.masked, pair.tokenizer):
        assert part is not None and part.weights in PUBLISHED
    assert pair.classes is not None and len({name.lower() for name in pair.classes}) == 1000
    for label, name in ((0, "tench"), (207, "golden retriever"), (517, "crane (machine)"), (999, "toilet tissue")):
        assert pair.classes[label] == name


def test_the_ar_sizes_that_the_file_names_fit_their_checkpoints() -> None:
    lines = re.findall(r"^(?:#   )?ar: (\{.*\})$", SHIPPED.read_text(), flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        part = ComponentConfig(**yaml.safe_load(line))
        state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[f"llamagen-{part.config}"].items()}
        net = load(part.kind, state, part.config, device="meta")
        assert net.grid == Grid(24, 24) and part.weights in PUBLISHED
        assert part.weights == f"{str(part.config).replace('-', '_')}.pt"


def test_the_other_two_fit_theirs() -> None:
    pair = shipped()
    assert pair.masked is not None
    for part, name in ((pair.masked, "halton-c2i-large-384"), (pair.tokenizer, "llamagen-VQ-16")):
        state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
        load(part.kind, state, part.config, device="meta")


def test_the_pairing_draws_with_small_weights_in_the_originals_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = folder(tmp_path / "models")
    monkeypatch.setenv("HYBRID_WEIGHTS", str(models))
    pair, parts, small = shipped(), {}, {"ar": "llamagen_c2i", "masked": "halton_c2i", "tokenizer": "llamagen_vq"}
    for name, source in small.items():
        part: Any = getattr(pair, name)
        wrapper = "model_state_dict" if name == "masked" else "model"
        tensors = load_file(GOLDEN / f"{source}.safetensors")
        state = {k.removeprefix(f"{wrapper}."): tensor for k, tensor in tensors.items() if k.startswith(f"{wrapper}.")}
        torch.save({wrapper: state, "steps": 1, "optimizer": {"step": torch.ones(1)}}, models / part.weights)
        config = getattr(load(part.kind, GOLDEN / f"{source}.safetensors"), "config", None)
        parts[name] = load(part.kind, resolve_weights(part.weights, SHIPPED.parent), config)
    defaults = pair.defaults
    masked, ar = defaults.masked, defaults.ar
    fill = Fill(
        defaults.steps,
        defaults.schedule,
        defaults.resume,
        defaults.order,
        defaults.noise,
        Sampling(Guidance(masked.guidance_scale), masked.temperature),
    )
    prefix = Sampling(Guidance(ar.guidance_scale), ar.temperature, ar.top_k)
    line = HybridSampler(parts["ar"], parts["masked"], parts["tokenizer"])
    drawn = line.generate([3], seeds=[0], ar_fraction=defaults.ar_fraction, prefix=prefix, fill=fill)
    assert drawn.images.shape == (1, 3, 16, 16) and drawn.lossy is None
    assert drawn.phases.passes["prefix"] == 16 and drawn.phases.passes["fill"] == 32


def test_a_missing_folder_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it is a folder: hf download google/flan-t5-xl --local-dir flan-t5-xl$"):
        resolve_weights("flan-t5-xl", tmp_path)
