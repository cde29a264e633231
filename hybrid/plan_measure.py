"""Throughput of a training run on the present machine, on made-up data: forward, backward and optimiser steps.

This file runs a configuration's model for a few steps and times it. It reads no data folder, so loading is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hybrid import losses
from hybrid.config import TrainConfig
from hybrid.optimization import Average, find_precision, optimizers
from hybrid.plan import find_grids, sample_cost
from hybrid.sampler import synchronise
from hybrid.tasks_build import build_model
from hybrid.tasks_unified import cut_loss
from hybrid.types import MASK, Grid

MASKED_SHARE = 0.64
"""Mean of MaskGIL's mask ratio, 2/π. The share does not change what a step costs."""

PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product stands for what a device can do."""

SECONDS = 20.0
"""Time after which nothing is run once more: on a CPU a step of a large model takes many seconds."""


@dataclass(frozen=True)
class Measured:
    """What was timed.

    Attributes:
        device: its name.
        batch: samples in a step.
        grid: their token grid.
        seconds: median of the steps.
        samples_per_s, tokens_per_s: the same as rates.
        flops_per_s: FLOPs that the model's formula counts (see ``plan``), per second.
        product_flops_per_s: what one large product of square matrices reaches there in the same precision.
    """

    device: str
    batch: int
    grid: Grid
    seconds: float
    samples_per_s: float
    tokens_per_s: float
    flops_per_s: float
    product_flops_per_s: float


def measure(config: TrainConfig, *, batch: int, steps: int = 5) -> Measured:
    """Train a fresh model for one step to warm up and ``steps`` timed ones, or as many as begin in ``SECONDS``.

    On a CPU nothing is compiled, as that takes minutes longer than the steps.

    Args:
        config: the run; of several grids the middle one is timed.
        batch: samples in a step.
        steps: timed steps.

    Raises:
        ValueError: no samples, or what building the model says.
    """
    if batch < 1:
        raise ValueError(f"--measure {batch}: at least one sample")
    device = torch.device("cuda" if torch.cuda.is_available() and config.loop.device == "auto" else "cpu")
    torch.manual_seed(config.loop.seed)
    model = build_model(config.task, config.model.kind, config.model.config)[0].to(device).train()
    grids = sorted(find_grids(config, model), key=lambda grid: grid.places)
    grid = grids[len(grids) // 2]
    tokens, *flops = sample_cost(model, config.task, grid)
    step = training_step(config, model, made_up_loss(config, model, grid, batch))
    step()
    seconds = median(times(step, device, steps))
    processor = f"CPU, {torch.get_num_threads()} threads{', not compiled' if config.loop.compile else ''}"
    return Measured(
        device=torch.cuda.get_device_name() if device.type == "cuda" else processor,
        batch=batch,
        grid=grid,
        seconds=seconds,
        samples_per_s=batch / seconds,
        tokens_per_s=batch * tokens / seconds,
        flops_per_s=batch * sum(flops) / seconds,
        product_flops_per_s=product_speed(device, product_type(config, device)),
    )


def product_type(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type that the run multiplies matrices in."""
    precision = find_precision(config.loop.precision, device)
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def made_up_loss(config: TrainConfig, model: Any, grid: Grid, batch: int) -> Callable[[], Tensor]:
    """The loss of a configuration on random tokens or pictures, as a function without arguments."""
    device = next(model.parameters()).device
    if config.task == "tokenizer":
        images = torch.rand(batch, 3, grid.height * model.factor, grid.width * model.factor, device=device) * 2 - 1

        def reconstruction(images: Tensor) -> Tensor:
            latent = model.latent(images)
            return losses.reconstruction_loss(model.render(latent + (model.quantise(latent) - latent).detach()), images)

        return lambda: reconstruction(images)
    tokens = torch.randint(model.codebook_size, (batch, grid.places), device=device)
    prompts: Any = [0] * batch
    if model.classes is None:
        shape = (batch, model.text_tokens, model.text_width)
        prompts = (torch.randn(shape), torch.ones(shape[:2], dtype=torch.bool))
    condition = model.condition(prompts, grid)
    masked = torch.rand(tokens.shape, device=device) < MASKED_SHARE
    half = torch.full((batch,), grid.places // 2, device=device)

    def prediction(tokens: Tensor) -> Tensor:
        if config.task == "ar":
            return losses.next_token_loss(model(tokens, condition), tokens)
        if config.task == "unified":
            rest = torch.arange(grid.places, device=device) >= half[:, None]
            return cut_loss(model, tokens, condition, half, masked & rest, tokens)[0]
        counted = masked if config.loss_on == "masked" else torch.ones_like(masked)
        logits = model(tokens.masked_fill(masked, MASK), condition)
        return losses.masked_loss(logits, tokens, counted, config.label_smoothing)[0]

    compiled = config.loop.compile and device.type == "cuda"
    compute = torch.compile(prediction, dynamic=False) if compiled else prediction
    return lambda: compute(tokens)


def training_step(config: TrainConfig, model: Any, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimiser step as the training loop makes it: loss, gradients, clipping, update, average."""
    loop = config.loop
    optimizer_list = optimizers(model, loop)
    average = Average(model, loop.ema) if loop.ema else None
    device = next(model.parameters()).device
    dtype = product_type(config, device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad()
        if average is not None:
            average.update(model)

    return step


def product_speed(device: torch.device, dtype: torch.dtype, tries: int = 5) -> float:
    """FLOP/s of the fastest of a few products of two large square matrices."""
    side = PRODUCT_SIDE[device.type]
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    one @ other
    return 2 * side**3 / min(times(lambda: one @ other, device, tries))


def times(work: Callable[[], Any], device: torch.device, most: int) -> list[float]:
    """Seconds of ``most`` runs of a piece of work, or of as many as begin in ``SECONDS``: one at least."""
    found = [timed(work, device)]
    while len(found) < most and sum(found) < SECONDS:
        found.append(timed(work, device))
    return found


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes, synchronised before and after."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started
