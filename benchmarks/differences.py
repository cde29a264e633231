"""``hybrid-bench compare``: what changed between two reports, and what is noise.

The interval of a difference comes from the two figures' own intervals (Zou and Donner, Statistics in Medicine 2008):
with d = b − a, from d − √((b − b_low)² + (a_high − a)²) to d + √((b_high − b)² + (a − a_low)²). Where both reports drew
the same prompts and seeds, this is wider than needed. A difference whose interval holds 0 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

SAME = {
    "data_set": "data sets",
    "data_digest": "data or prompts",
    "pictures": "numbers of pictures",
    "feature_network_sha256": "feature networks",
}
"""Header fields that must be equal for figures to be comparable, and what they are called."""

FIDELITY = {
    "frechet": "Fréchet distance",
    "kid": "KID",
    "accuracy": "accuracy",
    "retrieval": "retrieval",
    "fidelity": "fidelity",
    "frechet_over_ar": "Fréchet over AR's",
    "log_likelihood_over_ar": "nats a token over AR's",
}


@dataclass(frozen=True)
class Difference:
    """One figure of one row in both reports.

    Attributes:
        label: the point.
        region: of the row.
        figure: what is compared.
        before, after: its values.
        low, high: 95 % interval of after − before.
    """

    label: str
    region: str
    figure: str
    before: float
    after: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two reports beside each other.

    Attributes:
        differences: of points that are in both.
        only_before, only_after: labels of the others.
        notes: what was not compared, and why.
    """

    differences: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    notes: tuple[str, ...]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two reports, point by point.

    Raises:
        ValueError: reports of different data, or without a point in common.
    """
    one, other = before["header"], after["header"]
    for name, words in SAME.items():
        if one.get(name) != other.get(name):
            shown = f" ({_brief(one.get(name))} and {_brief(other.get(name))})"
            raise ValueError(f"the reports are of different {words}{shown}; only reports of the same can be compared")
    rows = {(row["key"], row["region"]): row for row in before["rows"]}
    pairs = [(rows[place], row) for row in after["rows"] if (place := (row["key"], row["region"])) in rows]
    if not pairs:
        raise ValueError("the reports have no point in common")
    machines = [(header["device"], header["threads"]) for header in (one, other)]
    notes = []
    if machines[0] != machines[1]:
        notes.append(f"times are not compared: {_machine(machines[0])} and {_machine(machines[1])}")
    elif one["busy"] or other["busy"]:
        notes.append("a machine was busy while its times were taken; see speed_load in the headers")
    found: list[Difference] = []
    for a, b in pairs:
        found += _fidelity(a, b)
        if a["region"] == "all" and machines[0] == machines[1]:
            found += _times(a, b)
    labels = [{row["key"]: row["label"] for row in report["rows"]} for report in (before, after)]
    missing = [tuple(own[key] for key in own if key not in rest) for own, rest in (labels, labels[::-1])]
    return Comparison(tuple(found), missing[0], missing[1], tuple(notes))


def difference(before: float, after: float, before_interval: list[float], after_interval: list[float]) -> list[float]:
    """The interval of after − before; see the module's text."""
    step = after - before
    low = step - hypot(after - after_interval[0], before_interval[1] - before)
    return [low, step + hypot(after_interval[1] - after, before - before_interval[0])]


def _fidelity(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name, words in FIDELITY.items():
        intervals = [row.get(f"{name}_interval") for row in (a, b)]
        if all(intervals) and a.get(name) is not None and b.get(name) is not None:
            low, high = difference(a[name], b[name], *intervals)  # type: ignore[arg-type]
            yield Difference(b["label"], b["region"], words, a[name], b[name], low, high)


def _times(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    before = {times["batch"]: times for times in a["speed"] or ()}
    for after in b["speed"] or ():
        if (own := before.get(after["batch"])) is None:
            continue
        for name, words in (("median", "seconds"), ("speedup", "speed-up")):
            low, high = difference(own[name], after[name], own[f"{name}_interval"], after[f"{name}_interval"])
            figure = f"{words}, batch {after['batch']}"
            yield Difference(b["label"], "all", figure, own[name], after[name], low, high)


def _machine(machine: tuple[Any, Any]) -> str:
    return f"{machine[0]} with {machine[1]} threads"


def _brief(value: Any) -> str:
    return str(value)[:16]
