"""``hybrid-train``: what it says, its mistakes and Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from hybrid import run_folder
from hybrid.config import LoopConfig
from hybrid.run_folder import finished, latest_checkpoint
from hybrid.train_cli import clock, main, show
from hybrid.training import Progress

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def command(folder: Path, tmp_path: Path) -> Callable[..., int]:
    """``hybrid-train`` with a configuration of its own, changed where asked."""

    def call(*arguments: str, **changes: Any) -> int:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(tiny.config("ar").model_dump(mode="json") | changes))
        weights_file = ["--tokenizer", str(tiny.tokenizer_file(folder))]
        return main([str(path), "--data", str(folder), *weights_file, "--out", str(tmp_path / "out"), *arguments])

    return call


def test_the_command_trains_and_says_when_it_is_done(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--steps", "2") == 0
    text = capsys.readouterr().out
    assert "step 2/2 loss " in text and "tokens_per_s" in text and "left 0:00" in text and "done: " in text
    assert command("--steps", "2") == 0
    assert "trained to step 2 already; --steps above 2 goes on" in capsys.readouterr().out
    assert finished(tmp_path / "out", 2) == 2 and finished(tmp_path / "out", 3) is None
    (tmp_path / "out" / "model.safetensors").unlink()
    assert command("--steps", "2") == 0 and finished(tmp_path / "out", 2) == 2


def test_a_folder_of_other_weights_is_left_alone(
    command: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"dear weights")
    assert command("--steps", "1", "--out", str(kept.parent)) == 2
    assert "holds model.safetensors that is no run's; give another --out" in capsys.readouterr().err
    assert kept.read_bytes() == b"dear weights"
    assert command("--steps", "2") == 0
    masked = tiny.config("masked").model_dump(mode="json")
    capsys.readouterr()
    assert command("--steps", "2", **{key: masked[key] for key in ("task", "model")}) == 2
    assert "out: is a finished run of llamagen, run trains maskgil; give another --out" in capsys.readouterr().err


def test_training_starts_from_given_weights(command: Callable[..., int], tmp_path: Path) -> None:
    start = tmp_path / "start"
    assert command("--out", str(start), "--steps", "1") == 0
    barely = {"loop": {**tiny.config("ar").loop.model_dump(mode="json"), "lr": 1e-12, "ema": 0, "steps": 1}}
    assert command("--init", str(start / "model.safetensors"), **barely) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "out"))
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=0)
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


def test_weights_of_other_heads_are_refused_to_start_from(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their shapes are the same."""
    start = tmp_path / "start"
    assert command("--out", str(start), "--steps", "1") == 0
    config = {**tiny.MODELS["ar"]["config"], "n_head": 4}  # type: ignore[dict-item]
    assert command("--init", str(start / "model.safetensors"), model={"kind": "llamagen", "config": config}) == 2
    assert "run.yaml: model.config.n_head: 4, but " in capsys.readouterr().err


def test_it_says_that_a_run_goes_on(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--steps", "1") == 0 and "goes on" not in capsys.readouterr().out
    assert command("--steps", "2") == 0 and "out: goes on from step 1" in capsys.readouterr().out


def test_evaluation_of_a_runs_weights_and_of_others(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--evaluate") == 2
    assert "out: no model.safetensors, best.safetensors or step-N checkpoint" in capsys.readouterr().err
    assert command("--steps", "2") == 0
    logged = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    before = {path: path.stat().st_mtime for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert command("--evaluate", "4") == 0
    own = capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in (tmp_path / "out").rglob("*")} == before
    row = next(line for line in own.splitlines() if " nats " in line)
    assert f"{logged['eval_nats']:.4g}" in row and "nats per token" in row
    weights = tmp_path / "elsewhere.safetensors"
    (tmp_path / "out" / "model.safetensors").rename(weights)
    assert command("--evaluate", "4", "--init", str(weights)) == 0
    assert next(line for line in capsys.readouterr().out.splitlines() if " nats " in line) == row
    assert command("--evaluate", "1", "--init", str(weights)) == 2
    assert "--evaluate 1: must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("--init", "no.safetensors"), {}, "no.safetensors: no such file or folder"),
        ((), {"balanse": 1}, "unknown key 'balanse'; did you mean 'balance'?"),
        (
            ("--data", "/nowhere"),
            {},
            "/nowhere: no such data folder; build it with: hybrid-data codes SOURCE ",
        ),
        (
            ("--data", "/nowhere"),
            {"data": "emoji"},
            "build it with: hybrid-data emoji --out /nowhere",
        ),
        (("--threads", "-1"), {}, "--threads -1: must be at least 1"),
        (("--threads", "100000"), {}, "--threads 100000: must be at most 1024"),
        (("--stepz", "3"), {}, "unknown option --stepz; did you mean --steps?"),
        (
            (),
            {"model": {**tiny.MODELS["ar"], "config": {"n_head": 0}}},
            "n_head: Input should be greater than 0",
        ),
        (
            (),
            {"model": {**tiny.MODELS["ar"], "config": {"dim": 200, "n_head": 20}}},
            "dim 200: must be a multiple of 4 for each of n_head 20",
        ),
        (("--tokenizer", "no.safetensors"), {}, "no.safetensors: no such tokenizer; hybrid-train train-tiny-tokenizer"),
        (("--shard-mb", "inf"), {}, "--shard-mb inf: must be a number of megabytes above 0"),
        (
            (),
            {"model": {**tiny.MODELS["ar"], "config": {"vocab_size": -5}}},
            "vocab_size: Input should be greater than 0",
        ),
        (("--steps", "0"), {}, "--steps: steps: Input should be greater than 0 (got 0)"),
        (("--plan", "--evaluate"), {}, "--plan and --evaluate: are each done instead of training; give one"),
        (("--gpus", "2"), {}, "--gpus: is what --plan reckons with; add it or leave --gpus out"),
        (
            (),
            {"task": "tokenizer", "model": tiny.MODELS["tokenizer"]},
            "--tokenizer: run trains one; leave it out, or start from it by --init",
        ),
        ((), {"task": "masked"}, "model.kind: task 'masked' cannot train 'llamagen'"),
        (("--out", "/dev/null/x"), {}, "/dev/null/x"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: tuple[str, ...],
    changes: dict[str, Any],
    message: str,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(*arguments, **changes) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("hybrid-train: ")


def test_an_unknown_configuration_names_those_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-fashion-unifed"]) == 2
    error = capsys.readouterr().err
    assert "did you mean train-fashion-unified? Shipped: train-emoji-ar, " in error and error.count("\n") == 1
    assert "bench-fashion" not in error and "llamagen-halton-384" not in error


def test_ctrl_c_saves_and_says_how_to_go_on(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = run_folder.Log.write

    def pressed(log: run_folder.Log, step: int, figures: Any) -> None:
        write(log, step, figures)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.default_int_handler
    inherited = signal.signal(signal.SIGINT, before)  # a job in a shell's background starts with it ignored
    monkeypatch.setattr(run_folder.Log, "write", pressed)
    assert command() == 130
    text = capsys.readouterr().out
    assert "once more stops at once" in text and "stopped at step 3, which is saved in" in text
    found = latest_checkpoint(tmp_path / "out")
    assert found is not None and found[0] == 3 and signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    signal.signal(signal.SIGINT, inherited)
    assert command() == 0


def test_a_terminal_gets_a_bar() -> None:
    figures = {"loss": 1.25, "samples_per_s": 2.0, "tokens_per_s": 512.0}
    loop = LoopConfig(steps=100, batch_size=4)
    entries = [Progress(10, figures | {"eval_nats": 3.5, "best_step": 10}), Progress(20, figures)]
    screen = io.StringIO()
    assert show(entries, loop, Console(file=screen, force_terminal=True, width=120)) == 20
    text = screen.getvalue()
    for expected in ("20/100", "loss 1.25", "512 tokens/s", "2:40 left", "held-out nats 3.5, best at step 10"):
        assert expected in text
    assert clock(3723) == "1:02:03"


def test_help_is_fast_and_loads_no_torch() -> None:
    code = "import sys, hybrid.train_cli as c\ntry: c.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
