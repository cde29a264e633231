"""The figures that ship beside the embedded pairs are those of the shipped weights, and can be computed again."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from hybrid.benchmarks.artist import pair_weights
from hybrid.benchmarks.figures import FEW, REQUIRED, make_figures
from hybrid.data.folder import default_folder

FIGURES = {
    "fashion": ("ar_accuracy_share", "hybrid25_accuracy_share"),
    "emoji": ("ar_retrieval_share", "hybrid25_retrieval_of_ar"),
}


def shipped(pair: str) -> dict[str, Any]:
    path = Path(str(files("hybrid.pretrained"))) / pair / "figures.json"
    if not path.is_file():
        pytest.skip(f"{pair} ships no figures")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("pair", FIGURES)
def test_figures_are_of_the_shipped_weights_and_say_how_many_pictures(pair: str) -> None:
    content = shipped(pair)
    assert content["weights_sha256"] == pair_weights(pair)
    assert content["preliminary"] == (content["pictures"] < REQUIRED[pair])
    assert content["commit"] and content["feature_network"]
    for name, (low, high) in content["intervals"].items():
        assert low <= content[name] <= high, name


@pytest.mark.slow
@pytest.mark.parametrize("pair", FIGURES)
def test_two_figures_of_200_seeds_fall_inside_the_interval(pair: str, tmp_path: Path) -> None:
    content = shipped(pair)
    if not default_folder(pair).is_dir():
        pytest.skip(f"no data; build it with: hybrid-data {pair}")
    ar = content["details"].get("ar_choice", {"settings": {}})["settings"]
    options = {"ar": ar}
    again = make_figures(pair, pictures=FEW, seed=content["seed"], out=tmp_path / "figures.json", options=options)[1]
    for name in FIGURES[pair]:
        low, high = content["intervals_200"][name]
        assert low <= again[name] <= high, name
