"""A job: pictures that one client asked for, what it is told on the way, and how it ends.

This file knows no thread, no HTTP and no model. The engine moves a job forward; a client may cancel it at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture to draw into.

    Attributes:
        image: RGB.
        mask: white where the picture is drawn anew.
    """

    image: Image.Image
    mask: Image.Image


@dataclass(frozen=True)
class Drawing:
    """How to draw: everything but the prompt and the seed.

    None means the pairing's own default. The names are ``HybridPipeline.__call__``'s.
    """

    method: str | None = None
    ar_fraction: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    edit: Edit | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline."""
        given = {name: value for name, value in vars(self).items() if value is not None and name != "edit"}
        return given if self.edit is None else given | {"image": self.edit.image, "mask": self.edit.mask}


@dataclass(frozen=True)
class Preview:
    """The pictures of a job so far.

    Attributes:
        phase: ``prefix`` (the AR model's rows) or ``fill`` (masked passes).
        index, total: rows or passes done, and of how many.
        pngs: one file for each picture; transparent where nothing is written yet.
    """

    phase: str
    index: int
    total: int
    pngs: tuple[bytes, ...]


@dataclass(frozen=True)
class Picture:
    """A finished picture: a PNG with its settings, its seed, and who wrote each token (``hybrid.types.Generation``)."""

    png: bytes
    seed: int
    origin: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """A job's end as it should be.

    Attributes:
        pictures: as many as the job has seeds.
        grid: tokens (height, width).
        size: pixels (width, height).
        seconds: of the passes that the pictures took part in, other jobs' share included, by phase, without previews;
            besides ``waited`` in the queue and ``previews``.
        passes: those forward passes, by phase.
        batch: the most pictures in one of those passes, these among them.
        settings: what the pictures were drawn with, complete.
        lossy: how aligning the codebooks changed the prefix, or None where it is exact.
    """

    pictures: tuple[Picture, ...]
    grid: tuple[int, int]
    size: tuple[int, int]
    seconds: Mapping[str, float]
    passes: Mapping[str, int]
    batch: int
    settings: Mapping[str, Any]
    lossy: str | None


@dataclass(frozen=True)
class Failed:
    """A job's other end. ``reason`` is ``invalid``, ``deadline``, ``closed`` or ``error``."""

    reason: str
    message: str


Event = Preview | Done | Failed


class Job:
    """Pictures that one client asked for.

    Args:
        prompt: what they show.
        seeds: one for each picture.
        drawing: how.
        tell: called with each ``Event``, from the engine's thread; exactly one of them is ``Done`` or ``Failed``
            unless the job is cancelled. It must not block.
        previews: how many previews at most, evenly spread; None is all there are.
        deadline: seconds from now after which the job fails.
    """

    def __init__(
        self,
        prompt: str,
        seeds: Sequence[int],
        drawing: Drawing,
        tell: Callable[[Event], Any],
        *,
        previews: int | None = 0,
        deadline: float = 60.0,
    ) -> None:
        self.prompt, self.seeds, self.drawing, self.previews = prompt, tuple(seeds), drawing, previews
        self.submitted = time.monotonic()
        self.expires, self.allowed = self.submitted + deadline, deadline
        self._tell, self._lock = tell, threading.Lock()
        self._ended = self._cancelled = False
        self._previewed = 0

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more: it ended or was cancelled."""
        return self._ended or self._cancelled

    @property
    def cancelled(self) -> bool:
        """Whether its client left before it ended."""
        return self._cancelled

    def cancel(self) -> bool:
        """Tell no more. Returns whether this cut the job short."""
        with self._lock:
            cut = not self.over
            self._cancelled = self._cancelled or cut
            return cut

    def tell(self, event: Event) -> bool:
        """Pass an event on, unless the job is over. Returns whether it was."""
        with self._lock:
            if self.over:
                return False
            self._ended = not isinstance(event, Preview)
            self._tell(event)
            return True

    def check_deadline(self) -> bool:
        """Fail the job if its time is up. Returns whether that ended it."""
        if time.monotonic() < self.expires:
            return False
        return self.tell(Failed("deadline", f"not finished within {self.allowed:g} s; try again when less is waiting"))

    def wants_preview(self, done: int, total: int) -> bool:
        """Whether to show the state after ``done`` of ``total`` rows and passes; counts the preview if so."""
        if self.over:
            return False
        if self.previews is None:
            return True
        if self._previewed >= min(self.previews, done * (self.previews + 1) // max(total, 1)):
            return False
        self._previewed += 1
        return True
