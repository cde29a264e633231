"""``hybrid-bench ablate``: what a choice of the paper is worth, as a sweep of short runs with at least two seeds.

A sweep is a YAML file, ``configs/ablate-NAME.yaml``: training settings, drawing settings or both, the values to vary
and the figures to look at. A *variant* is one combination of values, a *point* one variant with one seed. Every point
is written as soon as it is measured, under a name made of everything it depends on, so a killed sweep goes on where it
was and changed settings never meet old points.

This file knows sweeps, points and the result file. How a point is measured is in ``ablate_points``, what is said about
it in ``ablate_words``, how it is drawn in ``ablate_plot``.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from hybrid.config import Strict, TrainConfig, parse, read_yaml
from hybrid.loss_plot import can_plot

from .features import Features, digest
from .figures import LEAST, commit, versions, write_json

PREFIX = "ablate-"
Told = Callable[[str, int, int], None]


class Measure(Strict):
    """A figure to show: what it is in words, its unit, and which way is good.

    ``curve`` draws it over training instead of over the variants; ``judged`` says in words whether variants differ.
    """

    says: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    curve: bool = False
    judged: bool = True


class DrawConfig(Strict):
    """Pictures to draw with a pairing. ``real`` test pictures are what they are compared with; ``defaults`` replace the
    pairing's own, field by field."""

    pair: str
    pictures: int = Field(ge=LEAST)
    real: int = Field(ge=LEAST)
    ar_fraction: float = Field(ge=0, le=1)
    steps: int = Field(default=8, gt=0)
    dtype: str = "auto"
    defaults: dict[str, Any] = Field(default_factory=dict)


class SweepConfig(Strict):
    """A sweep (``configs/ablate-*.yaml``).

    ``vary`` gives the values of each dotted key (``train.model.config.rope``); every combination is a variant.
    ``names`` is what texts call a key. ``across`` is the key along the plots' axis, ``within`` one whose values are
    judged apart. ``limits`` says what the sweep cannot show.
    """

    title: str
    question: str
    limits: str
    seeds: list[int] = Field(min_length=2)
    vary: dict[str, list[Any]] = Field(min_length=1)
    names: dict[str, str] = Field(default_factory=dict)
    across: str | None = None
    within: str | None = None
    measures: dict[str, Measure] = Field(min_length=1)
    train: TrainConfig | None = None
    draw: DrawConfig | None = None


@dataclass(frozen=True)
class Point:
    """One variant with one seed.

    Attributes:
        variant: its label.
        values: the varied keys' values.
        seed: of everything random.
        config: the sweep with these values set.
    """

    variant: str
    values: Mapping[str, Any]
    seed: int
    config: SweepConfig


def shipped() -> list[str]:
    """Names of the sweeps that come with the package."""
    folder = Path(str(files("hybrid.configs")))
    return sorted(path.stem.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*.yaml"))


def find_sweep(name: str) -> Path:
    """A YAML file, or a shipped sweep by its name.

    Raises:
        ValueError: neither exists; the message lists the shipped ones.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name in shipped():
        return Path(str(files("hybrid.configs"))) / f"{PREFIX}{name}.yaml"
    near = get_close_matches(name, shipped(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"ablate {name}: unknown; {hint}choose one of {', '.join(shipped())}, or give a YAML file")


def read_sweep(path: Path, *, quick: bool = False) -> tuple[SweepConfig, list[Point]]:
    """The sweep and its points, all variants of the first seed before those of the second.

    Args:
        path: the YAML file.
        quick: cut steps and pictures down to what shows that everything works.

    Raises:
        ValueError: one line with the file, the key and what is wrong.
    """
    fields = read_yaml(path)
    sweep = parse(SweepConfig, fields, str(path))
    if sweep.train is None and sweep.draw is None:
        raise ValueError(f"{path}: give train, draw or both")
    for key in (sweep.across, sweep.within):
        if key is not None and key not in sweep.vary:
            raise ValueError(f"{path}: {key!r} is not among the keys of vary: {', '.join(sweep.vary)}")
    fields = with_values(fields, _quick(sweep) if quick else {}, str(path))
    points = []
    for seed, combination in itertools.product(sweep.seeds, itertools.product(*sweep.vary.values())):
        values = dict(zip(sweep.vary, combination, strict=True))
        seeded = {"train.loop.seed": seed} if sweep.train is not None else {}
        config = parse(SweepConfig, with_values(fields, {**values, **seeded}, str(path)), str(path))
        points.append(Point(label(values, sweep.names), values, seed, config))
    return parse(SweepConfig, fields, str(path)), points


def with_values(fields: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of nested settings with the values of dotted keys replaced.

    Raises:
        ValueError: a key leads through something that holds no settings.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(fields))
    for key, value in values.items():
        *path, last = key.split(".")
        part = changed
        for name in path:
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise ValueError(f"{source}: vary: {key}: {name!r} holds no settings")
        part[last] = value
    return changed


def _quick(sweep: SweepConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if sweep.train is not None:
        loop = {"steps": 4, "warmup": 1, "log_every": 1, "eval_every": 2, "sample_every": 0}
        found |= {f"train.loop.{key}": value for key, value in loop.items()}
    if sweep.draw is not None:
        found |= {"draw.pictures": LEAST, "draw.real": LEAST}
    return found


def label(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A variant in words: ``with QK-norm, without post-norm``, ``levels 8·6·5``, ``4 steps``."""
    parts = []
    for key, value in values.items():
        name = names.get(key, key.rpartition(".")[2])
        if isinstance(value, bool):
            parts.append(f"{'with' if value else 'without'} {name}")
        elif "{}" in name:
            parts.append(name.replace("{}", shown(value)))
        else:
            parts.append(f"{name} {shown(value)}")
    return ", ".join(parts)


def shown(value: Any) -> str:
    """A setting's value as texts show it."""
    return "·".join(map(str, value)) if isinstance(value, list) else str(value)


def run_sweep(
    name: str,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    out: Path | None = None,
    quick: bool = False,
    network: Features | None = None,
    classifier: Any = None,
    told: Told = lambda what, done, total: None,
) -> tuple[Path, dict[str, Any]]:
    """Measure every point that is not measured yet and write NAME.json, NAME.md and (with matplotlib) NAME.png.

    Args:
        name: a shipped sweep or a YAML file.
        data: data folder; None is where ``hybrid-data`` writes it.
        tokenizer: weights that masked and AR models are trained on; None is the embedded pair's of the data's name.
        out: the sweep's folder; None is ``runs/ablate-NAME``.
        quick: cut everything down; the result says so.
        network: makes the features of drawn pictures; None is EfficientNet-Lite0.
        classifier: judges their classes; None is the shipped one.
        told: called with (what, done, total) points, and training steps within one.

    Returns:
        The JSON file and what is in it.

    Raises:
        ValueError: one line naming what is missing or does not fit.
    """
    from .ablate_plot import plot_sweep
    from .ablate_points import Workbench
    from .ablate_words import paragraph

    path = find_sweep(name)
    stem = path.stem.removeprefix(PREFIX)
    sweep, points = read_sweep(path, quick=quick)
    out = out or Path("runs") / f"{PREFIX}{stem}"
    bench = Workbench(
        sweep, data=data, tokenizer=tokenizer, work=out, network=network, classifier=classifier, source=str(path)
    )
    entries = []
    for number, point in enumerate(points):
        told(stem, number, len(points))
        file = out / "points" / f"{_slug(point.variant)}-seed{point.seed}-{_key(point, bench.inputs)}.json"
        if not file.is_file():
            write_json(file, _measured(bench, point, told))
        stored = json.loads(file.read_text(encoding="utf-8"))
        entries.append(_checked(with_growth({**stored, "variant": point.variant}), sweep, str(path)))
    told(stem, len(points), len(points))
    content: dict[str, Any] = {
        "name": stem,
        "quick": quick,
        **sweep.model_dump(mode="json", exclude={"train", "draw"}),
        "settings": sweep.model_dump(mode="json", include={"train", "draw"}),
        "inputs": bench.inputs,
        "references": bench.references(),
        "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in entries), 1),
        "commit": commit(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "points": entries,
    }
    content["text"] = paragraph(content)
    target = out / f"{stem}.json"
    write_json(target, content)
    (out / f"{stem}.md").write_text(content["text"], encoding="utf-8")
    if can_plot():
        plot_sweep(content, out / f"{stem}.png")
    return target, content


def with_growth(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with ``eval_output_norm_growth``, the norm over its first value, where a norm was logged."""
    first = next((line["eval_output_norm"] for line in entry["curve"] if "eval_output_norm" in line), None)
    if first is None:
        return entry

    def grown(figures: Mapping[str, float]) -> dict[str, float]:
        norm = figures.get("eval_output_norm")
        return {**figures} if norm is None else {**figures, "eval_output_norm_growth": norm / first}

    return {**entry, "figures": grown(entry["figures"]), "curve": [grown(line) for line in entry["curve"]]}


def _checked(entry: dict[str, Any], sweep: SweepConfig, source: str) -> dict[str, Any]:
    """The entry, if it has every figure that the sweep wants to show."""
    for name in sweep.measures:
        if name not in entry["figures"]:
            known = ", ".join(entry["figures"])
            raise ValueError(f"{source}: measures: no point has {name!r}; points have {known}")
    return entry


def _measured(bench: Any, point: Point, told: Told) -> dict[str, Any]:
    """A point's entry: figures, curve, what it cost and what it ran on."""
    cpu, wall = time.process_time(), time.perf_counter()
    figures, curve = bench.measure(point, told)
    return {
        "variant": point.variant,
        "values": dict(point.values),
        "seed": point.seed,
        "figures": figures,
        "curve": curve,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }


def _key(point: Point, inputs: Mapping[str, Any]) -> str:
    """Names everything that a point's figures depend on."""
    settings = point.config.model_dump_json(include={"train", "draw"})
    return digest(settings, point.seed, json.dumps(inputs, sort_keys=True))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
