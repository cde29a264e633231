"""What the AR model's judgement buys: refinement, and ideas that were tried, against plain settings of equal time.

``python -m hybrid.benchmarks.judge RUN --out DIR`` measures the ways below in the folder RUN as ``hybrid-bench run``
does (an interrupted run goes on where it was) and writes ``report.json``, ``judge.md`` and ``judge.png``. Each way is
held against the best plain setting (``hybrid`` or ``masked`` as they are) that takes no longer than it, picture by
picture: same prompts, same seeds, resampled together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid.config import parse

from .dial import Series, write
from .judge_ways import Tried
from .points import LEAST_PICTURES, Point, Sweep, SweepConfig
from .report import read_raw
from .statistics import Estimate, estimate
from .sweep import STAGES, Runner, open_pipeline
from .tables import number
from .times import mean_of

PLAIN = ("hybrid", "masked")
SLACK = 1.05
"""A plain setting counts as taking no longer up to this factor, for medians scatter."""

Settings = dict[str, Any]
HYBRID: Settings = {"method": "hybrid", "ar_fraction": 0.25, "steps": 8}
WAYS: tuple[Settings, ...] = (
    {"method": "masked", "steps": 8},
    {"method": "masked", "steps": 16},
    HYBRID,
    {**HYBRID, "steps": 12},
    {**HYBRID, "steps": 16},
    {**HYBRID, "ar_fraction": 0.375},
    {**HYBRID, "ar_fraction": 0.5},
    {**HYBRID, "method": "refined", "rounds": 1},
    {**HYBRID, "method": "refined", "rounds": 2},
    {**HYBRID, "method": "guided", "weight": 1.0, "everywhere": False},
    {**HYBRID, "method": "guided", "weight": 0.5, "everywhere": True},
    {**HYBRID, "method": "guided", "weight": 0.5, "everywhere": True, "steps": 4},
    {"method": "scattered", "seeds": 8, "seed_temperature": 0.5, "steps": 8},
    {"method": "scattered", "seeds": 16, "seed_temperature": 0.5, "steps": 8},
)
"""Plain settings first, then what is held against them."""

SERIES = (
    Series("masked, passes", "masked", "s", "steps", "{steps}"),
    Series("hybrid, AR share + passes", "hybrid", "o", None, "{ar_fraction:.3g} + {steps}"),
    Series("refined, rounds", "refined", "D", "rounds", "{rounds}", filled=True),
    Series("fill guided by the AR model, weight and passes", "guided", "v", None, "{weight:g}, {steps}", filled=True),
    Series("scattered seeds, tokens", "scattered", "X", "seeds", "{seeds}", filled=True),
    Series("AR, token by token", "ar", "*", filled=True),
)


@dataclass(frozen=True)
class Verdict:
    """A way against the best plain setting that takes no longer.

    Attributes:
        label: the way.
        seconds: its median.
        rival: the plain setting's label, or None where every one takes longer.
        frechet: its Fréchet distance over the rival's, below 1 where it is better.
        score: its score minus the rival's.
        likelihood: its nats a token minus the AR model's own pictures'.
    """

    label: str
    seconds: float
    rival: str | None
    frechet: Estimate | None
    score: Estimate | None
    likelihood: Estimate

    @property
    def words(self) -> str:
        """What the interval of the Fréchet distance says."""
        if self.frechet is None:
            return "nothing plain is as fast"
        low, high = self.frechet.interval
        return "better" if high < 1 else "worse" if low > 1 else "no difference shown"


def points(dtype: str = "fp32") -> tuple[Point, ...]:
    """The ways as points of a sweep."""
    return tuple(Point(tuple(sorted(way.items())), dtype) for way in WAYS)


def judge_sweep(pair: str, data_set: str, pictures: int, repeats: int) -> Sweep:
    """The comparison as a sweep.

    Raises:
        ValueError: too few pictures for the statistics, or too few turns.
    """
    if pictures < LEAST_PICTURES:
        raise ValueError(f"--pictures {pictures}: the statistics need {LEAST_PICTURES}")
    fields: Settings = {"pair": pair, "data_set": data_set, "pictures": pictures, "speed": {"repeats": repeats}}
    config = parse(SweepConfig, {**fields, "points": list(WAYS)}, "judge")
    return Sweep(config, (Point((("method", "ar"),), "fp32"),), points(), "judge")


def open_tried(pair: str, point: Point, device: str | torch.device) -> Tried:
    """The pairing with the tried ways."""
    return Tried(open_pipeline(pair, point, device))


def verdicts(report: Mapping[str, Any], raw: Mapping[str, Any]) -> list[Verdict]:
    """Every way but the AR model against its rival, fastest first."""
    rows = [row for row in report["rows"] if row["region"] == "all" and row["median"] and row["frechet"] is not None]
    rows = sorted((row for row in rows if row["method"] != "ar"), key=lambda row: row["median"])
    found = []
    for row in rows:
        others = [
            one for one in rows if one["method"] in PLAIN and one is not row and one["median"] <= SLACK * row["median"]
        ]
        rival = min(others, key=lambda one: one["frechet"], default=None)
        own = raw["rows"][row["key"]]["fidelity"]
        frechet = score = None
        if rival is not None:
            other = raw["rows"][rival["key"]]["fidelity"]
            draws = [np.asarray(one["regions"]["all"]["own"]["frechet_draws"]) for one in (own, other)]
            frechet = estimate(row["frechet"] / rival["frechet"], draws[0] / draws[1])
            if "score" in own:
                score = mean_of(np.asarray(own["score"]) - np.asarray(other["score"]))
        whole = own["regions"]["all"]
        likelihood = mean_of(np.asarray(whole["log_likelihood"]) - np.asarray(whole["ar_log_likelihood"]))
        found.append(Verdict(row["label"], row["median"], rival and rival["label"], frechet, score, likelihood))
    return found


def table(report: Mapping[str, Any], found: Sequence[Verdict]) -> str:
    """``judge.md``: the verdicts in a table."""
    header = report["header"]
    score = header["score"]
    lines = [
        f"# What the AR model's judgement buys: {header['pair']}",
        "",
        f"{header['pictures']} pictures of each way, one picture a request, {header['device']}, {header['threads']} "
        "threads. The rival is the plain setting of lowest Fréchet distance that takes no longer; brackets are paired "
        "95 % intervals. Nats a token are over the AR model's own pictures': too high is as wrong as too low.",
        "",
        f"| way | median | rival | Fréchet over the rival's | {score or 'score'} minus the rival's | nats a token | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [one.label, f"{1000 * one.seconds:.0f} ms", one.rival or "–", _cell(one.frechet), _cell(one.score)]
        lines.append(f"| {' | '.join([*cells, _cell(one.likelihood), one.words])} |")
    return "\n".join(lines) + "\n"


def _cell(value: Estimate | None) -> str:
    return "–" if value is None else number(value.value, value.interval, digits=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.judge", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the raw rows; made if missing")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report and the figure")
    parser.add_argument("--pair", default="fashion", help="an embedded pair, a folder or a YAML (fashion)")
    parser.add_argument("--data-set", default="fashion", help="fashion or emoji (fashion)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: where hybrid-data writes it)")
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="of each way (200)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of the clock (7)")
    parser.add_argument("--only", choices=("fidelity", "speed", "report"), help="one stage; report only writes it anew")
    arguments = parser.parse_args(argv)
    stages = {None: STAGES, "report": ()}.get(arguments.only, (arguments.only,))
    try:
        sweep = judge_sweep(arguments.pair, arguments.data_set, arguments.pictures, arguments.repeats)
        for what, done, total in Runner(sweep, arguments.run, data=arguments.data, opened=open_tried).jobs(stages):
            print(f"{done}/{total} {what}", file=sys.stderr)
        if arguments.only in ("fidelity", "speed"):
            return 0
        report = write(arguments.run, arguments.out, name="judge", series=SERIES)
        found = verdicts(report, read_raw(arguments.run))
    except ValueError as error:
        print(f"judge: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    text = table(report, found)
    (arguments.out / "judge.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
