"""Weight-only int8 and int4, accepted only where the outputs stay what they were.

On a CPU int8 is ``few_rows.Int8Linear``; on a graphics card both are torchao's.

The linear layers of the transformer blocks are quantized, nothing else: embeddings, norms, heads and tokenizers keep
their type. Speed on some machines comes with wrong outputs, so each model is asked the same before and after, and
refused with the figures where they differ too much. This file knows the pipeline's models as the core's protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.few_rows import Int8Linear, split_fused
from hybrid.types import MASK

if TYPE_CHECKING:
    from hybrid.pipeline import HybridPipeline

CAPTIONS = ("a red apple on a table", "a house by the sea at night")
LABELS = (0, 1)
ASKED, STEPS = 64, 32
"""Places whose logits are compared: of one pass, and of an AR model's single steps."""

GROUP = 32
"""Weights of int4 that share a scale."""


@dataclass(frozen=True)
class Agreement:
    """How near the logits of two versions of a model are.

    Attributes:
        cosine: mean cosine of the logits at a place, their mean taken off.
        argmax: share of places with the same likeliest code.
    """

    cosine: float
    argmax: float


TOLERANCES = {"int8": Agreement(cosine=0.999, argmax=0.9), "int4": Agreement(cosine=0.98, argmax=0.75)}
"""The least that each scheme must reach."""


def quantize_blocks(pipeline: HybridPipeline, scheme: str) -> dict[str, Agreement]:
    """Quantize the blocks of a pairing's AR and masked model, in place.

    Args:
        pipeline: as loaded; not compiled yet.
        scheme: ``int8`` (a scale for each row) or ``int4`` (a scale for each 32 weights).

    Returns:
        What was measured, by component.

    Raises:
        ValueError: no torchao, an unknown scheme, widths that the scheme does not divide, or outputs that differ more
            than ``TOLERANCES`` allows. The pipeline is of no use then.
    """
    if scheme not in TOLERANCES:
        raise ValueError(f"quantize {scheme!r}: use {' or '.join(TOLERANCES)}")
    found: dict[str, Agreement] = {}
    for component in ("ar", "masked"):
        model = getattr(pipeline, component)
        if model is None or (component == "masked" and model is pipeline.ar):
            continue
        before = probe(pipeline, model)
        replace_weights(model, scheme)
        found[component] = worst([compare(*pair) for pair in zip(before, probe(pipeline, model), strict=True)])
        check(found[component], scheme, component)
    pipeline.quantized = scheme
    return found


def replace_weights(model: Any, scheme: str) -> None:
    """Quantize the linear layers of a model's blocks.

    Raises:
        ValueError: a model without blocks, no torchao where it is needed, or int4 of another type, device or width than
            its kernels take.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.Module):
        raise ValueError(f"quantize {scheme}: a {type(model).__name__} has no blocks to quantize")
    split_fused(layers)
    linear = [part for part in layers.modules() if isinstance(part, nn.Linear)]
    weight = linear[0].weight
    if scheme == "int4" and (weight.device.type, weight.dtype) != ("cuda", torch.bfloat16):
        kind = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"quantize int4: needs bfloat16 on CUDA, got {kind} on {weight.device.type}; use int8")
    uneven = [part.in_features for part in linear if part.in_features % GROUP]
    if scheme == "int4" and uneven:
        raise ValueError(f"quantize int4: {uneven[0]} inputs are no multiple of {GROUP}; use int8")
    if scheme == "int8" and weight.device.type == "cpu":
        for parent in list(layers.modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(parent, name, Int8Linear(part))
        return
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ValueError(f"quantize {scheme}: needs torchao (pip install 'hybrid-imagegen[quant]')") from None
    if scheme == "int8":
        config: Any = Int8WeightOnlyConfig()
    else:
        config = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    quantize_(layers, config)


@torch.inference_mode()
def probe(pipeline: HybridPipeline, model: Any) -> list[Tensor]:
    """Logits (rows, codes) of a model on fixed prompts and made-up codes.

    Of an AR model those of the first places, all in one pass and then one place at a time, since a step of few rows may
    run on another kernel; of a masked model those of hidden places. A network that is both gives all three.
    """
    captions = pipeline.text is not None or pipeline.reads_captions
    condition = model.condition(pipeline.encode(CAPTIONS if captions else LABELS), pipeline.grid or model.grid)
    generator = torch.Generator().manual_seed(0)
    batch, places = len(condition), condition.grid.places
    tokens = torch.randint(model.codebook_size, (batch, places), generator=generator).to(pipeline.device)
    found = []
    if hasattr(model, "score"):
        found.append(model.score(tokens[:, :ASKED], condition).flatten(0, 1))
        logits, state = model.prefill(condition, places)
        steps = [logits]
        for place in range(min(STEPS, places) - 1):
            places_b = torch.full((batch,), place, device=tokens.device)
            steps.append(model.decode(tokens[:, place : place + 1], places_b, state)[:, -1])
        found.append(torch.cat(steps))
    if hasattr(model, "logits"):
        hidden = torch.rand(places, generator=generator).argsort()[: max(1, places // 2)]
        tokens[:, hidden] = MASK
        asked = hidden[:ASKED].sort().values.expand(batch, -1).to(pipeline.device)
        found.append(model.logits(tokens, condition, asked).flatten(0, 1))
    return found


def compare(before: Tensor, after: Tensor) -> Agreement:
    """How near two tables of logits (rows, codes) are."""
    one, other = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (before, after))
    cosine = F.cosine_similarity(one, other, dim=-1).mean()
    return Agreement(float(cosine), float((before.argmax(-1) == after.argmax(-1)).float().mean()))


def worst(found: Sequence[Agreement]) -> Agreement:
    """The least of each figure."""
    return Agreement(min(one.cosine for one in found), min(one.argmax for one in found))


def check(found: Agreement, scheme: str, component: str) -> None:
    """Refuse outputs that are too far off (or no numbers).

    Raises:
        ValueError: with the figures.
    """
    least = TOLERANCES[scheme]
    if not (found.cosine >= least.cosine and found.argmax >= least.argmax):
        raise ValueError(
            f"quantize {scheme}: the {component} model's outputs differ too much: cosine of the logits "
            f"{found.cosine:.4f} (at least {least.cosine}), same likeliest code at {found.argmax:.0%} of the places "
            f"(at least {least.argmax:.0%}); load it without quantize"
        )
