"""What a training run leaves on disk: ``step-N/`` checkpoints, weights, ``log.jsonl`` and ``loss.png``.

``model.safetensors`` are the weights after the last step, ``best.safetensors`` those of the best evaluation. Both and
the checkpoints are written under another name and renamed when complete, so whatever interrupts it, the last good one
stays. This file knows files; it does not know tasks or processes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hybrid.checkpoint import read_weights, save_weights
from hybrid.optimization import Average
from hybrid.whole_files import replacing

STEP = re.compile(r"step-(\d+)")
PARTIAL = "partial"
FINAL, BEST = "model.safetensors", "best.safetensors"
AUXILIARY = "auxiliary.safetensors"
SCALER = "scaler.pt"


def claim(folder: Path) -> TextIO:
    """Hold a run's folder while the returned file is open, so that two runs never write to one folder.

    Raises:
        ValueError: another process holds it.
    """
    held = (folder / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows has no advisory locks of this kind
        return held
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another run is writing here; wait for it or give another --out") from None
    except OSError:  # a file system without locks
        pass
    return held


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first."""
    found = ((STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest complete checkpoint of a run, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def finished(folder: Path, steps: int) -> int | None:
    """The step that a run ended at, if it reached ``steps`` and wrote its final weights; else None."""
    found = latest_checkpoint(folder)
    return found[0] if found is not None and found[0] >= steps and ended(folder) else None


def ended(folder: Path) -> bool:
    """Whether ``model.safetensors`` is of the newest checkpoint's step, rather than of an end that the run went beyond.

    Files of before this was noted are told by their times, which copies need not keep.
    """
    found, final = latest_checkpoint(folder), folder / FINAL
    if found is None or not final.is_file():
        return False
    step = _told(final).get("step")
    return final.stat().st_mtime >= found[1].stat().st_mtime if step is None else int(step) >= found[0]


def run_kind(folder: Path) -> str | None:
    """The kind of network that a finished run made, where its final weights say it."""
    return _told(folder / FINAL).get("kind")


def _told(final: Path) -> dict[str, Any]:
    """The metadata of a run's final weights."""
    try:
        with safe_open(final, framework="pt") as file:
            found = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{final}: not the weights of a run ({_reason(error)}); move it away") from None
    return {key: json.loads(found[key]) for key in ("kind", "step") if key in found}


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    average: Average | None,
    optimizer_list: list[torch.optim.Optimizer],
    metadata: Mapping[str, Any],
    auxiliary: nn.Module | None = None,
    scaler: Any = None,
) -> Path:
    """Write ``folder/step-N`` and remove older ones; nothing to do where it exists already.

    Args:
        folder: the run's.
        step: steps done.
        model: what is trained.
        average: its averaged parameters.
        optimizer_list: with their state.
        metadata: stored beside the weights.
        auxiliary: a network that trains beside the model.
        scaler: the loss scaler of fp16.

    Raises:
        OSError: one line when the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final, partial = folder / f"step-{step:07d}", folder / PARTIAL
    if final.exists():
        return final
    shutil.rmtree(partial, ignore_errors=True)
    with _writing(final):
        partial.mkdir(parents=True)
        save_weights(partial / "model.safetensors", model.state_dict(), metadata=metadata)
        if average is not None:
            state = {**model.state_dict(), **average.parameters}
            save_weights(partial / "ema.safetensors", state, metadata={**metadata, "updates": average.updates})
        if auxiliary is not None:
            save_weights(partial / AUXILIARY, auxiliary.state_dict())
        with (partial / "optimizers.pt").open("wb") as file:
            torch.save([optimizer.state_dict() for optimizer in optimizer_list], file)
        if scaler is not None:
            torch.save(scaler.state_dict(), partial / SCALER)
        os.replace(partial, final)
    for _, other in checkpoints(folder):
        if other != final:
            shutil.rmtree(other)
    return final


def save_final(folder: Path, step: int, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``folder/model.safetensors``, what a run is for, with the step that it ended at.

    Raises:
        OSError: one line when it cannot be written.
    """
    with _writing(folder / FINAL):
        save_weights(folder / FINAL, state, metadata={**metadata, "step": step})


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far: its step, the figure that decides and that figure's value."""

    step: int
    figure: str
    value: float


def save_best(folder: Path, best: Best, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``folder/best.safetensors`` in place of an earlier one; an interruption leaves that one.

    Raises:
        OSError: one line when it cannot be written.
    """
    with _writing(folder / BEST):
        found = {"step": best.step, "figure": best.figure, "value": best.value}
        save_weights(folder / BEST, state, metadata={**metadata, "best": found})


def read_best(folder: Path) -> Best | None:
    """What ``save_best`` wrote last, or None.

    Raises:
        ValueError: the file is not one of these.
    """
    path = folder / BEST
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Best(**json.loads(file.metadata()["best"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the best weights of a run ({_reason(error)}); move it away") from None


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn what torch, safetensors and the system say about a full disk into one line; leave no half-written folder."""
    folder = target.parent
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        kept = latest_checkpoint(folder)
        good = f"the last good checkpoint is {kept[1].name}" if kept else "there is no earlier checkpoint"
        raise OSError(f"{target}: could not be written ({_reason(error)}); {good}") from error


def load_checkpoint(
    path: Path,
    model: nn.Module,
    average: Average | None,
    optimizer_list: list[torch.optim.Optimizer],
    metadata: Mapping[str, Any],
    auxiliary: nn.Module | None = None,
    scaler: Any = None,
) -> None:
    """Restore what ``save_checkpoint`` wrote. Learning rates, decay and the like are the configuration's, as it is now.

    Raises:
        ValueError: it belongs to another model, other data or other loop settings than those asked for.
    """
    remedy = "put it back, or give another --out"
    state, saved = read_weights(path / "model.safetensors")
    for part, called in (("config", "model.config."), ("origin", "")):
        kept_part = saved.get(part, {})
        for key, value in json.loads(json.dumps(metadata.get(part, {}))).items():
            # A run that began with no weights remembers none.
            before = kept_part.get(key, None if key == "init" and kept_part else value)
            if before != value:
                raise ValueError(f"{path}: trained with {called}{key} {before}, asked for {value}; {remedy}")
    if (path / AUXILIARY).exists() != (auxiliary is not None):
        before = "without" if auxiliary is not None else "with"
        raise ValueError(f"{path}: trained {before} an auxiliary network (adversarial); {remedy}")
    away = next(model.parameters()).device.type != "cpu"
    kept = torch.load(path / "optimizers.pt", weights_only=True, map_location="cpu", mmap=away)
    if len(kept) != len(optimizer_list):
        raise ValueError(f"{path}: trained with another optimizer than the configuration's; {remedy}")
    model.load_state_dict(state)
    if average is not None:
        if not (path / "ema.safetensors").exists():
            raise ValueError(f"{path}: trained with ema 0, asked for {average.decay}; {remedy}")
        smooth, saved = read_weights(path / "ema.safetensors")
        average.updates = int(saved["updates"])
        for name, value in average.parameters.items():
            value.copy_(smooth[name])
    if auxiliary is not None:
        try:
            auxiliary.load_state_dict(read_weights(path / AUXILIARY)[0])
        except RuntimeError:
            raise ValueError(f"{path}: trained with another auxiliary network (adversarial); {remedy}") from None
    for optimizer, entry in zip(optimizer_list, kept, strict=True):
        asked = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for held in entry["state"].values():
            if "step" in held:  # stays on the CPU, and would keep the mapped file when it is removed
                held["step"] = held["step"].clone()
        optimizer.load_state_dict(entry)
        for group, settings in zip(optimizer.param_groups, asked, strict=True):
            group.update(settings)
    if scaler is not None and (path / SCALER).exists():
        scaler.load_state_dict(torch.load(path / SCALER, weights_only=True, map_location="cpu"))


class Log:
    """``log.jsonl``, one line a logged step. Lines after the step that the run goes on from are dropped first."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step(line) <= start]
        if kept != lines:
            with replacing(path) as part:
                part.write_text("".join(kept), encoding="utf-8")
        path.touch()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line.

        Raises:
            OSError: naming the file.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: cannot be written ({_reason(error)})") from error


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _step(line: str) -> float:
    """A log line's step; infinite where the line was cut off."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _reason(error: BaseException) -> str:
    """One phrase; torch and safetensors wrap the system's error in their own."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    number = re.search(r"os error (\d+)", text)
    if number:
        return os.strerror(int(number[1]))
    return os.strerror(errno.ENOSPC) + "?" if "inline_container" in text else text[:160]
