"""How much memory a pairing's models need to draw, from shapes alone: weights, cache, activations.

The models' own passes are run on the meta device, where tensors have shapes and no bytes, and what is alive at once is
counted; nothing is loaded or computed. Left out are what the allocator keeps beside the tensors, a text encoder's
activations, drafts, verification and refinement, and what carries a prefix through pixels. Attention is taken to be
fused, so that it keeps no table of scores. This file knows the protocols' calls, and how each kind is built from the
name of a size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid.config import PairConfig
from hybrid.pairing import COMPONENTS
from hybrid.request import find_grid
from hybrid.transcode import same_picture
from hybrid.types import MASK, Grid

DRAW_BYTES = 20
"""Bytes that ``hybrid.sampling.draw`` has alive for each logit, beside it, with top-k (``tests/test_memory.py`` counts
them)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a request.

    Attributes:
        weights: by component.
        cache: keys and values of the AR model.
        phases: what else is alive at the peak of ``prefix``, ``fill`` (with the cache, where one network is both models
            and hands it over) and ``decode``.
    """

    weights: dict[str, int]
    cache: int
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        """The most at any time: all weights with the neediest phase."""
        needs = [size + (self.cache if phase == "prefix" else 0) for phase, size in self.phases.items()]
        return sum(self.weights.values()) + max(needs, default=0)


def table(memory: Memory) -> str:
    """The bytes in words, in units of 10^9."""
    entries = {f"weights, {name}": size for name, size in memory.weights.items()}
    entries["cache of the AR model"] = memory.cache
    entries |= {f"alive beside them, {phase}": size for phase, size in memory.phases.items()}
    entries["peak"] = memory.peak
    width = max(map(len, entries))
    return "\n".join(f"{name:<{width}}  {size / 1e9:8.3f} GB" for name, size in entries.items())


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {value.untyped_storage()._cdata for value in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for value in _tensors(out):
            storage = value.untyped_storage()
            if storage._cdata not in known:
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return out


class _Fused(TorchFunctionMode):
    """Attention that makes its output and nothing else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Alive]:
    """Count what is alive inside, without gradients."""
    with torch.no_grad(), _Fused(), Alive() as alive:
        yield alive


def work_out(
    parts: Mapping[str, Any],
    grid: Grid,
    *,
    ar_grid: Grid | None = None,
    batch: int = 1,
    ar_tokens: int | None = None,
    guided: bool = True,
) -> Memory:
    """The memory of a request.

    Args:
        parts: components by their names in a pairing, on the meta device, in the type that they are to run in.
        grid: the finished picture's tokens.
        ar_grid: the AR model's, where its tokenizer makes another grid of the same picture.
        batch: pictures at once.
        ar_tokens: tokens that the AR model writes; None is a quarter, or all without a masked model.
        guided: whether each picture is drawn twice, with and without what is asked for.

    Of a model that computes more the more is known (RandAR, ARPG), every place counts as known: this is a bound.

    Raises:
        ValueError: a masked model that looks at values to decide what it computes.
    """
    ar, masked, tokenizer = (parts.get(name) for name in ("ar", "masked", "tokenizer"))
    rows = batch * (2 if guided else 1)
    ar_grid = ar_grid or grid
    length = ar_tokens if ar_tokens is not None else ar_grid.places // (1 if masked is None else 4)
    once = {id(part): (name, part) for name, part in reversed(list(parts.items())) if part is not None}
    weights = {name: module_bytes(part) for name, part in reversed(list(once.values()))}
    cache, phases = 0, {}
    # One network for both hands its cache over, which has room for the whole grid then.
    handed_over = ar is not None and masked is ar and 0 < length < grid.places
    capacity = grid.places if handed_over else length
    if ar is not None and length:
        with counted() as alive:
            logits, state = ar.prefill(conditions(ar, rows, ar_grid, mask_device="cpu"), capacity)
        cache = sum(tensor.nbytes for tensor in state.cache.tensors)
        phases["prefix"] = alive.peak - cache + batch * logits.shape[-1] * DRAW_BYTES
    if masked is not None and length < ar_grid.places:
        unknown = grid.places - length * grid.places // ar_grid.places
        phases["fill"] = _fill(masked, rows, batch, grid, unknown) + (cache if handed_over else 0)
    if tokenizer is not None:
        width = tokenizer.codebook_kd.shape[1]
        weight = next(tokenizer.parameters())
        codes = torch.empty(batch, width, grid.height, grid.width, device="meta", dtype=weight.dtype)
        with counted() as alive:
            (tokenizer.render if hasattr(tokenizer, "render") else tokenizer.decoder)(codes)
        phases["decode"] = alive.peak
    return Memory(weights, cache, phases)


def _fill(masked: Any, rows: int, batch: int, grid: Grid, unknown: int) -> int:
    """The first pass, whose unknown places are the most."""
    tokens = torch.full((rows, grid.places), MASK, device="meta")
    places = torch.zeros(rows, unknown, dtype=torch.long, device="meta")
    try:
        with counted() as alive:
            logits = masked.logits(tokens, conditions(masked, rows, grid, mask_device="meta"), places)
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"memory: a {type(masked).__name__} cannot be run on shapes alone ({error})") from None
    # Guidance keeps both streams and makes a float32 table of its own, from which the tokens are drawn.
    per_place = logits.shape[-1]
    drawing = logits.nbytes + batch * unknown * per_place * (DRAW_BYTES + (4 if rows > batch else 0))
    return max(alive.peak, drawing)


def conditions(model: Any, rows: int, grid: Grid, *, mask_device: str) -> Any:
    """A condition of as many rows as a request has: of a language model with prompts of 64 ids.

    Args:
        mask_device: of the mask of a caption's tokens, whose values an AR model looks at, so that they must exist.
    """
    if hasattr(model, "text_tokenizer"):
        from hybrid.adapters.lumina_prompt import LuminaCondition

        return LuminaCondition((torch.zeros(64, dtype=torch.long, device="meta"),) * rows, grid)
    from hybrid.adapters.conditions import ClassCondition, TextCondition

    if model.classes is not None:
        return ClassCondition(torch.zeros(rows, dtype=torch.long, device="meta"), model.classes, grid)
    embedding = torch.zeros(rows, model.text_tokens, model.text_width, device="meta", dtype=model.output.weight.dtype)
    mask = torch.ones(rows, model.text_tokens, dtype=torch.bool, device=mask_device)
    return TextCondition(embedding, mask, torch.zeros(rows, dtype=torch.bool, device="meta"), grid)


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def _tensors(tree: Any) -> list[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(tree) if isinstance(value, Tensor)]


def plan_pair(
    pair: PairConfig,
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
    ar_fraction: float | None = None,
    ar_tokens: int | None = None,
    guided: bool | None = None,
) -> Memory:
    """The memory of a pairing, without its files: each component must name its size.

    Args:
        pair: the pairing.
        dtype: of all parts.
        batch: pictures at once.
        height, width: of a picture, in pixels; None is the pairing's own grid.
        ar_fraction: share of the tokens by the AR model; None is the pairing's default.
        ar_tokens: the same as a number of tokens.
        guided: whether there is guidance; None is as the pairing's defaults have it.

    Raises:
        ValueError: as ``build`` and ``work_out``; a pairing that leaves its grid to the checkpoint; a size, share or
            number of tokens out of range.
    """
    named = {name: getattr(pair, name) for name in COMPONENTS}
    parts = {name: build(part.kind, part.config, dtype) for name, part in named.items() if part is not None}
    if pair.masked is not None and pair.masked == pair.ar:
        parts["masked"] = parts["ar"]  # one network for both
    lead: Any = parts.get("masked", parts.get("ar"))
    factor: Any = parts["tokenizer"].factor
    own = getattr(lead, "grid", None) if pair.grid is None else Grid(*pair.grid)
    grid = find_grid(height, width, factor) or own
    if grid is None:
        raise ValueError("memory: the pairing names no grid")
    ar_factor: Any = parts.get("ar_tokenizer", parts["tokenizer"]).factor
    ar_grid = same_picture(grid, factor, ar_factor)
    defaults = pair.defaults
    fraction = defaults.ar_fraction if ar_fraction is None else ar_fraction
    fraction = 1 if pair.masked is None else 0 if pair.ar is None else fraction
    if not 0 <= fraction <= 1:
        raise ValueError(f"ar_fraction {fraction:g}: must be in [0, 1]")
    length = round(ar_grid.places * fraction) if ar_tokens is None else ar_tokens
    if not 0 <= length <= ar_grid.places:
        raise ValueError(f"ar_tokens {length}: must be 0..{ar_grid.places} for a {ar_grid} grid")
    if guided is None:
        guided = any(phase.guidance_scale != 1 for phase in (defaults.ar, defaults.masked))
    return work_out(parts, grid, ar_grid=ar_grid, batch=batch, ar_tokens=length, guided=guided)


def build(kind: str, config: str | Mapping[str, Any] | None, dtype: torch.dtype) -> nn.Module:
    """A component of a named size on the meta device, without its file; of T5 the encoder of flan-t5-xl, of MiniLM
    all-MiniLM-L6-v2.

    Raises:
        ValueError: a kind that its file alone describes, or no configuration.
    """
    if kind not in BUILDERS:
        raise ValueError(f"memory: what a {kind} is, its file alone tells; known are {', '.join(BUILDERS)}")
    if config is None:
        raise ValueError(f"memory: {kind}: the pairing does not name its size; give it a config")
    with torch.device("meta"):
        return BUILDERS[kind](config).to(dtype).eval()


def _lumina(config: Any) -> nn.Module:
    from hybrid.adapters.lumina import Lumina
    from hybrid.adapters.lumina_config import find_config

    return Lumina(find_config(config, {}, None, {}, "lumina"))


def _taming(kind: str, config: Any) -> nn.Module:
    from hybrid.adapters.vq import create_taming

    return create_taming(kind, config)


def _flan_t5_xl(config: Any) -> nn.Module:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    size = {"d_model": 2048, "d_kv": 64, "num_heads": 32, "d_ff": 5120, "num_layers": 24, "vocab_size": 32128}
    return T5EncoderModel(T5Config(**size, feed_forward_proj="gated-gelu")).encoder


def _minilm(config: Any) -> nn.Module:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(**size), add_pooling_layer=False)


def _sized(name: str, fields: str) -> Callable[[Any], nn.Module]:
    """What builds a network that is used as it was released, from a known size or its fields."""

    def build(config: Any) -> nn.Module:
        from hybrid.adapters.loading import resolve

        module = import_module(f"hybrid.adapters.{name}")
        kind = name.replace("_", "-")
        model: nn.Module = module.build(resolve(config, module.CONFIGS, {}, kind, getattr(module, fields)))
        return model

    return build


def _created(module: str, function: str = "create") -> Callable[[Any], nn.Module]:
    return lambda config: getattr(import_module(f"hybrid.adapters.{module}"), function)(config)[0]


BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "llamagen": _created("llamagen"),
    "maskgil": _created("maskgil"),
    "halton": _created("halton"),
    "lumina": _lumina,
    "llamagen-vq": _created("vq", "create_llamagen_vq"),
    "chameleon-vq": partial(_taming, "chameleon-vq"),
    "movqgan": partial(_taming, "movqgan"),
    "fsq": _created("fsq"),
    "unified": _created("unified"),
    "randar": _sized("randar", "AnyOrderConfig"),
    "arpg": _sized("arpg", "AnyOrderConfig"),
    "rar": _sized("rar", "RARConfig"),
    "maskgit-vq": _sized("maskgit_vq", "MaskGITVQConfig"),
    "t5": _flan_t5_xl,
    "minilm": _minilm,
}
