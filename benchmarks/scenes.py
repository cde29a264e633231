"""What a sweep's pictures are asked for and compared with: prompts, real pictures, floors and a score of each picture.

One function for each data set; ``SCENES`` names them. This file knows data folders; it draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.data.splits import pick

from .artist import Artist
from .classifier import correct, load_classifier
from .concepts import plan
from .emoji import Reader
from .fashion import labels_of, same_labels
from .features import Features, digest, embed_sentences, real_features
from .figures import Job
from .retrieval import hits

Score = Callable[[NDArray[np.uint8], NDArray[np.float16]], NDArray[np.float64]]


@dataclass(frozen=True)
class Scene:
    """A data set as a sweep sees it.

    Attributes:
        folder: the pictures.
        prompts: one for each drawn picture.
        places: the real pictures to compare with.
        floor: other real pictures of the same prompts, or empty where there are none.
        score_name: ``accuracy``, ``retrieval`` or None.
        score: of each picture of ``prompts``, from pixels (n, h, w, 3) and features (n, d).
        real_score: mean score of real pictures of the same prompts.
        groups: of each prompt what it names, where several prompts name one thing; what resampling draws. Empty where
            each picture stands for itself.
    """

    folder: DataFolder
    prompts: tuple[str | int, ...]
    places: NDArray[np.int64]
    floor: NDArray[np.int64]
    score_name: str | None = None
    score: Score | None = None
    real_score: float | None = None
    groups: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Names the prompts and the real pictures, so that reports of other data are not compared."""
        inputs = str(self.folder.meta.get("inputs"))
        return digest(self.folder.meta.get("name"), inputs, self.prompts, self.places.tolist())


def open_scene(
    data_set: str,
    data: Path | None,
    pictures: int,
    reference: int | None,
    network: Features,
    artist: Artist,
    sets: Sequence[str] | None = None,
) -> Scene:
    """A data set's scene.

    Args:
        data_set: a key of ``SCENES``.
        data: the data folder; None is where ``hybrid-data`` writes it.
        pictures: to draw.
        reference: real pictures to compare with, at least as many; None is as many.
        network: makes the features.
        artist: is told of progress.
        sets: of pictures, where the data set has some; None is all.

    Raises:
        ValueError: no such data set, no such folder, or too few pictures in it.
    """
    if data_set not in SCENES:
        raise ValueError(f"data_set {data_set!r}: use one of {', '.join(SCENES)}")
    if data is None and data_set == "folder":
        raise ValueError("data_set folder: say which with data, or --data")
    many = max(pictures, reference or pictures)
    try:
        folder = DataFolder.open(data or default_folder(data_set))
        return SCENES[data_set](folder, sets, pictures, many, network, artist)
    except DataError as error:
        raise ValueError(str(error)) from None


def fashion(
    folder: DataFolder, sets: Sequence[str] | None, pictures: int, reference: int, network: Features, artist: Artist
) -> Scene:
    """Classes of the first test pictures; a classifier says whether a picture shows its class."""
    places = _enough(folder, pick(folder, "test", sets), reference)
    labels = labels_of(folder.items, places[:pictures], str(folder.path))
    floor = same_labels(folder.indices("train"), folder.items, labels)
    judge = load_classifier()

    def score(images: NDArray[np.uint8], features: NDArray[np.float16]) -> NDArray[np.float64]:
        return correct(judge, np.ascontiguousarray(images), np.resize(labels, len(images))).astype(float)

    real = score(np.asarray(folder.images[places[:pictures], 0]), np.empty((0, 0), np.float16))
    return Scene(folder, tuple(labels.tolist()), places, floor, "accuracy", score, float(real.mean()))


def emoji(
    folder: DataFolder, sets: Sequence[str] | None, pictures: int, reference: int, network: Features, artist: Artist
) -> Scene:
    """Names and vendors of seen concepts; retrieval@10 says whether a picture shows its name."""
    from hybrid.adapters import load

    if "group" not in folder.items[0]:
        raise ValueError(f"{folder.path}: its pictures have no concept groups; data must name an emoji folder")
    asked = plan(folder.items, pick(folder, "train", sets).tolist(), reference, 0)
    _enough(folder, np.asarray(asked.distinct.places), reference)
    encoder = artist.pipeline.text or load("minilm", None)
    job = Job(artist, network, folder, pictures, 0, folder.path)
    reader = Reader(job, encoder)
    groups = asked.distinct.groups[:pictures]
    names = {group: embed_sentences(encoder, reader.names[group]) for group in sorted({*asked.ranked, *groups})}

    def score(images: NDArray[np.uint8], features: NDArray[np.float16]) -> NDArray[np.float64]:
        own = [groups[row % len(groups)] for row in range(len(features))]
        return hits(reader.fitted(features, own), own, names).astype(float)

    places = asked.distinct.places
    real = score(np.empty(0, np.uint8), reader.real(places[:pictures]))
    chosen = np.asarray(places, dtype=np.int64)
    none = np.empty(0, dtype=np.int64)
    prompts = asked.distinct.prompts[:pictures]
    return Scene(folder, prompts, chosen, none, "retrieval", score, float(real.mean()), tuple(groups))


def plain(
    folder: DataFolder, sets: Sequence[str] | None, pictures: int, reference: int, network: Features, artist: Artist
) -> Scene:
    """Captions or classes of the held-out pictures of any data folder, without a score."""
    places = _enough(folder, pick(folder, unseen(folder), sets), reference)
    prompts = tuple(prompt_of(folder.items[int(place)]) for place in places[:pictures])
    groups = () if any(isinstance(prompt, int) for prompt in prompts) else tuple(map(str, prompts))
    return Scene(folder, prompts, places, np.empty(0, dtype=np.int64), groups=groups)


def unseen(folder: DataFolder) -> str:
    """The split that nothing was trained on."""
    return "test" if any(item["split"] == "test" for item in folder.items) else "heldout"


SCENES: dict[str, Callable[[DataFolder, Sequence[str] | None, int, int, Features, Artist], Scene]] = {
    "fashion": fashion,
    "emoji": emoji,
    "folder": plain,
}


def real_of(scene: Scene, places: Sequence[int] | NDArray[np.int64], network: Features) -> NDArray[np.float16]:
    """Features of real pictures."""
    return real_features(scene.folder, places, network)


def prompt_of(item: Any) -> str | int:
    """The class of a picture of a data folder, or its first caption or name."""
    if "label" in item:
        return int(item["label"])
    return str(item["captions"][0] if item.get("captions") else item["name"])


def _enough(folder: DataFolder, places: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    if len(places) < wanted:
        raise ValueError(f"{folder.path}: has {len(places)} pictures to ask for, the sweep wants {wanted}")
    return places[:wanted]
