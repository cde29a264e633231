"""AR-scored refinement: what the masked model wrote and the AR model finds least likely is drawn anew.

After the fill, one parallel AR pass scores every token given all tokens before it. The least likely share of what the
masked model wrote is masked again and refilled by the masked model, which now knows both sides of each gap. Tokens of
the AR model and of the caller stay. This file knows protocols and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybrid.align import Alignment
from hybrid.phases import Callback, Fill, Sampling, Step, guide_places, masked_fill, place_scales, report
from hybrid.types import MASK, ARModel, Condition, MaskedModel


@dataclass(frozen=True)
class Refine:
    """How a finished grid is refined.

    Attributes:
        rounds: times that it is scored and refilled.
        redraw: share of the masked model's tokens that each round draws anew.
        steps: masked passes of each round; fewer where an image has fewer places to draw anew.

    Raises:
        ValueError: fewer than 1 round or step, a share outside (0, 1].
    """

    rounds: int = 1
    redraw: float = 0.25
    steps: int = 2

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("refinement steps", self.steps)):
            if value < 1:
                raise ValueError(f"{name} {value}: must be at least 1")
        if not 0 < self.redraw <= 1:
            raise ValueError(f"redraw {self.redraw:g}: must be above 0 and at most 1")


def log_likelihood(
    model: ARModel, condition: Condition, null: Condition, tokens_bn: Tensor, sampling: Sampling
) -> Tensor:
    """log p of each token given those before it (b, n), under the guided logits at temperature 1, in one AR
    pass. The guidance's floor plays no part: it would make all that is below it equal."""
    scales_n = place_scales(sampling, condition.grid).to(tokens_bn.device)
    guided = bool((scales_n != 1).any())
    asked, fed_bn = (condition.cat(null), tokens_bn.repeat(2, 1)) if guided else (condition, tokens_bn)
    logits_bnk = guide_places(model.score(fed_bn, asked), scales_n.expand(len(tokens_bn), -1))
    return logits_bnk.float().log_softmax(-1).gather(-1, tokens_bn[..., None])[..., 0]


def count_redrawn(open_bn: Tensor, share: float) -> Tensor:
    """How many places the share of each image's open ones is, rounded up."""
    return (open_bn.sum(1) * share).ceil().long()


def least_likely(log_p_bn: Tensor, open_bn: Tensor, share: float) -> Tensor:
    """True at the ``share`` of each image's open places (rounded up) with the lowest log p; the first of equals."""
    ranked_bn = log_p_bn.masked_fill(~open_bn, torch.inf).argsort(dim=1, stable=True)
    count_b = count_redrawn(open_bn, share)
    chosen_bn = torch.arange(log_p_bn.shape[1], device=log_p_bn.device) < count_b[:, None]
    return torch.zeros_like(open_bn).scatter(1, ranked_bn, chosen_bn)


def refine_tokens(
    ar: ARModel,
    masked: MaskedModel,
    ar_condition: Condition,
    ar_null: Condition,
    condition: Condition,
    null: Condition,
    tokens_bn: Tensor,
    open_bn: Tensor,
    uniforms_bt2n: Tensor,
    *,
    prefix: Sampling,
    fill: Fill,
    refine: Refine,
    alignment: Alignment | None = None,
    callback: Callback | None = None,
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Refine finished grids.

    Args:
        ar, masked: the models, of one tokenizer.
        ar_condition, ar_null: what the AR model is asked for, b images, and what its guidance moves away from.
        condition, null: the same for the masked model.
        tokens_bn: finished grids.
        open_bn: True where a token may be drawn anew.
        uniforms_bt2n: for each masked pass of all rounds, uniforms of the tokens and of the order, by place.
        prefix: the AR model's guidance.
        fill: how the masked model draws; ``refine`` sets its steps.
        refine: rounds, share and steps; there are never more passes than places that any image draws anew, so that an
            image beside one with fewer open places gets as few passes.
        alignment: how the tokenizers align, where there are two; only the identity is allowed.
        callback: called after each masked pass with a ``Step`` of phase ``refill``.
        phase: entered with ``score`` around each AR pass and ``refill`` around each refill, to keep times.

    Returns:
        tokens_bn; pass_bn, the masked pass of the refinement that wrote each place, from 1, or 0 where the token is the
        one given; and the number of forward passes by model.

    Raises:
        ValueError: tokenizers that are not the same.
    """
    if alignment is not None and alignment.kind != "identity":
        raise ValueError(f"refinement needs one tokenizer for both models, not {alignment.kind!r} alignment")
    redrawn = [count for count in count_redrawn(open_bn, refine.redraw).tolist() if count]
    steps = min([refine.steps, *redrawn])
    again = replace(fill, steps=steps)
    pass_bn = torch.zeros_like(tokens_bn)
    for round_ in range(refine.rounds):
        done = round_ * steps
        with phase("score"):
            log_p_bn = log_likelihood(ar, ar_condition, ar_null, tokens_bn, prefix)
            unlikely_bn = least_likely(log_p_bn, open_bn, refine.redraw)

        def told(step: Step, done: int = done) -> None:
            total = refine.rounds * steps
            report(callback, Step("refill", done + step.index, total, step.tokens_bn, step.grid))

        with phase("refill"):
            tokens_bn, written_bn, _ = masked_fill(
                masked,
                condition,
                null,
                tokens_bn.masked_fill(unlikely_bn, MASK),
                uniforms_bt2n[:, done : done + steps],
                again,
                told,
            )
        pass_bn = torch.where(written_bn > 0, done + written_bn, pass_bn)
    return tokens_bn, pass_bn, {"ar": refine.rounds, "masked": refine.rounds * steps}
