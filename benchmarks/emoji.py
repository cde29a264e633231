"""The figures of the ``emoji`` pair: retrieval, distances, held-out concepts, tokenizer and memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.config import read_yaml
from hybrid.data.codes import extract_codes
from hybrid.data.folder import DataFolder
from hybrid.data.splits import pick
from hybrid.tasks_build import find_config

from . import memorisation
from .artist import Artist, Drawn, Method
from .best_ar import at_its_best
from .concepts import Plan, aliases, filled, plan, recombined
from .features import embed_sentences, real_features
from .figures import FEW, Compared, Job, Reference, Sheet, method_details
from .retrieval import CrossFitted, cross_fit, hits
from .statistics import BLOCKS, kid_blocks, kid_estimate, share

METHODS = (
    Method("ar", 1.0),
    Method("hybrid25", 0.25, 8),
    Method("hybrid50", 0.5, 8),
    Method("masked", 0.0, 12),
)
SEED_STRIDE = 10_000_000
MEMORY_METHODS = ("ar", "hybrid25")
MEMORY_PICTURES = 500


class Reader:
    """Scores pictures by retrieval: regressions cross-fitted on the real pictures of all vendors, since more of them
    read better, and candidates under all their aliases."""

    def __init__(self, job: Job, encoder: Any) -> None:
        items, places = job.folder.items, range(len(job.folder))
        self.names = aliases(items)
        every = sorted({name for names in self.names.values() for name in names})
        self._embedding = dict(zip(every, embed_sentences(encoder, every), strict=True))
        features = real_features(
            job.folder, places, job.network, progress=lambda done, total: job.artist.told("real pictures", done, total)
        )
        self.features = dict(zip(places, features, strict=True))
        targets = np.stack([self._embedding[item["name"]] for item in items])
        self.fitted: CrossFitted = cross_fit(features, targets, [item["group"] for item in items])

    def real(self, places: Sequence[int]) -> NDArray[np.float16]:
        """Features of real pictures."""
        return np.stack([self.features[place] for place in places])

    def score(self, features: NDArray[np.float16], asked: Plan, ranked: Sequence[str]) -> NDArray[np.float64]:
        """Retrieval@10 of each scored group, the mean over its pictures."""
        rows = np.asarray(asked.rows)
        groups = [group for group, own in zip(asked.scored, asked.rows, strict=True) for _ in own]
        targets = {group: np.stack([self._embedding[name] for name in self.names[group]]) for group in ranked}
        found = hits(self.fitted(features[rows.reshape(-1)], groups), groups, targets)
        return found.reshape(rows.shape).mean(1)


def make(
    job: Job,
    encoder: Any = None,
    sets: Sequence[str] | None = None,
    views: int | None = None,
    ar: Mapping[str, Any] | None = None,
) -> Sheet:
    """Compare every method with real pictures of the same names and vendors.

    Args:
        job: pair, data and sizes.
        encoder: embeds names; None is MiniLM.
        sets: the vendors that the pair was trained on; None is what ``configs/train-emoji-ar.yaml`` says.
        views: views of each picture that training saw; None likewise.
        ar: guidance scale and temperature of the AR model; None chooses the best of a grid.
    """
    recipe = read_yaml(find_config("train-emoji-ar"))
    sets = sets or recipe.get("sets")
    folder, sheet = job.folder, Sheet()
    if "group" not in folder.items[0]:
        raise ValueError(f"{folder.path}: its pictures have no concept groups; --data must name an emoji folder")
    train, heldout = pick(folder, "train", sets), pick(folder, "heldout", sets)
    seen_plan = plan(folder.items, train.tolist(), job.pictures, job.seed)
    held_plan = plan(folder.items, heldout.tolist(), len(heldout), job.seed)
    if len(seen_plan.distinct) < job.pictures:
        raise ValueError(f"--pictures {job.pictures}: {folder.path} has {len(seen_plan.distinct)} train pictures")
    if encoder is None:
        from hybrid.adapters import load

        encoder = load("minilm", None)
    reader = Reader(job, encoder)
    trained = aliases([folder.items[place] for place in train])
    sheet.details["sets"] = list(sets) if sets else None
    sheet.details["prompt"] = "name, vendor style"
    reference = Reference(reader.real(seen_plan.distinct.places), job.seed)
    methods = at_its_best(job, sheet, METHODS, seen_plan.distinct.prompts, reference, ar)
    drawn = seen_figures(sheet, job, reader, seen_plan, methods, reference)
    ranked = filled(held_plan.scored, seen_plan.ranked)
    held = heldout_figures(sheet, job, reader, held_plan, methods, ranked, trained)
    tokenizer_figures(sheet, job.artist, folder)
    memory = Memory(job, reader, train, heldout, views or recipe.get("views"))
    for name in MEMORY_METHODS:
        sheet.methods[name]["memorisation"] = memory.report(drawn[name], held[name], name)
    return sheet


def _draw(job: Job, method: Method, asked: Plan, start: int) -> tuple[Drawn, NDArray[np.float16]]:
    """The distinct pictures, and the features of those followed by the further seeds."""
    first = job.artist.draw(method, asked.distinct.prompts, start)
    if not len(asked.again):
        return first, first.features_nd
    more = job.artist.draw(method, asked.again.prompts, start + SEED_STRIDE)
    return first, np.concatenate((first.features_nd, more.features_nd))


def seen_figures(
    sheet: Sheet, job: Job, reader: Reader, asked: Plan, methods: Sequence[Method], reference: Reference
) -> dict[str, Drawn]:
    """Retrieval, Fréchet distance and KID on seen concepts."""
    places = asked.distinct.places
    real = reader.score(reader.real((*places, *asked.again.places)), asked, asked.ranked)
    sheet.details |= {
        "retrieval_names": len(asked.scored),
        "candidates": len(asked.ranked),
        "real_retrieval": float(real.mean()),
    }
    sheet.methods["real"] = halves(reader.real(places), job.seed).details
    sheet.add("real_frechet", sheet.methods["real"]["frechet"])
    few = max(1, FEW // 4)
    drawn: dict[str, Drawn] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    compared: dict[str, Compared] = {}
    for method in methods:
        name = method.name
        drawn[name], features = _draw(job, method, asked, job.seed)
        scores[name] = reader.score(features, asked, asked.ranked)
        compared[name] = reference.compare(drawn[name].features_nd)
        more = {"retrieval": float(scores[name].mean())}
        sheet.methods[name] = method_details(job.artist, method, compared[name], drawn[name], **more)
        sheet.add(f"{name}_frechet", compared[name].frechet)
        against_real = [share(scores[name], real, seed=job.seed, size=size) for size in (None, few)]
        sheet.add(f"{name}_retrieval_share", *against_real)
        if name != "ar":
            if scores["ar"].any():
                pair = [share(scores[name], scores["ar"], seed=job.seed, size=size) for size in (None, few)]
                sheet.add(f"{name}_retrieval_of_ar", *pair)
            sheet.add(f"{name}_frechet_over_ar", compared[name].over(compared["ar"]))
    return drawn


def halves(features: NDArray[np.float16], seed: int) -> Compared:
    """One random half of the real pictures against the other: half as many pictures, so a higher floor."""
    order = np.random.default_rng(seed).permutation(len(features))
    middle = len(order) // 2
    return Reference(features[order[:middle]], seed).compare(features[order[middle : 2 * middle]])


def heldout_figures(
    sheet: Sheet,
    job: Job,
    reader: Reader,
    asked: Plan,
    methods: Sequence[Method],
    ranked: Sequence[str],
    trained: Mapping[str, Sequence[str]],
) -> dict[str, Drawn]:
    """Retrieval and KID on held-out concepts, recombined ones and new nouns apart."""
    places = asked.distinct.places
    features = reader.real((*places, *asked.again.places))
    real = reader.score(features, asked, ranked)
    known = recombined({group: reader.names[group] for group in asked.scored}, trained)
    kinds = {
        "recombined": np.asarray([group in known for group in asked.scored]),
        "new_noun": np.asarray([group not in known for group in asked.scored]),
    }
    blocks = max(2, min(BLOCKS, len(places) // 10))
    sheet.details["heldout"] = {
        "concepts": len(asked.scored),
        "pictures": len(places),
        "real_retrieval": float(real.mean()),
        **{kind: int(rows.sum()) for kind, rows in kinds.items()},
    }
    drawn: dict[str, Drawn] = {}
    for method in methods:
        drawn[method.name], features = _draw(job, method, asked, job.seed + 2 * SEED_STRIDE)
        score = reader.score(features, asked, ranked)
        sheet.add(f"{method.name}_heldout_retrieval_share", share(score, real, seed=job.seed))
        kids = kid_blocks(drawn[method.name].features_nd, reader.real(places), seed=job.seed, blocks=blocks)
        kid = kid_estimate(kids, seed=job.seed)
        entry: dict[str, Any] = {"retrieval": float(score.mean()), "kid": kid.value, "kid_interval": list(kid.interval)}
        for kind, rows in kinds.items():
            if rows.any() and real[rows].any():
                found = share(score[rows], real[rows], seed=job.seed)
                entry[kind] = {"retrieval_share": found.value, "interval": list(found.interval)}
        sheet.methods[method.name]["heldout"] = entry
    return drawn


def tokenizer_figures(sheet: Sheet, artist: Artist, folder: DataFolder) -> None:
    """PSNR of reconstructions of all held-out drawings, as 8-bit pictures, and the share of codes that they use."""
    pictures = np.ascontiguousarray(folder.images[folder.indices("heldout"), 0])
    rebuilt = artist.reconstruct(pictures)
    error = np.square(artist.pictures(rebuilt).astype(np.float64) - pictures).mean()
    sheet.add("tokenizer_psnr_db", 10 * np.log10(255**2 / error))
    used = len(np.unique(rebuilt.tokens_nk)) / len(artist.pipeline.tokenizer.codebook_kd)
    sheet.add("tokenizer_codes_used", used)


class Memory:
    """Training pictures as tokens and features, to find the nearest ones in."""

    def __init__(
        self, job: Job, reader: Reader, train: NDArray[np.int64], heldout: NDArray[np.int64], views: int | None
    ) -> None:
        self.job, self.train = job, train
        codes = extract_codes(job.folder, job.artist.pipeline.tokenizer, views=views)
        self.tokens, self.features = np.asarray(codes[train]), reader.real(train.tolist())
        self.real_tokens = memorisation.nearest_by_tokens(np.asarray(codes[heldout, 0]), self.tokens)
        self.real_features = memorisation.nearest_by_features(reader.real(heldout.tolist()), self.features)

    def report(self, seen: Drawn, held: Drawn, name: str) -> dict[str, Any]:
        """Closeness of seen-prompt and held-out-prompt pictures, and a picture of the closest pairs beside the file."""
        found: dict[str, Any] = {}
        for kind, drawn in (("seen", seen.take(slice(MEMORY_PICTURES))), ("heldout", held)):
            tokens = memorisation.nearest_by_tokens(drawn.tokens_nk, self.tokens)
            features = memorisation.nearest_by_features(drawn.features_nd, self.features)
            found[kind] = {
                "pictures": len(drawn),
                "equal_tokens": memorisation.closeness(tokens, self.real_tokens),
                "feature_cosine": memorisation.closeness(features, self.real_features),
                "same_tokens_90": float((tokens.value_n >= memorisation.SAME).mean()),
            }
            if kind == "seen":
                originals = self.job.folder.images[self.train[tokens.place_n], 0]
                page = memorisation.closest_pairs(self.job.artist.pictures(drawn), originals, tokens)
                path = self.job.out.with_name(f"{self.job.out.stem}-closest-{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                page.save(path)
                found["picture"] = path.name
        return found
