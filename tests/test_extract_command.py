"""``hybrid-data codes``: what it extracts, and one line for everything that it cannot use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_pictures import captioned, class_folders, contents, picture, png, tar

from hybrid.data import extract as extract_module
from hybrid.data.cli import main
from hybrid.data.shards import CodeShards


@pytest.fixture
def command(weights: Path, tmp_path: Path) -> Callable[..., int]:
    def call(source: Path | str, *arguments: str) -> int:
        options = ["--tokenizer", f"fsq:{weights}", "--out", str(tmp_path / "out"), "--shard-size", "8"]
        return main(["codes", str(source), *options, "--device", "cpu", "--size", "8", *arguments])

    return call


def test_the_command_extracts_and_says_what_there_is(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = class_folders(tmp_path / "in")
    assert command(source, "--held-out", "0", "--part", "1/2") == 0
    assert "2 of 3 shards, 12 pictures (12 of 4x4; 0 held out, 0 left out)" in capsys.readouterr().out
    assert command(source, "--held-out", "0") == 0
    assert "3 of 3 shards, 20 pictures (20 of 4x4; 0 held out, 0 left out)" in capsys.readouterr().out
    assert CodeShards(tmp_path / "out").meta["tokenizer"]["kind"] == "fsq"


def test_a_device_that_is_not_there(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(class_folders(tmp_path / "in"), "--device", "gpu") == 2
    error = capsys.readouterr().err
    assert "device 'gpu': use auto, " in error and error.count("\n") == 1


def test_buckets_by_the_command(command: Callable[..., int], tmp_path: Path, weights: Path) -> None:
    source = class_folders(tmp_path / "in", 5)
    out = ["--tokenizer", f"fsq:{weights}:{{levels: [4, 3], factor: 2, width: 8, blocks: 1}}", "--out"]
    assert main(["codes", str(source), *out, str(tmp_path / "out"), "--buckets", "8", "--device", "cpu"]) == 0
    shards = CodeShards(tmp_path / "out")
    assert shards.meta["grids"] == ["4x4", "3x5", "5x3"] and shards.meta["tokenizer"]["config"]["width"] == 8


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        (class_folders, ("--max-ratio", "3"), "--max-ratio: belongs to --buckets; add it or leave this out"),
        (class_folders, ("--bucket-step", "2"), "--bucket-step: belongs to --buckets; add it or leave this out"),
        (class_folders, ("--caption-key", "prose"), "--caption-key prose: the first picture of {} has a class only;"),
        (
            captioned,
            ("--caption-key", "prose", "--ask-by", "label"),
            "--caption-key prose: --ask-by label reads none; mend the name or leave it out",
        ),
        (captioned, ("--label-key", "kind"), "--label-key kind: pictures of {} are asked by captions; add --ask-by"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    made: Callable[..., Path],
    arguments: tuple[str, ...],
    message: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = made(tmp_path / "in", 5)
    assert command(source, *arguments) == 2
    error = capsys.readouterr().err
    assert message.format(source) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("ant/zzz.png", b"no picture", "not a picture in a known format"),
        ("ant/zzz.png", png(picture(3))[:500], "not a readable picture"),
    ],
)
def test_an_unreadable_picture(
    name: str,
    data: bytes,
    reason: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = class_folders(tmp_path / "in")
    (source / name).write_bytes(data)  # the eighth file, in the first shard
    (source / "zebra" / "zzz.jpg").write_bytes(data)  # the last one
    (source / "ant" / "zzz.png").rename(source / "zebra" / "zz.png")
    assert command(source) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"hybrid-data: {source}: zebra/zz.png: {reason}")
    assert "--skip-bad" in error.splitlines()[-1] and "Traceback" not in error
    kept = contents(tmp_path / "out")
    assert "shards/00001/counts.json" in kept and "shards/00002/counts.json" not in kept
    assert command(source, "--skip-bad") == 0
    done = capsys.readouterr()
    assert "20 pictures (20 of 4x4; " in done.out and "2 left out)" in done.out
    assert "left out zebra/zz.png" in done.err
    after = contents(tmp_path / "out")
    assert all(after[name] == value for name, value in kept.items() if name != "meta.json")
    assert json.loads(after["shards/00002/counts.json"])["skipped"][1].startswith("zebra/zzz.jpg: ")


@pytest.mark.parametrize(("text", "reason"), [("  \n", "has an empty caption"), (None, "has no caption")])
def test_an_empty_caption(
    text: str | None,
    reason: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = captioned(tmp_path / "in", 10)
    (source / "009.txt").unlink() if text is None else (source / "009.txt").write_text(text)
    assert command(source) == 2
    assert f"hybrid-data: {source}: 009.png: {reason}; repair or remove it" in capsys.readouterr().err
    assert (tmp_path / "out" / "shards" / "00000").is_dir()
    assert command(source, "--skip-bad") == 0
    assert "9 pictures" in capsys.readouterr().out


def test_ctrl_c_says_that_shards_are_kept(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extract_module, "write_shard", pressed)
    assert command(class_folders(tmp_path / "in", 3)) == 130
    assert "interrupted, finished shards are kept, the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "9"], "--size 9: must be a multiple of the tokenizer's 2 pixels per token"),
        (["--part", "3/2"], "--part 3/2: expected I/N with I from 1 to N, such as 2/8"),
        (["--held-out", "1"], "--held-out 1: must be a share"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--ten-crop", "3"], "ten-crop scale 3: must be in 1..2"),
        (["--tokenizer", "fsq"], "--tokenizer fsq: expected KIND:FILE[:CONFIG]"),
        (["--tokenizer", "fsq:/no/file"], "--tokenizer: file: no such file or folder: /no/file"),
        (["--tokenizer", "vq:x"], "unknown"),
        (["--text", "minilm"], "--text minilm: pictures of "),
        (["--split", "train"], "is no Hugging Face dataset"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(class_folders(tmp_path / "in", 3), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("hybrid-data: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing: no such folder; give a folder of pictures, .tar files or hf://NAME"),
        ("empty", "empty: no picture there"),
        ("bare", "bare: 0.png has neither a caption nor a class"),
        (
            "broken.tar",
            "the first shard has no readable picture (broken.tar: is no readable .tar file from here on, truncated",
        ),
        ("missing.tar", "missing.tar: no such file"),
        ("records", "metadata.jsonl: line 1 names y.png, which is no picture in"),
    ],
)
def test_a_source_that_cannot_be_used(
    name: str, message: str, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "bare", "records"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bare" / "0.png").write_bytes(png(picture(0)))
    (tmp_path / "records" / "x.png").write_bytes(png(picture(0)))
    (tmp_path / "records" / "metadata.jsonl").write_text('{"file_name": "y.png", "text": "a"}\n')
    whole = tar(tmp_path / "whole.tar", {"0.png": os.urandom(5000)}).read_bytes()
    (tmp_path / "broken.tar").write_bytes(whole[:3000])
    assert command(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
