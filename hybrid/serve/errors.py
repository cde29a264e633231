"""Errors as clients of OpenAI's API know them: ``{"error": {"message", "type", "code", "param"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hybrid.serve.jobs import Failed
from hybrid.serve.schemas import EditRequest, ErrorBody, ErrorDetail, ImageRequest

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
STATUS = {"invalid": 400, "deadline": 504, "closed": 503, "error": 500}
"""How a job's failure is answered."""


class ApiError(Exception):
    """An answer that is one line about what is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> ErrorBody:
        """What the client gets."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorBody(error=ErrorDetail(message=self.message, type=kind, code=self.code, param=self.param))

    def response(self) -> JSONResponse:
        """The same as an answer."""
        return JSONResponse(self.body().model_dump(), self.status, headers=dict(self.headers or {}))


def failure(event: Failed) -> ApiError:
    """A job's failure. Where the pipeline names the argument first, as in ``steps 300: …``, that is the parameter."""
    return ApiError(STATUS[event.reason], event.message, None if event.reason == "invalid" else event.reason)


def install(app: FastAPI) -> None:
    """Answer every error of an application in this shape."""

    @app.exception_handler(ApiError)
    async def _told(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return malformed(error).response()

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> JSONResponse:
        message = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for this path"}
        return ApiError(
            error.status_code, message.get(error.status_code, str(error.detail)), headers=error.headers
        ).response()

    @app.exception_handler(Exception)
    async def _broken(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "a mistake of the server; its log says more", "error").response()


def malformed(error: RequestValidationError) -> ApiError:
    """The first mistake of a request in one line, without what was sent."""
    # A misspelled required field is both missing and unknown; the second says more.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "header")]
    field = ".".join(place)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON ({first.get('ctx', {}).get('error', 'malformed')})", "json_invalid")
    if first["type"] == "extra_forbidden":
        near = get_close_matches(field, {*ImageRequest.model_fields, *EditRequest.model_fields}, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return ApiError(400, f"unknown field {field[:100]!r}{hint}", "unknown_field", param=field[:100])
    if not field:
        return ApiError(
            400, "the body: expected a JSON object, sent as Content-Type: application/json", "invalid_value"
        )
    message = f"{field}: {first['msg']}"
    return ApiError(400, message, "invalid_value", param=field)
