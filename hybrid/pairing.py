"""Where a pairing of checkpoints is described: shipped names, YAML files, folders with a ``model_index.json``.

This file knows names, files and fields. It loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from hybrid.config import PairConfig, parse, read_yaml

INDEX = "model_index.json"
COMPONENTS = ("ar", "masked", "tokenizer", "ar_tokenizer", "text")


def find_pair(name: str | Path) -> Path:
    """The file that describes a pairing: a YAML, a folder's ``model_index.json``, or one shipped under this name.

    A folder or file of that name comes before a shipped pairing, unless it is a folder without an index.

    Raises:
        ValueError: nothing of that name; the message lists what is shipped.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if (path / INDEX).is_file():
        return path / INDEX
    embedded, configs = Path(str(files("hybrid.pretrained"))), Path(str(files("hybrid.configs")))
    if path.name == str(path):
        for candidate in (embedded / path / INDEX, configs / f"{path}.yaml"):
            if candidate.is_file():
                return candidate
    if path.is_dir():
        raise ValueError(f"{path}: no {INDEX} in this folder")
    known = sorted({entry.parent.name for entry in embedded.glob(f"*/{INDEX}")} | {*_pair_configs(configs)})
    near = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise ValueError(f"{name}: no such model, folder or file{hint} shipped models: {', '.join(known) or 'none'}")


def _pair_configs(folder: Path) -> list[str]:
    others = ("train-", "bench-", "ablate-", "serve")
    return [path.stem for path in folder.glob("*.yaml") if not path.stem.startswith(others)]


def read_pair(path: Path, overrides: Mapping[str, Any] | None = None) -> PairConfig:
    """The checked fields of a YAML or ``model_index.json``; ``overrides`` replace top-level ones.

    Raises:
        ValueError: one line with the file and what is wrong in it.
    """
    return parse(PairConfig, read_fields(path) | dict(overrides or {}), str(path))


def read_fields(path: Path) -> dict[str, Any]:
    """The unchecked fields of a YAML or ``model_index.json``.

    Raises:
        ValueError: one line with the file: it cannot be read, or names a pairing without classes.
    """
    if path.suffix == ".json":
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: truncated or not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: expected a mapping of settings, got {type(fields).__name__}")
        return {key: value for key, value in fields.items() if not key.startswith("_")}  # diffusers' own marks
    fields = read_yaml(path)
    if isinstance(fields.get("classes"), str):
        fields["classes"] = _classes_of(fields["classes"], path)
    return fields


def _classes_of(name: str, path: Path) -> Any:
    """The class names of a shipped pairing, which a YAML may name instead of repeating a thousand of them."""
    shipped = Path(str(files("hybrid.configs"))) / f"{name}.yaml"
    classes = read_yaml(shipped).get("classes") if shipped.is_file() else None
    if not isinstance(classes, list):
        raise ValueError(f"{path}: classes: expected a list of names or a shipped pairing that has one, got {name!r}")
    return classes


def is_shipped(path: Path) -> bool:
    """Whether the pairing that a file describes comes with this package."""
    homes = [Path(str(files(package))).resolve() for package in ("hybrid.pretrained", "hybrid.configs")]
    return any(path.resolve().is_relative_to(home) for home in homes)


def pair_name(path: Path) -> str:
    """What results and errors call the pairing that a file describes."""
    return path.resolve().parent.name if path.name == INDEX else path.stem


def plain_card(name: str, parts: Mapping[str, tuple[str, int]]) -> str:
    """A model card that says no more than is known: each part's kind and number of parameters."""
    lines = [f"# {name}", "", "A pairing for hybrid AR and masked image generation.", ""]
    lines += ["| part | kind | parameters |", "|---|---|---|"]
    lines += [f"| {part} | {kind} | {count / 1e6:.1f}M |" for part, (kind, count) in parts.items()]
    use = f'HybridPipeline.from_pretrained("{name}")'
    return "\n".join([*lines, "", f"Load it with `{use}`. Data, recipe, figures and limits: not stated.", ""])
