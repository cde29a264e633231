"""``report.json``: every figure of a sweep, computed from its raw rows and from nothing else.

Pure functions of the files that ``sweep`` wrote. A row is a point and a region; its times are those of the whole point.

*Fidelity* is one number between 0 and 1 for choosing settings: the smaller of (AR model's Fréchet distance / this one)
and (this score / AR model's score), where the data set has a score, each at most 1. The AR model has 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.recommend import KIND

from .figures import REQUIRED
from .statistics import Estimate, estimate, kid_estimate, share_draws
from .times import SEED, costs, mean_of, sums_of, times_of

DEFINITIONS = {
    "median": "seconds of one request of `batch` pictures, prompts to pixels; p10 and p90 likewise",
    "phases": "seconds by phase of the turn in the middle",
    "speedup": "median of the AR model's turns over the median of this point's, turns interleaved in one run",
    "speedup_over_exact": "the same over the fastest way to the AR model's distribution (ar, jacobi, exact)",
    "frechet": "Fréchet distance on the first principal components of the real pictures' features (not FID); its "
    "interval resamples pictures, those of scores, likelihood and agreement what the pictures were asked to show",
    "kid": "unbiased KID of the same features, mean of disjoint blocks",
    "fid": "Inception FID, and inception_score, where the network's weights were at hand; published ones are of 50,000",
    "clip_score": "100 · max(cosine, 0) of a picture and its caption, mean; by the CLIP that clip_network names",
    "precision": "share of drawn pictures inside the real manifold (3 neighbours); recall is the reverse",
    "accuracy": "share of pictures that a small classifier takes for what was asked (fashion)",
    "retrieval": "share of pictures whose name is among the ten nearest (emoji)",
    "fidelity": "min(AR Fréchet / Fréchet, score / AR score), each at most 1",
    "log_likelihood": "nats a token by the AR model under its own condition, no guidance, temperature 1",
    "agreement": "with the AR model's picture of the same prompt and seed: equal tokens, PSNR, feature distance",
    "ar_seeds_agreement": "the same between two seeds of the AR model",
    "flops": "operations a picture: linear layers, convolutions, attention (4 · queries · keys · width)",
    "weight_bytes": "bytes of weights read by one request, whatever its batch",
    "bandwidth_share": "bytes of weights, keys and values that the AR phase reads a second, of the triad's",
    "compute_share": "operations a second of the masked passes, of the matrix product's",
    "region": "all; ar: the rows that the AR model wrote; masked: the rest (other rows painted mid-grey)",
}


INCEPTION = ("fid", "inception_score", "inception_score_std", "clip_score")
EXACT = ("jacobi", "exact")
"""Methods that draw from the AR model's own distribution."""


def read_raw(folder: Path) -> dict[str, Any]:
    """The raw rows of a sweep's folder.

    Raises:
        ValueError: no sweep there, or nothing measured yet.
    """
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"{folder}: no sweep here; hybrid-bench run CONFIG --out {folder} starts one")

    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    raw = folder / "raw"
    sweep = read(folder / "sweep.json")
    rows = {}
    for point in sweep["points"]:
        name = f"{point['method']}-{point['key']}.json"
        rows[point["key"]] = {stage: read(raw / f"{stage}-{name}") for stage in ("shown", "fidelity", "fid", "speed")}
    if not any(row["fidelity"] or row["fid"] or row["speed"] for row in rows.values()):
        raise ValueError(f"{folder}: nothing measured yet")
    choices = [read(raw / f"choice-{point['method']}-{point['key']}.json") for point in sweep.get("candidates") or ()]
    return {
        "sweep": sweep,
        "scene": read(raw / "scene.json"),
        "machine": read(raw / "machine.json"),
        "choices": [choice for choice in choices if choice is not None],
        "rows": rows,
    }


def make_report(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The report of raw rows; see the module's text."""
    sweep, scene, limits = raw["sweep"], raw["scene"], (raw["machine"] or {}).get("limits")
    rows = []
    for point in sweep["points"]:
        own = raw["rows"][point["key"]]
        speed = [times_of(batch, own["shown"], limits) for batch in (own["speed"] or {}).get("batches", ())]
        rows += point_rows(point, own, speed, scene)
    whole = [row for row in rows if row["region"] == "all"]
    baseline = against_fastest(rows, sweep["baselines"])
    exact = over_exact(rows, baseline)
    measured = [row for row in whole if row["frechet"] is not None]
    # Another path of the baseline (type, compiled) draws the same but for rounding: it is no better setting.
    others = [row for row in measured if row["method"] == "ar" and row["key"] not in sweep["baselines"]]
    better = [row["label"] for row in others if row["frechet"] < (baseline["frechet"] or 0)]
    return {
        "kind": KIND,
        "header": header(raw, whole),
        "baseline": {
            "label": baseline["label"],
            "settings": baseline["settings"],
            "paths": sweep["baselines"],
            "lower_frechet": better,
            "choice": [choice_row(choice, baseline["settings"]) for choice in raw.get("choices") or ()],
            "fastest_exact": exact,
            **{name: baseline[name] for name in ("median", "p10", "p90", "batch", "images_per_second", "frechet")},
        },
        "floors": {name: figures(floor) for name, floor in ((scene or {}).get("floors") or {}).items()},
        "rows": rows,
        "ranking": {
            "speedup": _ranked(whole, "speedup", reverse=True),
            "frechet": _ranked(whole, "frechet", reverse=False),
            "fidelity": _ranked(whole, "fidelity", reverse=True),
        },
        "definitions": DEFINITIONS,
    }


def header(raw: Mapping[str, Any], whole: list[dict[str, Any]]) -> dict[str, Any]:
    """What the figures were made with."""
    sweep, scene, measured = raw["sweep"], raw["scene"] or {}, raw["machine"] or {}
    fidelity, speed = scene.get("machine"), measured.get("machine")
    latest = speed or fidelity or {}
    pictures = max((row["pictures"] for row in whole if row["pictures"]), default=0)
    required = REQUIRED.get(sweep["data_set"] or "", 10_000)
    timed = [batch for row in raw["rows"].values() for batch in (row["speed"] or {}).get("batches", ())]
    loads = [load for batch in timed for load in batch["load"] if load is not None]
    return {
        "pair": sweep["pair"],
        "weights_sha256": sweep["weights_sha256"],
        "data_set": sweep["data_set"],
        "data": scene.get("data"),
        "data_digest": scene.get("digest"),
        "pictures": pictures,
        "reference_pictures": scene.get("reference_pictures"),
        "required_pictures": required,
        "preliminary": pictures < required,
        "seeds": sweep["seeds"],
        "score": scene.get("score_name"),
        "real_score": scene.get("real_score"),
        "feature_network": scene.get("feature_network"),
        "feature_network_sha256": scene.get("feature_network_sha256"),
        "fid_network": next((row["fid"]["network"] for row in raw["rows"].values() if row.get("fid")), None),
        "clip_network": next((row["fid"]["clip_network"] for row in raw["rows"].values() if row.get("fid")), None),
        "commit": latest.get("commit"),
        "threads": latest.get("threads"),
        "device": latest.get("device"),
        "cores": latest.get("cores"),
        "speed_load": [min(loads), max(loads)] if loads else None,
        "busy": bool(loads) and max(loads) > 0.75 * (latest.get("cores") or 1) + (latest.get("threads") or 1),
        "limits": measured.get("limits"),
        "fidelity_machine": fidelity,
        "speed_machine": speed,
        "turns": sorted({len(batch["own"]) for batch in timed}),
    }


# One point


def point_rows(
    point: Mapping[str, Any],
    own: Mapping[str, Any],
    speed: list[dict[str, Any]],
    scene: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """The rows of a point: the whole picture, then its regions.

    Args:
        point: what it is.
        own: its raw rows by stage, None where a stage has not run.
        speed: its times at each batch size.
        scene: the raw row of prompts and data.
    """
    shown, fidelity = own["shown"], own["fidelity"]
    settings = (shown or {}).get("settings", {})
    fill = settings.get("fill") or {}
    first = speed[0] if speed else {}
    shared = {
        **{name: point[name] for name in ("key", "label", "method", "settings", "dtype", "compile")},
        "ar_fraction": settings.get("ar_fraction"),
        "steps": fill.get("steps"),
        "schedule": fill.get("schedule"),
        "order": fill.get("order"),
        "resolved": settings or None,
        **{
            name: first.get(name)
            for name in (
                *("batch", "median", "p10", "p90", "images_per_second", "speedup", "speedup_interval", "phases"),
                *("passes", "peak_memory_bytes", "bandwidth_share", "compute_share"),
            )
        },
        "speed": speed or None,
        **costs(shown),
    }
    score_name = (scene or {}).get("score_name")
    named = (scene or {}).get("groups")
    groups = np.resize(named, fidelity["pictures"]) if named and fidelity else None  # each replicate asks for all again
    rows = []
    for region, part in (fidelity or {"regions": {"all": None}})["regions"].items():
        row = {**shared, "region": region, "pictures": fidelity["pictures"] if fidelity else None}
        row |= {"accuracy": None, "retrieval": None, **region_figures(part, groups)}
        row |= {name: (own.get("fid") or {}).get(name) if region == "all" else None for name in INCEPTION}
        if region == "all" and fidelity is not None and "score" in fidelity and score_name is not None:
            row[score_name] = float(np.mean(fidelity["score"]))
            row[f"{score_name}_interval"] = _interval(mean_of(fidelity["score"], groups))
        row |= fidelity_of(part, fidelity if region == "all" else None, groups)
        rows.append(row)
    return rows


def against_fastest(rows: Sequence[dict[str, Any]], paths: Sequence[str]) -> dict[str, Any]:
    """Make the speed-ups of the baseline's own paths those over its fastest one, as every other row's are.

    Turns of a path are timed beside the first path's, those of other points beside the fastest path's.

    Returns:
        The row of the fastest path at the first batch size.
    """
    own = [row for row in rows if row["key"] in paths and row["region"] == "all"]
    first = next(row for row in own if row["key"] == paths[0])
    timed = [row for row in own if row["speed"]]
    if len(timed) < 2:
        return first
    by_batch: dict[int, list[dict[str, Any]]] = {}  # a path that is still being timed lacks some
    for row in timed:
        for times in row["speed"]:
            by_batch.setdefault(times["batch"], []).append(times)
    for measured in by_batch.values():
        most = max([1.0, *(times["speedup"] for times in measured if times not in first["speed"])])
        for times in measured:
            times["speedup"] /= most
            times["speedup_interval"] = [value / most for value in times["speedup_interval"]]
    for row in timed:
        row["speedup"], row["speedup_interval"] = (row["speed"][0][name] for name in ("speedup", "speedup_interval"))
    return max(timed, key=lambda row: row["speedup"])


def over_exact(rows: list[dict[str, Any]], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Add to every row's times the speed-up over the fastest way that keeps the baseline's distribution.

    That is the AR model itself or, where it was measured and is faster, one of ``EXACT`` with the baseline's guidance
    and temperature. Both were timed against the same AR turns, so their speed-ups are divided.

    Returns:
        By batch size, the fastest way's label and its speed-up over the AR model.
    """
    own = (baseline["resolved"] or {}).get("prefix")
    found: dict[str, Any] = {}
    for row in rows:
        if row["region"] != "all" or row["method"] not in EXACT or (row["resolved"] or {}).get("prefix") != own:
            continue
        for times in row["speed"] or ():
            known = found.setdefault(str(times["batch"]), {"label": baseline["label"], "speedup": 1.0})
            if times["speedup"] > known["speedup"]:
                known |= {"label": row["label"], "speedup": times["speedup"]}
    for row in rows:
        for times in row["speed"] or ():
            known = found.get(str(times["batch"]), {"speedup": 1.0})
            times["speedup_over_exact"] = times["speedup"] / known["speedup"]
        row["speedup_over_exact"] = row["speed"][0]["speedup_over_exact"] if row["speed"] else None
    return found


def choice_row(choice: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """One setting that the baseline was chosen from."""
    point = choice["point"]
    return {
        "label": point["label"],
        "settings": point["settings"],
        "chosen": point["settings"] == chosen,
        **{name: choice[name] for name in ("pictures", "frechet", "frechet_interval", "score")},
    }


def region_figures(own: Mapping[str, Any] | None, groups: NDArray[Any] | None = None) -> dict[str, Any]:
    """Distances, likelihood and agreement of one region; see ``times.mean_of`` for the groups."""
    if own is None:
        empty = ("frechet", "kid", "precision", "recall", "frechet_over_ar", "log_likelihood")
        return {**dict.fromkeys(empty), "agreement": None, "ar_seeds_agreement": None}
    found = {"places": own["places"], **figures(own["own"])}
    over = estimate(
        own["own"]["frechet"] / own["ar"]["frechet"],
        np.asarray(own["own"]["frechet_draws"]) / np.asarray(own["ar"]["frechet_draws"]),
    )
    found |= {"frechet_over_ar": over.value, "frechet_over_ar_interval": _interval(over)}
    found |= {"ar_frechet": own["ar"]["frechet"], "log_likelihood": None}
    if own["log_likelihood"] is not None:
        likelihood, ar = (np.asarray(own[name]) for name in ("log_likelihood", "ar_log_likelihood"))
        found |= {
            "log_likelihood": float(likelihood.mean()),
            "ar_log_likelihood": float(ar.mean()),
            "log_likelihood_over_ar": float((likelihood - ar).mean()),
            "log_likelihood_over_ar_interval": _interval(mean_of(likelihood - ar, groups)),
        }
    found["agreement"] = agreement_figures(own["agreement"], groups)
    found["ar_seeds_agreement"] = agreement_figures(own["ar_agreement"], groups)
    return found


def figures(own: Mapping[str, Any]) -> dict[str, Any]:
    """Fréchet distance, KID, precision and recall with their intervals."""
    kid = kid_estimate(np.asarray(own["kid_blocks"]), seed=SEED)
    return {
        "frechet": own["frechet"],
        "frechet_interval": _interval(estimate(own["frechet"], np.asarray(own["frechet_draws"]))),
        "frechet_components": own["frechet_components"],
        "kid": kid.value,
        "kid_interval": _interval(kid),
        "precision": own["precision"],
        "recall": own["recall"],
    }


def fidelity_of(
    own: Mapping[str, Any] | None, scores: Mapping[str, Any] | None, groups: NDArray[Any] | None = None
) -> dict[str, Any]:
    """The one number; in a region, without the score."""
    if own is None:
        return {"fidelity": None, "fidelity_interval": None}
    draws = np.asarray(own["ar"]["frechet_draws"]) / np.asarray(own["own"]["frechet_draws"])
    value = own["ar"]["frechet"] / own["own"]["frechet"]
    if scores is not None and "score" in scores and np.mean(scores["ar_score"]) > 0:
        mine, ar = np.asarray(scores["score"]), np.asarray(scores["ar_score"])
        value = min(value, float(mine.mean() / ar.mean()))
        shares = share_draws(sums_of(mine, groups), sums_of(ar, groups), seed=SEED, draws=len(draws))
        draws = np.minimum(draws, shares)
    return {
        "fidelity": float(min(value, 1.0)),
        "fidelity_interval": _interval(estimate(min(value, 1.0), np.clip(draws, 0, 1))),
    }


def agreement_figures(own: Mapping[str, Any], groups: NDArray[Any] | None = None) -> dict[str, Any]:
    """Equal tokens, PSNR of the mean squared error (None where pictures are equal), feature distance."""
    groups = None if groups is None else groups[: len(own["tokens"])]
    error = float(np.mean(own["squared_error"]))
    return {
        "tokens": float(np.mean(own["tokens"])),
        "tokens_interval": _interval(mean_of(own["tokens"], groups)),
        "psnr_db": None if error == 0 else float(-10 * np.log10(error)),
        "feature_distance": float(np.mean(own["feature_distance"])),
        "feature_distance_interval": _interval(mean_of(own["feature_distance"], groups)),
    }


def _ranked(rows: list[dict[str, Any]], name: str, *, reverse: bool) -> list[str]:
    """Labels, best first."""
    return [
        row["label"] for row in sorted((r for r in rows if r[name] is not None), key=lambda r: r[name], reverse=reverse)
    ]


def _interval(found: Estimate) -> list[float]:
    return list(found.interval)
