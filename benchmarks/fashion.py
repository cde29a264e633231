"""The figures of the ``fashion`` pair: every method against the test pictures, with the floors beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artist import Method
from .best_ar import at_its_best
from .classifier import FashionClassifier, correct, load_classifier
from .features import real_features
from .figures import FEW, Job, Reference, Sheet, method_details
from .statistics import share

METHODS = (
    Method("ar", 1.0),
    Method("hybrid25", 0.25, 8),
    Method("hybrid50", 0.5, 8),
    Method("masked8", 0.0, 8),
    Method("masked16", 0.0, 16),
)


def make(job: Job, classifier: FashionClassifier | None = None, ar: Mapping[str, Any] | None = None) -> Sheet:
    """Compare methods and floors with as many test pictures of the same classes.

    Args:
        job: pair, data and sizes.
        classifier: says which class a picture shows; None is the shipped one.
        ar: guidance scale and temperature of the AR model; None chooses the best of a grid.

    The real floor is train pictures of the same classes; the reconstruction floor is those through the tokenizer, which
    is what a generator that drew tokens perfectly would reach.
    """
    sheet, artist, folder = Sheet(), job.artist, job.folder
    test = folder.indices("test")[: job.pictures]
    if len(test) < job.pictures:
        raise ValueError(f"--pictures {job.pictures}: {folder.path} has {len(test)} test pictures")
    labels = labels_of(folder.items, test, str(folder.path))
    judge = load_classifier() if classifier is None else classifier
    train = same_labels(folder.indices("train"), folder.items, labels)

    def told(what: str) -> Any:
        return lambda done, total: artist.told(what, done, total)

    reference = Reference(real_features(folder, test, job.network, progress=told("test pictures")), job.seed)
    real_hits = correct(judge, np.ascontiguousarray(folder.images[test, 0]), labels).astype(float)
    floor = reference.compare(real_features(folder, train, job.network, progress=told("train pictures")))
    pictures = np.ascontiguousarray(folder.images[train, 0])
    rebuilt = artist.reconstruct(pictures)
    rebuilt_floor = reference.compare(rebuilt.features_nd)
    # The classifier was trained on the train pictures, so only the test pictures say what it makes of real ones.
    sheet.details["real_accuracy"] = float(real_hits.mean())
    sheet.methods["real"] = floor.details
    sheet.methods["reconstruction"] = rebuilt_floor.details
    sheet.add("real_frechet", floor.frechet)
    sheet.add("reconstruction_frechet", rebuilt_floor.frechet)

    compared = {}
    for method in at_its_best(job, sheet, METHODS, labels.tolist(), reference, ar):
        drawn = artist.draw(method, labels.tolist(), job.seed)
        compared[method.name] = result = reference.compare(drawn.features_nd)
        hits = correct(judge, artist.pictures(drawn), labels).astype(float)
        accuracy = share(hits, real_hits, seed=job.seed)
        sheet.methods[method.name] = method_details(artist, method, result, drawn, accuracy=float(hits.mean()))
        sheet.add(f"{method.name}_frechet", result.frechet)
        sheet.add(f"{method.name}_accuracy_share", accuracy, share(hits, real_hits, seed=job.seed, size=FEW))
        sheet.add(f"{method.name}_frechet_over_floor", result.over(rebuilt_floor))
        if method.name != "ar":
            sheet.add(f"{method.name}_frechet_over_ar", result.over(compared["ar"]))
    return sheet


def labels_of(items: Any, places: NDArray[np.int64], source: str) -> NDArray[np.int64]:
    """The class of each picture.

    Raises:
        ValueError: pictures without classes.
    """
    if "label" not in items[int(places[0])]:
        raise ValueError(f"{source}: its pictures have no classes; --data must name a fashion folder")
    return np.asarray([items[int(place)]["label"] for place in places], dtype=np.int64)


def same_labels(places: NDArray[np.int64], items: Any, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first pictures among ``places`` that have these classes, in this order, each picture once.

    Raises:
        ValueError: a class has too few pictures.
    """
    waiting: dict[int, list[int]] = {}
    for place in reversed(places.tolist()):
        waiting.setdefault(int(items[place]["label"]), []).append(place)
    found = []
    for label in labels.tolist():
        if not waiting.get(label):
            raise ValueError(f"class {label} has too few train pictures for a real floor of {len(labels)} pictures")
        found.append(waiting[label].pop())
    return np.asarray(found, dtype=np.int64)
