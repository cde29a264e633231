"""Settings from a report of ``hybrid-bench``: the fastest that is good enough, or the best that is fast enough.

Reads ``report.json`` and nothing else; loads no model and no benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIND = "hybrid-bench report"


@dataclass(frozen=True)
class Choice:
    """What a report recommends.

    Attributes:
        label: the point in words.
        settings: arguments of ``HybridPipeline``.
        dtype: type of the weights, as ``from_pretrained`` takes it.
        compile: whether the networks are compiled.
        batch: pictures a request that the times are of.
        seconds: median of one request.
        speedup: over the AR model.
        fidelity: see ``hybrid.benchmarks.report``; None where the report has only times.
        pair: the pairing that was measured, as its sweep names it; None where the report does not say.
    """

    label: str
    settings: Mapping[str, Any]
    dtype: str
    compile: bool
    batch: int
    seconds: float
    speedup: float
    fidelity: float | None
    pair: str | None


def read_report(path: str | Path) -> dict[str, Any]:
    """A report from its file, or from the folder that holds ``report.json``.

    Raises:
        ValueError: one line: no such file, or no report.
    """
    path = Path(path).expanduser()
    path = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such report; hybrid-bench run writes one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("kind") != KIND or not {"header", "rows"} <= content.keys():
        raise ValueError(f"{path}: not a report of hybrid-bench run")
    return content


def recommend(
    report: str | Path | Mapping[str, Any],
    *,
    quality: float | None = None,
    max_ms: float | None = None,
    batch: int | None = None,
) -> Choice:
    """The fastest settings whose fidelity is at least ``quality``; or the best whose median is at most ``max_ms``.

    With both, the fastest that meets both. Fastest is the highest speed-up: the AR model ran between the same turns, so
    that a busy moment does not decide.

    Args:
        report: its file, folder or content.
        quality: fidelity, 1 is the AR model's.
        max_ms: milliseconds of one request.
        batch: pictures a request; None is the report's first batch size.

    Raises:
        ValueError: neither limit given, one out of range, or nothing in the report that meets them; the message tells
            how near it comes.
    """
    content = report if isinstance(report, Mapping) else read_report(report)
    if quality is None and max_ms is None:
        raise ValueError("give the least fidelity, the most milliseconds, or both")
    if quality is not None and not 0 < quality <= 1:
        raise ValueError(f"fidelity {quality:g}: must be above 0 and at most 1, which is the AR model's")
    if max_ms is not None and not max_ms > 0:
        raise ValueError(f"{max_ms:g} ms: must be above 0")
    found = list(_choices(content, batch))
    if not found:
        raise ValueError(f"the report has no times at batch {batch}" if batch else "the report has no times")
    if quality is not None and all(choice.fidelity is None for choice in found):
        raise ValueError("the report has no fidelity; run its sweep with a data_set")
    good = [one for one in found if quality is None or (one.fidelity is not None and one.fidelity >= quality)]
    if not good:
        best = max(found, key=_fidelity)
        raise ValueError(
            f"nothing in the report reaches fidelity {quality:g}; the best is {best.fidelity:.3g}: {best.label}"
        )
    fits = [one for one in good if max_ms is None or 1000 * one.seconds <= max_ms]
    if not fits:
        quick = min(good, key=lambda one: one.seconds)
        took = f"{1000 * quick.seconds:.0f} ms: {quick.label}"
        what = "in the report" if quality is None else "that is good enough"
        raise ValueError(f"nothing {what} takes at most {max_ms:g} ms; the fastest takes {took}")
    if quality is None and any(one.fidelity is not None for one in fits):
        return max(fits, key=lambda one: (_fidelity(one), one.speedup))
    return max(fits, key=lambda one: (one.speedup, _fidelity(one)))


def _choices(content: Mapping[str, Any], batch: int | None) -> Any:
    pair = content.get("header", {}).get("pair")
    for row in content["rows"]:
        if row["region"] != "all":
            continue
        wanted = batch if batch is not None else row["batch"]
        for times in row["speed"] or ():
            if times["batch"] == wanted:
                yield Choice(
                    row["label"],
                    row["settings"],
                    row["dtype"],
                    row["compile"],
                    times["batch"],
                    times["median"],
                    times["speedup"],
                    row["fidelity"],
                    pair,
                )


def _fidelity(choice: Choice) -> float:
    return -1.0 if choice.fidelity is None else choice.fidelity
