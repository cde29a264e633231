"""``hybrid-convert``: golden files of every family told apart, written anew and loaded to the same model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import class_pair
from safetensors.torch import load_file, save_file

from hybrid import HybridPipeline
from hybrid.adapters import load
from hybrid.adapters.families import MARKERS, find_family, find_sizes
from hybrid.checkpoint import Mismatch
from hybrid.convert import convert, inspect
from hybrid.convert_cli import main

GOLDEN = Path(__file__).parent / "golden"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
FAMILIES = {
    "llamagen_c2i": "llamagen",
    "llamagen_t2i": "llamagen",
    "maskgil_c2i": "maskgil",
    "halton_c2i": "halton",
    "lumina": "lumina",
    "llamagen_vq": "llamagen-vq",
    "chameleon_vq": "chameleon-vq",
    "movqgan": "movqgan",
    "randar_c2i": "randar",
    "arpg_c2i": "arpg",
    "rar_c2i": "rar",
    "maskgit_vq": "maskgit-vq",
}


@pytest.mark.parametrize(("name", "kind"), FAMILIES.items())
def test_every_family_is_told_and_written_anew(name: str, kind: str, tmp_path: Path) -> None:
    source = GOLDEN / f"{name}.safetensors"
    told = convert(source, tmp_path / "made")
    assert told.kind == kind and told.sizes == () and told.parameters > 0
    one, again = load(kind, source), load(kind, tmp_path / "made")
    assert one.config == again.config
    for key, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert inspect(tmp_path / "made").kind == kind
    assert f'hybrid.adapters.load("{kind}", "made")' in (tmp_path / "made" / "README.md").read_text()


def test_full_sizes_are_named_and_those_that_differ_in_the_grid_alone_together() -> None:
    for name, wanted in {
        "llamagen-c2i-L-384": ("llamagen", ("c2i-L-256", "c2i-L-384")),
        "llamagen-t2i-XL-256": ("llamagen", ("t2i-XL-256", "t2i-XL-512")),
        "maskgil-c2i-B-256": ("maskgil", ("c2i-B-256",)),
        "halton-c2i-large-384": ("halton", ("large-384",)),
        "llamagen-VQ-16": ("llamagen-vq", ("VQ-16",)),
        "chameleon-vqgan": ("chameleon-vq", ("chameleon-vqgan",)),
        "movqgan-270M": ("movqgan", ("movqgan-270M",)),
    }.items():
        state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
        kind = find_family(state, name)
        assert (kind, find_sizes(kind, state)) == wanted
        # A flattened wrapper hides nothing.
        assert find_family({f"module.{key}": value for key, value in state.items()}, name) == kind


def test_embedded_kinds_are_told(tmp_path: Path) -> None:
    class_pair().save_pretrained(tmp_path)
    assert inspect(tmp_path / "tokenizer").kind == "fsq"
    told = inspect(tmp_path / "ar")
    assert (told.kind, told.codes, told.grid, told.wrapper) == ("llamagen", 12, "4x4", "")
    assert told.dtypes == {"float32": len(load_file(tmp_path / "ar" / "model.safetensors"))}


def test_wrapper_and_what_stands_beside_the_weights_are_told(tmp_path: Path) -> None:
    golden = load_file(GOLDEN / "llamagen_c2i.safetensors")
    state = {key.removeprefix("model."): value for key, value in golden.items() if key.startswith("model.")}
    config = load("llamagen", GOLDEN / "llamagen_c2i.safetensors").config
    torch.save(
        {"model": {f"_orig_mod.{k}": v for k, v in state.items()}, "steps": 7, "config": config}, tmp_path / "a.pt"
    )
    told = inspect(tmp_path / "a.pt")
    assert (told.kind, told.wrapper, told.beside) == ("llamagen", "_orig_mod.", ("steps",))


def full_size(path: Path, name: str) -> Path:
    """A file with a published size's shapes that takes no space: every weight is one number, expanded."""
    torch.save({key: torch.zeros(1).expand(shape) for key, shape in SHAPES[name].items()}, path)
    return path


def test_a_grid_that_the_file_does_not_tell_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = full_size(tmp_path / "c2i_L_384.pt", "llamagen-c2i-L-384")
    told = inspect(source)
    assert (told.grid, told.grids) == (None, ("16x16", "24x24"))
    assert "grid       not told by the file: 16x16 or 24x24" in run(capsys, source, "--inspect")[1]
    named = inspect(source, config="c2i-L-384")
    assert (named.grid, named.grids) == ("24x24", ())
    code, _, err = run(capsys, source, "-o", tmp_path / "made")
    words = "does not tell its grid (16x16 or 24x24); say --config c2i-L-256 or c2i-L-384"
    assert (code, err) == (2, f"hybrid-convert: c2i_L_384.pt: {words}\n")
    assert not (tmp_path / "made").exists()


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_the_command_tells_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "llamagen_vq.safetensors"
    code, out, err = run(capsys, source, "--inspect")
    assert (code, err) == (0, "")
    assert "family     llamagen-vq" in out and "codes      64" in out and "wrapper    model." in out
    told = json.loads(run(capsys, source, "-o", tmp_path / "vq", "--dtype", "fp16", "--json")[1])
    assert told["kind"] == "llamagen-vq"
    assert {value.dtype for value in load_file(tmp_path / "vq" / "model.safetensors").values()} == {torch.float16}


def test_a_pairing_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = class_pair()
    pipe.save_pretrained(tmp_path / "parts")
    entries = [f"{part}: {{kind: {pipe.kinds[part]}, weights: parts/{part}}}" for part in ("ar", "masked", "tokenizer")]
    (tmp_path / "pair.yaml").write_text("\n".join(entries))
    code, _, err = run(capsys, tmp_path / "pair.yaml", "-o", tmp_path / "made")
    assert (code, err) == (0, "")
    how: dict[str, Any] = {"seed": 1, "output_type": "tokens"}
    one, again = (HybridPipeline.from_pretrained(tmp_path / name) for name in ("pair.yaml", "made"))
    assert torch.equal(one(1, **how).tokens, again(1, **how).tokens)


def test_what_is_missing_extra_or_of_another_shape_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_pair().save_pretrained(tmp_path)
    path = tmp_path / "ar" / "model.safetensors"
    state = load_file(path)
    del state["norm.weight"]
    state["layers.0.attention_norm.weight"] = state["layers.0.attention_norm.weight"][:3].clone()
    for number in range(7):
        state[f"extra.{number}"] = torch.zeros(1)
    config = json.loads((tmp_path / "ar" / "config.json").read_text())["config"]
    save_file(state, path, {"config": json.dumps(config)})
    with pytest.raises(Mismatch) as caught:
        inspect(path)
    assert caught.value.missing == ["norm.weight"] and len(caught.value.unexpected) == 7
    code, out, err = run(capsys, path, "--inspect")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0].startswith("hybrid-convert: model.safetensors: missing 1 of ")
    assert lines[1:] == [
        "  missing: norm.weight",
        *(f"  unexpected: extra.{number}" for number in range(7)),
        f"  differing: layers.0.attention_norm.weight expected ({config['dim']},), got (3,)",
    ]


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}))
    (tmp_path / "pair.yaml").write_text("{}")
    vq = GOLDEN / "llamagen_vq.safetensors"
    for arguments, message in (
        ([tmp_path / "gone.pt", "--inspect"], "no such file or folder"),
        (
            [tmp_path / "other.safetensors", "--inspect"],
            f"of no known family; known: {', '.join(MARKERS)}; its keys are",
        ),
        ([tmp_path / "evil.pt", "--inspect"], "asks to run code on reading"),
        ([vq, "--inspect", "--dtype", "fp16"], "--dtype: is what -o writes; leave it out"),
        ([tmp_path / "pair.yaml", "-o", tmp_path / "x", "--json"], "--json: tells of weight files"),
        ([vq], "say --inspect to look, or -o FOLDER to write"),
        ([vq, "--inspect", "-o", tmp_path], "say --inspect to look, or -o FOLDER to write"),
        ([vq, "--inspect", "--kind", "llamagan-vq"], "unknown kind 'llamagan-vq'; did you mean 'llamagen-vq'?"),
        ([vq, "--inspect", "--config", "VQ-17"], "unknown size 'VQ-17'; known: "),
        ([vq, "-o", tmp_path / "made", "--dtype", "fp8"], "dtype 'fp8': use auto, fp32, bf16, fp16"),
        ([vq, "-o", vq.parent], "holds the file to be read; name another folder"),
        ([tmp_path / "pair.yaml", "--inspect"], "--inspect looks into weight files; a YAML is plain text"),
        ([tmp_path / "pair.yaml", "-o", tmp_path, "--kind", "fsq"], "--kind and --config: the YAML says them"),
        ([vq, "--inspekt"], "unknown option --inspekt; did you mean --inspect?"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and message in err.splitlines()[0], err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_a_folder_that_is_not_its_own_is_left_alone(tmp_path: Path) -> None:
    source, project = GOLDEN / "llamagen_c2i.safetensors", tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine")
    (project / "config.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="exists and is no component's folder; name another one or move it away"):
        convert(source, project)
    with pytest.raises(ValueError, match="exists and is no pair; name another folder or move it away"):
        class_pair().save_pretrained(project)
    assert (project / "README.md").read_text() == "mine" and len(list(project.iterdir())) == 2
    for _ in range(2):  # what it wrote itself is written anew
        convert(source, tmp_path / "made")
        class_pair().save_pretrained(tmp_path / "pair")
