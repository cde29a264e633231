"""The one door to every adapter: kinds, entry points, and what importing does not import."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import pytest
import torch

from hybrid import adapters
from hybrid.adapters import ADAPTERS, load


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_names_a_function(kind: str) -> None:
    module, function = ADAPTERS[kind].split(":")
    assert callable(getattr(import_module(module), function))


def test_an_unknown_kind_gets_the_nearest_one_and_all() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown kind 'lamagen'; did you mean 'llamagen'\? Known: arpg, chameleon-vq, "
    ):
        load("lamagen", None)
    with pytest.raises(ValueError, match=r"^unknown kind 'zzz'\. Known: arpg, chameleon-vq, "):
        load("zzz", None)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers a kind."""
    module = ModuleType("a_foreign_package")

    def load_foreign(weights: Any, config: Any, *, device: torch.device, dtype: torch.dtype | None) -> Any:
        return weights, config, device, dtype

    module.load_foreign = load_foreign  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_foreign_package", module)
    point = metadata.EntryPoint("foreign-model", "a_foreign_package:load_foreign", "hybrid.adapters")
    broken = metadata.EntryPoint("broken-model", "not_installed_anywhere:load", "hybrid.adapters")

    def entry_points(*, group: str) -> metadata.EntryPoints:
        return metadata.EntryPoints([point, broken] if group == "hybrid.adapters" else [])

    monkeypatch.setattr(adapters, "entry_points", entry_points)


@pytest.mark.usefixtures("foreign")
def test_other_packages_add_kinds_through_an_entry_point() -> None:
    loaded = load("foreign-model", "file", {"a": 1}, device="meta", dtype=torch.float16)
    assert loaded == ("file", {"a": 1}, torch.device("meta"), torch.float16)
    with pytest.raises(ValueError, match=r"did you mean 'foreign-model'\? Known: .*broken-model, .*foreign-model, "):
        load("foreing-model", None)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("broken-model", None)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("hybrid", ["torch", "transformers", "hybrid.adapters"]),
        ("hybrid.adapters", ["transformers", "tokenizers", *(target.split(":")[0] for target in ADAPTERS.values())]),
        ("hybrid.adapters.text", ["transformers", "tokenizers"]),
    ],
)
def test_importing_loads_no_foreign_model(name: str, absent: list[str]) -> None:
    code = f"import sys, {name}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
