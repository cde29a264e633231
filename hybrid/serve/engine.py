"""The worker: one thread owns the pipeline, draws waiting jobs in batches and tells them how far they are.

This file knows jobs and the pipeline, and no HTTP. Pictures of equal drawings are drawn together; each keeps its own
seed, so a batch changes no picture (up to the arithmetic of the models: see ``hybrid.sampler``).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

import torch

from hybrid.phases import Cancelled, Step
from hybrid.pipeline import HybridPipeline
from hybrid.serve.jobs import Done, Event, Failed, Job, Picture, Preview
from hybrid.serve.metrics import Metrics
from hybrid.serve.pictures import finished_png, preview_pngs
from hybrid.types import Generation

log = logging.getLogger(__name__)

CLOSING = "the server is shutting down"


class Full(Exception):
    """The queue has no room. ``seconds`` is a guess of when it will."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many pictures are waiting; try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The engine takes no more jobs."""


@dataclass(frozen=True)
class Capacity:
    """Pictures that may wait, and that are drawn at once. A job has at most ``batch`` pictures."""

    queue: int = 64
    batch: int = 16


class Engine:
    """Draws jobs, first come first served, with the waiting ones of equal drawing in the same batch.

    Args:
        pipe: used by the engine's thread alone from ``start`` on.
        pair: what ``HybridPipeline.from_pretrained`` loads again; finished pictures note it.
        capacity: bounds.
        metrics: counts what happens.

    Making one draws a picture for nobody: no client waits for warming up, and a pairing that cannot draw fails here.

    Attributes:
        grid: tokens of a picture where a request gives no size.
        size: its pixels (width, height).
    """

    def __init__(
        self, pipe: HybridPipeline, pair: str, capacity: Capacity | None = None, metrics: Metrics | None = None
    ) -> None:
        self.pipe, self.pair = pipe, pair
        self.capacity, self.metrics = capacity or Capacity(), metrics or Metrics()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        first = pipe(self._first_prompt())
        self.grid, self.size = first.grid, first.images[0].size
        self._seconds_per_picture = first.phases.total_seconds
        self._thread = threading.Thread(target=self._work, name="hybrid-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken and drawn."""
        return self._thread.is_alive() and not self._closing

    def load(self) -> tuple[int, int]:
        """Pictures that wait, and that are being drawn."""
        with self._changed:
            return sum(len(job.seeds) for job in self._waiting), sum(len(job.seeds) for job in self._running)

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Full: no room for its pictures.
            Closed: the engine is shutting down.
            ValueError: more pictures than a batch has.
        """
        count, most = len(job.seeds), self.capacity.batch
        if not 1 <= count <= most:
            raise ValueError(f"{count} pictures: must be 1 to {most}")
        with self._changed:
            if self._closing:
                raise Closed(CLOSING)
            waiting = self.load()[0]
            if waiting + count > self.capacity.queue:
                raise Full(max(1, math.ceil(waiting * self._seconds_per_picture)))
            self._waiting.append(job)
            self._note_load()
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Give up a job: a waiting one frees its place at once, a running one between two passes."""
        with self._changed:
            if job.cancel():
                self.metrics.ends.labels("cancelled").inc()
            if job in self._waiting:
                self._waiting.remove(job)
                self._note_load()

    def stop_taking(self) -> None:
        """Refuse new jobs from now on. What waits and runs goes on."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self, grace: float = 0.0) -> None:
        """Finish what waits and runs within ``grace`` seconds, refuse the rest, and end the thread."""
        self.stop_taking()
        if self._thread.ident is None:
            return
        self._thread.join(grace)
        with self._changed:
            for job in (*self._waiting, *self._running):
                self._tell(job, Failed("closed", CLOSING))
            self._waiting.clear()
            self._note_load()
        self._thread.join()

    # The engine's thread

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            try:
                self._draw(batch, started)
            except Exception:
                log.exception("drawing failed")
                for job in batch:
                    self._tell(job, Failed("error", "drawing failed; the server's log says why"))
            finally:
                with self._changed:
                    self._running = []
                    count = sum(len(job.seeds) for job in batch)
                    self._seconds_per_picture += 0.3 * (
                        (time.monotonic() - started) / count - self._seconds_per_picture
                    )
                    self._note_load()

    def _first_prompt(self) -> str | int:
        if self.pipe.text is not None:
            return "a picture"
        return self.pipe.classes[0] if self.pipe.classes else 0

    def _next_batch(self) -> list[Job]:
        """The job that waits longest and those that fit it; empty when the engine is closed and nothing waits."""
        with self._changed:
            while True:
                for job in list(self._waiting):
                    if job.over or self._expired(job):
                        self._waiting.remove(job)
                if self._waiting:
                    break
                self._note_load()
                if self._closing:
                    return []
                self._changed.wait()
            drawing, room = self._waiting[0].drawing, self.capacity.batch
            batch: list[Job] = []
            for job in self._waiting:
                if job.drawing == drawing and len(job.seeds) <= room:
                    batch.append(job)
                    room -= len(job.seeds)
            for job in batch:
                self._waiting.remove(job)
            self._running = batch
            self._note_load()
            return batch

    def _draw(self, jobs: list[Job], started: float) -> None:
        """Draw jobs of equal drawing in one batch. Where the pipeline refuses it, each is tried alone."""
        watch = _Watch(self, jobs)
        prompts = [job.prompt for job in jobs for _ in job.seeds]
        generators = [torch.Generator().manual_seed(seed) for job in jobs for seed in job.seeds]
        arguments = jobs[0].drawing.arguments()
        try:
            result = self.pipe(prompts, generator=generators, callback_on_step_end=watch, **arguments)
        except Cancelled:
            return
        except ValueError as error:
            if len(jobs) == 1:
                self._tell(jobs[0], Failed("invalid", str(error)))
                return
            for job in jobs:
                if not job.over:
                    self._draw([job], started)
            return
        self._count(result)
        seconds = {phase: value - watch.seconds[phase] for phase, value in result.phases.seconds.items()}
        first = 0
        for job in jobs:
            waited = started - job.submitted
            self.metrics.waited.observe(waited)
            if not job.over:
                done = self._done(
                    job, result, first, seconds | {"waited": waited, "previews": sum(watch.seconds.values())}
                )
                self._tell(job, done)
            first += len(job.seeds)

    def _done(self, job: Job, result: Generation, first: int, seconds: dict[str, float]) -> Done:
        pictures = tuple(
            Picture(
                finished_png(self.pipe, self.pair, result, first + place, job.prompt, seed),
                seed,
                tuple(result.origin[first + place].tolist()),
            )
            for place, seed in enumerate(job.seeds)
        )
        kept = ("negative_prompt", "dtype", "ar_tokens", "ar_fraction", "prefix", "fill")
        return Done(
            pictures,
            grid=(result.grid.height, result.grid.width),
            size=result.images[0].size,
            seconds=seconds,
            passes=dict(result.phases.passes),
            batch=len(result.images),
            settings={key: result.settings[key] for key in kept},
            lossy=result.lossy,
        )

    def _tell(self, job: Job, event: Event) -> None:
        if job.tell(event) and not isinstance(event, Preview):
            self.metrics.ends.labels("done" if isinstance(event, Done) else event.reason).inc()

    def _expired(self, job: Job) -> bool:
        expired = job.check_deadline()
        if expired:
            self.metrics.ends.labels("deadline").inc()
        return expired

    def _count(self, result: Generation) -> None:
        self.metrics.pictures.inc(len(result.images))
        self.metrics.batches.observe(len(result.images))
        for phase, value in result.phases.seconds.items():
            self.metrics.phase_seconds.labels(phase).inc(value)

    def _note_load(self) -> None:
        waiting, running = self.load()
        self.metrics.waiting.set(waiting)
        self.metrics.running.set(running)


class _Watch:
    """The pipeline's callback for one batch: previews, deadlines, and whether anybody still waits.

    Attributes:
        seconds: spent on previews, by phase.
    """

    def __init__(self, engine: Engine, jobs: list[Job]) -> None:
        self.engine, self.jobs = engine, jobs
        self.totals: dict[str, int] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, pipe: HybridPipeline, index: int, phase: str, told: dict[str, Any]) -> bool:
        began = time.perf_counter()
        for job in self.jobs:
            self.engine._expired(job)
        if all(job.over for job in self.jobs):
            return False
        step: Step = told["step"]
        done, total = self._progress(pipe, step)
        if done < total:  # the finished picture follows the last one at once
            self._preview(pipe, step, done, total)
        self.seconds[phase] += time.perf_counter() - began
        return True

    def _progress(self, pipe: HybridPipeline, step: Step) -> tuple[int, int]:
        """Steps done and, as far as is known, how many there are."""
        self.totals[step.phase] = step.total
        before = sum(total for phase, total in self.totals.items() if phase != step.phase)
        drawing, whole = self.jobs[0].drawing, step.total == step.grid.height
        fills = step.phase == "prefix" and not (pipe.masked is None or drawing.method == "ar" or whole)
        coming = (drawing.steps or pipe.defaults.steps) if fills else 0
        return before + step.index, before + step.total + coming

    def _preview(self, pipe: HybridPipeline, step: Step, done: int, total: int) -> None:
        wanted: list[tuple[Job, list[int]]] = []
        first = 0
        for job in self.jobs:
            if job.wants_preview(done, total):
                wanted.append((job, list(range(first, first + len(job.seeds)))))
            first += len(job.seeds)
        if not wanted:
            return
        pngs = iter(preview_pngs(pipe, step, [row for _, rows in wanted for row in rows]))
        for job, rows in wanted:
            job.tell(Preview(step.phase, step.index, step.total, tuple(next(pngs) for _ in rows)))
