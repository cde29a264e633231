"""The YAML files as frozen models: unknown keys are refused, with the file, the key and the nearest right name.

This file knows names and ranges of settings. It does not build anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator


class Strict(BaseModel):
    """Base of every configuration: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], fields: Mapping[str, Any], source: str) -> Model:
    """Check ``fields`` against a model.

    Raises:
        ValueError: one line with the source, the key, what is wrong and, for an unknown key, the nearest right one.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        # A misspelled required key is both missing and unknown; the second says more.
        first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = get_close_matches(str(first["loc"][-1]), _known(model, first["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: unknown key {key!r}{hint}") from None
        got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise ValueError(f"{source}: {key}: {first['msg']}{got}") from None


def _known(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that a key path leads into."""
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ValueError: one line with the file where it is missing, no YAML or no mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(f"{path}: not valid YAML ({line})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(loaded).__name__}")
    return loaded


class LoopConfig(Strict):
    """The training loop: what it does with any task."""

    steps: int = Field(gt=0)
    batch_size: int = Field(default=32, gt=0)
    accumulate: int = Field(default=1, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = Field(default=1e-5, ge=0)
    warmup: int = Field(default=100, ge=1)
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0
    log_every: int = Field(default=10, gt=0)
    eval_every: int = Field(default=200, gt=0)
    sample_every: int = Field(default=0, ge=0)
    save_seconds: float = Field(default=180.0, ge=0)


class ModelConfig(Strict):
    """A network: its adapter, the adapter's own configuration and, for fine-tuning, the weights to start from."""

    kind: str
    config: dict[str, Any] | str = Field(default_factory=dict)
    init: str | None = None


class AdversarialConfig(Strict):
    """A discriminator that an image tokenizer trains against from step ``start`` on (``hybrid.discriminator``)."""

    weight: float = Field(default=0.5, gt=0)
    start: int = Field(default=0, ge=0)
    width: int = Field(default=64, gt=0, multiple_of=8)
    layers: int = Field(default=3, ge=1)
    lr: float = Field(default=1e-4, gt=0)


class CodebookConfig(Strict):
    """What a learned codebook adds to an image tokenizer's loss, with LlamaGen's weights."""

    commitment: float = Field(default=0.25, ge=0)
    entropy: float = Field(default=0.0, ge=0)


class PlanConfig(Strict):
    """What ``hybrid-train --plan`` reckons with; training itself reads none of it.

    Attributes:
        pictures: training pictures, for epochs; None counts those of the data folder where there is one.
        grids: token grids that occur, equally often; None is the model's own.
        gpus: how many H100s to spread the run over.
        mfu: share of their peak that training reaches.
    """

    pictures: int | None = Field(default=None, gt=0)
    grids: list[tuple[int, int]] | None = Field(default=None, min_length=1)
    gpus: int = Field(default=1, gt=0)
    mfu: float = Field(default=0.4, gt=0, le=1)


TASKS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("feature_weight", "feature_loss", "adversarial", "codebook", "decoder_only"), ("tokenizer",)),
    **dict.fromkeys(("tokenizer", "text", "views", "balance", "everyday"), ("ar", "masked", "unified")),
    **dict.fromkeys(("condition_dropout", "token_noise", "null_noise"), ("ar", "masked", "unified")),
    **dict.fromkeys(("label_smoothing", "loss_on"), ("masked",)),
    "prefix_share": ("masked", "unified"),
    "masked_weight": ("unified",),
}
"""Settings that only some tasks read."""


class TrainConfig(Strict):
    """A training run (``configs/train-*.yaml``)."""

    task: Literal["tokenizer", "ar", "masked", "unified"]
    data: str
    tokenizer: str | None = None
    text: dict[str, Any] = Field(default_factory=dict)
    views: int | None = Field(default=None, gt=0)
    balance: bool = False
    everyday: float = Field(default=0.0, ge=0, lt=1)
    sets: list[str] | None = Field(default=None, min_length=1)
    model: ModelConfig
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    token_noise: float = Field(default=0.0, ge=0, lt=1)
    null_noise: float | None = Field(default=None, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    loss_on: Literal["masked", "all"] = "masked"
    prefix_share: float = Field(default=0.5, ge=0, le=1)
    masked_weight: float = Field(default=1.0, gt=0)
    feature_weight: float = Field(default=0.0, ge=0)
    feature_loss: Literal["efficientnet-lite0", "lpips"] = "efficientnet-lite0"
    adversarial: AdversarialConfig | None = None
    codebook: CodebookConfig | None = None
    decoder_only: bool = False
    loop: LoopConfig
    plan: PlanConfig = PlanConfig()

    @field_validator(*TASKS_OF)
    @classmethod
    def _for_its_tasks(cls, value: Any, info: ValidationInfo) -> Any:
        own, task = TASKS_OF[str(info.field_name)], info.data.get("task")
        default = cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)
        if task not in (None, *own) and value != default:
            raise ValueError(f"only for task: {' or '.join(own)}")
        return value


class ComponentConfig(Strict):
    """One component of a pairing: its adapter, its weights (relative to the file) and the adapter's configuration."""

    kind: str
    weights: str | None = None
    config: dict[str, Any] | str | None = None


class PhaseConfig(Strict):
    """How one phase draws its tokens."""

    guidance_scale: float = 1.0
    guidance_kind: Literal["constant", "linear", "interval", "decay"] = "constant"
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    guidance_floor: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class DefaultsConfig(Strict):
    """What a request uses where it says nothing."""

    method: Literal["hybrid", "ar", "masked", "refined", "exact", "relaxed", "jacobi", "zipar"] = "hybrid"
    ar_fraction: float = 0.25
    steps: int = 8
    schedule: str = "arccos"
    resume: Literal["remaining", "continue"] = "remaining"
    order: str = "confidence"
    noise: float = 4.5
    reuse: int = 1
    tile: int | None = None
    rounds: int = 1
    redraw: float = 0.25
    window: int | None = None  # the method's own
    relax: float = 0.3
    draft: Literal["masked", "jacobi"] = "masked"
    ar: PhaseConfig = PhaseConfig()
    masked: PhaseConfig = PhaseConfig()


class PairSettings(Strict):
    """What a pairing says beside its models: how prompts are read, and the defaults of a request."""

    text: ComponentConfig | None = None
    classes: list[str] | None = None
    grid: tuple[int, int] | None = None
    lossy: bool | Literal["pixels"] = False
    defaults: DefaultsConfig = DefaultsConfig()


class PairConfig(PairSettings):
    """A runnable pairing (``configs/*.yaml`` and ``model_index.json``)."""

    ar: ComponentConfig | None = None
    masked: ComponentConfig | None = None
    tokenizer: ComponentConfig
    ar_tokenizer: ComponentConfig | None = None
