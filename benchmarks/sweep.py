"""Runs a sweep: for each point raw figures of fidelity, a few pictures to look at, and raw times. One file each.

    DIR/sweep.json          the checked configuration
    DIR/raw/scene.json      prompts, data, feature network, floors, and the machine that made the fidelity rows
    DIR/raw/choice-*.json   Fréchet distances of the baseline's settings, where there are several to choose from
    DIR/raw/fidelity-*.json DIR/raw/speed-*.json DIR/raw/shown-*.json DIR/raw/shown-*.png
    DIR/raw/fid-*.json      Inception's figures and CLIP score, where they are asked for
    DIR/raw/machine.json    limits of the machine, and the machine that made the speed rows

A file is whole or absent, so a kill loses one point at most, and within a point drawn batches are kept as well. The
report is made from these files alone (``report``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hybrid.data.folder import default_folder
from hybrid.dtypes import PARTS, find_types
from hybrid.pairing import find_pair, read_pair
from hybrid.pipeline import HybridPipeline

from . import machine, speed
from .artist import Artist, Told, pair_weights
from .cost import metered
from .features import FeatureNetwork, Features
from .fidelity import Fidelity
from .figures import write_json
from .point_judge import PointJudge
from .points import Point, Sweep
from .scenes import open_scene

STAGES = ("fidelity", "fid", "speed")
FILES = {
    "fidelity": ("fidelity-*", "shown-*", "choice-*", "scene.json"),
    "fid": ("fid-*",),
    "speed": ("speed-*", "machine.json"),
}
"""What each stage wrote, and what depends on it."""

Open = Callable[[str, Point, "str | torch.device"], Any]


def open_pipeline(pair: str, point: Point, device: str | torch.device) -> HybridPipeline:
    """The pairing as a point computes it."""
    return HybridPipeline.from_pretrained(pair, device=device, dtype=point.dtype, compile=point.compile)


class Runner:
    """One sweep in one folder.

    Args:
        sweep: what to measure.
        out: the folder; made if missing.
        data: the data folder; None is what the sweep says.
        device: where to compute.
        network: makes the features; None is EfficientNet-Lite0.
        opened: makes a pipeline of a pairing and a point.
        clock: tells seconds to the speed rows.
        told: called with (what, done, total) inside a job.

    Raises:
        ValueError: the folder holds another sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        out: Path,
        *,
        data: Path | None = None,
        device: str | torch.device = "cpu",
        network: Features | None = None,
        opened: Open = open_pipeline,
        clock: speed.Clock = time.perf_counter,
        told: Told = lambda what, done, total: None,
    ) -> None:
        self.sweep, self.config, self.out, self.raw = sweep, sweep.config, out, out / "raw"
        self.data = data or (Path(self.config.data).expanduser() if self.config.data else None)
        self.device, self.opened, self.clock, self.told = device, opened, clock, told
        self._network = network
        self._pipelines: dict[tuple[str, bool], Any] = {}
        self._weights = pair_weights(self.config.pair)
        self._fidelity: Fidelity | None = None
        self._judge: PointJudge | None = None
        self._choose()
        self._keep_config()

    # Jobs

    def jobs(self, stages: Sequence[str] = STAGES, *, again: bool = False) -> Iterator[tuple[str, int, int]]:
        """Do what is missing, and say before each job (what, done, total).

        Args:
            stages: of ``STAGES``.
            again: throw the stages' old files away first.
        """
        if again:
            for stage in stages:
                for path in (path for kind in FILES[stage] for path in self.raw.glob(kind)):
                    path.unlink()
        work = {"choice": self._try, "shown": self._shown, "fidelity": self._measure, "fid": self._fid}
        work["speed"] = self._time
        # The last choice changes what is wanted, so it is asked for after each job.
        while missing := [job for job in self._wanted(stages) if not self._has(*job)]:
            wanted, (stage, point) = self._wanted(stages), missing[0]
            yield f"{stage}: {point.label}", len(wanted) - len(missing), len(wanted)
            work[stage](point)
        wanted = self._wanted(stages)
        yield "done", len(wanted), len(wanted)

    def _wanted(self, stages: Sequence[str]) -> list[tuple[str, Point]]:
        """All jobs in their order."""
        asked = {"fidelity": self.config.data_set is not None, "fid": self.config.fid is not None}
        return [
            *(("choice", point) for point in self.sweep.candidates),
            *((stage, point) for stage in ("shown", *stages) if asked.get(stage, True) for point in self.sweep.points),
        ]

    def path(self, stage: str, point: Point) -> Path:
        """The file of a job."""
        return self.raw / f"{stage}-{point.method}-{point.key}.json"

    def _has(self, stage: str, point: Point) -> bool:
        """Whether a job is done: its file is there and, of times, holds every batch size."""
        path = self.path(stage, point)
        if not path.is_file() or stage != "speed":
            return path.is_file()
        held = {row["batch"] for row in json.loads(path.read_text(encoding="utf-8"))["batches"]}
        return held >= set(self.config.speed.batch_sizes)

    def _try(self, point: Point) -> None:
        """How good the AR model is with one of the baseline's settings; after the last one, the choice."""
        fidelity = self._fidelity_of()
        content = fidelity.chosen_by(self._artist(point), point, self.config.choice_pictures)
        write_json(self.path("choice", point), {"point": _described(point), **content}, indent=None)
        self._choose()
        self._keep_config()

    def _choose(self) -> None:
        """Make the candidate with the least Fréchet distance the baseline, once all are measured."""
        paths = [self.path("choice", point) for point in self.sweep.candidates]
        if not paths or not all(path.is_file() for path in paths):
            return
        tried = [json.loads(path.read_text(encoding="utf-8"))["frechet"] for path in paths]
        self.sweep = self.sweep.choose(self.sweep.candidates[int(np.argmin(tried))])
        if self._fidelity is not None:
            self._fidelity.baseline = self.sweep.baselines[0]

    def _shown(self, point: Point) -> None:
        """A few pictures of the sweep's prompts, who wrote their tokens, and what they cost."""
        pipeline = self._pipeline(Point(point.settings, point.dtype))
        # Spread over all, since neighbours may be one name by several vendors.
        every = self._prompts()
        prompts = every[:: max(1, len(every) // self.config.shown)][: self.config.shown]
        with metered(pipeline) as parts:
            drawn = pipeline(list(prompts), **point.request(), seed=0, output_type="pil")
        pixels = np.concatenate([np.asarray(image) for image in drawn.images], axis=1)
        path = self.path("shown", point)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        write_json(
            path,
            {
                "point": _described(point),
                "prompts": list(prompts),
                "names": [_named(prompt, pipeline.classes) for prompt in prompts],
                "seeds": list(range(len(prompts))),
                "settings": {key: value for key, value in drawn.settings.items() if key not in ("prompt", "seeds")},
                "grid": [drawn.grid.height, drawn.grid.width],
                "origin": drawn.origin.tolist(),
                "passes": {phase: count for phase, count in drawn.phases.passes.items() if count},
                "cost": {part: asdict(cost) for part, cost in parts.items() if cost.calls},
                "lossy": drawn.lossy,
            },
            indent=None,
        )

    def _fidelity_of(self) -> Fidelity:
        if self._fidelity is None:
            assert self.config.data_set is not None
            first = self._artist(self.sweep.baselines[0])
            scene = open_scene(
                self.config.data_set,
                self.data,
                self.config.pictures,
                self.config.reference,
                first.network,
                first,
                self.config.sets,
            )
            self._fidelity = Fidelity(scene, self.config.seeds, first, self.sweep.baselines[0])
            path = self.raw / "scene.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if known and known["digest"] != scene.digest:
                raise ValueError(
                    f"{self.out}: its rows are of other pictures than {scene.folder.path}; use another --out"
                )
            if not known.get("floors"):
                described = {
                    "digest": scene.digest,
                    "data": {"name": scene.folder.meta.get("name"), "inputs": scene.folder.meta.get("inputs")},
                    "prompts": list(scene.prompts),
                    "groups": list(scene.groups),
                    "reference_pictures": len(scene.places),
                    "score_name": scene.score_name,
                    "real_score": scene.real_score,
                    "feature_network": first.network.name,
                    "feature_network_sha256": first.network.sha256,
                    "machine": machine.describe(first.pipeline.device),
                }
                write_json(path, described)
                write_json(path, described | {"floors": self._fidelity.floors(first)}, indent=None)
        return self._fidelity

    def _measure(self, point: Point) -> None:
        shown = json.loads(self.path("shown", point).read_text(encoding="utf-8"))
        fidelity = self._fidelity_of()
        content = fidelity.measure(self._artist(point), point, shown["settings"]["ar_tokens"])
        write_json(
            self.path("fidelity", point), {"point": _described(point), "load": machine.load(), **content}, indent=None
        )

    def _fid(self, point: Point) -> None:
        """Inception's figures of the pictures that fidelity is measured on, and their CLIP score."""
        assert self.config.fid is not None
        fidelity = self._fidelity_of()
        if self._judge is None:
            self._judge = PointJudge(self.config.fid, fidelity.scene, self.device)
        artist = self._artist(point, self._judge.inception)
        content = self._judge.scores(artist, fidelity.draw(artist, point))
        write_json(self.path("fid", point), {"point": _described(point), **content}, indent=None)

    def _time(self, point: Point) -> None:
        self._measure_limits()
        found = []
        for batch in self.config.speed.batch_sizes:
            baseline = self._fastest(batch) if point not in self.sweep.baselines else self.sweep.baselines[0]
            lanes = [(self._pipeline(one), one) for one in (baseline, point)]
            told = lambda what, done, total: self.told(f"{point.label}: {what}", done, total)  # noqa: E731
            found.append(
                speed.measure(
                    lanes[0], lanes[1], self._prompts(), batch, self.config.speed, clock=self.clock, told=told
                )
            )
        write_json(self.path("speed", point), {"point": _described(point), "batches": found}, indent=None)

    # What jobs share

    def _fastest(self, batch: int) -> Point:
        """The AR model's fastest path at a batch size, by the medians of turns against its first path."""
        medians = {}
        for point in self.sweep.baselines:
            rows = json.loads(self.path("speed", point).read_text(encoding="utf-8"))["batches"]
            row = next(row for row in rows if row["batch"] == batch)
            own, first = (np.median([turn["seconds"] for turn in row[lane]]) for lane in ("own", "ar"))
            medians[point] = float(own / first) if point is not self.sweep.baselines[0] else 1.0
        return min(medians, key=lambda point: medians[point])

    def _pipeline(self, point: Point) -> Any:
        path = (point.dtype, point.compile)
        if path not in self._pipelines and len(self._pipelines) > 1:
            del self._pipelines[next(iter(self._pipelines))]  # two are compared at a time; large ones fill the memory
        self._pipelines[path] = self._pipelines.pop(path, None) or self.opened(self.config.pair, point, self.device)
        return self._pipelines[path]

    def _artist(self, point: Point, network: Features | None = None) -> Artist:
        if self._network is None:
            self._network = FeatureNetwork()
        where = self.data or default_folder(str(self.config.data_set))
        chosen = self._network if network is None else network
        return Artist(self._pipeline(point), self._weights, chosen, where / "figures", told=self.told)

    def _prompts(self) -> list[str | int]:
        """The sweep's own prompts, or the data set's: from its files where they are there, else from the data."""
        if self.config.prompts is not None:
            return self.config.prompts
        path = self.raw / "scene.json"
        if not path.is_file():
            self._fidelity_of()
        return json.loads(path.read_text(encoding="utf-8"))["prompts"]

    def _measure_limits(self) -> None:
        path = self.raw / "machine.json"
        if path.is_file():
            return
        pipeline = self._pipeline(self.sweep.baselines[0])
        self.told("limits of the machine", 0, 1)
        types = [find_types(point.dtype, pipeline.device) for point in self.sweep.points]
        dtypes = list(dict.fromkeys(getattr(one, part) for one in types for part in PARTS))
        weights = sum(value.numel() * value.element_size() for value in pipeline.ar.parameters())
        found = machine.limits(pipeline.device, dtypes, weights)
        write_json(path, {"machine": machine.describe(pipeline.device), "limits": found})

    def _keep_config(self) -> None:
        """Remember what this folder measures; another measurement in it is refused, more points are welcome."""
        path = self.out / "sweep.json"
        fixed: dict[str, Any] = {
            "pair": self.config.pair,
            "weights_sha256": self._weights,
            "pair_defaults": read_pair(find_pair(self.config.pair)).defaults.model_dump(mode="json"),
            "data_set": self.config.data_set,
            "pictures": self.config.pictures,
            "reference": self.config.reference,
            "seeds": self.config.seeds,
            "prompts": self.config.prompts,
            "candidates": [_described(point) for point in self.sweep.candidates],
        }
        content: dict[str, Any] = {
            **fixed,
            "speed": self.config.speed.model_dump(),
            "points": [_described(p) for p in self.sweep.points],
        }
        content["baselines"] = [point.key for point in self.sweep.baselines]
        if path.is_file():
            # A sweep without a choice need not name candidates.
            known = {"candidates": [], **json.loads(path.read_text(encoding="utf-8"))}
            for name, value in fixed.items():
                if known.get(name) != value:
                    raise ValueError(f"{self.out}: holds a sweep with another {name}; use another --out")
        write_json(path, content)


def _named(prompt: str | int, classes: Sequence[str] | None) -> str:
    """A prompt in words."""
    return classes[prompt] if isinstance(prompt, int) and classes else str(prompt)


def _described(point: Point) -> dict[str, Any]:
    """A point as JSON."""
    return {
        "key": point.key,
        "label": point.label,
        "method": point.method,
        "settings": dict(point.settings),
        "dtype": point.dtype,
        "compile": point.compile,
    }
