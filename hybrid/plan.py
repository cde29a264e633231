"""What a training run costs, worked out from its configuration: parameters, FLOPs, memory, epochs, GPU hours.

This file knows shapes and arithmetic. It runs no model (``plan_measure`` does) and prints nothing (``plan_cli`` does).
The model is built on the meta device, so the largest one takes no memory.

A multiplication by a weight matrix costs 2 FLOPs per weight and place, and twice that again on the way back: 6·N for
each token, where N counts the weights that meet it (blocks: every token, output: image tokens, caption layers: text
tokens; embedding tables none). Attention adds 12·layers·width·length² per sample, counted whole where it is causal too
(Chowdhery et al., PaLM, arXiv 2204.02311, appendix B). Norms, rotations and the loss are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.config import TrainConfig
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.data.splits import pick
from hybrid.tasks_build import build_model
from hybrid.types import Grid

H100_FLOPS = 989e12
"""Peak of an H100 SXM for dense bf16 products, FLOP/s (NVIDIA's data sheet)."""

# Bytes that autograd keeps for the way back, eager, under bf16 autocast. Read off with saved_tensors_hooks on blocks of
# several sizes (tests/test_plan.py does so again); torch.compile keeps less.
BLOCK_BYTES_PER_WIDTH, BLOCK_BYTES_PER_HIDDEN = 42, 8
LOGIT_BYTES = 12
"""Log-probabilities, float32 logits and their gradient, all alive where the way back begins."""
PIXEL_BYTES = 8
"""Of a convolutional tokenizer, per value that a convolution writes."""


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        parameters: of the model.
        steps: optimiser steps.
        batch: samples in a step, over all processes and accumulated parts.
        tokens: tokens in a step, condition tokens included; token places of pictures for a tokenizer.
        matrix_flops: forward and backward FLOPs of a step in weight matrices and convolutions.
        attention_flops: the same in attention.
        memory: bytes on each GPU, by what holds them.
        pictures: training pictures, or None where nothing tells.
        gpus: number of H100s.
        mfu: assumed share of their peak.
    """

    parameters: int
    steps: int
    batch: int
    tokens: float
    matrix_flops: float
    attention_flops: float
    memory: dict[str, float]
    pictures: int | None
    gpus: int
    mfu: float

    @property
    def flops(self) -> float:
        """FLOPs of a step."""
        return self.matrix_flops + self.attention_flops

    @property
    def samples(self) -> int:
        """Samples seen in the run."""
        return self.steps * self.batch

    @property
    def epochs(self) -> float | None:
        """Times that each picture is seen, or None where their number is unknown."""
        return None if self.pictures is None else self.samples / self.pictures

    @property
    def gpu_hours(self) -> float:
        """Hours on one H100 at the assumed share of its peak."""
        return self.flops * self.steps / (H100_FLOPS * self.mfu) / 3600

    @property
    def hours(self) -> float:
        """Hours on all GPUs."""
        return self.gpu_hours / self.gpus


def work_out(
    config: TrainConfig, *, data: Path | None = None, mfu: float | None = None, gpus: int | None = None
) -> Plan:
    """The plan of a training run.

    Args:
        config: the run.
        data: its data folder, which tells what the configuration's ``plan`` does not; None is where ``hybrid-data``
            writes it, and it may be missing.
        mfu: instead of the configuration's.
        gpus: instead of the configuration's.

    Raises:
        ValueError: a model that the task cannot train, no grid to reckon with, a share outside (0, 1], or a batch that
            the GPUs cannot share equally.
    """
    mfu, gpus = config.plan.mfu if mfu is None else mfu, config.plan.gpus if gpus is None else gpus
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu:g}: a share of peak, between 0 and 1")
    if gpus < 1 or config.loop.batch_size % gpus:
        raise ValueError(f"--gpus {gpus}: loop.batch_size {config.loop.batch_size} is not a multiple of it")
    model = meta_model(config)
    folder = _open(data or default_folder(config.data))
    grids = find_grids(config, model, folder)
    costs = [sample_cost(model, config.task, grid) for grid in grids]
    batch = config.loop.batch_size * config.loop.accumulate
    tokens, matrices, attention = (sum(each) / len(grids) * batch for each in zip(*costs, strict=True))
    return Plan(
        parameters=sum(value.numel() for value in model.parameters()),
        steps=config.loop.steps,
        batch=batch,
        tokens=tokens,
        matrix_flops=matrices,
        attention_flops=attention,
        memory=memory(model, config, max(grids, key=lambda grid: grid.places), config.loop.batch_size // gpus),
        pictures=config.plan.pictures or (None if folder is None else len(pick(folder, "train", config.sets))),
        gpus=gpus,
        mfu=mfu,
    )


def meta_model(config: TrainConfig) -> Any:
    """The configuration's model without its weights' memory."""
    with torch.device("meta"):
        return build_model(config.task, config.model.kind, config.model.config)[0]


def find_grids(config: TrainConfig, model: Any, folder: DataFolder | None = None) -> list[Grid]:
    """The token grids that a run meets.

    Raises:
        ValueError: neither the configuration, nor the model, nor the data tells one.
    """
    if config.plan.grids is not None:
        return [Grid(*sides) for sides in config.plan.grids]
    if (own := getattr(model, "grid", None)) is not None:
        return [own]
    if folder is None or not hasattr(model, "factor"):
        raise ValueError("plan.grids: say which token grids occur, such as [[16, 16]]")
    height, width = folder.images.shape[2:4]
    return [Grid(height // model.factor, width // model.factor)]


def _open(path: Path) -> DataFolder | None:
    try:
        return DataFolder.open(path)
    except DataError:
        return None


def sample_cost(model: Any, task: str, grid: Grid) -> tuple[int, int, int]:
    """Tokens of one sample, and its forward and backward FLOPs in matrices and in attention."""
    if task == "tokenizer":
        return grid.places, 6 * sum(products for products, _ in convolutions(model, grid)), 0
    condition = condition_tokens(model)
    length = condition + grid.places - (task == "ar")  # the last token predicts nothing
    outputs = sum(head.weight.numel() for head in heads(model, task))
    weights = linear_weights(model.layers) * length + outputs * grid.places
    if model.classes is None:
        weights += linear_weights(model.cls_embedding) * condition
    return length, 6 * weights, 12 * len(model.layers) * model.output.in_features * length**2


def heads(model: Any, task: str) -> list[nn.Linear]:
    """What a transformer predicts codes by: one layer, or one for each role."""
    return [model.output, model.output_masked] if task == "unified" else [model.output]


def condition_tokens(model: Any) -> int:
    """Places that the condition takes: one for a class."""
    return model.text_tokens if model.classes is None else 1


def linear_weights(module: nn.Module) -> int:
    """Weights in a module's matrices, tables not counted."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def convolutions(tokenizer: Any, grid: Grid) -> list[tuple[int, int]]:
    """Of each convolution that one picture goes through: multiplications, and the values that it writes."""
    found: list[tuple[int, int]] = []

    def written(part: Any, _: Any, output: Tensor) -> None:
        found.append((part.weight[0].numel() * output.numel(), output.numel()))

    hooks = [part.register_forward_hook(written) for part in tokenizer.modules() if isinstance(part, nn.Conv2d)]
    images = torch.empty(1, 3, grid.height * tokenizer.factor, grid.width * tokenizer.factor, device="meta")
    tokenizer.render(tokenizer.latent(images))
    for hook in hooks:
        hook.remove()
    return found


def activation_bytes(model: Any, task: str, grid: Grid) -> float:
    """Bytes that one sample keeps for the way back (an estimate, see the constants)."""
    if task == "tokenizer":
        return PIXEL_BYTES * sum(values for _, values in convolutions(model, grid))
    width, hidden = model.output.in_features, model.layers[0].feed_forward.w1.out_features
    block = BLOCK_BYTES_PER_WIDTH * width + BLOCK_BYTES_PER_HIDDEN * hidden
    length = condition_tokens(model) + grid.places
    logits = grid.places * sum(head.out_features for head in heads(model, task))
    return length * len(model.layers) * block + LOGIT_BYTES * logits


def memory(model: Any, config: TrainConfig, grid: Grid, share: int) -> dict[str, float]:
    """Bytes on each GPU, whose batches have ``share`` samples of ``grid``, by what holds them."""
    count = sum(value.numel() for value in model.parameters())
    muon = linear_weights(model.layers) if config.loop.optimizer == "muon" and hasattr(model, "layers") else 0
    copies = sum(part.weight.numel() for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
    return {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimiser": 8 * (count - muon) + 4 * muon,  # AdamW keeps two moments, Muon one
        "average": 4 * count if config.loop.ema else 0,
        "half-precision copies": 0 if config.loop.precision == "no" else 2 * copies,
        "activations": share * activation_bytes(model, config.task, grid) * (2 if config.loop.precision == "no" else 1),
    }


def headline(plan: Plan) -> str:
    """The plan in one line, as the full-size configurations carry it."""
    epochs = "" if plan.epochs is None else f" = {plan.epochs:.3g} epochs of {plan.pictures:,} pictures"
    return (
        f"{plan.parameters / 1e6:,.{0 if plan.parameters >= 1e8 else 1}f}M parameters, "
        f"{plan.steps:,} steps of {plan.batch:,}{epochs}, {quantity(plan.flops)}FLOP a step; "
        f"at {100 * plan.mfu:g} % (assumed) of an H100's {H100_FLOPS / 1e12:.0f} TFLOP/s "
        f"{duration(plan.gpu_hours)} of GPU time, {duration(plan.hours)} on {devices(plan.gpus)}"
    )


def devices(count: int) -> str:
    """A number of GPUs in words."""
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def duration(hours: float) -> str:
    """Hours as hours, minutes or seconds, to three digits."""
    for unit, size in (("h", 1), ("min", 1 / 60)):
        if hours >= size:
            return f"{significant(hours / size)} {unit}"
    return f"{significant(hours * 3600)} s"


def quantity(value: float) -> str:
    """A number and a metric prefix, to three digits."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{significant(value / size)} {prefix}"
    return f"{significant(value)} "


def significant(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
