"""Exact verification: somebody drafts, the AR model judges, and the result is the AR model's own.

Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318) with a masked model, or the AR
model's own last look, as the drafter (``hybrid.drafts``). One *attempt* drafts the next window of raster places given
the verified prefix, so that each draft token is an independent draw from a known distribution q; scores the window in
one AR pass, which gives p after guidance, temperature, top-k and top-p; accepts a draft token x with probability
min(1, p(x) / q(x)); and ends with a token from max(0, p - q) at the first rejection, or from p at the place after the
window.

Exact up to the arithmetic: probabilities are float32 made whole numbers with equal sums, uniforms have 24 bits, and a
window's logits may differ in the last digits from those of single steps. This file knows protocols and no model.

Randomness is data: place 0 takes the first uniform of an image's own generator, each attempt fresh ones for drafts,
acceptance and the last token. Attempts and windows of an image depend on nothing but its own past.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hybrid.align import Alignment
from hybrid.drafts import (
    CacheDrafter,
    Drafter,
    DraftingModel,
    JacobiDrafter,
    MaskedDrafter,
    distribution,
    pick,
    whole_weights,
)
from hybrid.phases import Callback, Sampling, Step, guide_places, place_scales, report
from hybrid.sampling import fraction_of, uniforms
from hybrid.types import FROM_AR, MASK, ARModel, Condition, MaskedModel


@dataclass(frozen=True)
class Verify:
    """How drafts are verified.

    Attributes:
        window: the longest draft, in places.
        relax: see ``accept``; 0 is exact.
        adapt: let each image's window follow ``next_window``, from ``window`` on; False keeps it fixed.
        draft: who drafts: the masked model, or the AR model's own last look (``jacobi``), which needs no other model.

    Raises:
        ValueError: a window below 1, ``relax`` outside [0, 1), an unknown ``draft``.
    """

    window: int = 16
    relax: float = 0.0
    adapt: bool = True
    draft: Literal["masked", "jacobi"] = "masked"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window {self.window}: must be at least 1 place")
        check_relax(self.relax)
        if self.draft not in ("masked", "jacobi"):
            raise ValueError(f"draft {self.draft!r}: use masked or jacobi")


@dataclass(frozen=True)
class ExactResult:
    """Tokens and how they came about. Attempt r of an image is round r of the batch, and its masked pass, from 1.

    Attributes:
        tokens_bn: codes, without MASK.
        origin_bn: FROM_AR where the AR model drew the token, else the masked pass whose draft was accepted.
        accepted_bn: whether each place holds an accepted draft.
        passes: forward passes of the whole batch, ``ar`` (at most one per place) and ``masked``.
        tested_bn: how often the acceptance rule looked at a draft token of each place. With ``accepted_bn`` this gives
            the acceptance by place; drafts after a rejection are never looked at.
        drafted_br: draft tokens of each attempt, 0 where there was nothing to draft (the last place alone, or a
            finished image).
        accepted_br: how many of them were accepted.
    """

    tokens_bn: Tensor
    origin_bn: Tensor
    accepted_bn: Tensor
    passes: Mapping[str, int]
    tested_bn: Tensor
    drafted_br: Tensor
    accepted_br: Tensor


def accept(
    p_bwk: Tensor,
    q_bwk: Tensor,
    draft_bw: Tensor,
    uniforms_bw: Tensor,
    residual_uniforms_b: Tensor,
    *,
    relax: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The speculative-sampling rule, for windows of several lengths.

    Draft tokens are accepted from the left, x with probability min(1, p(x) / ((1 - relax) q(x))). The first place that
    is rejected, or that has no draft (MASK, where q counts as zero), takes a token from max(0, p - q), normalised.

    With ``relax`` 0 and drafts drawn from q, tokens follow p exactly. Otherwise, at every place and given the tokens
    before it, no code gets more than 1 / (1 - relax) times its probability in p, so that the total variation from p is
    at most ``relax`` (and at most that of q from p); over n places at most 1 - (1 - relax)^n. Proof: accepted mass is
    min(q, p / (1 - relax)), residual mass falls only where q < p and fills it at most up to p. Codes that p excludes
    stay excluded, and with p one-hot (temperature 0) nothing is loosened.

    The share of drafts that is accepted grows by exactly the total variation that is given up. No rule does better: the
    share is at most 1 - TV(q, emitted) <= 1 - TV(q, p) + TV(emitted, p). Pooling the mass of near codes (LANTERN, arXiv
    2410.03355; GSD) was held against it: ``benchmarks/judge_pool.py`` and its results.

    Args:
        p_bwk: the AR model's probabilities at each place of the window, given the draft before it.
        q_bwk: the probabilities from which each draft token was drawn, independently; ignored where there is none.
        draft_bw: draft tokens, then MASK.
        uniforms_bw: in [0, 1), for the acceptance.
        residual_uniforms_b: in [0, 1), for the last token; independent of all others.
        relax: in [0, 1).

    Returns:
        accepted_b, how many draft tokens stay; and tokens_bw: these, one token more (none where the whole window was
        drafted and accepted), then MASK.

    Raises:
        ValueError: probabilities that do not sum to 1; ``relax`` outside [0, 1).
    """
    check_relax(relax)
    drafted_bw, last = draft_bw != MASK, draft_bw.shape[1] - 1
    p_bwk, q_bwk = whole_weights(p_bwk), torch.where(drafted_bw[..., None], whole_weights(q_bwk, drafted_bw), 0)
    codes_bw1 = draft_bw.clamp(min=0)[..., None]
    # u q (1 - relax) < p in whole numbers; a code that the draft model excludes but the AR model allows is accepted.
    threshold_bw = fraction_of(q_bwk.gather(-1, codes_bw1)[..., 0], uniforms_bw * (1 - relax))
    passed_bw = drafted_bw & (threshold_bw < p_bwk.gather(-1, codes_bw1)[..., 0])
    kept_bw = passed_bw.long().cumprod(1).bool()
    accepted_b = kept_bw.sum(1)
    rows, end_b = torch.arange(len(draft_bw), device=draft_bw.device), accepted_b.clamp(max=last)
    drawn_b = pick(_residual(p_bwk[rows, end_b], q_bwk[rows, end_b]), residual_uniforms_b)
    tokens_bw = torch.where(kept_bw, draft_bw, MASK)
    tokens_bw[rows, end_b] = torch.where(accepted_b > last, tokens_bw[rows, end_b], drawn_b)
    return accepted_b, tokens_bw


def next_window(window_b: Tensor, drafted_b: Tensor, accepted_b: Tensor, limit: int) -> Tensor:
    """Each image's next window: twice as long (up to ``limit``) if all drafts of the last attempt were accepted, half
    as long (at least 1) if fewer than half were, else the same; the same too where nothing was drafted."""
    longer_b = torch.where((accepted_b == drafted_b) & (drafted_b > 0), window_b * 2, window_b)
    return torch.where(accepted_b * 2 < drafted_b, window_b // 2, longer_b).clamp(1, limit)


@torch.inference_mode()
def exact_generate(
    ar: ARModel,
    masked: MaskedModel | None,
    ar_condition: Condition,
    ar_null: Condition,
    masked_condition: Condition | None,
    masked_null: Condition | None,
    *,
    generators: Sequence[torch.Generator],
    prefix: Sampling,
    draft: Sampling,
    verify: Verify | None = None,
    alignment: Alignment | None = None,
    callback: Callback | None = None,
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> ExactResult:
    """Draw whole grids from the AR model's distribution in fewer AR passes than there are places.

    Images progress on their own: a short window at the end of the grid does not shorten its neighbours'. An attempt
    leaves at least one place for the AR model, so that it writes its accepted drafts and one token more, and the batch
    needs at most n AR passes (and fewer masked ones, up to n - 2 where every draft is rejected).

    Args:
        ar, masked: the models, of one tokenizer; None where ``verify`` drafts without a masked model.
        ar_condition, ar_null: what the AR model is asked for, b images, and what its guidance moves away from.
        masked_condition, masked_null: the same for the masked model.
        generators: one CPU generator for each image.
        prefix: how the AR model draws; its distribution is the result's.
        draft: how the masked model drafts. Any setting is exact; a guidance that changes does so over places.
        verify: windows, and how strict; None is exact.
        alignment: how the tokenizers align, where there are two; only the identity is allowed.
        callback: called with a ``Step`` of phase ``verify`` after each AR pass; its index is the number of tokens that
            the slowest image has, its total n. Returning False cancels.
        phase: entered with ``draft`` around each masked pass and ``verify`` around each AR pass, to keep times.

    Raises:
        ValueError: models, conditions or generators that do not fit each other; broken logits.
        Cancelled: the callback returned False.
    """
    verify = verify or Verify()
    if alignment is not None and alignment.kind != "identity":
        raise ValueError(f"exact verification needs one tokenizer for both models, not {alignment.kind!r} alignment")
    grid, batch, places = ar_condition.grid, len(ar_condition), ar_condition.grid.places
    window = min(verify.window, places)
    pairs: list[tuple[str, object, object]] = [("generators", batch, len(generators))]
    if verify.draft == "jacobi":
        masked = masked_condition = masked_null = None
    elif masked is None or masked_condition is None or masked_null is None:
        raise ValueError("there is no masked model to draft; use draft jacobi")
    else:
        pairs += [
            ("masked model's codes", ar.codebook_size, masked.codebook_size),
            ("masked model's grid", grid, masked_condition.grid),
            ("masked model's images", batch, len(masked_condition)),
        ]
    for what, expected, actual in pairs:
        if expected != actual:
            raise ValueError(f"{what}: expected {expected}, as the AR model has, got {actual}")
    scales_n = place_scales(prefix, grid)
    asked = ar_condition.cat(ar_null) if bool((scales_n != 1).any()) else ar_condition
    with phase("verify"):
        logits_bk, state = ar.prefill(asked, places)
    device = logits_bk.device
    scales_n = scales_n.to(device)

    tokens_bn = torch.full((batch, places), MASK, dtype=torch.long, device=device)
    origin_bn, tested_bn = torch.full_like(tokens_bn, FROM_AR), torch.zeros_like(tokens_bn)
    kept_bn = torch.zeros_like(tokens_bn, dtype=torch.bool)
    guided_b1k = guide_places(logits_bk[:, None], scales_n[:1].expand(batch, 1), prefix.guidance.floor)
    first_bk = distribution(guided_b1k, prefix)[:, 0]
    tokens_bn[:, 0] = pick(whole_weights(first_bk), uniforms(generators, (1,))[:, 0].to(device))
    drafter: Drafter
    guided_draft = bool((place_scales(draft, grid) != 1).any())
    if masked is None or masked_condition is None or masked_null is None:  # as ``verify`` says, checked above
        drafter = JacobiDrafter(places, first_bk)
    elif masked is ar and isinstance(ar, DraftingModel) and (len(asked) > batch or not guided_draft):
        drafter = CacheDrafter(ar, state, grid, draft)
    else:
        drafter = MaskedDrafter(masked, masked_condition, masked_null, draft)
    done_b = torch.ones(batch, dtype=torch.long, device=device)
    window_b, passes = torch.full_like(done_b, window), {"ar": 1, "masked": 0}
    drafted_rb, accepted_rb = [], []
    while True:
        slowest = int(done_b.min())
        report(callback, Step("verify", slowest, places, tokens_bn.clone(), grid))
        if slowest == places:
            break
        running_b = done_b < places
        drafted_b = torch.minimum(window_b, places - done_b - 1).clamp(min=0)
        width = int(drafted_b.max())
        offset_w = torch.arange(width + 1, device=device)  # the last column is never drafted
        noise_b3w = _fresh(generators, running_b, window)[:, :, : width + 1].to(device)
        places_bw = (done_b[:, None] + offset_w).clamp(max=places - 1)
        own_bw = offset_w < drafted_b[:, None]

        draft_bw = torch.full_like(places_bw, MASK)
        q_bwk = torch.zeros((*places_bw.shape, ar.codebook_size), device=device)
        if width:
            with phase("draft"):
                # An image is asked for its own drafts alone: what is proposed may depend on how many places are.
                last_b1 = places_bw.gather(1, (drafted_b - 1).clamp(min=0)[:, None])
                q_bwk[:, :-1] = drafter.propose(tokens_bn, torch.minimum(places_bw[:, :-1], last_b1))
                draft_bw[:, :-1] = pick(whole_weights(q_bwk[:, :-1]), noise_b3w[:, 0, :-1])
            draft_bw = torch.where(own_bw, draft_bw, MASK)
            passes["masked"] += drafter.passes
        with phase("verify"):
            p_bwk = _judge(ar, state, tokens_bn, draft_bw, places_bw, scales_n, prefix)
            accepted_b, found_bw = accept(
                p_bwk, q_bwk, draft_bw, noise_b3w[:, 1], noise_b3w[:, 2, 0], relax=verify.relax
            )
        passes["ar"] += 1
        drafter.learn(places_bw, p_bwk, (offset_w <= drafted_b[:, None]) & running_b[:, None])

        written_bw = (offset_w <= accepted_b[:, None]) & running_b[:, None]
        at = written_bw.nonzero()[:, 0], places_bw[written_bw]
        tokens_bn[at] = found_bw[written_bw]
        kept_bw = offset_w < accepted_b[:, None]
        kept_bn[at] = kept_bw[written_bw]
        origin_bn[at] = torch.where(kept_bw, passes["masked"] if drafter.passes else FROM_AR, FROM_AR)[written_bw]
        tested_bn[at] += own_bw[written_bw].long()
        done_b = torch.where(running_b, done_b + accepted_b + 1, done_b)
        state.truncate((done_b - 1).repeat(len(asked) // batch))
        if verify.adapt:
            window_b = next_window(window_b, drafted_b, accepted_b, window)
        drafted_rb.append(drafted_b)
        accepted_rb.append(accepted_b)
    none_rb = tokens_bn.new_zeros((0, batch))
    drafted_br, accepted_br = (torch.stack(x).T if x else none_rb.T for x in (drafted_rb, accepted_rb))
    return ExactResult(tokens_bn, origin_bn, kept_bn, passes, tested_bn, drafted_br, accepted_br)


def _judge(
    ar: ARModel, state: Any, tokens_bn: Tensor, draft_bw: Tensor, places_bw: Tensor, scales_n: Tensor, how: Sampling
) -> Tensor:
    """The AR model's distributions p_bwk at each place of the windows, given the draft before it, in one pass.

    The cache takes one width for all rows: w tokens from each row's last verified one on. A row with fewer than w
    places left begins earlier and feeds verified tokens again, so that no row feeds the last place or past it. After
    its own drafts a row feeds code 0, which changes nothing before it, and nobody looks at the logits after.
    """
    (batch, places), width = tokens_bn.shape, places_bw.shape[1]
    fed_bn, own_bw = tokens_bn.clone(), draft_bw != MASK
    fed_bn[own_bw.nonzero()[:, 0], places_bw[own_bw]] = draft_bw[own_bw]
    start_b = (places_bw[:, 0] - 1).clamp(max=places - 1 - width)
    fed_bw = fed_bn.clamp(min=0).gather(1, start_b[:, None] + torch.arange(width, device=start_b.device))
    many = 2 if bool((scales_n != 1).any()) else 1
    logits = ar.decode(fed_bw.repeat(many, 1), start_b.repeat(many), state)
    column_bw = (places_bw - 1 - start_b[:, None]).clamp(max=width - 1).repeat(many, 1)
    logits = logits[torch.arange(many * batch, device=logits.device)[:, None], column_bw]
    return distribution(guide_places(logits, scales_n[places_bw], how.guidance.floor), how)


def check_relax(relax: float) -> None:
    """Raise ValueError where ``relax`` is no number in [0, 1)."""
    if not 0 <= relax < 1:
        raise ValueError(f"relax {relax:g}: must be at least 0 (exact) and below 1")


def _fresh(generators: Sequence[torch.Generator], running_b: Tensor, window: int) -> Tensor:
    """Uniforms (b, 3, window + 1) for drafts, acceptance and the last token; a finished image draws none."""
    running = running_b.tolist()
    drawn = uniforms([one for one, runs in zip(generators, running, strict=True) if runs], (3, window + 1))
    noise = torch.zeros((len(running), *drawn.shape[1:]))
    noise[running_b.cpu()] = drawn
    return noise


def _residual(p_bk: Tensor, q_bk: Tensor) -> Tensor:
    """Weights of the token drawn after a rejection."""
    return (p_bk - q_bk).clamp(min=0)
