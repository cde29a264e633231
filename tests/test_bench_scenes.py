"""What each data set asks for, and the score of its pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_scene import Coarse
from pairs import text_pair
from tiny_emoji import drawings

from hybrid.benchmarks.fidelity import GREY, Region, only_rows, regions
from hybrid.benchmarks.scenes import open_scene, real_of
from hybrid.data.concepts import STYLES
from hybrid.data.folder import create_images, write_records
from hybrid.types import Grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, records = tmp_path_factory.mktemp("data") / "emoji", drawings()
    path.mkdir()
    images = create_images(path, (len(records), 1, 8, 8, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    images.flush()
    write_records(path, records, {"name": "emoji"}, "none\n")
    return path


@pytest.fixture(scope="module")
def artist() -> Any:
    return SimpleNamespace(pipeline=text_pair(), told=lambda what, done, total: None)


def test_emoji_are_scored_by_retrieval(folder: Path, artist: Any) -> None:
    scene = open_scene("emoji", folder, 30, 60, Coarse(), artist)
    assert len(scene.prompts) == 30 and len(scene.places) == 60 and scene.score_name == "retrieval"
    items = [scene.folder.items[place] for place in scene.places[:30]]
    assert list(scene.prompts) == [f"{item['name']}, {STYLES[item['set']]} style" for item in items]
    assert all(item["split"] == "train" for item in items)
    features = real_of(scene, scene.places[:30], Coarse())
    assert scene.score is not None
    hits = scene.score(np.empty(0, np.uint8), features)
    assert set(hits.tolist()) <= {0.0, 1.0} and hits.mean() == scene.real_score
    # Replicates ask for the same prompts again.
    assert np.array_equal(scene.score(np.empty(0, np.uint8), np.concatenate((features, features))), np.tile(hits, 2))


def test_a_scene_of_some_sets(folder: Path, artist: Any) -> None:
    sets = [str(drawings()[0]["set"])]
    scene = open_scene("emoji", folder, 5, None, Coarse(), artist, sets)
    assert {scene.folder.items[place]["set"] for place in scene.places} == set(sets)
    with pytest.raises(ValueError, match="sets: no set is called 'crayon'"):
        open_scene("emoji", folder, 5, None, Coarse(), artist, ["crayon"])


def test_any_folder_has_prompts(folder: Path, artist: Any) -> None:
    scene = open_scene("folder", folder, 5, None, Coarse(), artist)
    assert [scene.folder.items[place]["split"] for place in scene.places] == ["heldout"] * 5
    assert list(scene.prompts) == [scene.folder.items[place]["captions"][0] for place in scene.places]
    assert scene.score is None and scene.score_name is None


def test_the_digest_names_prompts_and_pictures(folder: Path, artist: Any) -> None:
    one, two, again = (open_scene("folder", folder, count, None, Coarse(), artist).digest for count in (5, 6, 5))
    assert one == again != two


@pytest.mark.parametrize(
    ("data_set", "wanted", "message"),
    [
        ("emoji", 81, "has 80 pictures to ask for, the sweep wants 81"),
        ("folder", 13, "has 12 pictures to ask for, the sweep wants 13"),
        ("emojis", 5, "data_set 'emojis': use one of fashion, emoji, folder"),
        ("fashion", 5, "no picture has split 'test'"),
    ],
)
def test_mistakes(data_set: str, wanted: int, message: str, folder: Path, artist: Any) -> None:
    with pytest.raises(ValueError, match=message):
        open_scene(data_set, folder, wanted, None, Coarse(), artist)


def test_a_folder_must_be_named(artist: Any) -> None:
    with pytest.raises(ValueError, match="data_set folder: say which with data, or --data"):
        open_scene("folder", None, 5, None, Coarse(), artist)


def test_regions_split_rows() -> None:
    assert regions(0, Grid(4, 4)) == regions(16, Grid(4, 4)) == [Region("all", 0, 16, (0, 4))]
    assert regions(8, Grid(4, 4))[1:] == [Region("ar", 0, 8, (0, 2)), Region("masked", 8, 16, (2, 4))]
    # The row that both wrote belongs to neither; a part without a whole row is no region.
    assert regions(6, Grid(4, 4))[1:] == [Region("ar", 0, 6, (0, 1)), Region("masked", 6, 16, (2, 4))]
    assert regions(3, Grid(4, 4))[1:] == [Region("masked", 3, 16, (1, 4))]


def test_other_rows_are_painted_over() -> None:
    images = np.arange(8 * 8, dtype=np.uint8).reshape(1, 8, 8, 1)
    kept = only_rows(images, Region("masked", 8, 16, (2, 4)), Grid(4, 4))
    assert np.array_equal(kept[:, 4:], images[:, 4:]) and (kept[:, :4] == GREY).all()
