"""Where pictures of one's own come from: a folder, WebDataset .tar files, or a Hugging Face dataset.

A source is cut into shards of samples and opens a shard only when it is asked for. A sample is read when it is needed,
since a picture may be broken. This file knows layouts and conventions; it resizes and encodes nothing.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from hybrid.data.folder import DataError

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
CAPTION_KEYS = ("text", "caption", "captions")
LABEL_KEYS = ("label",)
RECORDS = ("metadata.jsonl", "captions.jsonl")
MOST_LABEL = 2**31 - 1
"""Shards keep classes as int32."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by the EXIF tag of that number."""


class BadSample(Exception):
    """A sample that cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Content:
    """What a sample holds: the encoded picture, its class and its captions, where it has them."""

    picture: bytes
    label: int | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A picture that is not read yet.

    Attributes:
        key: names it within the source; the same in every run.
        read: gives its content; raises BadSample.
    """

    key: str
    read: Callable[[], Content]


class Source(Protocol):
    """Shards of samples, always the same ones in the same order.

    Attributes:
        name: what the user calls it.
        classes: names of the classes in the order of their labels, where they are known.
    """

    name: str
    classes: Sequence[str] | None

    def __len__(self) -> int:
        """Number of shards."""
        ...

    def __getitem__(self, shard: int) -> Sequence[Sample]:
        """The samples of a shard; raises DataError where it cannot be opened."""
        ...


@dataclass(frozen=True)
class Keys:
    """Fields of a record (JSON, or a dataset's row) that hold captions and the class."""

    captions: tuple[str, ...] = CAPTION_KEYS
    label: tuple[str, ...] = LABEL_KEYS

    def content(self, picture: bytes, record: Mapping[str, Any]) -> Content:
        """A picture with what its record says."""
        found = next((record[key] for key in self.captions if record.get(key) is not None), ())
        captions = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, (list, tuple)) else None
        if captions is None or not all(isinstance(caption, str) for caption in captions):
            raise BadSample(f"its caption is no text ({found!r})")
        if not all(_is_unicode(caption) for caption in captions):
            raise BadSample(f"its caption is not valid Unicode ({found!r})")
        label = next((record[key] for key in self.label if record.get(key) is not None), None)
        if label is not None and (not isinstance(label, int) or not 0 <= label <= MOST_LABEL):
            raise BadSample(f"its label is no class number ({label!r})")
        return Content(picture, label, tuple(caption.strip() for caption in captions))


def _is_unicode(text: str) -> bool:
    """Whether a text has no halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def decode(picture: bytes) -> Image.Image:
    """An encoded picture as RGB, turned as its EXIF says, on white where it is transparent.

    Raises:
        BadSample: it is no picture, broken, or of more than eight bits a channel.
    """
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            upright = _upright(opened)
            if upright.mode.startswith(("I", "F")):
                raise BadSample(f"its mode is {upright.mode}, not eight bits a channel")
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return upright.convert("RGB")
    except Image.UnidentifiedImageError:
        raise BadSample("not a picture in a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample(f"not a readable picture ({error})") from None


def _upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says. ``ImageOps.exif_transpose`` writes that anew, too, and fails on odd ones."""
    try:
        turned = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # what cannot be read says nothing; a dozen classes are raised
        return picture
    return picture if turned is None else picture.transpose(turned)


def open_source(
    paths: Sequence[str], *, shard_size: int = 4096, split: str | None = None, keys: Keys | None = None
) -> Source:
    """The source that paths name: one folder, .tar files (or one folder of them), or one dataset.

    Args:
        paths: a folder, .tar files, or ``hf://NAME`` of a dataset on the Hugging Face hub.
        shard_size: pictures of a shard; .tar files are shards as they are.
        split: which split of a dataset, where it has several.
        keys: fields of records.

    Raises:
        DataError: nothing there that is known.
    """
    keys = keys or Keys()
    if len(paths) == 1 and paths[0].startswith("hf://"):
        from hybrid.data.images_hub import hub_source

        return hub_source(paths[0].removeprefix("hf://"), split, shard_size, keys)
    if all(path.endswith(".tar") for path in paths):
        return TarSource([Path(path) for path in paths], keys)
    if len(paths) > 1:
        odd = next(path for path in paths if not path.endswith(".tar"))
        raise DataError(f"{odd}: several sources must all be .tar files (unpacked from .tar.gz, for reading in place)")
    folder = Path(paths[0])
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of pictures, .tar files or hf://NAME")
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        from hybrid.data.images_hub import disk_source

        return disk_source(folder, split, shard_size, keys)
    if split is not None:
        raise DataError(f"--split {split}: {folder} is no Hugging Face dataset; give the split's own folder instead")
    if tars := sorted(folder.glob("*.tar")):
        return TarSource(tars, keys)
    return FolderSource(folder, shard_size, keys)


class FolderSource:
    """Pictures below a folder, sorted by their paths.

    Pictures that all lie in sub-folders have the (sorted) sub-folder's number as label, as ImageNet has. Captions are
    in ``NAME.txt`` beside ``NAME.jpg``, or in a ``metadata.jsonl`` or ``captions.jsonl`` at the top whose lines have a
    ``file_name``, as Hugging Face's imagefolder has.
    """

    def __init__(self, folder: Path, shard_size: int, keys: Keys) -> None:
        self.name, self.folder, self.shard_size, self.keys = str(folder), folder, shard_size, keys
        self.files: list[str] = []
        self.texts: set[str] = set()
        for parent, folders, names in os.walk(folder):
            folders.sort()
            inside = os.path.relpath(parent, folder)
            prefix = "" if inside == "." else f"{Path(inside).as_posix()}/"
            self.files += [prefix + name for name in names if suffix(name) in PICTURES]
            self.texts.update(prefix + name for name in names if name.endswith(".txt"))
        self.files.sort()
        if not self.files:
            raise DataError(f"{folder}: no picture there ({', '.join(sorted(PICTURES))})")
        self.records = _read_records(folder, set(self.files))
        tops = sorted({file.split("/")[0] for file in self.files})
        self.classes: Sequence[str] | None = tops if all("/" in file for file in self.files) else None
        self.numbers = {name: number for number, name in enumerate(tops)} if self.classes else {}

    def __len__(self) -> int:
        return -(-len(self.files) // self.shard_size)

    def __getitem__(self, shard: int) -> Sequence[Sample]:
        chosen = self.files[shard * self.shard_size : (shard + 1) * self.shard_size]
        return [Sample(file, partial(self._content, file)) for file in chosen]

    def _content(self, file: str) -> Content:
        record = {self.keys.label[0]: self.numbers.get(file.split("/")[0])} | self.records.get(file, {})
        text = os.path.splitext(file)[0] + ".txt"
        try:
            if text in self.texts:
                record[self.keys.captions[0]] = (self.folder / text).read_text(encoding="utf-8")
            picture = (self.folder / file).read_bytes()
        except UnicodeDecodeError:
            raise BadSample(f"{text} is not UTF-8") from None
        except OSError as error:
            raise BadSample(str(error.strerror)) from None
        return self.keys.content(picture, record)


def _part(parts: Mapping[str, _Place], kinds: Collection[str]) -> _Place | None:
    """The part of a .tar's sample that is of such a kind: ``png`` before ``mask.png``, whatever their order."""
    exact = next((place for name, place in parts.items() if name in kinds), None)
    return exact or next((place for name, place in parts.items() if suffix(name) in kinds), None)


def _only_zeros(file: Path, start: int) -> bool:
    """Whether a block of zeros at least, and nothing else, is in a file from there on, as at the end of a .tar."""
    with file.open("rb") as opened:
        opened.seek(start)
        size = 0
        while piece := opened.read(1 << 20):
            if piece.strip(b"\0"):
                return False
            size += len(piece)
    return size >= tarfile.BLOCKSIZE


def suffix(name: str) -> str:
    """What follows a name's last dot, in lower case."""
    return name.rsplit(".", 1)[-1].lower()


def _read_records(folder: Path, files: set[str]) -> dict[str, dict[str, Any]]:
    path = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    found: dict[str, dict[str, Any]] = {}
    if path is None:
        return found
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                name = record["file_name"]
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{path}: line {number} is no JSON object with a file_name") from None
            if name not in files:
                raise DataError(f"{path}: line {number} names {name}, which is no picture in {folder}")
            found[name] = record
    return found


@dataclass(frozen=True)
class _Place:
    """Where a member of a .tar file lies."""

    file: Path
    start: int
    size: int

    def read(self) -> bytes:
        try:
            with self.file.open("rb") as opened:
                opened.seek(self.start)
                data = opened.read(self.size)
        except OSError as error:
            raise BadSample(f"{self.file.name}: {error.strerror}") from None
        if len(data) != self.size:
            raise BadSample(f"{self.file.name} is truncated")
        return data


def _refuse(why: str) -> Content:
    raise BadSample(why)


class TarSource:
    """WebDataset .tar files, each one shard.

    Neighbouring members that agree up to the first dot of their name are one sample: a picture, its caption in
    ``.txt``, its class in ``.cls``, or both as fields of a ``.json``. Where a file is truncated, a last sample says so.
    """

    classes: Sequence[str] | None = None

    def __init__(self, files: Sequence[Path], keys: Keys) -> None:
        for file in files:
            if not file.is_file():
                raise DataError(f"{file}: no such file")
        self.files, self.keys = list(files), keys
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} … {files[-1].name}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, shard: int) -> Sequence[Sample]:
        file = self.files[shard]
        groups: list[tuple[str, dict[str, _Place]]] = []
        broken = ""
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if not groups or groups[-1][0] != key:
                        groups.append((key, {}))
                    groups[-1][1].setdefault(kind.lower(), _Place(file, member.offset_data, member.size))
                end = tar.offset
            if not _only_zeros(file, end):  # tarfile ends as quietly at a damaged header as at the end
                broken = "is no readable .tar file from here on: damaged, truncated, or several in one"
        except (tarfile.TarError, EOFError, OSError) as error:
            broken = f"is no readable .tar file from here on, truncated or compressed? ({error})"
        found = [Sample(f"{file.name}/{key}", partial(self._content, parts)) for key, parts in groups]
        return [*found, Sample(file.name, partial(_refuse, broken))] if broken else found

    def _content(self, parts: Mapping[str, _Place]) -> Content:
        picture = _part(parts, PICTURES)
        if picture is None:
            raise BadSample(f"has no picture, only {', '.join(sorted(parts))}")
        record: dict[str, Any] = {}
        try:
            if described := _part(parts, {"json"}):
                record |= json.loads(described.read())
            if text := _part(parts, {"txt"}):
                record[self.keys.captions[0]] = text.read().decode("utf-8")
            if label := _part(parts, {"cls"}):
                record[self.keys.label[0]] = int(label.read())
        except (ValueError, TypeError) as error:
            raise BadSample(f"its caption or class cannot be read ({error})") from None
        return self.keys.content(picture.read(), record)
