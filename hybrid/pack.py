"""Training runs as one pair that ``HybridPipeline.from_pretrained`` reads.

This file knows runs, adapters and pairings. It trains and draws nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hybrid.adapters import load
from hybrid.checkpoint import read_weights
from hybrid.config import PairSettings, parse
from hybrid.export import run_weights
from hybrid.pairing import COMPONENTS, INDEX, read_fields
from hybrid.pipeline import HybridPipeline
from hybrid.types import Grid
from hybrid.weights import resolve_weights
from hybrid.whole_files import holds_others

MODELS = tuple(component for component in COMPONENTS if component != "text")
ROLES = {"tokenizer": "codebook_kd", "ar": "prefill", "masked": "logits"}
"""What a part must have to play its role."""


def read_settings(path: Path | None) -> PairSettings:
    """What a pair says beside its models, from a YAML or another pair's ``model_index.json``, whose models are ignored.

    Raises:
        ValueError: one line with the file and what is wrong in it.
    """
    if path is None:
        return PairSettings()
    fields = {key: value for key, value in read_fields(path).items() if key not in MODELS}
    settings = parse(PairSettings, fields, str(path))
    if settings.text is not None and settings.text.weights is not None:
        weights = str(resolve_weights(settings.text.weights, path.parent).resolve())
        settings = settings.model_copy(update={"text": settings.text.model_copy(update={"weights": weights})})
    return settings


def pack(
    runs: dict[str, Path],
    out: Path,
    settings: PairSettings,
    *,
    card: str = "",
    dtype: torch.dtype = torch.float16,
) -> HybridPipeline:
    """Write a pair's folder: weights in half precision, ``model_index.json`` and the model card.

    Args:
        runs: what to take ``tokenizer``, ``ar`` and ``masked`` from: a run's folder (see ``export.run_weights``) or a
            file of weights. The last two may be one network's.
        out: the folder; a pair that is there already is replaced, with its card kept where ``card`` is empty.
        settings: see ``read_settings``; its text weights are an absolute path or None.
        card: the model card; "" is one that states no more than the parts.
        dtype: type of the stored floating-point weights.

    Raises:
        ValueError: one line: weights that are missing or of another kind, parts that do not fit each other, or a folder
            that holds something else.
    """
    if holds_others(out, own=(out / INDEX).is_file()):
        raise ValueError(f"{out}: exists and is no pair; give another --out or move it away")
    parts: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    loaded = {run: load_run(run) for run in dict.fromkeys(runs.values())}
    for component, run in runs.items():
        part, kind = loaded[run]
        if not hasattr(part, ROLES[component]):
            raise ValueError(f"{run}: is {kind}, which cannot be the pair's {component}")
        parts[component], kinds[component] = part, kind
    text = None
    if settings.text is not None:
        text = load(settings.text.kind, settings.text.weights, settings.text.config)
        kinds["text"] = settings.text.kind
    for component in ("ar", "masked"):
        check_prompts(parts[component], text, settings, runs[component])
    pipeline = HybridPipeline(
        **parts,
        text=text,
        classes=settings.classes,
        grid=None if settings.grid is None else Grid(*settings.grid),
        defaults=settings.defaults,
        lossy=settings.lossy,
        name=out.resolve().name,
    )
    pipeline.kinds = kinds
    if settings.text is not None:
        pipeline.text_source = {"config": settings.text.config or {}, "weights": settings.text.weights}
    kept = out / "README.md"
    pipeline.card = card or (kept.read_text(encoding="utf-8") if kept.is_file() else "")
    pipeline.save_pretrained(out, dtype=dtype)
    return pipeline


def load_run(run: Path) -> tuple[Any, str]:
    """A run's model and its kind.

    Raises:
        ValueError: no weights, or some that do not say of which kind they are.
    """
    weights = run_weights(run)
    kind = read_weights(weights)[1].get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"{weights}: does not say of which kind it is; give weights that hybrid-train wrote")
    return load(kind, weights), kind


def check_prompts(model: Any, text: Any, settings: PairSettings, source: Path) -> None:
    """A model reads the prompts that the settings promise.

    Raises:
        ValueError: captions without an encoder or of another shape, or names for other classes than the model's.
    """
    if model.classes is not None:
        if text is not None:
            raise ValueError(f"{source}: is class-conditional; leave text out of the defaults")
        if settings.classes is not None and len(settings.classes) != model.classes:
            raise ValueError(f"{source}: has {model.classes} classes, the defaults name {len(settings.classes)}")
        return
    if text is None:
        raise ValueError(f"{source}: reads captions; name its encoder in the defaults, such as text: {{kind: minilm}}")
    if (shape := tuple(text.encode(["a"])[0].shape[1:])) != (model.text_tokens, model.text_width):
        raise ValueError(f"{source}: reads {(model.text_tokens, model.text_width)} embeddings, text gives {shape}")
