"""Which evaluation's weights a run keeps, by a task whose evaluations follow a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid.checkpoint import read_weights
from hybrid.config import LoopConfig
from hybrid.optimization import Auxiliary
from hybrid.run_folder import Best, read_best, read_log, save_best
from hybrid.training import Merit, train

pytestmark = pytest.mark.usefixtures("no_plots")


class Scripted:
    """One weight that shrinks a little each step, and evaluations as given."""

    auxiliary: Auxiliary | None = None
    places = 0
    units: Mapping[str, str] = {}

    def __init__(self, values: list[float], *, higher: bool = True) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)  # type: ignore[arg-type]
        self.merit = Merit("score", higher=higher)
        self.values: Iterator[float] = iter(values)
        self.seen: list[float] = []

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        return {"x": torch.ones(len(samples), 1, device=device)}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch["x"]).mean(), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.seen.append(float(model.weight))  # type: ignore[arg-type]
        return {"other": -1.0, "score": next(self.values)}

    def sample(self, model: nn.Module, path: Path) -> None:
        raise AssertionError("no sample was asked for")

    def export(self) -> dict[str, Any]:
        return {"kind": "scripted", "config": {"size": 1}}


def run(task: Scripted, out: Path, steps: int, **changes: Any) -> list[dict[str, float]]:
    loop = {"steps": steps, "batch_size": 2, "lr": 0.1, "warmup": 1, "schedule": "constant", "precision": "no"}
    loop |= {"device": "cpu", "log_every": 1, "eval_every": 1, "ema": 0.5, **changes}
    for _ in train(task, LoopConfig.model_validate(loop), out):
        pass
    return read_log(out / "log.jsonl")


def kept(out: Path) -> float:
    return float(read_weights(out / "best.safetensors")[0]["weight"])


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "higher", "best_steps"),
    [
        ([1.0, 3.0, 2.0, 3.0], True, [1, 2, 2, 2]),
        ([1.0, 3.0, 0.5, 0.75], False, [1, 1, 3, 3]),
        ([NAN, 2.0, NAN, 4.0], True, [None, 2, 2, 4]),
    ],
)
def test_the_best_evaluations_averaged_weights_are_kept(
    values: list[float], higher: bool, best_steps: list[int | None], tmp_path: Path
) -> None:
    task = Scripted(values, higher=higher)
    log = run(task, tmp_path, 4)
    assert [line.get("best_step") for line in log] == best_steps
    step = best_steps[-1]
    assert step is not None
    assert read_best(tmp_path) == Best(step, "score", values[step - 1])
    assert kept(tmp_path) == pytest.approx(task.seen[step - 1])
    metadata = read_weights(tmp_path / "best.safetensors")[1]
    assert metadata["kind"] == "scripted"
    assert metadata["best"] == {"step": step, "figure": "score", "value": values[step - 1]}
    last = read_weights(tmp_path / "model.safetensors")[0]
    assert float(last["weight"]) == pytest.approx(task.seen[-1])


def test_a_resumed_run_remembers_its_best(tmp_path: Path) -> None:
    first = Scripted([5.0, 1.0])
    run(first, tmp_path, 2)
    second = Scripted([4.0, 6.0, 2.0])
    assert [line["best_step"] for line in run(second, tmp_path, 4)] == [1, 1, 1, 4]
    assert kept(tmp_path) == pytest.approx(second.seen[1])


def test_best_weights_without_a_checkpoint_are_another_runs(tmp_path: Path) -> None:
    save_best(tmp_path, Best(7, "score", 99.0), {"weight": torch.zeros(1, 1)}, {})
    assert run(Scripted([1.0]), tmp_path, 1)[0]["best_step"] == 1
    assert read_best(tmp_path) == Best(1, "score", 1.0)


def test_another_figure_of_merit_starts_anew(tmp_path: Path) -> None:
    run(Scripted([5.0]), tmp_path, 1)
    other = Scripted([1.0])
    other.merit = Merit("other", higher=True)
    assert run(other, tmp_path, 2)[-1]["best_step"] == 2
    assert read_best(tmp_path) == Best(2, "other", -1.0)


def test_a_kill_in_mid_save_leaves_the_earlier_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write after the kill is armed is that of the better evaluation."""
    run(Scripted([1.0]), tmp_path, 1)
    before = (tmp_path / "best.safetensors").read_bytes()

    def killed(state: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
        save_file(state, path, header)
        path.write_bytes(path.read_bytes()[:-2])
        raise KeyboardInterrupt

    monkeypatch.setattr("hybrid.checkpoint.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        run(Scripted([2.0]), tmp_path, 2)
    assert (tmp_path / "best.safetensors").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr("hybrid.training.can_plot", lambda: False)
    again = Scripted([2.0])
    run(again, tmp_path, 2)
    assert read_best(tmp_path) == Best(2, "score", 2.0) and kept(tmp_path) == pytest.approx(again.seen[0])


def test_a_file_that_is_not_the_best_of_a_run(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    (tmp_path / "best.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"best\.safetensors: not the best weights of a run .*; move it away"):
        read_best(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match="not the best weights of a run"):
        read_best(tmp_path)
