"""Speak, and watch it appear: partial texts start quick previews, the final text gets the hybrid.

Every picture of one stretch of speech has the same seed, so that it evolves instead of jumping. A better text cancels
the picture in flight between two rows or passes. This file knows a pipeline, a recogniser and a clock; it knows no
files, windows or microphones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid.phases import Cancelled
from hybrid.speech import Debounce, prompt_of

CHOICES: tuple[tuple[float, int], ...] = (
    (0.5, 12),
    (0.5, 8),
    (0.25, 8),
    (0.25, 6),
    (0.125, 8),
    (0.125, 4),
    (0.0, 8),
    (0.0, 6),
    (0.0, 4),
    (0.0, 2),
)
"""AR fraction and masked passes of the final picture, the best first; a budget takes the first that fits."""


@dataclass(frozen=True)
class Cost:
    """What one picture costs here, in seconds.

    Attributes:
        fixed: prompt and decoding.
        per_token: of the AR model.
        per_pass: of the masked model.
        places: tokens of a picture.
    """

    fixed: float
    per_token: float
    per_pass: float
    places: int

    def seconds(self, fraction: float, steps: int) -> float:
        """Of a picture with that AR fraction and that many masked passes."""
        return self.fixed + fraction * self.places * self.per_token + steps * self.per_pass

    def choose(self, budget: float) -> tuple[float, int]:
        """The best of ``CHOICES`` that fits a budget in seconds; the quickest where none does."""
        return next((choice for choice in CHOICES if self.seconds(*choice) <= budget), CHOICES[-1])


def measure(pipe: Any) -> Cost:
    """Draw twice, the first time to warm up, and divide by phases."""
    prompt = "a" if pipe.text is not None else 0
    for _ in range(2):
        made = pipe(prompt, method="hybrid", ar_fraction=0.25, steps=4, seed=0)
    seconds, passes = made.phases.seconds, made.phases.passes
    fixed = seconds["condition"] + seconds["align"] + seconds["decode"]
    return Cost(fixed, seconds["prefix"] / passes["prefix"], seconds["fill"] / passes["fill"], made.grid.places)


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        kind: ``preview`` (masked model alone) or ``final``.
        prompt: what was asked for.
        image: as the pipeline gives it.
        asked: when its text was known, in the clock's seconds.
        done: when it was finished.
    """

    kind: Literal["preview", "final"]
    prompt: str
    image: Any
    asked: float
    done: float


@dataclass(frozen=True)
class _Job:
    kind: Literal["preview", "final"]
    prompt: str
    asked: float


class Painter:
    """Draws the newest text in a thread of its own; a newer one cancels what is in flight.

    Args:
        pipe: the pipeline.
        seed: of every picture.
        preview, final: arguments of the pipeline for the two kinds.
        show: told of each finished picture, in the thread.
        clock: seconds.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        seed: int,
        preview: dict[str, Any],
        final: dict[str, Any],
        show: Callable[[Picture], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipe, self._seed, self._show, self._clock = pipe, seed, show, clock
        self._arguments = {"preview": preview, "final": final}
        self._changed = threading.Condition()
        self._next: _Job | None = None
        self._busy, self._closed = False, False
        self.cancelled = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def ask(self, kind: Literal["preview", "final"], prompt: str) -> None:
        """Draw this as soon as the pass in flight has ended."""
        with self._changed:
            self._next = _Job(kind, prompt, self._clock())
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for what was asked for last, then end the thread.

        Raises:
            ValueError: what the pipeline refused.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._next is None and not self._busy) or self.error is not None)
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                if self._next is None:
                    return
                job, self._next, self._busy = self._next, None, True
            try:
                self._draw(job)
            except Cancelled:
                self.cancelled += 1
            except BaseException as error:  # told by ``finish``, in the caller's thread
                self.error = error
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            if self.error is not None:
                return

    def _draw(self, job: _Job) -> None:
        def wanted(*_: Any) -> bool:
            return self._next is None

        made = self._pipe(job.prompt, seed=self._seed, callback_on_step_end=wanted, **self._arguments[job.kind])
        self._show(Picture(job.kind, job.prompt, made.images[0], job.asked, self._clock()))


@dataclass
class Report:
    """What one stretch of speech gave, and how long each stage took, in seconds.

    Attributes:
        text: the final text as it was recognised.
        prompt: what was drawn.
        partials: texts that started a preview.
        spoken: length of the sound.
        transcript: from the end of speech to the final text.
        first_preview: from a stable partial text to its finished preview, of the first one that finished.
        final: from the end of speech to the final picture.
        cancelled: pictures that a better text ended.
    """

    text: str = ""
    prompt: str = ""
    partials: list[str] = field(default_factory=list)
    spoken: float = 0.0
    transcript: float = 0.0
    first_preview: float | None = None
    final: float = 0.0
    cancelled: int = 0


def live(
    pieces: Iterable[tuple[NDArray[np.float32], int]],
    listening: Any,
    painter: Painter,
    pictures: list[Picture],
    *,
    wait: float = 0.15,
    clock: Callable[[], float] = time.monotonic,
    heard: Callable[[str, bool], Any] = lambda text, final: None,
) -> Report:
    """Hear pieces of sound as they come and have them drawn.

    Args:
        pieces: samples and rate, when they are there; the end of speech is when they end.
        listening: a ``Listening`` of ``hybrid.adapters.speech``.
        painter: draws, and adds to ``pictures`` through its ``show``.
        pictures: what was finished so far.
        wait: seconds that a partial text must stand still before it is drawn.
        clock: seconds.
        heard: told of each new text, and whether it is final.

    Raises:
        ValueError: nothing was understood, or what the pipeline refused.
    """
    report, debounce = Report(), Debounce(wait)
    for samples, rate in pieces:
        report.spoken += len(samples) / rate
        text = listening.feed(samples, rate)
        if text:
            heard(text, False)
            debounce.hear(prompt_of(text), clock())
        if (due := debounce.due(clock())) is not None:
            report.partials.append(due)
            painter.ask("preview", due)
    ended = clock()
    report.text = listening.finish()
    report.transcript = clock() - ended
    report.prompt = prompt_of(report.text)
    if not report.prompt:
        painter.finish()
        raise ValueError("nothing was understood: silence, noise, or not English; speak closer to the microphone")
    heard(report.text, True)
    painter.ask("final", report.prompt)
    painter.finish()
    report.final = pictures[-1].done - ended
    previews = [picture for picture in pictures if picture.kind == "preview"]
    report.first_preview = previews[0].done - previews[0].asked if previews else None
    report.cancelled = painter.cancelled
    return report
