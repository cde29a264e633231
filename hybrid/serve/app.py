"""The application: routes, their description, and the page. What they do is in ``answers`` and ``engine``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from hybrid import __version__
from hybrid.request import METHODS
from hybrid.serve import errors
from hybrid.serve.answers import answer, drawing_of, requested_size
from hybrid.serve.engine import Engine
from hybrid.serve.errors import ApiError
from hybrid.serve.gate import Gate
from hybrid.serve.hearing import Ears
from hybrid.serve.metrics import CONTENT_TYPE
from hybrid.serve.schemas import (
    PICTURES,
    PROMPT_LENGTH,
    EditRequest,
    ErrorBody,
    Health,
    ImageRequest,
    ImagesResponse,
    ModelInfo,
    ModelList,
    Transcription,
)
from hybrid.serve.uploads import read_edit
from hybrid.speak import asker
from hybrid.speech import prompt_of

PAGE = Path(str(files("hybrid.serve"))) / "page"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong; the message says where."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    "4XX": {"model": ErrorBody, "description": "The request is refused."},
    "5XX": {"model": ErrorBody, "description": "The server could not do it."},
}
BUSY: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "Another model than the served one."},
    429: {
        "model": ErrorBody,
        "description": "The queue is full.",
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    },
    503: {"model": ErrorBody, "description": "The server is shutting down."},
    504: {"model": ErrorBody, "description": "Not finished in time."},
}
UNHEARD: dict[int | str, dict[str, Any]] = {
    429: BUSY[429],
    501: {"model": ErrorBody, "description": "No speech recognition."},
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesResponse,
        "description": "Pictures or, with stream, server-sent events: `….partial_image`, `….completed`, `error`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

COUNTERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text."}
}


def create_app(
    load: Callable[[], Engine], *, token: str | None = None, deadline: float = 60.0, grace: float = 20.0
) -> FastAPI:
    """The application around an engine.

    Args:
        load: makes the engine when the application starts, which starts and closes it.
        token: what clients must send; None asks for nothing.
        deadline: seconds in which a request must be finished.
        grace: seconds in which the engine finishes its work at the end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = await asyncio.to_thread(load)
        app.state.engine.start()
        app.state.ears = Ears()
        yield
        app.state.ears.close()
        await asyncio.to_thread(app.state.engine.close, grace)

    guard = [] if token is None else [Depends(HTTPBearer(auto_error=False))]  # described here, checked by the gate
    refused: dict[int | str, dict[str, Any]] = (
        {} if token is None else {401: {"model": ErrorBody, "description": "No token, or a wrong one."}}
    )
    common: dict[str, Any] = {"dependencies": guard, "responses": PROBLEMS | refused}
    drawn: dict[str, Any] = {"dependencies": guard, "responses": PROBLEMS | refused | BUSY | STREAM}
    heard: dict[str, Any] = {"dependencies": guard, "responses": PROBLEMS | refused | UNHEARD}
    # Swagger's page would load its scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="hybrid-serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    errors.install(app)
    app.add_middleware(Gate, token=token, metrics=lambda: app.state.engine.metrics)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/health", responses={503: {"model": Health, "description": "The server is shutting down."}})
    async def health(request: Request, response: Response) -> Health:
        """Whether pictures can be drawn."""
        engine: Engine = request.app.state.engine
        waiting, running = engine.load()
        response.status_code = 200 if engine.alive else 503
        return Health(
            status="ok" if engine.alive else "stopping", model=engine.pipe.name, waiting=waiting, running=running
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses=COUNTERS | refused,
        dependencies=guard,
    )
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(request.app.state.engine.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", **common)
    async def models(request: Request) -> ModelList:
        """The served pairing, its defaults and its limits."""
        return ModelList(data=[describe(request.app.state.engine)])

    @app.post("/v1/images/generations", response_model=ImagesResponse, **drawn)
    async def generations(request: Request, body: ImageRequest) -> Response:
        """Draw pictures from words."""
        engine: Engine = request.app.state.engine
        return await answer(request, engine, body, drawing_of(body, engine), deadline)

    @app.post("/v1/images/edits", response_model=ImagesResponse, **drawn)
    async def edits(request: Request, body: Annotated[EditRequest, Form(media_type="multipart/form-data")]) -> Response:
        """Draw a part of a picture anew."""
        engine: Engine = request.app.state.engine
        size = requested_size(body, engine)
        try:
            edit = read_edit(await body.image.read(), await body.mask.read(), size)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_image") from None
        return await answer(request, engine, body, drawing_of(body, engine, edit), deadline)

    @app.post("/v1/audio/transcriptions", response_model=Transcription, **heard)
    async def transcriptions(
        request: Request, file: UploadFile, model: Annotated[str | None, Form(max_length=200)] = None
    ) -> Transcription | Response:
        """What a recording says."""
        text = await request.app.state.ears.hear_for(request, await file.read())
        if text is None:
            return Response(status_code=499)
        return Transcription(text=text, prompt=asker(request.app.state.engine.pipe)(text) or prompt_of(text))

    return app


def describe(engine: Engine) -> ModelInfo:
    """The served pairing as OpenAI's list of models has it, with what a page needs to know beside."""
    pipe = engine.pipe
    both = pipe.ar is not None and pipe.masked is not None
    defaults = pipe.defaults
    lead = defaults.masked if pipe.masked is not None else defaults.ar
    return ModelInfo(
        id=pipe.name,
        width=engine.size[0],
        height=engine.size[1],
        grid=(engine.grid.height, engine.grid.width),
        methods=list(METHODS) if both else ["masked" if pipe.masked is not None else "ar"],
        editing=pipe.masked is not None,
        classes=pipe.classes,
        defaults={
            "method": defaults.method,
            "ar_fraction": defaults.ar_fraction,
            "steps": defaults.steps,
            "guidance": lead.guidance_scale,
            "temperature": lead.temperature,
        },
        limits={"prompt": PROMPT_LENGTH, "n": min(PICTURES, engine.capacity.job), "queue": engine.capacity.queue},
    )
