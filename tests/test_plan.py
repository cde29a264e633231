"""Plans: the formula against counted operations, sizes against the paper, the figures that configurations state."""

from __future__ import annotations

import io
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybrid import losses, plan_cli
from hybrid.config import TrainConfig, parse, read_yaml
from hybrid.plan import (
    H100_FLOPS,
    activation_bytes,
    convolutions,
    duration,
    find_grids,
    headline,
    meta_model,
    quantity,
    sample_cost,
    work_out,
)
from hybrid.plan_measure import Measured, made_up_loss, measure, times
from hybrid.tasks_build import build_model
from hybrid.train_cli import main
from hybrid.types import Grid

CONFIGS = Path(__file__).parent.parent / "configs"
PLANNED = sorted([*CONFIGS.glob("train-maskgil-*.yaml"), *CONFIGS.glob("train-*-h100.yaml")])
EMBEDDED = [CONFIGS / f"train-{d}-{part}-h100.yaml" for d in ("fashion", "emoji") for part in ("tokenizer", "unified")]
CARD_MINUTES = 9
EMBEDDED_BYTES = 40e6
TEXT = {"model_type": "t2i", "cls_token_num": 3, "caption_dim": 24}


def shipped(path: Path) -> TrainConfig:
    return parse(TrainConfig, read_yaml(path), path.name)


def made(kind: str, **fields: Any) -> tuple[TrainConfig, Any]:
    """A tiny configuration, its model changed where asked, and that model."""
    model = {**tiny.MODELS[kind], "config": {**tiny.MODELS[kind]["config"], **fields}}
    config = tiny.config(kind, model=model)
    torch.manual_seed(0)
    return config, build_model(kind, config.model.kind, config.model.config)[0]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ar", {}),
        ("ar", TEXT),
        ("masked", {}),
        ("masked", TEXT),
        ("masked", {"rope": "1d"}),
        ("masked", {"n_layer": 3}),
    ],
)
def test_the_formula_counts_what_is_computed(kind: str, fields: dict[str, Any]) -> None:
    config, model = made(kind, **fields)
    loss = made_up_loss(config, model, Grid(4, 4), 5)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        loss().backward()
    _, matrices, attention = sample_cost(model, kind, Grid(4, 4))
    assert counter.get_total_flops() == 5 * (matrices + attention)


def test_convolutions_count_what_is_computed() -> None:
    config, model = made("tokenizer")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        made_up_loss(config, model, Grid(4, 4), 1)()
    assert counter.get_total_flops() == 2 * sum(
        products for products, _ in convolutions(meta_model(config), Grid(4, 4))
    )


@pytest.mark.parametrize(
    ("dim", "hidden", "codes", "layers"), [(128, 352, 50, 2), (64, 192, 800, 1), (128, 256, 300, 3)]
)
def test_activations_are_what_autograd_keeps(dim: int, hidden: int, codes: int, layers: int) -> None:
    fields = {"dim": dim, "ffn_hidden": hidden, "vocab_size": codes, "n_layer": layers, "n_head": dim // 32}
    model = made("masked", **fields)[1]
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    grid, batch = Grid(4, 4), 8
    tokens = torch.randint(codes, (batch, grid.places))
    condition = model.condition([0] * batch, grid)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        losses.masked_loss(model(tokens, condition), tokens, torch.ones_like(tokens, dtype=torch.bool), 0.1)
    copies = 2 * sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
    # The estimate counts the logits and their gradient, too, which live after autograd has kept its part.
    logits = 8 * batch * grid.places * (codes + 1)
    found = sum(storage.nbytes() for storage in kept.values()) - copies + logits
    assert found == pytest.approx(batch * activation_bytes(model, "masked", grid), rel=0.1)


def test_a_plan_in_closed_form() -> None:
    loop = {"steps": 10, "batch_size": 8, "accumulate": 2, "ema": 0.0, "precision": "bf16"}
    settings = {"pictures": 40, "grids": [[4, 4], [2, 8], [4, 2]], "gpus": 4, "mfu": 0.5}
    config = tiny.config("masked", loop=loop, plan=settings)
    model = meta_model(config)
    block = 4 * 16 * 16 + 3 * 16 * 48
    count = (12 + 1 + 4) * 16 + 13 * 16 + block + 3 * 16 + 2 * 8
    plan = work_out(config)
    assert plan.parameters == count == sum(value.numel() for value in model.parameters())
    assert plan.tokens == 16 * (17 + 17 + 9) / 3
    assert plan.matrix_flops == pytest.approx(16 * 6 * (block * (17 + 17 + 9) + 13 * 16 * (16 + 16 + 8)) / 3)
    assert plan.attention_flops == pytest.approx(16 * 12 * 16 * (17**2 + 17**2 + 9**2) / 3)
    assert (plan.samples, plan.epochs) == (160, 4)
    assert plan.gpu_hours == pytest.approx(10 * plan.flops / (0.5 * H100_FLOPS) / 3600)
    assert plan.hours == pytest.approx(plan.gpu_hours / 4)
    expected = {"weights": 4 * count, "gradients": 4 * count, "optimiser": 8 * count, "average": 0}
    expected |= {"half-precision copies": 2 * (block + 13 * 16)}
    expected |= {"activations": 2 * (17 * (42 * 16 + 8 * 48) + 12 * 16 * 13)}
    assert plan.memory == expected
    muon = tiny.config("masked", loop={"optimizer": "muon"}, plan={"grids": [[4, 4]]})
    assert work_out(muon).memory["optimiser"] == 8 * count - 4 * block


def test_data_tells_what_the_configuration_does_not(tmp_path: Path) -> None:
    folder = tiny.data_folder(tmp_path / "data")
    plan = work_out(tiny.config("tokenizer"), data=folder)
    assert plan.pictures == 8 and plan.tokens == 4 * tiny.PLACES
    with pytest.raises(ValueError, match=r"plan\.grids: say which token grids occur"):
        work_out(tiny.config("tokenizer"), data=tmp_path / "nowhere")
    assert work_out(tiny.config("ar"), data=tmp_path / "nowhere").epochs is None


@pytest.mark.parametrize(
    ("name", "millions"),
    [("b", 111), ("l", 343), ("xl", 775), ("xxl", 1400), ("t2i-775m", 775), ("from-llamagen", 343)],
)
def test_full_sizes_are_the_papers(name: str, millions: int) -> None:
    plan = work_out(shipped(CONFIGS / f"train-maskgil-{name}.yaml"))
    assert plan.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    if name in ("b", "l", "xl", "xxl"):
        assert plan.batch == 256 and plan.epochs == pytest.approx(300, abs=0.001)


def test_stages_go_on_from_each_other() -> None:
    """A later stage starts from the weights that the one before it writes, with the same network."""
    later = [path for path in PLANNED if (init := shipped(path).model.init) and init.startswith("runs/")]
    assert len(later) == 3
    for path in later:
        config = shipped(path)
        before = shipped(CONFIGS / f"{Path(str(config.model.init)).parent.name}.yaml")
        shapes = [
            {key: value.shape for key, value in meta_model(each).state_dict().items()} for each in (before, config)
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_configuration_states_its_plan(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    plan = work_out(shipped(path))
    assert f"Plan (hybrid-train {path.stem} --plan): {headline(plan)}." in comment
    assert sum(plan.memory.values()) < 70e9, "an H100 has 80 GB"


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_the_largest_grid_is_the_models_own(path: Path) -> None:
    config = shipped(path)
    if config.task != "tokenizer":
        model = meta_model(config)
        assert max(grid.places for grid in find_grids(config, model)) == model.grid.places


def test_embedded_models_fit_their_card_and_the_wheel() -> None:
    plans = [work_out(shipped(path)) for path in EMBEDDED]
    assert len(plans) == 4
    assert all(plan.mfu <= 0.1 and plan.hours * 60 < CARD_MINUTES / 2 for plan in plans)
    assert sum(2 * plan.parameters for plan in plans) < EMBEDDED_BYTES


def test_numbers_in_words() -> None:
    assert [duration(hours) for hours in (141.2, 5.317, 0.0545, 0.0005)] == ["141 h", "5.32 h", "3.27 min", "1.8 s"]
    assert [quantity(value) for value in (4.03e13, 1.4611e15, 12.0, 2.75e6)] == ["40.3 T", "1.46 P", "12 ", "2.75 M"]


# Measuring.


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_measuring_trains_a_step_after_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once a look, every step takes a second."""
    monkeypatch.setattr("hybrid.plan_measure.PRODUCT_SIDE", {"cpu": 8})
    ticks = iter(range(1000))
    monkeypatch.setattr("hybrid.plan_measure.time.perf_counter", lambda: float(next(ticks)))
    config = tiny.config(kind, plan={"grids": [[4, 4]]})
    found = measure(config, batch=3, steps=2)
    tokens, *flops = sample_cost(meta_model(config), kind, Grid(4, 4))
    assert (found.seconds, found.samples_per_s, found.tokens_per_s) == (1, 3, 3 * tokens)
    assert found.flops_per_s == 3 * sum(flops) and found.product_flops_per_s == 2 * 8**3


def test_slow_steps_are_timed_less_often_and_a_cpu_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(0, 8)
    monkeypatch.setattr("hybrid.plan_measure.time.perf_counter", lambda: float(next(ticks)))
    done: list[int] = []
    assert times(lambda: done.append(1), torch.device("cpu"), 5) == [8, 8, 8] and len(done) == 3
    monkeypatch.setattr("hybrid.plan_measure.SECONDS", 5)
    assert times(lambda: None, torch.device("cpu"), 5) == [8]
    monkeypatch.setattr("hybrid.plan_measure.PRODUCT_SIDE", {"cpu": 8})
    monkeypatch.setattr(torch, "compile", None)
    found = measure(tiny.config("masked", loop={"compile": True}, plan={"grids": [[4, 4]]}), batch=1)
    assert found.device.endswith(", not compiled")


# The command.


def run(tmp_path: Path, *arguments: str, **changes: Any) -> int:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny.config("ar").model_dump(mode="json") | changes))
    return main([str(path), "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *arguments])


def test_the_command_plans_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--plan", "--mfu", "0.25", "--gpus", "2", "--steps", "50") == 0
    text = capsys.readouterr().out
    assert "50 of 4 samples" in text and "25 % of 989 TFLOP/s (assumed; --mfu)" in text and "on 2 GPUs" in text
    assert not (tmp_path / "out").exists()


def test_the_command_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stand_in(config: TrainConfig, *, batch: int) -> Measured:
        asked.append(batch)
        return Measured("a card", batch, Grid(4, 4), 0.5, 8.0, 128.0, 2e9, 8e9)

    monkeypatch.setattr("hybrid.plan_measure.measure", stand_in)
    assert run(tmp_path, "--measure", "--gpus", "2") == 0 and run(tmp_path, "--measure", "3") == 0
    text = capsys.readouterr().out
    assert asked == [2, 3]
    assert "measured here: a card" in text and "2 GFLOP/s = 25 % of a matrix product's 8 GFLOP/s" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", "--mfu", "40"), "--mfu 40: a share of peak, between 0 and 1"),
        (("--plan", "--gpus", "3"), "--gpus 3: loop.batch_size 4 is not a multiple of it"),
        (("--measure", "-1"), "--measure -1: at least one sample"),
        (("--export-only",), "--export-only: say how large a shard may be, such as --shard-mb 15"),
        (("--export-only", "--shard-mb", "1"), "out: no model.safetensors, best.safetensors or step-N checkpoint"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("hybrid-train: ")


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("hybrid.plan_measure.measure", full)
    with pytest.raises(ValueError, match="--measure 7: the device's memory is too small; give fewer samples"):
        plan_cli.show_plan(tiny.config("ar"), Console(file=io.StringIO()), name="x", measure=7)
