"""Training that is killed, runs out of disk, meets another run or goes on: nothing is lost, nothing differs."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import ADVERSARIAL, after, distance, trained, untimed, weights
from torch import nn

from hybrid.checkpoint import read_weights, save_weights
from hybrid.run_folder import latest_checkpoint, load_checkpoint, save_checkpoint
from hybrid.training import train

pytestmark = pytest.mark.usefixtures("no_plots")


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
    assert untimed(parts) == untimed(whole)


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


def test_a_file_system_without_locks_is_written_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    task, loop = tiny.task("ar", folder)
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


def test_a_run_goes_on_with_its_own_start_data_and_order(folder: Path, tmp_path: Path) -> None:
    """What decides which numbers come next is refused where it changed; it stays the same run in other parts."""
    begun: dict[str, Any] = {"loop": {"steps": 2, "batch_size": 4}}
    trained("ar", folder, tmp_path / "run", **begun)
    task, _ = tiny.task("ar", folder)
    start = tmp_path / "start.safetensors"
    save_weights(start, task.model.state_dict(), metadata=task.export())
    other = tiny.data_folder(tmp_path / "other", [item | {"label": 0} for item in tiny.items()])
    for where, changes, message in (
        (folder, {"loop": {"seed": 1}}, "trained with seed 0, asked for 1; put it back, or give another --out"),
        (folder, {"loop": {"batch_size": 2}}, "trained with samples_per_step 4, asked for 2"),
        (folder, {"model": {**tiny.MODELS["ar"], "init": str(start)}}, "trained with init None, asked for [0-9a-f]{8}"),
        (folder, {"balance": True}, "trained with balance False, asked for True"),
        (other, {}, "trained with data [0-9a-f]{8}, asked for [0-9a-f]{8}"),
    ):
        with pytest.raises(ValueError, match=f"step-0000002: {message}"):
            trained("ar", where, tmp_path / "run", **changes)
    parts = {"batch_size": 2, "accumulate": 2, "steps": 3}
    assert [line["step"] for line in trained("ar", folder, tmp_path / "run", loop=parts)] == [1, 2, 3]


def test_a_run_goes_on_with_the_optimiser_settings_of_now(folder: Path, tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    kept = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.5, betas=(0.1, 0.2))
    model(torch.ones(1, 3)).sum().backward()
    kept.step()
    path = save_checkpoint(tmp_path, 1, model, None, [kept], {})
    asked = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95))
    load_checkpoint(path, model, None, [asked], {})
    (group,) = asked.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 0.0, (0.9, 0.95))
    assert torch.equal(asked.state[model.weight]["exp_avg"], kept.state[model.weight]["exp_avg"])


def test_the_loss_scaler_of_fp16_goes_on(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    adam = [torch.optim.AdamW(model.parameters())]
    kept, fresh = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (256.0, 65536.0))
    path = save_checkpoint(tmp_path, 1, model, None, adam, {}, scaler=kept)
    load_checkpoint(path, model, None, adam, {}, scaler=fresh)
    assert fresh.state_dict() == kept.state_dict()
