"""What requests and answers look like: OpenAI's image API, and this project's settings beside it.

Field names that OpenAI has mean what they mean there. Fields of theirs that nothing here could honour are accepted
only at the values that ask for nothing; anything unknown is refused. Null is a field that is left out, as it is there.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybrid.request import METHODS

PROMPT_LENGTH = 1000
PICTURES = 10
STEPS = 256
SEEDS = 2**53 - PICTURES
"""Seeds are below this, so that JavaScript can write them."""

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]

Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_LENGTH)]


class Settings(BaseModel):
    """What both ways of drawing take."""

    prompt: Prompt = Field(description="A caption, or a class of the model.", examples=["a red apple"])
    model: str | None = Field(None, max_length=200, description="The served pairing's name, or nothing.")
    n: int = Field(1, ge=1, le=PICTURES, description="Pictures; picture i has seed + i.")
    size: str = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$",
        description="WIDTHxHEIGHT in pixels, at most as many as the model's own; auto is its own.",
        examples=["auto", "64x64"],
    )
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="url answers with a data: URL.")
    stream: bool = Field(False, description="Server-sent events: previews, then each finished picture.")
    partial_images: int | None = Field(
        None, ge=0, le=1000, description="At most this many previews; left out: after every AR row and masked pass."
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Left out: a random one, which the answer tells.")
    negative_prompt: Prompt | None = Field(None, description="What guidance moves away from.")
    steps: int | None = Field(None, ge=1, le=STEPS, description="Passes of the masked model.")
    guidance: float | None = Field(None, ge=0, le=30, allow_inf_nan=False, description="1 is none.")
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False, description="0 is argmax.")
    quality: Literal["auto", "standard"] | None = Field(None, description="Nothing to choose from.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Nothing to choose from.")
    moderation: Literal["auto", "low"] | None = Field(None, description="There is none.")
    output_format: Literal["png"] = "png"
    output_compression: int | None = Field(None, ge=100, le=100, description="A PNG loses nothing.")
    user: str | None = Field(None, max_length=200, description="Not used and not kept.")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name not in cls.model_fields}


def _with_null(schema: dict[str, Any]) -> None:
    """What is optional may be null."""
    about = ("title", "description", "default", "examples")
    for name, field in schema["properties"].items():
        if name not in schema["required"] and "anyOf" not in field:
            kind = {key: field.pop(key) for key in tuple(field) if key not in about}
            field["anyOf"] = [kind, {"type": "null"}]


class ImageRequest(Settings):
    """Pictures from words."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_with_null)

    method: Method | None = Field(
        None,
        description="Both models, the AR model alone, the masked model alone, or a form in which the AR model checks "
        "what the masked model wrote; left out: the model's default.",
    )
    ar_fraction: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Share of the tokens that the AR model writes."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Nothing to choose from.")


def _without_null(schema: dict[str, Any]) -> None:
    """A form has no null: what is optional is left out."""
    for field in schema["properties"].values():
        if "anyOf" in field:
            (kind,) = (kind for kind in field.pop("anyOf") if kind != {"type": "null"})
            field.pop("default", None)
            field.update(kind)


class EditRequest(Settings):
    """In-painting, by the masked model."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_null)

    image: UploadFile = Field(description="PNG, JPEG or WebP, of exactly the size that is drawn.")
    mask: UploadFile = Field(
        description="The same size. Drawn anew where it is transparent or, if nothing of it is, where it is white."
    )
    input_fidelity: Literal["low"] | None = Field(None, description="Nothing to choose from.")


class PictureData(BaseModel):
    """One picture of an answer."""

    b64_json: str | None = Field(None, description="A PNG, in base64.")
    url: str | None = Field(None, description="A PNG, as a data: URL.")
    seed: int
    origin: list[int] = Field(
        description="Who wrote each token, row by row: -1 given, 0 the AR model, p the masked model's pass p."
    )


class Report(BaseModel):
    """How the pictures were drawn."""

    model: str
    grid: tuple[int, int] = Field(description="Tokens: height, width.")
    size: str
    seconds: dict[str, float] = Field(
        description="By phase, of the passes that these pictures shared; waiting and previews apart."
    )
    passes: dict[str, int] = Field(description="Those forward passes, by phase.")
    batch: int = Field(description="The most pictures in one of them, other clients' among them.")
    settings: dict[str, Any] = Field(description="Everything that was drawn with.")
    lossy: str | None = Field(None, description="How the models' codebooks differ, if they do.")


class ImagesResponse(BaseModel):
    """Finished pictures."""

    created: int = Field(description="Seconds since 1970.")
    data: list[PictureData]
    output_format: Literal["png"] = "png"
    size: str
    report: Report


class ModelInfo(BaseModel):
    """What is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "hybrid-imagegen"
    width: int
    height: int
    grid: tuple[int, int]
    methods: list[str]
    editing: bool = Field(description="Whether there is a masked model for in-painting.")
    classes: list[str] | None
    defaults: dict[str, Any]
    limits: dict[str, int]


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Transcription(BaseModel):
    """Recognised speech."""

    text: str
    prompt: str = Field(description='What to draw: the text without "draw me", or the class that sounds like it.')


class ErrorDetail(BaseModel):
    """What went wrong, in one line."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail


class Health(BaseModel):
    """Whether pictures can be drawn."""

    status: Literal["ok", "stopping"]
    model: str
    waiting: int
    running: int


def encoded(png: bytes, response_format: str = "b64_json") -> dict[str, str]:
    """A file as the field that was asked for."""
    text = binascii.b2a_base64(png, newline=False).decode()
    return {"url": f"data:image/png;base64,{text}"} if response_format == "url" else {"b64_json": text}
