"""One training loop for image tokenizers, AR models and masked models.

A task turns sample numbers into a loss; the loop knows steps, processes and when to log, evaluate and save, and no
model. Everything random about a sample (its order, view, caption, mask) is keyed by the seed and the sample's number in
the whole run, so a resumed run equals an uninterrupted one and two processes equal one with twice the batch. Only a
network's own dropout is keyed by step and process instead.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from hybrid.config import LoopConfig
from hybrid.loss_plot import can_plot, plot_log
from hybrid.optimization import Auxiliary, Average, averaged, find_precision, learning_rate, optimizers
from hybrid.run_folder import (
    FINAL,
    Best,
    Log,
    claim,
    latest_checkpoint,
    load_checkpoint,
    read_best,
    read_log,
    save_best,
    save_checkpoint,
    save_final,
)

logger = logging.getLogger(__name__)

GRIDS = 32
"""Token grids that each get a compiled network of their own, where torch lets one say so; it allows eight."""

VOTE_EVERY = 10
"""Steps between which several processes tell each other whether to stop: a launcher kills them half a minute after it
passed a signal on."""


@dataclass(frozen=True)
class Merit:
    """The figure of ``Task.evaluate`` by which one evaluation is better than another, and whether more is better."""

    figure: str
    higher: bool

    def improves(self, value: float, best: Best | None) -> bool:
        """Whether this value is the best so far; no number never is, and neither is an equal one."""
        if best is None or best.figure != self.figure:
            return not math.isnan(value)
        return value > best.value if self.higher else value < best.value


class Task(Protocol):
    """What the loop trains.

    Attributes:
        model: the network.
        auxiliary: a network that trains beside it on the same loss, or None.
        merit: what tells the best evaluation.
        places: tokens of one sample, for tokens per second; 0 where samples are pictures.
        units: what the figures are measured in, by name (without ``eval_``).
    """

    model: nn.Module
    auxiliary: Auxiliary | None
    merit: Merit
    places: int
    units: Mapping[str, str]

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        """The tensors of the samples with these numbers in the run."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a batch, the auxiliary network's included, and figures to log.

        Pure arithmetic: this is what gets compiled.
        """
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


def _mixed(seed: int, number: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)


def sample_generator(seed: int, number: int) -> torch.Generator:
    """The random stream of one training sample."""
    return torch.Generator().manual_seed(_mixed(seed, number))


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


class Loss(nn.Module):
    """A task's loss as a module, so that several processes average the gradients of any task alike."""

    def __init__(self, task: Task, *, compile: bool) -> None:
        super().__init__()
        self.model = task.model
        self.auxiliary = task.auxiliary.module if task.auxiliary is not None else None
        more: dict[str, Any] = (
            {"recompile_limit": GRIDS} if "recompile_limit" in signature(torch.compile).parameters else {}
        )
        self.compute = torch.compile(task.loss, dynamic=False, **more) if compile else task.loss

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.compute(self.model, batch)


@dataclass(frozen=True)
class Progress:
    """One line of the log."""

    step: int
    figures: Mapping[str, float]


def _on_cpu(config: LoopConfig) -> bool:
    """Whether to compute on the CPU. accelerate joins several processes without a GPU only where it is told so."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return config.device == "cpu" or (several and not torch.cuda.is_available())


def train(task: Task, config: LoopConfig, out: Path, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
    """Train to ``config.steps``, resuming from the newest checkpoint in ``out``; yields one Progress a logged step.

    Writes ``log.jsonl``, ``loss.png`` (where matplotlib is installed), ``step-N/`` checkpoints, ``samples/`` pictures,
    ``best.safetensors`` after each evaluation that is the best so far, and at the end ``model.safetensors`` (both hold
    the averaged weights where averaging is on).

    Args:
        task: what to train.
        config: how.
        out: the run's folder.
        stop: asked after each step (with several processes: each logged one and each ``VOTE_EVERY``-th); True saves a
            checkpoint and ends.

    Raises:
        ValueError: settings that contradict each other or the checkpoint, or a loss that is no number any more.
        OSError: the disk is full or ``out`` cannot be written; the last good checkpoint is untouched.
    """
    cpu = _on_cpu(config)
    accelerator = Accelerator(
        mixed_precision=find_precision(config.precision, PartialState(cpu=cpu).device),
        gradient_accumulation_steps=config.accumulate,
        cpu=cpu,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # no second copy of gradients
    )
    share = config.batch_size // accelerator.num_processes
    if share * accelerator.num_processes != config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is not a multiple of {accelerator.num_processes} processes")
    model = task.model.to(accelerator.device).train()
    auxiliary = task.auxiliary.module.to(accelerator.device).train() if task.auxiliary is not None else None
    average = Average(model, config.ema) if config.ema else None
    optimizer_list = optimizers(model, config, task.auxiliary)
    main = accelerator.is_main_process
    out.mkdir(parents=True, exist_ok=True)
    _held = claim(out) if main else None  # until this generator ends
    start, exported = 0, task.export()
    if main and (out / FINAL).exists() and not (out / "log.jsonl").exists() and latest_checkpoint(out) is None:
        raise ValueError(f"{out}: holds {FINAL} that is no run's; give another --out or move it away")
    order = {"seed": config.seed, "samples_per_step": config.batch_size * config.accumulate}
    metadata = {**exported, "origin": {**exported.get("origin", {}), **order}}
    if found := latest_checkpoint(out):
        start = found[0]
        load_checkpoint(found[1], model, average, optimizer_list, metadata, auxiliary, accelerator.scaler)
        logger.info("resumed %s at step %d", out, start)
    loss_of = accelerator.prepare(Loss(task, compile=config.compile))
    prepared = [accelerator.prepare(optimizer) for optimizer in optimizer_list]
    log = Log(out / "log.jsonl", start) if main else None
    best = read_best(out) if start else None  # what lies there without a checkpoint is not this run's

    def save(step: int) -> None:
        if main:
            if not all(bool(value.isfinite().all()) for value in loss_of.parameters()):
                raise _diverged(step, "a weight is no finite number", config, out)
            save_checkpoint(out, step, model, average, optimizer_list, metadata, auxiliary, accelerator.scaler)
            if can_plot():
                plot_log(read_log(out / "log.jsonl"), task.units, out / "loss.png")
        accelerator.wait_for_everyone()

    saved_at = window_start = time.monotonic()
    window_samples = 0
    for step in range(start, config.steps):
        for optimizer in optimizer_list:
            rate = learning_rate(
                step,
                peak=optimizer.defaults["lr"],
                warmup=config.warmup,
                steps=config.steps,
                schedule=config.schedule,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
        parts = []
        for part in range(config.accumulate):
            first = (step * config.accumulate + part) * config.batch_size + accelerator.process_index * share
            batch = task.batch(range(first, first + share), accelerator.device)
            torch.manual_seed(_mixed(~config.seed, first))
            with accelerator.accumulate(loss_of):
                loss, figures = loss_of(batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    for network in (model, auxiliary):
                        if network is not None:
                            accelerator.clip_grad_norm_(network.parameters(), config.clip)
                for optimizer in prepared:
                    optimizer.step()
                    optimizer.zero_grad()
            parts.append(torch.stack([loss, *figures.values()]).detach().float())
        if average is not None:
            average.update(model)
        window_samples += config.batch_size * config.accumulate
        done = step + 1
        logs = done % config.log_every == 0 or done == config.steps
        if not logs and not _halting(accelerator, stop, done):
            continue
        # Every process must take the same decisions, so they are averaged like the figures: any vote counts.
        votes = torch.tensor([stop(), time.monotonic() - saved_at > config.save_seconds], device=accelerator.device)
        shared = accelerator.reduce(torch.cat((torch.stack(parts).mean(0), votes.float())), reduction="mean").tolist()
        *values, halting, due = shared
        rest = dict(zip(figures, values[1:], strict=True))
        speed = window_samples / (time.monotonic() - window_start)
        line = {"loss": values[0], "lr": optimizer_list[0].param_groups[0]["lr"], "samples_per_s": speed, **rest}
        if task.places:
            line["tokens_per_s"] = speed * task.places
        if not torch.isfinite(torch.tensor(values[0])):
            raise _diverged(done, f"the loss is {values[0]}", config, out)
        if log is not None:
            shown, best = _show(task, model, average, accelerator, config, done, out, best)
            line |= shown
            log.write(done, line)
        if (due or halting) and done < config.steps:
            save(done)
            saved_at = time.monotonic()
        yield Progress(done, line)
        if halting and done < config.steps:
            return
        window_start, window_samples = time.monotonic(), 0
    save(max(start, config.steps))
    if main:
        state = {**model.state_dict(), **(average.parameters if average is not None else {})}
        save_final(out, config.steps, state, task.export())


def _halting(accelerator: Accelerator, stop: Callable[[], bool], done: int) -> bool:
    """Whether any process was told to stop. Several processes ask each other at every ``VOTE_EVERY``-th step only."""
    if accelerator.num_processes == 1:
        return stop()
    if done % VOTE_EVERY:
        return False
    return bool(accelerator.reduce(torch.tensor(float(stop()), device=accelerator.device), reduction="sum") > 0)


def _show(
    task: Task,
    model: nn.Module,
    average: Average | None,
    accelerator: Accelerator,
    config: LoopConfig,
    done: int,
    out: Path,
    best: Best | None,
) -> tuple[dict[str, float], Best | None]:
    """Where this step is due for them: held-out figures of the averaged weights, these weights where they are the best
    so far, and the sample picture."""
    last = done == config.steps
    evaluates = done % config.eval_every == 0 or last
    samples = config.sample_every and (done % config.sample_every == 0 or last)
    found: dict[str, float] = {}
    if evaluates or samples:
        with averaged(model, average) as smooth, torch.no_grad():
            if evaluates:
                with accelerator.autocast():
                    found = {f"eval_{name}": value for name, value in task.evaluate(smooth).items()}
                value = found[f"eval_{task.merit.figure}"]
                if task.merit.improves(value, best):
                    best = Best(done, task.merit.figure, value)
                    save_best(out, best, smooth.state_dict(), task.export())
                if best is not None:
                    found["best_step"] = best.step
            if samples:
                (out / "samples").mkdir(exist_ok=True)
                task.sample(smooth, out / "samples" / f"{done:07d}.png")
    return found, best


def _diverged(step: int, what: str, config: LoopConfig, out: Path) -> ValueError:
    kept = latest_checkpoint(out)
    good = f"goes on from {kept[1]}" if kept else "starts anew"
    return ValueError(f"step {step}: {what}; lower lr ({config.lr:g}) or raise warmup, and the same command {good}")
