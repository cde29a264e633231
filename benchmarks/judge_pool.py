"""Three ways to loosen the acceptance of drafts, on what a pair's own models say: is it worth pooling near codes?

    loosened    what ``hybrid.verify.accept`` does: x is accepted up to p(x) / (1 - relax)
    pooled      the target is (1 - relax) p + relax p', where p' gives each group of near codes the AR model's mass and
                shares it inside the group as the draft does (in the spirit of LANTERN, arXiv 2410.03355, and GSD)
    near first  a total variation of ``relax`` is spent, first between nearest codes, then between farther ones

For a draft from q and an emitted distribution e, no rule accepts more than 1 - TV(q, e) <= 1 - TV(q, p) + TV(e, p).
``python -m hybrid.benchmarks.judge_pool fashion --out DIR`` writes ``pool.json`` and ``pool.md``: for each rule the
share accepted, the total variation from the AR model, the nats a token and how far codes move.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.drafts import MaskedDrafter, distribution
from hybrid.phases import ar_prefix, guide_places, place_scales
from hybrid.pipeline import HybridPipeline
from hybrid.request import find_sampling
from hybrid.sampling import uniforms
from hybrid.types import MASK

from .figures import commit, versions, write_json

GROUPS = (4, 16)
"""Codes in a group of the pooled rule."""

RELAX = (0.1, 0.3, 0.6, 0.9)
BUDGETS = (0.025, 0.05, 0.1, 0.2)
AHEAD = 3
"""Places of each window that are looked at."""

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(p_nk, q_nk) to the share of drafts accepted, n, and the distribution of the emitted code, (n, k)."""


def near_groups(codebook_kd: Tensor, most: int) -> Tensor:
    """The group of each code, k: the codebook halved along its widest axis until no part has more than ``most``."""
    parts = [torch.arange(len(codebook_kd))]
    while max(len(part) for part in parts) > most:
        halves = []
        for part in parts:
            values = codebook_kd[part]
            axis = int((values.amax(0) - values.amin(0)).argmax())
            ordered = part[values[:, axis].argsort(stable=True)]
            halves += [ordered[: len(part) // 2], ordered[len(part) // 2 :]] if len(part) > most else [part]
        parts = halves
    groups_k = torch.empty(len(codebook_kd), dtype=torch.long)
    for number, part in enumerate(parts):
        groups_k[part] = number
    return groups_k


def loosened(p_nk: Tensor, q_nk: Tensor, relax: float) -> tuple[Tensor, Tensor]:
    """The rule of ``hybrid.verify.accept``."""
    return _emitted(torch.minimum(q_nk, p_nk / (1 - relax)), (p_nk - q_nk).clamp(min=0))


def pooled(p_nk: Tensor, q_nk: Tensor, relax: float, groups_k: Tensor) -> tuple[Tensor, Tensor]:
    """Exact sampling of the mixed target. The mass of every group is the AR model's."""
    p_ng, q_ng = (_sums(x, groups_k)[:, groups_k] for x in (p_nk, q_nk))
    shared_nk = torch.where(q_ng > 0, q_nk * p_ng / q_ng.clamp(min=1e-300), p_nk)
    target_nk = (1 - relax) * p_nk + relax * shared_nk
    return torch.minimum(q_nk, target_nk).sum(1), target_nk


def near_first(p_nk: Tensor, q_nk: Tensor, budget: float, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Codes that q has too much of keep mass that codes of their group have too little of, finest groups first, until
    a total variation of ``budget`` is spent."""
    kept_nk, over_nk, under_nk = torch.minimum(p_nk, q_nk), (q_nk - p_nk).clamp(min=0), (p_nk - q_nk).clamp(min=0)
    left_n1 = torch.full_like(p_nk[:, :1], budget)
    for groups_k in levels:
        over_ng, under_ng = _sums(over_nk, groups_k), _sums(under_nk, groups_k)
        moved_ng = torch.minimum(over_ng, under_ng)
        moved_ng = moved_ng * (left_n1 / moved_ng.sum(1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
        left_n1 = left_n1 - moved_ng.sum(1, keepdim=True)
        lent_nk = over_nk * (moved_ng / over_ng.clamp(min=1e-300))[:, groups_k]
        kept_nk, over_nk = kept_nk + lent_nk, over_nk - lent_nk
        under_nk = under_nk - under_nk * (moved_ng / under_ng.clamp(min=1e-300))[:, groups_k]
    return kept_nk.sum(1), kept_nk + under_nk


def _emitted(kept_nk: Tensor, residual_nk: Tensor) -> tuple[Tensor, Tensor]:
    accepted_n1 = kept_nk.sum(1, keepdim=True)
    share_nk = residual_nk / residual_nk.sum(1, keepdim=True).clamp(min=1e-300)
    return accepted_n1[:, 0], kept_nk + (1 - accepted_n1) * share_nk


def _sums(x_nk: Tensor, groups_k: Tensor) -> Tensor:
    return x_nk.new_zeros(len(x_nk), int(groups_k.max()) + 1).index_add(1, groups_k, x_nk)


def rules(codebook_kd: Tensor) -> dict[str, Rule]:
    """The rules by their names."""
    sizes = [2**power for power in range(1, len(codebook_kd).bit_length() + 1)]
    levels = [near_groups(codebook_kd, size) for size in sizes]
    found: dict[str, Rule] = {"exact": lambda p, q: loosened(p, q, 0.0)}
    for relax in RELAX:
        found[f"loosened {relax:g}"] = lambda p, q, relax=relax: loosened(p, q, relax)  # type: ignore[misc]
    for most in GROUPS:
        groups_k = near_groups(codebook_kd, most)
        for relax in (*RELAX[1:], 1.0):
            name = f"pooled {relax:g}, groups of {most}"
            found[name] = lambda p, q, relax=relax, groups_k=groups_k: pooled(p, q, relax, groups_k)  # type: ignore[misc]
    for budget in BUDGETS:
        found[f"near first {budget:g}"] = lambda p, q, budget=budget: near_first(p, q, budget, levels)  # type: ignore[misc]
    return found


def compare(p_nk: Tensor, q_nk: Tensor, codebook_kd: Tensor) -> dict[str, dict[str, float]]:
    """Each rule's means: ``accepted``; ``variation`` from p; ``nats``, the expected log p of the emitted code;
    ``moved``, the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of code vectors between p and what is emitted."""
    p_nk, q_nk = (x / x.sum(1, keepdim=True) for x in (p_nk.double().cpu(), q_nk.double().cpu()))
    codebook_kd = codebook_kd.double().cpu()
    apart_kk, found = torch.cdist(codebook_kd, codebook_kd), {}
    log_p_nk = p_nk.clamp(min=1e-12).log()
    for name, rule in rules(codebook_kd).items():
        accepted_n, e_nk = rule(p_nk, q_nk)
        gap_nk = e_nk - p_nk
        found[name] = {
            "accepted": float(accepted_n.mean()),
            "variation": float(gap_nk.abs().sum(1).mean() / 2),
            "nats": float((e_nk * log_p_nk).sum(1).mean()),
            "moved": float(-((gap_nk @ apart_kk) * gap_nk).sum(1).mean()),
        }
    return found


@torch.inference_mode()
def looks(pipe: HybridPipeline, prompts: Sequence[str | int], windows: int, seed: int) -> tuple[Tensor, Tensor]:
    """p and q (n, k) at the first places of ``windows`` windows spread over pictures that the AR model drew.

    Raises:
        ValueError: a model is missing.
    """
    if pipe.ar is None or pipe.masked is None:
        raise ValueError(f"{pipe.name}: needs an AR and a masked model")
    encoded = pipe.encode(list(prompts))
    asked, drafting = pipe.ar.condition(encoded), pipe.masked.condition(encoded)
    prefix, draft = find_sampling(pipe.defaults.ar, {}), find_sampling(pipe.defaults.masked, {})
    batch, places = len(asked), asked.grid.places
    generators = [torch.Generator().manual_seed(seed + row) for row in range(batch)]
    noise_bn = uniforms(generators, (places,)).to(pipe.device)
    tokens_bn, _ = ar_prefix(pipe.ar, asked, asked.null(), places, noise_bn, prefix)
    scales_bn = place_scales(prefix, asked.grid).to(pipe.device).expand(batch, -1)
    both = pipe.ar.score(tokens_bn.repeat(2, 1), asked.cat(asked.null()))
    p_bnk = distribution(guide_places(both, scales_bn, prefix.guidance.floor), prefix)
    drafter = MaskedDrafter(pipe.masked, drafting, drafting.null(), draft)
    starts = torch.linspace(1, places - AHEAD, windows).long().tolist()
    found = []
    for start in starts:
        at_bw = torch.arange(start, start + AHEAD, device=pipe.device).expand(batch, -1)
        known_bn = tokens_bn.masked_fill(torch.arange(places, device=pipe.device) >= start, MASK)
        found.append((p_bnk[:, start : start + AHEAD], drafter.propose(known_bn, at_bw)))
    return tuple(torch.cat([pair[side].flatten(0, 1) for pair in found]) for side in (0, 1))  # type: ignore[return-value]


def table(found: dict[str, dict[str, float]]) -> str:
    """``pool.md``."""
    lines = ["| rule | drafts accepted | total variation | nats a token | codes moved |", "|---|---|---|---|---|"]
    for name, row in sorted(found.items(), key=lambda item: item[1]["accepted"]):
        cells = [f"{row['accepted']:.3f}", f"{row['variation']:.3f}", f"{row['nats']:.3f}", f"{abs(row['moved']):.4f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.judge_pool", description=__doc__)
    parser.add_argument("pair", help="an embedded pair of classes, a folder or a YAML")
    parser.add_argument("--pictures", type=int, default=20, metavar="N", help="that the AR model draws (20)")
    parser.add_argument("--windows", type=int, default=10, metavar="N", help="places where a window begins (10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of pool.json and pool.md")
    arguments = parser.parse_args(argv)
    try:
        for name in ("pictures", "windows"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name} {getattr(arguments, name)}: must be at least 1")
        pipe = HybridPipeline.from_pretrained(arguments.pair)
        if not pipe.classes:
            raise ValueError(f"{pipe.name}: draws from captions; use a pair with classes")
        prompts = [pipe.classes[row % len(pipe.classes)] for row in range(arguments.pictures)]
        p_nk, q_nk = looks(pipe, prompts, arguments.windows, arguments.seed)
        found = compare(p_nk, q_nk, pipe.tokenizer.codebook_kd)
    except ValueError as error:
        print(f"judge_pool: {error}", file=sys.stderr)
        return 2
    head: dict[str, Any] = {"pair": pipe.name, "pictures": arguments.pictures, "looks": len(p_nk)}
    head |= {"seed": arguments.seed, "commit": commit(), "versions": versions()}
    write_json(arguments.out / "pool.json", head | {"rules": found})
    (arguments.out / "pool.md").write_text(table(found), encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
