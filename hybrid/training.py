"""One training loop for image tokenizers, AR models and masked models.

A task turns sample numbers into a loss; the loop knows optimisers, averaging, checkpoints and logs, and no model.
Everything random about a sample (its order, view, caption, mask) is keyed by the seed and the sample's number in the
whole run, so a resumed run equals an uninterrupted one and two processes equal one with twice the batch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hybrid.checkpoint import read_weights, save_weights
from hybrid.config import LoopConfig

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What the loop trains."""

    model: nn.Module

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        """The tensors of the samples with these numbers in the run."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a batch, and figures to log. Pure arithmetic: this is what gets compiled."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def sample(self, model: nn.Module, path: Path) -> None:
        """Write a picture that shows what the model can do by now."""
        ...

    def export(self) -> dict[str, Any]:
        """Metadata stored beside the weights, from which the adapter can rebuild the model."""
        ...


def sample_generator(seed: int, number: int) -> torch.Generator:
    """The random stream of one training sample."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
    return torch.Generator().manual_seed(mixed)


class DataOrder:
    """Which item each sample of the run is: epochs of shuffled items, or draws with given weights."""

    def __init__(self, items: int, seed: int, weights: Tensor | None = None) -> None:
        self.items, self.seed, self.weights = items, seed, weights
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, self.items)
        if epoch != self._epoch:
            generator = sample_generator(self.seed, -1 - epoch)
            if self.weights is None:
                self._order = torch.randperm(self.items, generator=generator)
            else:
                self._order = torch.multinomial(self.weights, self.items, replacement=True, generator=generator)
            self._epoch = epoch
        return int(self._order[place])


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, schedule: str, floor: float = 0.0) -> float:
    """Linear warm-up to ``peak``, then constant, or a half cosine down to ``floor`` · peak at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of the parameters, with a short memory at first: min(decay, (1 + t) / (10 + t))."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = {name: value.detach().clone().float() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [value.detach().float() for _, value in model.named_parameters()]
        torch._foreach_lerp_(list(self.parameters.values()), current, 1 - decay)


class swapped:
    """Within the block the model holds the averaged parameters."""

    def __init__(self, model: nn.Module, average: Average | None) -> None:
        self.model, self.average = model, average

    def __enter__(self) -> nn.Module:
        self.training = self.model.training
        self.model.eval()
        if self.average is not None:
            self.kept = {name: value.detach().clone() for name, value in self.model.named_parameters()}
            self._load(self.average.parameters)
        return self.model

    def __exit__(self, *_: object) -> None:
        if self.average is not None:
            self._load(self.kept)
        self.model.train(self.training)

    @torch.no_grad()
    def _load(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    Weight decay applies to matrices only. Muon: Jordan et al. 2024, scaled to AdamW's step size (arXiv 2502.16982).
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    hidden = [value for name, value in named if value.ndim == 2 and ".layers." in f".{name}"]
    if config.optimizer == "adamw":
        hidden = []
    taken = {id(value) for value in hidden}
    matrices = [value for _, value in named if value.ndim >= 2 and id(value) not in taken]
    vectors = [value for _, value in named if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)]
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw")
        found.append(
            torch.optim.Muon(
                hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return found


# Checkpoints: one folder per step, written under another name and renamed when complete.


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, average: Average | None, optimizer_list: list[Any], metadata: dict[str, Any]
) -> Path:
    """Write ``folder/step-N`` atomically and remove older ones."""
    final, partial = folder / f"step-{step:07d}", folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(partial / "model.safetensors", model.state_dict(), metadata=metadata)
    if average is not None:
        averaged = {**model.state_dict(), **average.parameters}
        save_weights(partial / "ema.safetensors", averaged, metadata=metadata | {"updates": average.updates})
    torch.save([optimizer.state_dict() for optimizer in optimizer_list], partial / "optimizers.pt")
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    for other in folder.glob("step-*"):
        if other != final:
            shutil.rmtree(other)
    return final


def latest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest complete checkpoint of a run, or None."""
    found = sorted(folder.glob("step-*"))
    return (int(found[-1].name.removeprefix("step-")), found[-1]) if found else None


def load_checkpoint(path: Path, model: nn.Module, average: Average | None, optimizer_list: list[Any]) -> None:
    """Restore what ``save_checkpoint`` wrote."""
    state, _ = read_weights(path / "model.safetensors")
    model.load_state_dict(state)
    if average is not None:
        averaged, metadata = read_weights(path / "ema.safetensors")
        average.updates = int(metadata["updates"])
        for name, value in average.parameters.items():
            value.copy_(averaged[name])
    for optimizer, saved in zip(
        optimizer_list, torch.load(path / "optimizers.pt", weights_only=True, map_location="cpu"), strict=True
    ):
        optimizer.load_state_dict(saved)


@dataclass(frozen=True)
class Progress:
    """One line of the log."""

    step: int
    figures: Mapping[str, float]


def train(
    task: Task, config: LoopConfig, out: Path, *, callback: Callable[[Progress], None] | None = None
) -> Iterator[Progress]:
    """Train to ``config.steps``, resuming from the newest checkpoint in ``out``; yields one Progress a logged step.

    Writes ``log.jsonl``, ``step-N/`` checkpoints, ``samples/`` pictures and at the end ``model.safetensors`` (the
    averaged weights where averaging is on).
    """
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate, cpu=config.device == "cpu"
    )
    out.mkdir(parents=True, exist_ok=True)
    bare = task.model.to(accelerator.device).train()
    average = Average(bare, config.ema) if config.ema else None
    optimizer_list = optimizers(bare, config)
    start = 0
    if found := latest_checkpoint(out):
        start = found[0]
        load_checkpoint(found[1], bare, average, optimizer_list)
        logger.info("resumed %s at step %d", out, start)
    model = accelerator.prepare(bare)
    prepared = [accelerator.prepare(optimizer) for optimizer in optimizer_list]
    loss_of = torch.compile(task.loss, dynamic=False) if config.compile else task.loss
    metadata = task.export()

    def checkpoint(step: int) -> None:
        if accelerator.is_main_process:
            save_checkpoint(out, step, bare, average, optimizer_list, metadata)
        accelerator.wait_for_everyone()

    share = config.batch_size // accelerator.num_processes
    if share * accelerator.num_processes != config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is not a multiple of {accelerator.num_processes} processes")
    saved_at = window_start = time.monotonic()
    window_samples = 0
    with open(out / "log.jsonl", "a", encoding="utf-8") as log:
        for step in range(start, config.steps):
            rate = learning_rate(
                step, peak=config.lr, warmup=config.warmup, steps=config.steps, schedule=config.schedule
            )
            for optimizer in optimizer_list:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            figures: dict[str, Tensor] = {}
            for part in range(config.accumulate):
                first = (step * config.accumulate + part) * config.batch_size + accelerator.process_index * share
                batch = task.batch(range(first, first + share), accelerator.device)
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        loss, figures = loss_of(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(bare.parameters(), config.clip)
                    for optimizer in prepared:
                        optimizer.step()
                        optimizer.zero_grad()
            if average is not None:
                average.update(bare)
            window_samples += config.batch_size * config.accumulate
            done = step + 1
            logged = done % config.log_every == 0 or done == config.steps
            if not logged:
                continue
            if not torch.isfinite(loss):
                raise ValueError(f"step {done}: the loss is {float(loss)}; lower lr or raise warmup, then run again")
            now = time.monotonic()
            line = {"loss": float(loss), "lr": rate, "samples_per_s": window_samples / (now - window_start)}
            line |= {name: float(value) for name, value in figures.items()}
            if accelerator.is_main_process:
                if done % config.eval_every == 0 or done == config.steps:
                    with swapped(bare, average) as averaged, torch.no_grad():
                        line |= {f"eval_{name}": value for name, value in task.evaluate(averaged).items()}
                if config.sample_every and (done % config.sample_every == 0 or done == config.steps):
                    (out / "samples").mkdir(exist_ok=True)
                    with swapped(bare, average) as averaged, torch.no_grad():
                        task.sample(averaged, out / "samples" / f"{done:07d}.png")
                log.write(json.dumps({"step": done, **line}) + "\n")
                log.flush()
            if time.monotonic() - saved_at > config.save_seconds:
                checkpoint(done)
                saved_at = time.monotonic()
            progress = Progress(done, line)
            if callback is not None:
                callback(progress)
            yield progress
            window_start, window_samples = time.monotonic(), 0
    checkpoint(config.steps)
    if accelerator.is_main_process:
        final = {**bare.state_dict(), **(average.parameters if average is not None else {})}
        save_weights(out / "model.safetensors", final, metadata=metadata)
