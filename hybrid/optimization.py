"""Learning rate, optimisers and the moving average of parameters.

This file knows modules and step numbers. It does not know tasks, files or processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrid.config import LoopConfig

DECAY_SHARE = 0.25
"""Of all steps, how many a ``wsd`` schedule spends going down."""


@dataclass(frozen=True)
class Auxiliary:
    """A network that trains beside the model and is no part of what a run makes, such as a discriminator.

    The task's loss holds its loss as well, each with gradients for its own parameters only, so one backward pass
    serves both. It has no moving average.

    Attributes:
        module: the network.
        lr: its peak learning rate, on the run's schedule.
        betas: its AdamW's.
    """

    module: nn.Module
    lr: float
    betas: tuple[float, float] = (0.5, 0.9)


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, schedule: str) -> float:
    """Linear warm-up to ``peak``, then constant, a half cosine down to 0 at the last step, or constant until the last
    quarter and linearly down to 0 (``wsd``, warm-up, stable, decay, of MiniCPM, arXiv 2404.06395: a run's length may
    be decided while it trains, since its steps before the decay do not depend on it)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        return peak * min(1.0, (steps - step) / (DECAY_SHARE * steps))
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def optimizers(model: nn.Module, config: LoopConfig, auxiliary: Auxiliary | None = None) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest; AdamW for an auxiliary network.

    Weight decay applies to the model's matrices only. Muon: Jordan et al. 2024, scaled to AdamW's step size (arXiv
    2502.16982). Each optimizer's ``defaults["lr"]`` is its peak learning rate.

    Raises:
        ValueError: Muon with an old torch or a model without hidden matrices, or several optimizers with fp16, whose
            loss scaler serves one only.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    hidden = [value for name, value in named if value.ndim == 2 and ".layers." in f".{name}"]
    if config.optimizer == "adamw":
        hidden = []
    elif not hidden:
        raise ValueError("optimizer: muon trains matrices of transformer blocks, and this model has none; use adamw")
    taken = {id(value) for value in hidden}
    matrices = [value for _, value in named if value.ndim >= 2 and id(value) not in taken]
    vectors = [value for _, value in named if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)]
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw")
        if config.precision == "fp16":
            raise ValueError("optimizer: muon does not go with precision: fp16; use bf16, or adamw")
        found.append(
            muon_for(hidden[0].device)(
                hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if auxiliary is not None:
        if config.precision == "fp16":
            raise ValueError("an auxiliary network (adversarial) does not go with precision: fp16; use bf16")
        found.append(
            torch.optim.AdamW(auxiliary.module.parameters(), lr=auxiliary.lr, betas=auxiliary.betas, weight_decay=0.0)
        )
    return found


def muon_for(device: torch.device) -> type[torch.optim.Muon]:
    """torch's Muon, or one in float32 where a CPU computes no bf16."""
    if device.type != "cpu" or computes_bf16(device):
        return torch.optim.Muon
    from hybrid.muon import Float32Muon

    return Float32Muon


def find_precision(precision: str, device: torch.device) -> str:
    """``auto`` is ``bf16`` where the device computes in it."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bf16(device) else "no"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16: a GPU, or a CPU that oneDNN has kernels for. Other CPUs imitate it, hundreds
    of times slower than fp32 (0.3 against 115 GFLOP/s on two cores with AVX2)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    computes = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return computes and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


@contextmanager
def averaged(model: nn.Module, average: Average | None) -> Iterator[nn.Module]:
    """Within the block the model is in eval mode and holds the averaged parameters, if there is an average."""
    training = model.training
    kept = {name: value.detach().clone() for name, value in model.named_parameters()} if average is not None else {}
    model.eval()
    try:
        _assign(model, average.parameters if average is not None else {})
        yield model
    finally:
        _assign(model, kept)
        model.train(training)


@torch.no_grad()
def _assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name])
