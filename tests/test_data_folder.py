"""Fashion-MNIST's files, the folder that data sets are kept in, and ``hybrid-data``."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybrid.data import cli
from hybrid.data.fashion import CLASSES, build_fashion, read_idx
from hybrid.data.folder import DataError, DataFolder, create_images, default_folder, new_folder, write_records


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        pictures = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pictures))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder


def test_fashion_pads_and_keeps_the_order(idx_folder: Path, tmp_path: Path) -> None:
    data = build_fashion(tmp_path / "fashion", source=idx_folder)
    assert data.images.shape == (17, 1, 32, 32, 1)
    assert data.indices("train").tolist() == list(range(12)) and data.indices("test").tolist() == list(range(12, 17))
    assert np.array_equal(data.images[12:, 0, 2:30, 2:30, 0], read_idx(idx_folder / "t10k-images-idx3-ubyte.gz"))
    assert data.images[:, :, :2].max() == 0 and data.images[..., 30:, :].max() == 0
    assert data.items[9] == {"index": 9, "label": 9, "captions": ["ankle boot"], "split": "train"}
    assert data.meta["classes"] == list(CLASSES) and len(CLASSES) == 10
    assert isinstance(data.images, np.memmap)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is no readable gzip file"),
        (gzip.compress(b"\x01\x02\x03\x04"), "is no idx file of unsigned bytes"),
        (gzip.compress(struct.pack(">HBBI", 0, 8, 1, 9) + b"123"), r"expected 9 values for shape \(9,\), got 3"),
        (idx(np.zeros(200, np.uint8))[:20], "is no readable gzip file, truncated"),
    ],
)
def test_broken_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "labels.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file)
    assert str(file) in str(caught.value)


def small_folder(out: Path) -> DataFolder:
    with new_folder(out) as work:
        images = create_images(work, (2, 1, 4, 4, 3))
        images[:] = 7
        images.flush()
        items = [{"index": n, "captions": ["x"], "split": "train"} for n in range(2)]
        write_records(work, items, {"name": "emoji"}, "licences")
    return DataFolder.open(out)


@pytest.mark.parametrize(
    ("file", "cut", "message"),
    [
        ("meta.json", None, "not found"),
        ("images.npy", None, "not found"),
        ("items.jsonl", None, "not found"),
        ("meta.json", 5, "is not JSON"),
        ("images.npy", 150, "cannot be mapped, truncated?"),
        ("items.jsonl", 30, "line 1 is not JSON"),
        ("items.jsonl", 50, "expected 2 lines, got 1"),
    ],
)
def test_a_broken_folder_names_file_and_command(tmp_path: Path, file: str, cut: int | None, message: str) -> None:
    out = tmp_path / "emoji"
    small_folder(out)
    content = (out / file).read_bytes()
    if cut is None:
        (out / file).unlink()
    else:
        (out / file).write_bytes(content[:cut])
    with pytest.raises(DataError) as caught:
        DataFolder.open(out)
    assert message in str(caught.value)
    assert str(out / file) in str(caught.value) and "hybrid-data emoji" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture has split 'valid'; the splits are train"):
        small_folder(tmp_path / "emoji").indices("valid")


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not a data folder"), new_folder(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"


def test_a_failed_rebuild_keeps_the_old_folder(tmp_path: Path) -> None:
    small_folder(tmp_path / "emoji")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "emoji") as work:
        (work / "images.npy").write_bytes(b"half")
        raise RuntimeError
    assert len(DataFolder.open(tmp_path / "emoji")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs \d+ MB, has \d+ MB"), new_folder(tmp_path / "emoji") as work:
        create_images(work, (10**9, 8, 64, 64, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion", "--from", "nowhere"], "--from nowhere: no such folder"),
        (["fashion", "--from", "."], "apt-get download dataset-fashion-mnist"),
        (["emoji", "--from", "."], "npm pack @iconify/json@"),
        (["emoji", "--from", ".", "--views", "0"], "views must be at least 1, got 0"),
        (["emoji", "--from", ".", "--seed", "-1"], "seed must be at least 0, got -1"),
    ],
)
def test_the_command_fails_with_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("resvg_py") if "emoji" in arguments else None
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("set_", ["emoji", "fashion"])
def test_missing_client_names_the_remedy(
    set_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py") if set_ == "emoji" else None
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("hybrid.data.fashion.INSTALLED", tmp_path / "absent")
    assert cli.main([set_]) == 2
    assert "is not installed; " in (error := capsys.readouterr().err) and "--from a folder" in error


def test_the_command_builds_fashion(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    assert cli.main(["fashion", "--from", str(idx_folder)]) == 0
    assert "17 pictures (12 train, 5 test)" in capsys.readouterr().out
    assert len(DataFolder.open(default_folder("fashion"))) == 17


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, hybrid.data.cli, hybrid.data.emoji, hybrid.data.fashion;"
        "print({'torch', 'resvg_py', 'PIL', 'rich', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "set()"
