"""Spoilt weights by the command line: each family's file, in the original's format, with each mistake that a user may
make. The answer is one line with file, key, expected and actual, exit code 2, and no picture."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from originals import bare, write_pair, write_torch
from PIL import Image
from safetensors.torch import load_file

from hybrid.checkpoint import TORCH_SUFFIXES, read_weights, save_weights
from hybrid.cli import main
from hybrid.convert_cli import main as convert_command
from hybrid.data.cli import main as data_command
from hybrid.pairing import find_pair, read_pair

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Family:
    """Where a family's file is read, and its table that has a row for each code (or token of text)."""

    pair: str
    component: str
    table: str


FAMILIES = {
    "llamagen": Family("llamagen-halton-384", "ar", "tok_embeddings.weight"),
    "halton": Family("llamagen-halton-384", "masked", "tok_emb.weight"),
    "llamagen-vq": Family("llamagen-halton-384", "tokenizer", "quantize.embedding.weight"),
    "arpg": Family("llamagen-arpg-256", "masked", "embeddings.weight"),
    "rar": Family("rar-randar-256", "ar", "embeddings.weight"),
    "randar": Family("rar-randar-256", "masked", "tok_embeddings.weight"),
    "maskgit-vq": Family("rar-randar-256", "tokenizer", "quantize.embedding.weight"),
    "lumina": Family("lumina-maskgil-768", "ar", "model.embed_tokens.weight"),
    "maskgil": Family("lumina-maskgil-768", "masked", "tok_emb.weight"),
    "chameleon-vq": Family("lumina-maskgil-768", "tokenizer", "quantize.embedding.weight"),
    "t5": Family("lumina-maskgil-768", "text", "shared.weight"),
    "lumina-2": Family("lumina-mgpt-2", "ar", "model.embed_tokens.weight"),
    "movqgan": Family("lumina-mgpt-2", "tokenizer", "quantize.embedding.weight"),
}
PROMPTS = {"lumina-maskgil-768": "a red apple", "lumina-mgpt-2": "a red apple"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives a pairing's folder: its good files and a ``pair.yaml`` that loads them."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            fields = read_pair(find_pair(name)).model_dump() | write_pair(name, made[name])
            (made[name] / "pair.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(fields))))
        return made[name]

    return folder


class Pair:
    """A pairing's files, of which one is to be spoilt. They are links to the good ones, so replace, do not write."""

    def __init__(self, family: str, good: Path, folder: Path) -> None:
        self.family, self.about, self.folder = family, FAMILIES[family], folder
        shutil.copytree(good, folder, copy_function=os.link)
        self.yaml = folder / "pair.yaml"
        self.weights = folder / self.fields()[self.about.component]["weights"]

    def fields(self) -> dict[str, Any]:
        return yaml.safe_load(self.yaml.read_text())

    def set_config(self, config: Any) -> None:
        fields = self.fields()
        fields[self.about.component]["config"] = config
        self.yaml.unlink()
        self.yaml.write_text(yaml.safe_dump(fields))

    def files(self) -> list[Path]:
        """The weight file, or a folder's."""
        return [self.weights] if self.weights.is_file() else sorted(self.weights.glob("*.safetensors*"))

    def write(self, state: dict[str, torch.Tensor], metadata: dict[str, Any] | None = None) -> None:
        """Other weights in place of the good ones, in the same format."""
        folder = self.weights.is_dir()
        for file in self.files():
            file.unlink()
        if folder or self.weights.suffix == ".safetensors":
            save_weights(self.weights / "model.safetensors" if folder else self.weights, state, metadata=metadata)
        else:
            write_torch(self.weights, state)

    def replace(self, file: Path, content: bytes) -> None:
        file.unlink()
        file.write_bytes(content)


@pytest.fixture
def pair(family: str, originals: Callable[[str], Path], tmp_path: Path) -> Pair:
    return Pair(family, originals(FAMILIES[family].pair), tmp_path / "pair")


def refused(pair: Pair, capsys: pytest.CaptureFixture[str], line: str, *options: str) -> None:
    """The command draws nothing and answers with one line, which this pattern describes."""
    out = pair.folder / "out.png"
    prompt = PROMPTS.get(pair.about.pair, "goldfish")
    assert main([prompt, "--config", str(pair.yaml), "-o", str(out), "--seed", "1", *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and not out.exists()
    assert re.fullmatch(f"hybrid-generate: {line}\n", said.err), said.err


every = pytest.mark.parametrize("family", FAMILIES)


@every
def test_another_familys_weights(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    other = "llamagen_c2i" if pair.family in ("halton", "maskgil", "lumina", "lumina-2") else "halton_c2i"
    pair.write(bare(load_file(GOLDEN / f"{other}.safetensors")))
    refused(pair, capsys, rf"{re.escape(pair.weights.name)}: has no [\w.*]+; its keys are .+")


@every
def test_another_size(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = getattr(read_pair(find_pair(pair.about.pair)), pair.about.component).config
    if pair.family in ("lumina-2", "t5"):  # whose folder has the size
        path = pair.weights / "config.json"
        fields = json.loads(path.read_text())
        key = "d_model" if pair.family == "t5" else "hidden_size"
        pair.replace(path, json.dumps(fields | {key: 2 * fields[key]}).encode())
    else:
        pair.set_config(shipped)
    refused(pair, capsys, rf"{re.escape(pair.weights.name)}: .*[\w.]+ expected \([\d, ]+\), got \([\d, ]+\).*")


@every
def test_another_codebook(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    state, metadata = read_weights(pair.weights)
    table = state[pair.about.table].clone()
    pair.write({key: value.clone() for key, value in state.items()} | {pair.about.table: table[:-2].clone()}, metadata)
    key = "embed_tokens.weight" if pair.family == "t5" else pair.about.table
    shapes = rf"expected {re.escape(str(tuple(table.shape)))}, got \({len(table) - 2}, {table.shape[1]}\)"
    refused(pair, capsys, rf"{re.escape(pair.weights.name)}: {re.escape(key)} {shapes}")


@every
def test_a_truncated_file(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    file = pair.files()[0]
    pair.replace(file, file.read_bytes()[: file.stat().st_size // 2])
    refused(pair, capsys, rf"{re.escape(str(file.relative_to(pair.folder)))}: truncated.*")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@every
def test_a_pickle_that_wants_code(pair: Pair, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = {pair.about.table: torch.zeros(2), "more": Evil(tmp_path / "made")}
    torch.save({"model": state}, tmp_path / "evil.pt")
    file = pair.weights
    if file.is_dir():
        for shard in pair.files():
            shard.unlink()
        file = file / "pytorch_model.bin"
        shutil.copy(tmp_path / "evil.pt", file)
    else:
        pair.replace(file, (tmp_path / "evil.pt").read_bytes())
    wish = r"asks to run code on reading \(\w+\.mkdir\), which is refused; convert it to safetensors with .+"
    what = wish if file.suffix in TORCH_SUFFIXES else r"truncated or not a safetensors file \(.+\)"
    refused(pair, capsys, f"{re.escape(str(file.relative_to(pair.folder)))}: {what}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("family", ["lumina", "lumina-2", "t5"])
def test_a_missing_tokenizer(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    (pair.weights / "tokenizer.json").unlink()
    refused(pair, capsys, rf"{re.escape(str(pair.weights))}: .*tokenizer\.json.*")


@pytest.mark.parametrize(
    ("family", "height", "width", "answer"),
    [
        ("halton", 6, 8, r"grid 3x4: Halton-MaskGIT has learned positions and knows only 8x8"),
        ("arpg", 6, 8, r"grid 3x4: ARPG was trained on 6x6 only"),
        ("rar", 12, 16, r".*6x8.*6x6.*"),
        ("lumina", 48, 64, r"grid 3x4: both sides must be multiples of 2 tokens \(32 pixels\)"),
        ("lumina-2", 48, 64, r"grid 6x8: both sides must be multiples of 4 tokens \(32 pixels\)"),
        ("movqgan", 100, 64, r"size 64x100: width and height must be multiples of 8 pixels, from 8"),
    ],
)
def test_an_impossible_aspect_ratio(
    pair: Pair, height: int, width: int, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(pair, capsys, answer, "--height", str(height), "--width", str(width))


@pytest.mark.parametrize("family", ["llamagen-vq"])
def test_the_other_commands_that_read_checkpoints(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.replace(pair.weights, pair.weights.read_bytes()[:-64])
    line = r": vq_ds16_c2i\.pt: truncated \(its archive has no end\)\n"
    pictures = pair.folder / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16)).save(pictures / "one.png")
    codes = ["codes", str(pictures), "--out", str(pair.folder / "codes"), "--tokenizer", f"llamagen-vq:{pair.weights}"]
    for name, command, arguments in (
        ("hybrid-convert", convert_command, [str(pair.weights), "-o", str(pair.folder / "made")]),
        ("hybrid-convert", convert_command, [str(pair.yaml), "-o", str(pair.folder / "made")]),
        ("hybrid-data", data_command, codes),
    ):
        assert command(arguments) == 2
        assert re.fullmatch(name + line, err := capsys.readouterr().err), err
    assert not (pair.folder / "made").exists() and not (pair.folder / "codes").exists()
