"""The YAML of a sweep, and the points that it spells out.

A point is one way to draw: arguments of ``HybridPipeline`` by its own names, the type of the weights and whether they
are compiled. This file knows names and products of lists. It loads and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from hybrid.config import Strict, parse, read_yaml

from .artist import ARGUMENTS
from .features import digest

NOT_SWEPT = {
    *("self", "prompt", "negative_prompt", "image", "mask", "num_images_per_prompt", "seed", "generator"),
    *("output_type", "callback_on_step_end", "auto", "quality"),
}
PATHS = ("dtype", "compile")
"""Settings of a point that say how it is computed, not what is drawn."""

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
}
"""What a value must be, by how ``HybridPipeline``'s argument is annotated, and its name in messages."""

LEAST_PICTURES = 80


class SpeedConfig(Strict):
    """How speed is measured: at each batch size, ``repeats`` turns of baseline and point after ``warmup`` of each. Of
    fewer than five turns no interval holds as often as it says."""

    batch_sizes: list[int] = Field(default=[1], min_length=1)
    repeats: int = Field(default=7, ge=5)
    warmup: int = Field(default=1, ge=1)


class FidConfig(Strict):
    """Inception FID and IS, and CLIP score, of every point (extra ``fid``).

    Attributes:
        inception: the weight file; None is where ``torch.hub`` keeps it.
        clip: CLIP's weight file; None leaves its score out.
        clip_model: ``open_clip``'s name of it.
    """

    inception: str | None = None
    clip: str | None = None
    clip_model: str | None = None


class SweepConfig(Strict):
    """A sweep (``configs/bench-*.yaml``).

    ``baseline`` and each of ``points`` map arguments of ``HybridPipeline`` (and ``dtype``, ``compile``) to a value or a
    list of values; a point stands for the product of its lists.

    Attributes:
        pair: the pairing.
        data_set: ``fashion``, ``emoji``, or ``folder`` for any data folder; None measures speed alone.
        data: the data folder; None is where ``hybrid-data`` writes it.
        sets: of a data set that has sets (``emoji``), those to ask for, such as the pair was trained on; None is all.
        prompts: what is asked for where there is no data set.
        baseline: the AR model. Of several settings (lists of, say, ``guidance_scale`` and ``temperature``) the one
            with the least Fréchet distance is taken; of several paths (``dtype``, ``compile``), the fastest.
        choice_pictures: drawn with each of several baseline settings, to choose by; at most ``pictures`` are.
        points: everything else.
        pictures: of each point and seed, for fidelity.
        reference: real pictures to compare with; None is as many as ``pictures``.
        seeds: replicates; replicate r draws picture i with seed r · 10,000,000 + i.
        shown: prompts in the sheets of pictures.
        speed: how speed is measured.
        fid: ``true``, or its fields, adds Inception's figures and CLIP score.
    """

    pair: str
    data_set: str | None = None
    data: str | None = None
    sets: list[str] | None = Field(default=None, min_length=1)
    prompts: list[str | int] | None = Field(default=None, min_length=1)
    baseline: dict[str, Any] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(min_length=1)
    pictures: int = Field(default=1000, ge=1)
    reference: int | None = Field(default=None, ge=1)
    choice_pictures: int = Field(default=256, ge=64)
    seeds: list[int] = Field(default=[0], min_length=1)
    shown: int = Field(default=8, ge=1, le=64)
    speed: SpeedConfig = SpeedConfig()
    fid: FidConfig | None = None

    @field_validator("fid", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value


@dataclass(frozen=True)
class Point:
    """One way to draw. Implements ``artist.Way``.

    Attributes:
        settings: arguments of ``HybridPipeline`` in the order of their names.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        compile: whether the networks are compiled.
    """

    settings: tuple[tuple[str, Any], ...]
    dtype: str = "auto"
    compile: bool = False

    @property
    def key(self) -> str:
        """Twelve hex digits that name the point."""
        return digest(self.settings, self.dtype, self.compile)

    @property
    def method(self) -> str:
        """The pipeline's name of the method."""
        return str(dict(self.settings)["method"])

    @property
    def name(self) -> str:
        """What progress is told under."""
        return self.method

    @property
    def label(self) -> str:
        """The point in words."""
        settings = dict(self.settings)
        words = [str(settings.pop("method"))]
        if (fraction := settings.pop("ar_fraction", None)) is not None:
            words.append(f"{100 * fraction:.4g} % AR")
        if (steps := settings.pop("steps", None)) is not None:
            words.append(f"{steps} step{'s' if steps != 1 else ''}")
        words += [f"{name.replace('_', ' ')} {value}" for name, value in settings.items()]
        if self.dtype != "auto":
            words.append(self.dtype)
        return ", ".join([*words, "compiled"] if self.compile else words)

    def request(self) -> dict[str, Any]:
        """Arguments of ``HybridPipeline``, without prompt and seed."""
        return dict(self.settings)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: the paths of the baseline, then the other points, each once.

    Attributes:
        baselines: paths of the chosen setting; of the first one until ``choose`` is called.
        listed: the points of the file.
        candidates: the baseline's settings, each by its first path, where there are several to choose from.
    """

    config: SweepConfig
    baselines: tuple[Point, ...]
    listed: tuple[Point, ...]
    source: str
    candidates: tuple[Point, ...] = ()

    def choose(self, candidate: Point) -> Sweep:
        """The sweep with another baseline setting."""
        return replace(self, baselines=tuple(replace(path, settings=candidate.settings) for path in self.baselines))

    @property
    def others(self) -> tuple[Point, ...]:
        """The points that are no path of the baseline."""
        return tuple(point for point in self.listed if point not in self.baselines)

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, the baseline's paths first."""
        return self.baselines + self.others


def read_sweep(path: Path) -> Sweep:
    """A sweep from its YAML.

    Raises:
        ValueError: one line naming file and key.
    """
    return check_sweep(read_yaml(path), str(path))


def check_sweep(fields: Mapping[str, Any], source: str) -> Sweep:
    """A sweep from its fields; see ``SweepConfig``.

    Raises:
        ValueError: an unknown key or argument, a value out of range, a baseline that is not the AR model alone.
    """
    config = parse(SweepConfig, fields, source)
    if config.data_set is None and config.prompts is None:
        raise ValueError(f"{source}: give data_set for fidelity and speed, or prompts for speed alone")
    if config.data_set is not None and config.pictures < LEAST_PICTURES:
        raise ValueError(f"{source}: pictures: {config.pictures} are too few; the statistics need {LEAST_PICTURES}")
    if min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"{source}: seeds: must be different and 0 or above (got {config.seeds})")
    if min(config.speed.batch_sizes) < 1:
        raise ValueError(f"{source}: speed.batch_sizes: must be at least 1 (got {config.speed.batch_sizes})")
    if config.baseline.get("method", "ar") != "ar":
        raise ValueError(f"{source}: baseline.method: must be ar, the AR model alone")
    baselines = list(_spelled({"method": "ar", **config.baseline}, f"{source}: baseline"))
    settings = dict.fromkeys(point.settings for point in baselines)
    candidates = [replace(baselines[0], settings=one) for one in settings]
    if len(candidates) > 1 and config.data_set is None:
        raise ValueError(f"{source}: baseline: choosing among {len(candidates)} settings needs a data_set")
    if config.fid is not None and config.data_set is None:
        raise ValueError(f"{source}: fid: needs a data_set to compare with")
    others: dict[Point, None] = {}
    for place, entry in enumerate(config.points):
        if "method" not in entry:
            raise ValueError(f"{source}: points.{place}: give its method")
        others |= dict.fromkeys(_spelled(entry, f"{source}: points.{place}"))
    paths = tuple(point for point in baselines if point.settings == candidates[0].settings)
    return Sweep(config, paths, tuple(others), source, tuple(candidates) if len(candidates) > 1 else ())


def arguments() -> list[str]:
    """Arguments of ``HybridPipeline`` that a sweep may set."""
    return [name for name in ARGUMENTS if name not in NOT_SWEPT] + ["compile"]


def _spelled(entry: Mapping[str, Any], source: str) -> Iterator[Point]:
    """The points of a product of lists."""
    known = arguments()
    for name in entry:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{source}: unknown setting {name!r}; {hint}")
    names = sorted(entry)
    lists = [entry[name] if isinstance(entry[name], list) else [entry[name]] for name in names]
    for name, values in zip(names, lists, strict=True):
        if not values:
            raise ValueError(f"{source}: {name}: an empty list")
        for value in values:
            _check_kind(name, value, source)
    for values in product(*lists):
        chosen = dict(zip(names, values, strict=True))
        dtype, compiled = str(chosen.pop("dtype", "auto")), chosen.pop("compile", False)
        if not isinstance(compiled, bool):
            raise ValueError(f"{source}: compile: must be true or false (got {compiled!r})")
        yield Point(tuple(sorted(chosen.items())), dtype, compiled)


def _check_kind(name: str, value: Any, source: str) -> None:
    """Raise ValueError where a value is not of its argument's kind; what has no such kind is checked by its owner."""
    argument = ARGUMENTS.get(name)
    annotation = "" if argument is None else str(argument.annotation).split(" | ", 1)[0]
    if value is None or annotation not in KINDS:
        return
    types, words = KINDS[annotation]
    if isinstance(value, bool) or not isinstance(value, types):
        raise ValueError(f"{source}: {name}: must be {words} (got {value!r})")
