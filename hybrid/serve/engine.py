"""The worker: one thread owns the pipeline, draws jobs together and tells them how far they are.

This file knows jobs, the pipeline and its batcher, and no HTTP. Pictures of any settings share forward passes
(``hybrid.batching``); each keeps its own seed, so that company changes no picture (up to the arithmetic of the models:
see ``hybrid.sampler``).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch

from hybrid.asked import Asked
from hybrid.batching import Batcher
from hybrid.phases import Step
from hybrid.pipeline import HybridPipeline
from hybrid.sampler import HybridSampler
from hybrid.serve.jobs import Done, Event, Failed, Job, Picture, Preview
from hybrid.serve.metrics import Metrics
from hybrid.serve.pictures import finished_png, preview_pngs
from hybrid.tickets import Ticket
from hybrid.types import Generation
from hybrid.worker import Worker

log = logging.getLogger(__name__)

CLOSING = "the server is shutting down"
FAILED = Failed("error", "drawing failed; the server's log says why")


class Full(Exception):
    """The queue has no room. ``seconds`` is a guess of when it will."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many pictures are waiting; try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The engine takes no more jobs."""


@dataclass(frozen=True)
class Capacity:
    """Pictures that may wait, and that are drawn at once."""

    queue: int = 64
    batch: int = 16

    @property
    def job(self) -> int:
        """The most pictures of one job, which wait and are drawn together."""
        return min(self.queue, self.batch)


class Engine:
    """Draws jobs, begun first come first served, as many pictures at once as there is room for.

    Args:
        pipe: used by the engine's thread alone from ``start`` on.
        pair: what ``HybridPipeline.from_pretrained`` loads again; finished pictures note it.
        capacity: bounds.
        metrics: counts what happens.
        worker: whose thread draws; best the one that loaded the pipeline (``hybrid.worker``). None is a new one.

    Making one draws a picture for nobody: no client waits for warming up, and a pairing that cannot draw fails here.

    Attributes:
        grid: tokens of a picture where a request gives no size.
        size: its pixels (width, height).
    """

    def __init__(
        self,
        pipe: HybridPipeline,
        pair: str,
        capacity: Capacity | None = None,
        metrics: Metrics | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.pipe, self.pair = pipe, pair
        self.capacity, self.metrics = capacity or Capacity(), metrics or Metrics()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._drawn: dict[Ticket, _Drawn] = {}
        self._batchers: dict[HybridSampler, Batcher] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._worker = worker or Worker("hybrid-engine")
        self._working: Future[None] | None = None
        first = self._worker.call(lambda: pipe(self._first_prompt()))
        self.grid, self.size = first.grid, first.images[0].size
        self._seconds_per_picture, self._busy = first.phases.total_seconds, 0.0

    def start(self) -> None:
        """Begin to draw."""
        self._working = self._worker.begin(self._work)

    @property
    def alive(self) -> bool:
        """Whether jobs are taken and drawn."""
        return self._working is not None and not self._working.done() and not self._closing

    def load(self) -> tuple[int, int]:
        """Pictures that wait, and that are being drawn."""
        with self._changed:
            return sum(len(job.seeds) for job in self._waiting), sum(len(job.seeds) for job in self._running)

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Full: no room for its pictures.
            Closed: the engine is shutting down.
            ValueError: more pictures than a job may have.
        """
        count, most = len(job.seeds), self.capacity.job
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
        self._worker.end()
        if self._working is None:
            return
        wait([self._working], grace)
        with self._changed:
            for job in (*self._waiting, *self._running):
                self._tell(job, Failed("closed", CLOSING))
            self._waiting.clear()
            self._note_load()
        wait([self._working])

    # The engine's thread

    def _work(self) -> None:
        while (fresh := self._take()) is not None:
            started = time.monotonic()
            for job in fresh:
                self._begin(job)
            try:
                pictures = self._step()
            except Exception:
                log.exception("drawing failed")
                self._drawn.clear()
                self._batchers.clear()
                for job in list(self._running):
                    self._finish(job, FAILED)
                continue
            self._busy += time.monotonic() - started
            if pictures:
                self._seconds_per_picture += 0.3 * (self._busy / pictures - self._seconds_per_picture)
                self._busy = 0.0

    def _first_prompt(self) -> str | int:
        if self.pipe.text is not None:
            return "a picture"
        return self.pipe.classes[0] if self.pipe.classes else 0

    def _take(self) -> list[Job] | None:
        """Jobs that begin now, as they came; None when the engine is closed and nothing is left."""
        with self._changed:
            while True:
                for job in list(self._waiting):
                    if job.over or self._expired(job):
                        self._waiting.remove(job)
                fresh: list[Job] = []
                while self._waiting and self.load()[1] + len(self._waiting[0].seeds) <= self.capacity.batch:
                    fresh.append(self._waiting.popleft())
                    self._running.append(fresh[-1])
                self._note_load()
                if self._running:
                    return fresh
                if self._closing:
                    return None
                self._changed.wait()

    def _begin(self, job: Job) -> None:
        """Hand a job to the batcher. A mistake in it is told at once, and is nobody else's."""
        begun = time.monotonic()
        self.metrics.waited.observe(begun - job.submitted)
        watch, prompts = _Watch(self, job), [job.prompt] * len(job.seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in job.seeds]
        try:
            asked = self.pipe.ask(prompts, generator=generators, callback_on_step_end=watch, **job.drawing.arguments())
            sampler = asked.pipe.sampler
            if sampler not in self._batchers:
                self._batchers[sampler] = Batcher(sampler, pictures=self.capacity.batch)
            batcher = self._batchers[sampler]
            ticket = batcher.submit(**asked.arguments)
        except ValueError as error:
            self._finish(job, Failed("invalid", str(error)))
        except Exception:
            log.exception("drawing failed")
            self._finish(job, FAILED)
        else:
            self._drawn[ticket] = _Drawn(job, asked, watch, begun, batcher)
            self.metrics.phase_seconds.labels("condition").inc(asked.seconds + ticket.seconds["condition"])

    def _step(self) -> int:
        """One unit of work, and the ends that it brought. Returns how many pictures were finished."""
        finished = 0
        for ticket, drawn in self._drawn.items():
            if drawn.job.over or self._expired(drawn.job):
                drawn.batcher.cancel(ticket)
        for batcher in self._batchers.values():
            before = batcher.seconds
            batcher.step()
            for phase, value in batcher.seconds.items():
                self.metrics.phase_seconds.labels(phase).inc(value - before[phase])
        for ticket in [ticket for ticket in self._drawn if ticket.over]:
            drawn = self._drawn.pop(ticket)
            if ticket.result is not None:
                finished += ticket.count
                self.metrics.pictures.inc(ticket.count)
                self.metrics.batches.observe(ticket.most)
                self._finish(drawn.job, self._done(drawn, ticket.result, ticket.most))
            else:
                self._finish(drawn.job, None if ticket.error is None else Failed("invalid", str(ticket.error)))
        return finished

    def _finish(self, job: Job, event: Event | None) -> None:
        """Free the place of a job that ran, and tell it."""
        with self._changed:
            self._running.remove(job)
            self._note_load()
        if event is not None:
            self._tell(job, event)

    def _done(self, drawn: _Drawn, made: Generation, batch: int) -> Done:
        job, result = drawn.job, drawn.asked.answer(made)
        pictures = tuple(
            Picture(
                finished_png(self.pipe, self.pair, result, place, job.prompt, seed),
                seed,
                tuple(result.origin[place].tolist()),
            )
            for place, seed in enumerate(job.seeds)
        )
        beside = {"waited": drawn.begun - job.submitted, "previews": drawn.watch.seconds}
        kept = ("negative_prompt", "dtype", "ar_tokens", "ar_fraction", "prefix", "fill")
        return Done(
            pictures,
            grid=(result.grid.height, result.grid.width),
            size=result.images[0].size,
            seconds={**result.phases.seconds, **beside},
            passes=dict(result.phases.passes),
            batch=batch,
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

    def _note_load(self) -> None:
        waiting, running = self.load()
        self.metrics.waiting.set(waiting)
        self.metrics.running.set(running)


class _Watch:
    """The callback of one job: previews, its deadline, and whether anybody still waits.

    Attributes:
        seconds: spent on previews.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        self.engine, self.job = engine, job
        self.totals: dict[str, int] = {}
        self.seconds = 0.0

    def __call__(self, pipe: HybridPipeline, index: int, phase: str, told: dict[str, Any]) -> bool:
        began, step = time.perf_counter(), told["step"]
        if self.job.over or self.engine._expired(self.job):
            return False
        done, total = self._progress(pipe, step)
        if done < total and self.job.wants_preview(done, total):  # the finished picture follows the last one at once
            pngs = preview_pngs(pipe, step)
            self.job.tell(Preview(step.phase, step.index, step.total, tuple(pngs)))
        self.seconds += time.perf_counter() - began
        return True

    def _progress(self, pipe: HybridPipeline, step: Step) -> tuple[int, int]:
        """Steps done and, as far as is known, how many there are."""
        self.totals[step.phase] = step.total
        before = sum(total for phase, total in self.totals.items() if phase != step.phase)
        drawing, whole = self.job.drawing, step.total == step.grid.height
        fills = step.phase == "prefix" and not (pipe.masked is None or drawing.method == "ar" or whole)
        coming = (drawing.steps or pipe.defaults.steps) if fills else 0
        return before + step.index, before + step.total + coming


@dataclass(frozen=True)
class _Drawn:
    """A job that a batcher has, and since when."""

    job: Job
    asked: Asked
    watch: _Watch
    begun: float
    batcher: Batcher
