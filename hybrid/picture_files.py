"""Picture files: their names, their settings (a PNG's ``hybrid`` text chunk) and writing them whole or not at all.

This file knows files. It imports no torch, so that a wrong path fails before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.config import DefaultsConfig, Strict, parse
from hybrid.whole_files import replacing

if TYPE_CHECKING:
    from PIL import Image

KEY = "hybrid"
"""Keyword of the PNG text chunk that holds a picture's settings."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


class InputFile(Strict):
    """A picture that went into in-painting."""

    file: str
    sha256: str


class PictureSettings(Strict):
    """What repeats one picture.

    ``drawing`` holds what a request says about methods, passes and sampling, complete, so that later defaults change
    nothing. ``tokens_sha256`` tells whether the repetition succeeded.
    """

    version: str
    config: str
    prompt: str
    negative_prompt: str | None = None
    seed: int
    height: int
    width: int
    drawing: DefaultsConfig
    dtype: str
    quantize: str | None = None
    device: str
    scale: int = 1
    image: InputFile | None = None
    mask: InputFile | None = None
    tokens_sha256: str


def read_settings(path: Path) -> PictureSettings:
    """The settings in a PNG that ``hybrid-generate`` wrote.

    Raises:
        ValueError: no such file, no picture, or a picture without settings.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()  # text may follow the pixels
            text = getattr(picture, "text", {}).get(KEY)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture in a known format") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
    if text is None:
        raise ValueError(f"{path}: holds no settings; only single PNG pictures from hybrid-generate do")
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: its settings are damaged")
    return parse(PictureSettings, fields, f"{path}: settings")


def describe_input(path: Path) -> InputFile:
    """A file's absolute path and hash.

    Raises:
        ValueError: no such file.
    """
    try:
        return InputFile(file=str(path.resolve()), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def unchanged(given: InputFile, option: str) -> Path:
    """The file that settings name, if it is still the same.

    Raises:
        ValueError: it is missing or has other content.
    """
    path = Path(given.file)
    if not path.is_file():
        raise ValueError(f"{path}: the picture was painted from this file, which is missing; give {option} FILE")
    if describe_input(path).sha256 != given.sha256:
        raise ValueError(f"{path}: has changed since the picture was painted from it; give {option} FILE")
    return path


def slug(prompt: str) -> str:
    """A prompt as a file name: "A red apple!" is "a-red-apple"."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:50].strip("-") or "picture"


def plan_files(out: str | None, prompts: Sequence[str], *, one: bool = False) -> list[Path]:
    """A path for each picture, checked to be writable; nothing is made yet.

    Args:
        out: a picture file (for one picture), a folder, or None for the current folder. A folder that does not exist
            yet is made when the first picture is ready.
        prompts: what each picture shows.
        one: all of it is one picture (a comparison), named after the first prompt.

    Raises:
        ValueError: a file for several pictures, a format that cannot be written, or a place that cannot.
    """
    target = Path("." if out is None else out).expanduser()
    folder = out is None or target.is_dir() or out.endswith(("/", os.sep))
    if not folder and target.suffix:
        if target.suffix.lower() not in FORMATS:
            raise ValueError(f"{out}: cannot write {target.suffix}; use .png, .jpg or .webp, or DIR/ for a folder")
        if len(prompts) > 1 and not one:
            raise ValueError(f"{out}: {len(prompts)} pictures do not fit one file; give a folder: -o {target.stem}/")
        if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
            raise ValueError(f"{out}: is there and cannot be overwritten; choose another name")
        _require_writable(target.parent)
        return [target]
    if target.exists() and not target.is_dir():
        raise ValueError(f"{out}: is a file without a picture's suffix; use .png, .jpg or .webp, or another folder")
    _require_writable(target if target.is_dir() else target.parent)
    if one:
        return [_free(target, f"compare-{slug(prompts[0])}", set())]
    taken: set[Path] = set()
    if out is None:
        return [_free(target, slug(prompt), taken) for prompt in prompts]
    numbers = [int(found[1]) for path in target.glob("*") if (found := re.match(r"(\d+)-", path.name))]
    first = max(numbers, default=0) + 1
    return [target / f"{first + place:03d}-{slug(prompt)}.png" for place, prompt in enumerate(prompts)]


def _require_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{folder}: cannot write there ({error.strerror})") from None


def _free(folder: Path, stem: str, taken: set[Path]) -> Path:
    """A PNG's name that is neither there nor promised: STEM.png, STEM-2.png, …"""
    path, number = folder / f"{stem}.png", 1
    while path in taken or path.exists():
        number += 1
        path = folder / f"{stem}-{number}.png"
    taken.add(path)
    return path


def write_picture(picture: Image.Image, path: Path, settings: PictureSettings | None = None, *, scale: int = 1) -> None:
    """Write a picture in its suffix's format; an interruption leaves the old file or none, never half of one.

    Args:
        picture: RGB.
        path: the file; its folder is made where missing (its parents are not).
        settings: kept in a PNG; other formats have no place for them.
        scale: each pixel becomes a square of that many.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    kind = FORMATS[path.suffix.lower()]
    options = dict(SAVE_OPTIONS[kind])
    if settings is not None and kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(KEY, json.dumps(settings.model_dump()))
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as part:
        picture.save(part, kind, **options)
