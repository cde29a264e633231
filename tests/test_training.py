"""The loop: equal to plain torch, to itself after an interruption, in parts and in processes; what it writes."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from hybrid import run_folder
from hybrid.checkpoint import read_weights
from hybrid.config import LoopConfig
from hybrid.loss_plot import running_mean
from hybrid.optimization import Average, averaged, learning_rate, optimizers
from hybrid.run_folder import finished, latest_checkpoint, read_log, save_checkpoint
from hybrid.train_cli import clock, main, show
from hybrid.training import DataOrder, Progress, train
from hybrid.types import MASK

CPU = torch.device("cpu")
KINDS = ("tokenizer", "ar", "masked")
ADVERSARIAL = {"start": 2, "width": 8, "layers": 1, "lr": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_folder(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than these trainings."""
    monkeypatch.setattr("hybrid.training.can_plot", lambda: False)


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Accelerate fixes the precision of a process at its first use."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(
    kind: str, folder: Path, out: Path, *, stop: Callable[[], bool] = lambda: False, **changes: Any
) -> list[dict[str, float]]:
    """Train and return the log."""
    task, loop = tiny.task(kind, folder, **changes)
    for _ in train(task, loop, out, stop=stop):
        pass
    return read_log(out / "log.jsonl")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_weights(out / "model.safetensors")[0]


def distance(one: Path, other: Path) -> float:
    """Largest difference between two runs' final weights."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def after(steps: int) -> Callable[[], bool]:
    """True from the given call on. The loop asks twice in a step at which it halts, once otherwise or when logging."""
    seen = iter(range(1000))
    return lambda: next(seen) >= steps


# Equal to plain torch.


def reference_loss(kind: str, model: Any, batch: Any) -> torch.Tensor:
    """The definitions, written out once more."""
    if kind == "tokenizer":
        images = batch["images"]
        latent = torch.tanh(model.encoder(images))
        halves = (torch.tensor(tiny.TOKENIZER["levels"]) - 1)[:, None, None] / 2
        rounded = torch.round((latent + 1) * halves) / halves - 1
        wrong = model.decoder(latent + (rounded - latent).detach()) - images
        across, down = wrong[..., 1:] - wrong[..., :-1], wrong[..., 1:, :] - wrong[..., :-1, :]
        return wrong.abs().mean() + (wrong**2).mean() + across.abs().mean() + down.abs().mean()
    tokens = batch["tokens"]
    if kind == "ar":
        log_p = model.score(tokens, batch["condition"]).log_softmax(-1)
        return -log_p.gather(2, tokens[..., None]).mean()
    log_p = model.logits(torch.where(batch["masked"], MASK, tokens), batch["condition"]).log_softmax(-1)
    smoothed = 0.9 * log_p.gather(2, tokens[..., None])[..., 0] + 0.1 * log_p.mean(-1)
    return -(smoothed * batch["masked"]).mean()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order in which the two processes make them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_plain_loop(kind: str, folder: Path, tmp_path: Path) -> None:
    changes = {"label_smoothing": 0.1, "loop": {"ema": 0.9, "weight_decay": 0.1, "clip": 0.5}}
    log = trained(kind, folder, tmp_path, **changes)

    task, _ = tiny.task(kind, folder, **changes)
    model = task.model.train()
    named = [(name, value) for name, value in model.named_parameters()]
    smooth = {name: value.detach().clone() for name, value in named}
    groups = [
        {"params": [value for _, value in named if value.ndim > 1], "weight_decay": 0.1},
        {"params": [value for _, value in named if value.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.96))
    for step in range(6):
        rate = 1e-2 * (0.5, 1.0, 1.0, *((1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3)))[step]
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss = reference_loss(kind, model, task.batch(range(4 * step, 4 * step + 4), CPU))
        loss.backward()
        norm = torch.cat([value.grad.flatten() for _, value in named]).norm()
        for _, value in named:
            value.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))
        adam.step()
        decay = min(0.9, (2 + step) / (11 + step))
        smooth = {name: decay * smooth[name] + (1 - decay) * value.detach() for name, value in named}
        assert log[step]["loss"] == pytest.approx(loss.item(), rel=1e-5), step
        assert log[step]["lr"] == pytest.approx(rate)
    final = weights(tmp_path)
    assert all(torch.allclose(final[name], value, atol=1e-5) for name, value in smooth.items())


# Interruptions.


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted(optimizer: str, folder: Path, tmp_path: Path) -> None:
    model = json.loads(json.dumps(tiny.MODELS["masked"]))
    model["config"]["resid_dropout_p"] = 0.2
    changes: dict[str, Any] = {"model": model, "loop": {"optimizer": optimizer, "accumulate": 2, "eval_every": 2}}
    whole = trained("masked", folder, tmp_path / "whole", **changes)
    half = trained("masked", folder, tmp_path / "parts", stop=after(4), **changes)
    assert 1 < len(half) < 6 and latest_checkpoint(tmp_path / "parts") is not None
    torch.manual_seed(99)
    parts = trained("masked", folder, tmp_path / "parts", **changes)
    assert distance(tmp_path / "whole", tmp_path / "parts") == 0
    timed = ("samples_per_s", "tokens_per_s")
    assert [{k: v for k, v in line.items() if k not in timed} for line in parts] == [
        {k: v for k, v in line.items() if k not in timed} for line in whole
    ]


def test_a_discriminator_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"adversarial": ADVERSARIAL, "loop": {"accumulate": 2, "eval_every": 2}}
    whole = trained("tokenizer", folder, tmp_path / "whole", **changes)
    half = trained("tokenizer", folder, tmp_path / "parts", stop=after(4), **changes)
    assert 1 < len(half) < 6
    parts = trained("tokenizer", folder, tmp_path / "parts", **changes)
    assert [line["discriminator"] for line in parts] == [line["discriminator"] for line in whole]
    assert distance(tmp_path / "whole", tmp_path / "parts") == 0
    for name in ("auxiliary.safetensors", "ema.safetensors"):
        one, other = (read_weights(tmp_path / each / "step-0000006" / name)[0] for each in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    assert not any(key.startswith("network") for key in weights(tmp_path / "whole"))


def test_the_log_continues_without_duplicates(folder: Path, tmp_path: Path) -> None:
    trained("ar", folder, tmp_path, stop=after(4))
    start = latest_checkpoint(tmp_path)
    assert start is not None
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": start[0] + 1, "loss": 99.0}) + "\n" + '{"step": 5, "lo')
    log = trained("ar", folder, tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6] and max(line["loss"] for line in log) < 99


def test_a_kill_in_mid_save_leaves_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("ar", folder, tmp_path / "whole", loop={"save_seconds": 0})
    real = torch.save

    def killed(value: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    task, loop = tiny.task("ar", folder, loop={"save_seconds": 0})
    run = train(task, loop, tmp_path / "killed")
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    monkeypatch.setattr(torch, "save", real)
    assert (tmp_path / "killed" / "partial" / "model.safetensors").exists()
    good = latest_checkpoint(tmp_path / "killed")
    assert good is not None and good[0] == 3
    trained("ar", folder, tmp_path / "killed", loop={"save_seconds": 0})
    assert not (tmp_path / "killed" / "partial").exists()
    assert distance(tmp_path / "whole", tmp_path / "killed") == 0


@pytest.mark.parametrize("part", ["model.safetensors", "optimizers.pt"])
def test_a_full_disk_is_one_line_and_loses_nothing(part: str, tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk; the optimiser's file is twice the model's."""
    model = nn.Linear(100, 100)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100)).sum().backward()
    adam.step()
    good = save_checkpoint(tmp_path, 1, model, None, [adam], {})
    kept = {path.name: path.read_bytes() for path in good.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if part == "model.safetensors" else 60_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            save_checkpoint(tmp_path, 2, model, None, [adam], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "step-0000002: could not be written (File too large); the last good checkpoint is step-0000001" in message
    assert "\n" not in message
    assert latest_checkpoint(tmp_path) == (1, good) and not (tmp_path / "partial").exists()
    assert {path.name: path.read_bytes() for path in good.iterdir()} == kept


def test_two_runs_never_share_a_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    task, loop = tiny.task("ar", folder)
    first = train(task, loop, tmp_path)
    next(first)
    with pytest.raises(ValueError, match="another run is writing here; wait for it or give another --out"):
        next(train(task, loop, tmp_path))
    first.close()
    assert list(train(task, loop, tmp_path))


def test_a_full_disk_in_the_log_names_it(folder: Path, tmp_path: Path) -> None:
    task, loop = tiny.task("ar", folder)
    run = train(task, loop, tmp_path)
    next(run)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"log\.jsonl: cannot be written \(No space left on device\)"):
        next(run)


def test_a_checkpoint_of_other_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    trained("ar", folder, tmp_path, loop={"steps": 1})
    wider = json.loads(json.dumps(tiny.MODELS["ar"]))
    wider["config"]["n_layer"] = 2
    for changes, message in (
        ({"model": wider}, r"step-0000001: trained with model\.config\.n_layer 1, asked for 2; .*another --out"),
        ({"loop": {"optimizer": "muon"}}, "step-0000001: trained with another optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            trained("ar", folder, tmp_path, **changes)
    trained("tokenizer", folder, tmp_path / "alone", loop={"steps": 1})
    trained("tokenizer", folder, tmp_path / "against", loop={"steps": 1}, adversarial=ADVERSARIAL)
    for name, adversarial, message in (
        ("alone", ADVERSARIAL, "step-0000001: trained without an auxiliary network"),
        ("against", None, "step-0000001: trained with an auxiliary network"),
        ("against", {**ADVERSARIAL, "width": 16}, "step-0000001: trained with another auxiliary network"),
    ):
        with pytest.raises(ValueError, match=message):
            trained("tokenizer", folder, tmp_path / name, adversarial=adversarial)
    (tmp_path / "step-0000001" / "ema.safetensors").unlink()
    with pytest.raises(ValueError, match=r"trained with ema 0, asked for 0\.999"):
        trained("ar", folder, tmp_path)


# Parts of a batch.


def test_accumulated_parts_equal_the_whole_batch(folder: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        whole = trained(kind, folder, tmp_path / kind / "whole", loop={"batch_size": 16})
        parts = trained(kind, folder, tmp_path / kind / "parts", loop={"batch_size": 8, "accumulate": 2})
        assert distance(tmp_path / kind / "whole", tmp_path / kind / "parts") < 1e-5
        assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-5)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("muon", 1e-3)])
def test_two_processes_equal_one_with_twice_the_batch(
    optimizer: str, lr: float, folder: Path, tmp_path: Path, one_thread: None
) -> None:
    """torch's Muon orthogonalises in bf16: sums in another order differ by 2^-8 of a step here and there, so its steps
    are small here. Two processes that did not share gradients would differ by whole steps."""
    loop = {"optimizer": optimizer, "lr": lr, "save_seconds": 0, "log_every": 3}
    runs: dict[str, Any] = {"tokenizer": {"loop": loop, "adversarial": ADVERSARIAL}, "masked": {"loop": loop}}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    asked = {kind: changes | {"loop": loop | {"device": "auto"}} for kind, changes in runs.items()}  # as users run it
    script = [str(Path(tiny.__file__)), str(folder), str(tmp_path / "two"), json.dumps(asked)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for kind, changes in runs.items():
        one = trained(kind, folder, tmp_path / "one" / kind, **changes)
        two = read_log(tmp_path / "two" / kind / "log.jsonl")
        assert distance(tmp_path / "one" / kind, tmp_path / "two" / kind) < 1e-5
        assert [line["step"] for line in two] == [3, 6]
        for name, close in {"loss": 1e-5, "ratio": 1e-4, "discriminator": 1e-5}.items():
            expected = [line.get(name, 0.0) for line in one]
            assert [line.get(name, 0.0) for line in two] == pytest.approx(expected, rel=close), name


# Pieces.


def test_learning_rate() -> None:
    def at(step: int, schedule: str = "cosine", steps: int = 14) -> float:
        return learning_rate(step, peak=2.0, warmup=4, steps=steps, schedule=schedule)

    assert [at(step, "wsd", 16) for step in (3, 4, 12, 13, 14, 15)] == [2, 2, 2, 1.5, 1, 0.5]
    assert at(9, "wsd", 16) == at(9, "wsd", 1000)

    assert [at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert at(9) == pytest.approx(1.0) and at(14) == pytest.approx(0.0) and at(20) == pytest.approx(0.0)
    assert at(13, "constant") == 2.0 and at(1, "constant") == 1.0


def test_average_and_its_loan_to_the_model() -> None:
    model = nn.Linear(1, 1, bias=False).train()
    nn.init.zeros_(model.weight)
    average = Average(model, 0.5)
    expected = 0.0
    for update in range(1, 12):
        nn.init.constant_(model.weight, float(update))
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert float(average.parameters["weight"]) == pytest.approx(expected)
    with pytest.raises(RuntimeError), averaged(model, average) as smooth:
        assert smooth.weight.item() == pytest.approx(expected) and not smooth.training
        raise RuntimeError
    assert model.weight.item() == 11.0 and model.training
    with averaged(model, None) as plain:
        assert plain.weight.item() == 11.0 and not plain.training


def test_muon_takes_hidden_matrices_only() -> None:
    task_model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "output": nn.Linear(4, 2)})
    adam, muon = optimizers(task_model, LoopConfig(steps=1, optimizer="muon", weight_decay=0.3))
    assert [tuple(value.shape) for value in muon.param_groups[0]["params"]] == [(4, 4)]
    assert [group["weight_decay"] for group in adam.param_groups] == [0.3, 0.0]
    assert [[tuple(v.shape) for v in group["params"]] for group in adam.param_groups] == [[(2, 4)], [(4,), (2,)]]
    with pytest.raises(ValueError, match="muon does not go with precision: fp16"):
        optimizers(task_model, LoopConfig(steps=1, optimizer="muon", precision="fp16"))


def test_data_order() -> None:
    order = DataOrder(50, seed=1)
    epochs = [[order[50 * epoch + place] for place in range(50)] for epoch in range(2)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs) and epochs[0] != epochs[1]
    assert [DataOrder(50, seed=1)[number] for number in (99, 0, 50)] == [epochs[1][49], epochs[0][0], epochs[1][0]]
    assert [DataOrder(50, seed=2)[number] for number in range(50)] != epochs[0]
    weighted = DataOrder(2000, 0, torch.tensor([3.0, 1.0]).repeat_interleave(1000))
    assert sum(weighted[number] < 1000 for number in range(2000)) / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_loss_that_is_no_number_stops_with_advice(folder: Path, tmp_path: Path) -> None:
    task, loop = tiny.task("ar", folder, loop={"save_seconds": 0})
    run = train(task, loop, tmp_path)
    next(run)
    with torch.no_grad():
        task.model.output.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"step 2: the loss is nan; lower lr \(0\.01\) or raise warmup.*step-0000001"):
        next(run)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1]
    assert not weights(tmp_path / "step-0000001")["output.weight"].isnan().any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision: str, folder: Path, tmp_path: Path, other_precision: None) -> None:
    loop = {"precision": precision, "steps": 3, "sample_every": 3, "eval_every": 3}
    log = trained("ar", folder, tmp_path, loop=loop)
    assert log[-1]["eval_nats"] == pytest.approx(math.log(tiny.CODES), rel=0.2)
    assert (tmp_path / "samples" / "0000003.png").exists()
    final, fresh = weights(tmp_path), tiny.task("ar", folder)[0].model.state_dict()
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in final.values())
    assert not torch.equal(final["output.weight"], fresh["output.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured graphs, forwards and backwards, run by torch's kernels: generating and compiling C++ for them takes
    minutes on a busy machine and is torch's own business."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager = trained(kind, folder, tmp_path / "eager", loop={"steps": 2})
    compiled = trained(kind, folder, tmp_path / "compiled", loop={"steps": 2, "compile": True})
    assert [x["loss"] for x in compiled] == pytest.approx([x["loss"] for x in eager], rel=1e-5)
    assert distance(tmp_path / "eager", tmp_path / "compiled") < 1e-5


def test_loss_plot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running_mean([1.0, 3.0, 5.0], window=2) == [1.0, 2.0, 4.0]
    trained("masked", folder, tmp_path, loop={"eval_every": 2})
    assert not (tmp_path / "loss.png").exists()
    pytest.importorskip("matplotlib")
    monkeypatch.undo()
    trained("masked", folder, tmp_path, loop={"steps": 7})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# The command.


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


def test_training_starts_from_given_weights(command: Callable[..., int], tmp_path: Path) -> None:
    start = tmp_path / "start"
    assert command("--out", str(start), "--steps", "1") == 0
    barely = {"loop": {**tiny.config("ar").loop.model_dump(mode="json"), "lr": 1e-12, "ema": 0, "steps": 1}}
    assert command("--init", str(start / "model.safetensors"), **barely) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "out"))
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=0)
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("--init", "no.safetensors"), {}, "no.safetensors: no such file or folder"),
        ((), {"balanse": 1}, "unknown key 'balanse'; did you mean 'balance'?"),
        (("--data", "/nowhere"), {}, "/nowhere: no such data folder; build it with: hybrid-data tiny --out /nowhere"),
        (("--tokenizer", "no.safetensors"), {}, "no.safetensors: no such tokenizer; hybrid-train train-tiny-tokenizer"),
        (("--steps", "0"), {}, "--steps: steps: Input should be greater than 0 (got 0)"),
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
    assert main(["train-nothing"]) == 2
    assert "train-fashion-ar" in capsys.readouterr().err


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
