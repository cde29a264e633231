"""The loop: equal to plain torch, to itself after an interruption, in parts and in processes; what it writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from tiny import ADVERSARIAL, distance, trained, weights
from torch import nn

from hybrid import optimization
from hybrid.config import LoopConfig
from hybrid.loss_plot import running_mean
from hybrid.optimization import Average, averaged, find_precision, learning_rate, optimizers
from hybrid.run_folder import read_log
from hybrid.training import DataOrder, _halting, train
from hybrid.types import MASK

pytestmark = pytest.mark.usefixtures("no_plots")

CPU = torch.device("cpu")
KINDS = ("tokenizer", "ar", "masked")


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Accelerate fixes the precision of a process at its first use."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
    changes: dict[str, Any] = {"loop": {"ema": 0.9, "weight_decay": 0.1, "clip": 0.5}}
    changes |= {"label_smoothing": 0.1} if kind == "masked" else {}
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
    runs: dict[str, Any] = {"masked": {"loop": loop}}
    if optimizer == "adamw":
        runs["tokenizer"] = {"loop": loop, "adversarial": ADVERSARIAL}
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


def test_muon_in_float32_is_torchs_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid.muon import Float32Muon  # needs torch 2.9

    shapes = ((6, 4), (4, 9), (5, 5))
    found = {}
    for computes, kind in ((True, torch.optim.Muon), (False, Float32Muon)):
        monkeypatch.setattr(optimization, "computes_bf16", lambda device, known=computes: known)
        assert optimization.muon_for(torch.device("cpu")) is kind
        assert optimization.muon_for(torch.device("cuda")) is torch.optim.Muon
        torch.manual_seed(0)
        values = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        muon = kind(values, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            for value in values:
                value.grad = torch.randn(value.shape)
            muon.step()
        found[kind] = values, muon.state_dict()
    (ours, kept), (theirs, known) = found[Float32Muon], found[torch.optim.Muon]
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.detach(), other.detach()
        assert float((one - other).norm() / other.norm()) < 0.01
    assert kept["param_groups"] == known["param_groups"]
    for key, state in known["state"].items():
        assert torch.equal(kept["state"][key]["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_orthogonal_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    from hybrid.muon import orthogonal

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = 3.4445, -4.7750, 2.0315
    values = values / values.norm()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonal(matrix, (a, b, c), 5, 1e-7), u @ values.diag() @ v)


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


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_other_precisions_train(precision: str, folder: Path, tmp_path: Path, other_precision: None) -> None:
    loop = {"precision": precision, "steps": 3, "sample_every": 3, "eval_every": 3}
    log = trained("ar", folder, tmp_path, loop=loop)
    assert log[-1]["eval_nats"] == pytest.approx(math.log(tiny.CODES), rel=0.2)
    assert (tmp_path / "samples" / "0000003.png").exists()
    final, fresh = weights(tmp_path), tiny.task("ar", folder)[0].model.state_dict()
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in final.values())
    assert not torch.equal(final["output.weight"], fresh["output.weight"])


@pytest.mark.parametrize("computes", [True, False])
def test_auto_precision_is_bf16_where_the_device_computes_in_it(
    computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computes)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: computes)
    expected = "bf16" if computes else "no"
    assert find_precision("auto", CPU) == find_precision("auto", torch.device("cuda")) == expected
    assert find_precision("auto", torch.device("mps")) == "no"
    assert [find_precision(asked, CPU) for asked in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert find_precision("auto", CPU) == "no"


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


def test_several_processes_ask_each_other_whether_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes, device, asked = 2, CPU, 0

        def reduce(self, vote: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "sum"
            self.asked += 1
            return vote + 1  # the other process was told to stop

    several: Any = Two()
    halting = [step for step in range(1, 41) if _halting(several, lambda: False, step)]
    assert halting == [10, 20, 30, 40] and several.asked == 4
    several.num_processes = 1
    assert not _halting(several, lambda: False, 10) and _halting(several, lambda: True, 7) and several.asked == 4


def test_loss_plot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running_mean([1.0, 3.0, 5.0], window=2) == [1.0, 2.0, 4.0]
    trained("masked", folder, tmp_path, loop={"eval_every": 2})
    assert not (tmp_path / "loss.png").exists()
    pytest.importorskip("matplotlib")
    monkeypatch.undo()
    trained("masked", folder, tmp_path, loop={"steps": 7})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
