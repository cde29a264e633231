"""What an ablation found, in words made from its JSON, with the seeds' spread as the measuring stick.

A difference between two variants *exceeds the seeds' spread* where their means are further apart than any variant's
own seeds are. That is a rule of thumb and no test; the text says how often chance alone would meet it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ablate import label


@dataclass(frozen=True)
class Verdict:
    """One figure's comparison of the best variant with the others.

    Attributes:
        measure: name of the figure.
        group: the label of what was held fixed, or "".
        best: the variant with the best mean.
        values: each variant's values by seed.
        spread: the largest difference between two seeds of one variant.
        exceeding: variants whose mean is further from the best one's than ``spread``, the nearest first.
        within: the others.
    """

    measure: str
    group: str
    best: str
    values: Mapping[str, Sequence[float]]
    spread: float
    exceeding: Sequence[str]
    within: Sequence[str]


def judge(measure: str, values: Mapping[str, Sequence[float]], *, better: str, group: str = "") -> Verdict:
    """Compare the best variant with the others.

    Args:
        measure: name of the figure.
        values: each variant's values by seed.
        better: ``lower`` or ``higher``.
        group: the label of what is held fixed.
    """
    means = {variant: float(np.mean(seeds)) for variant, seeds in values.items()}
    best = (min if better == "lower" else max)(means, key=lambda variant: means[variant])
    spread = max(max(seeds) - min(seeds) for seeds in values.values())
    others = sorted((variant for variant in values if variant != best), key=lambda each: abs(means[each] - means[best]))
    exceeding = [variant for variant in others if abs(means[variant] - means[best]) > spread]
    return Verdict(measure, group, best, values, spread, exceeding, [each for each in others if each not in exceeding])


def verdicts(content: Mapping[str, Any]) -> list[Verdict]:
    """Every judged figure of a result, apart for each value of ``within`` where it names a key."""
    key, names, found = content["within"], content["names"], []
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in content["points"]:
        held = {key: point["values"][key]} if key else {}
        groups.setdefault(label(held, names), []).append(point)
    for measure, settings in content["measures"].items():
        for group, points in groups.items() if settings["judged"] else ():
            values: dict[str, list[float]] = {}
            for point in points:
                free = {name: value for name, value in point["values"].items() if name != key}
                values.setdefault(label(free, names), []).append(point["figures"][measure])
            found.append(judge(measure, values, better=settings["better"], group=group))
    return found


def sentence(verdict: Verdict, settings: Mapping[str, Any]) -> str:
    """A verdict in words."""
    means = {variant: float(np.mean(seeds)) for variant, seeds in verdict.values.items()}
    base = means[verdict.best]

    def listed(variants: Sequence[str]) -> str:
        return "; ".join(f"{each} ({number(means[each] - base, sign=True)})" for each in variants)

    best = verdict.values[verdict.best]
    what = settings["says"] + (f", {verdict.group}" if verdict.group else "")
    text = (
        f"{what} ({settings['unit']}): {'lowest' if settings['better'] == 'lower' else 'highest'} for {verdict.best}: "
    )
    text += f"{number(base)} (seeds {number(min(best))} to {number(max(best))})."
    if verdict.exceeding:
        text += (
            f" The difference exceeds the seeds' spread ({number(verdict.spread)}) for: {listed(verdict.exceeding)}."
        )
    if verdict.within:
        text += f" It is within the seeds' spread ({number(verdict.spread)}) for: {listed(verdict.within)}."
    return text


def chance(variants: int, seeds: int, *, draws: int = 20_000) -> float:
    """Share of comparisons with the best variant that exceed the seeds' spread where only Gaussian noise differs."""
    noise = np.random.default_rng(0).standard_normal((draws, variants, seeds))
    means = np.sort(noise.mean(2), axis=1)
    spread = (noise.max(2) - noise.min(2)).max(1)
    return float((means[:, 1:] - means[:, :1] > spread[:, None]).mean())


def paragraph(content: Mapping[str, Any]) -> str:
    """The Markdown text of a result."""
    seeds, found = content["seeds"], verdicts(content)
    lines = [f"## {content['title']}", "", content["question"], ""]
    if content["quick"]:
        lines += ["**A quick run, cut down to check that everything works: its figures mean nothing.**", ""]
    lines += [f"- {sentence(verdict, content['measures'][verdict.measure])}" for verdict in found]
    if content["references"]:
        real = ", ".join(
            f"{content['measures'][name]['says']} {number(value)}"
            for name, value in content["references"].items()
            if name in content["measures"]
        )
        lines += [f"- For comparison, real pictures through the tokenizer: {real}."]
    sizes = sorted({len(verdict.values) for verdict in found})
    odds = " and ".join(f"{100 * chance(size, len(seeds)):.0f} % (of {size} variants)" for size in sizes)
    lines += [
        "",
        f"{len(seeds)} seeds a variant. The seeds' spread is the largest difference between two seeds of one variant; "
        f"where nothing differed, chance alone would put a variant beyond it in about {odds} of the comparisons. "
        f"{content['limits']}",
        "",
        f"The points took {content['cpu_seconds'] / 60:.1f} CPU-minutes, without what killed runs had begun "
        f"({content['threads']} "
        f"thread{'s' if content['threads'] > 1 else ''}, torch {content['versions']['torch']}); "
        f"commit {_commit(content['commit'])}.",
        "",
    ]
    return "\n".join(lines)


def _commit(name: str | None) -> str:
    if name is None:
        return "unknown"
    return name[:12] + (" with local changes" if name.endswith("+") else "")


def number(value: float, *, sign: bool = False) -> str:
    """Three decimals, four of what is small, fewer of what is large; rounding errors are zero."""
    if abs(value) < 5e-5:
        return "+0.000" if sign else "0.000"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    if abs(value) < 0.01:
        digits = 4
    return f"{value:{'+' if sign else ''}.{digits}f}"
