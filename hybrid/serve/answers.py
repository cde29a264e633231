"""From a request to a job and from a job's events to an answer: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hybrid.serve.engine import Closed, Engine, Full
from hybrid.serve.errors import ApiError, failure
from hybrid.serve.jobs import Done, Drawing, Edit, Event, Failed, Job, Preview
from hybrid.serve.schemas import ImageRequest, ImagesResponse, PictureData, Report, Settings, encoded

T = TypeVar("T")


def requested_size(settings: Settings, engine: Engine) -> tuple[int, int]:
    """Pixels (width, height) that a request asks for.

    Raises:
        ApiError: more of them than the model's own picture has.
    """
    if settings.size == "auto":
        return engine.size
    width, height = (int(side) for side in settings.size.split("x"))
    most = engine.size[0] * engine.size[1]
    if width * height > most:
        own = "x".join(str(side) for side in engine.size)
        raise ApiError(400, f"size {settings.size}: at most as many pixels as {own}", "invalid_value", param="size")
    return width, height


def drawing_of(settings: Settings, engine: Engine, edit: Edit | None = None) -> Drawing:
    """A request's settings in the pipeline's words."""
    width, height = requested_size(settings, engine)
    own = (width, height) == engine.size
    return Drawing(
        method=settings.method if isinstance(settings, ImageRequest) else None,
        ar_fraction=settings.ar_fraction if isinstance(settings, ImageRequest) else None,
        steps=settings.steps,
        guidance_scale=settings.guidance,
        temperature=settings.temperature,
        negative_prompt=settings.negative_prompt,
        height=None if own else height,
        width=None if own else width,
        edit=edit,
    )


async def answer(request: Request, engine: Engine, settings: Settings, drawing: Drawing, deadline: float) -> Response:
    """Queue a job and answer with what comes of it. A client that leaves takes its job along.

    Raises:
        ApiError: the queue is full, the server stops, or the job failed before its first preview.
    """
    if settings.model is not None and settings.model != engine.pipe.name:
        message = f"model {settings.model[:100]!r}: this server has {engine.pipe.name!r}"
        raise ApiError(404, message, "model_not_found", param="model")
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()
    first = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    job = Job(
        settings.prompt,
        [first + place for place in range(settings.n)],
        drawing,
        lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
        previews=settings.partial_images if settings.stream else 0,
        deadline=deadline,
    )
    try:
        engine.submit(job)
    except Full as error:
        raise ApiError(429, str(error), "queue_full", headers={"Retry-After": str(error.seconds)}) from None
    except Closed as error:
        raise ApiError(503, str(error), "closed", headers={"Retry-After": "10"}) from None
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", param="n") from None
    streaming = False
    try:
        # Mistakes that only the models know come before the first preview, so that they get a status of their own.
        event = await unless_gone(request, events.get())
        if event is None:
            return Response(status_code=499)
        if isinstance(event, Failed):
            raise failure(event)
        streaming = settings.stream
        if streaming:
            return _Stream(engine, job, _lines(settings, engine, job, event, events))
        assert isinstance(event, Done)
        return JSONResponse(_response(settings, engine, event).model_dump(exclude_none=True))
    finally:
        if not streaming:
            engine.cancel(job)


async def unless_gone(request: Request, awaited: Awaitable[T]) -> T | None:
    """What is awaited, or None if the client leaves before it."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(left())
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        return wanted.result() if wanted.done() else None
    finally:
        wanted.cancel()
        gone.cancel()


class _Stream(StreamingResponse):
    """Server-sent events whose end, for whatever reason, ends the job."""

    def __init__(self, engine: Engine, job: Job, lines: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self.engine, self.job = engine, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.engine.cancel(self.job)


async def _lines(
    settings: Settings, engine: Engine, job: Job, event: Event, events: asyncio.Queue[Event]
) -> AsyncIterator[str]:
    """Events in OpenAI's names; ``image_index`` tells the pictures of one request apart."""
    family = "image_edit" if job.drawing.edit is not None else "image_generation"
    size, previews = "x".join(str(side) for side in requested_size(settings, engine)), 0
    while isinstance(event, Preview):
        for index, png in enumerate(event.pngs):
            yield _event(
                f"{family}.partial_image",
                **encoded(png),
                partial_image_index=previews,
                image_index=index,
                created_at=int(time.time()),
                size=size,
                output_format="png",
                phase=event.phase,
                step=event.index,
                steps=event.total,
            )
        previews += 1
        event = await events.get()
    if isinstance(event, Failed):
        yield _event("error", error=failure(event).body().error.model_dump())
        return
    response = _response(settings, engine, event)
    for index, picture in enumerate(response.data):
        yield _event(
            f"{family}.completed",
            image_index=index,
            created_at=response.created,
            size=size,
            output_format="png",
            **picture.model_dump(exclude_none=True),
            report=response.report.model_dump(exclude_none=True),
        )


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


def _response(settings: Settings, engine: Engine, done: Done) -> ImagesResponse:
    size = f"{done.size[0]}x{done.size[1]}"
    return ImagesResponse(
        created=int(time.time()),
        data=[
            PictureData(
                **encoded(picture.png, settings.response_format), seed=picture.seed, origin=list(picture.origin)
            )
            for picture in done.pictures
        ],
        size=size,
        report=Report(
            model=engine.pipe.name,
            grid=done.grid,
            size=size,
            seconds={phase: round(seconds, 5) for phase, seconds in done.seconds.items()},
            passes=dict(done.passes),
            batch=done.batch,
            settings=dict(done.settings),
            lossy=done.lossy,
        ),
    )
