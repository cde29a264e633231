"""``HybridPipeline``: a pairing of checkpoints as one object, with diffusers' habits.

A request is put together in ``asked``, its arguments are checked in ``request``; the line itself is in ``sampler``.
Components are loaded through ``hybrid.adapters.load`` by the names that a pairing's YAML or ``model_index.json`` gives.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from hybrid import asked
from hybrid.align import Lossy
from hybrid.config import DefaultsConfig
from hybrid.convert import count_parameters, save_component
from hybrid.dispatch import check_spread, is_spread, spread
from hybrid.dtypes import FASTEST, AnyType, PhaseTypes, fastest_types, find_types
from hybrid.pairing import COMPONENTS, INDEX, find_pair, pair_name, plain_card, read_pair
from hybrid.quantize import quantize_blocks
from hybrid.request import as_list, find_choice, find_device, find_label, with_settings
from hybrid.sampler import HybridSampler
from hybrid.types import Grid, Prompts
from hybrid.weights import resolve_weights
from hybrid.whole_files import holds_others


class HybridPipeline:
    """Draws pictures with an AR model, a masked model, or the first handing over to the second.

    Args:
        tokenizer: decodes the masked model's tokens, and the AR model's where it has no other.
        ar: the AR model.
        masked: the masked model.
        ar_tokenizer: the AR model's own tokenizer, where it is another object.
        text: the text encoder that both models' captions go through.
        classes: class names by label, where prompts are names.
        grid: the token grid where a request gives no size; None is the checkpoint's own.
        defaults: what a request uses where it says nothing.
        lossy: accept nearest codes where the codebooks differ; ``pixels`` transcodes the prefix (``hybrid.transcode``).
        name: what results and errors call the pairing.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        ar: Any = None,
        masked: Any = None,
        ar_tokenizer: Any = None,
        text: Any = None,
        classes: Sequence[str] | None = None,
        grid: Grid | None = None,
        defaults: DefaultsConfig | None = None,
        lossy: Lossy = False,
        name: str = "pipeline",
    ) -> None:
        self.sampler = HybridSampler(ar, masked, tokenizer, ar_tokenizer=ar_tokenizer, lossy=lossy)
        self.ar, self.masked, self.tokenizer, self.ar_tokenizer, self.text = ar, masked, tokenizer, ar_tokenizer, text
        self.reads_captions = hasattr(ar, "text_tokenizer")
        """Whether the AR model reads captions itself. The masked one then embeds them when it is asked."""
        if self.reads_captions and masked is not None and text is not None:
            # A function around the encoder, so that it becomes no part of the model's own weights.
            masked.text_encoder = SimpleNamespace(encode=lambda captions: text.encode(captions))
        self.classes = list(classes) if classes is not None else None
        self.grid, self.lossy, self.name = grid, lossy, name
        self.defaults = defaults or DefaultsConfig()
        self.kinds: dict[str, str] = {}
        self.text_source: dict[str, Any] = {"config": {}, "weights": None}
        self.card = ""
        self.quantized: str | None = None
        self.compiled = False
        self._types: PhaseTypes | None = None
        self._other_types: dict[PhaseTypes, HybridPipeline] = {}
        self._measures, self._measured = False, dict[int, PhaseTypes]()

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: AnyType = "auto",
        compile: bool = False,
        overrides: dict[str, Any] | None = None,
        device_map: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
        quantize: str | None = None,
        auto: str | Path | None = None,
        quality: float | None = None,
        max_ms: float | None = None,
    ) -> HybridPipeline:
        """Load a pairing.

        Args:
            name: an embedded pair (``emoji``, ``fashion``), a folder, a YAML file, or a shipped configuration's name.
            device: ``auto``, ``cpu``, ``cuda``, ``mps`` or a device.
            dtype: ``auto`` (bf16 on CUDA, else fp32), ``fp32``, ``bf16``, ``fp16`` or a type; one for each part, as in
                ``ar=fp32,masked=bf16,decode=fp32`` or a mapping of these; or ``fastest``, which measures the parts at
                the first request of each number of pictures (``hybrid.dtypes``).
            compile: compile the networks with torch.compile; the first request is slow then.
            overrides: top-level fields that replace the file's.
            device_map: ``auto`` spreads the AR model's layers over all GPUs, the main memory and the disk.
            max_memory, offload_folder: of ``device_map``, see ``hybrid.dispatch.spread``.
            quantize: ``int8`` or ``int4`` weights in both models' blocks, see ``hybrid.quantize``.
            auto: a report of ``hybrid-bench run``, whose recommendation becomes the defaults, type and compilation.
            quality, max_ms: what ``auto`` must reach, see ``hybrid.recommend``; 0.95 of the AR model's fidelity where
                neither is given.

        Raises:
            ValueError: one line naming file, key or component, and the remedy.
        """
        from hybrid.adapters import load

        where = find_device(device)
        path = find_pair(name)
        choice = find_choice(auto, quality, max_ms, path)
        if choice is not None:
            dtype = choice.dtype if dtype == "auto" else dtype
            compile = compile or choice.compile
        if dtype == FASTEST and (compile or quantize is not None or device_map is not None):
            raise ValueError("dtype fastest: measures plain networks; name the types, or leave the other option out")
        kept = find_types("auto" if dtype == FASTEST else dtype, where)
        config = read_pair(path, overrides)
        if not (device_map is None and max_memory is None and offload_folder is None):
            check_spread(device_map, compiled=compile, quantized=quantize is not None, ar=config.ar is not None)
        parts: dict[str, Any] = {}
        kinds: dict[str, str] = {}
        for component in COMPONENTS:
            spec = getattr(config, component)
            if spec is None:
                continue
            if component == "masked" and spec == config.ar and kept.ar == kept.masked:  # one network for both
                parts[component], kinds[component] = parts["ar"], spec.kind
                continue
            weights = None if spec.weights is None else resolve_weights(spec.weights, path.parent)
            first = torch.device("cpu") if component == "ar" and device_map is not None else where
            parts[component] = load(spec.kind, weights, spec.config, device=first, dtype=kept.of(component))
            kinds[component] = spec.kind
            if hasattr(parts[component], "prepare"):
                parts[component].prepare()
        if device_map is not None:
            # When the others are in place, so that what is left is known.
            spread(parts["ar"], where, max_memory=max_memory, offload_folder=offload_folder)
        grid = None if config.grid is None else Grid(*config.grid)
        pipeline = cls(
            **parts,
            classes=config.classes,
            grid=grid,
            defaults=config.defaults if choice is None else with_settings(config.defaults, choice.settings),
            lossy=config.lossy,
            name=pair_name(path),
        )
        pipeline.kinds = kinds
        pipeline._measures = dtype == FASTEST
        if config.text is not None:
            own = config.text.weights
            stays = None if own is None else str(resolve_weights(own, path.parent).resolve())
            pipeline.text_source = {"config": config.text.config or {}, "weights": stays}
        card = path.parent / "README.md"
        if path.name == INDEX and card.is_file():
            pipeline.card = card.read_text(encoding="utf-8")
        if quantize is not None:
            quantize_blocks(pipeline, quantize)
        if compile:
            pipeline.compile()
        return pipeline

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every component as safetensors + JSON, ``model_index.json`` and a model card.

        A text encoder is written as a reference (its package, or the absolute path of its folder), not as a copy.

        Args:
            folder: where; made if missing.
            dtype: type of the stored floating-point weights; None keeps each tensor's own.

        Raises:
            ValueError: a component that was not loaded by an adapter, so nothing says how to load it again; or one
                that is quantized or spread by ``device_map``.
        """
        folder = Path(folder)
        parts = {component: module for component in COMPONENTS if (module := getattr(self, component)) is not None}
        for component, module in parts.items():
            if is_spread(module):
                raise ValueError(f"{component}: spread by device_map; load it without one to write it")
            if self.quantized is not None and component in ("ar", "masked"):
                raise ValueError(f"{component}: quantized; load it without quantize to write it")
            if component not in self.kinds:
                raise ValueError(f"{component}: not loaded by an adapter; set pipeline.kinds[{component!r}] first")
        if holds_others(folder, own=(folder / INDEX).is_file()):
            raise ValueError(f"{folder}: exists and is no pair; name another folder or move it away")
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"_class_name": "HybridPipeline"}
        for component, module in parts.items():
            kind = self.kinds[component]
            if component == "text":
                index[component] = {"kind": kind, **self.text_source}
            elif component == "masked" and module is self.ar:
                index[component] = index["ar"]
            else:
                spec = save_component(folder / component, kind, module, dtype=dtype)
                index[component] = spec | {"weights": f"{component}/model.safetensors"}
        index["classes"], index["lossy"] = self.classes, self.lossy
        index["grid"] = None if self.grid is None else [self.grid.height, self.grid.width]
        index["defaults"] = self.defaults.model_dump()
        counts = {part: (self.kinds[part], count_parameters(module)) for part, module in parts.items()}
        (folder / "README.md").write_text(self.card or plain_card(self.name, counts), encoding="utf-8")
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    def compile(self) -> None:
        """Compile the AR model's decoding step, the transformer blocks and the decoder in place (torch.compile)."""
        self._other_types.clear()
        self._compile(())

    def _compile(self, done: Collection[Any]) -> None:
        """Compile what is not ``done``."""
        from hybrid.adapters.compiled import own_limit

        def new(part: Any) -> bool:
            return all(part is not one for one in done)

        if hasattr(self.ar, "compile_step") and new(self.ar):
            self.ar.compile_step()
        for model in (self.ar, self.masked)[: 1 if self.masked is self.ar else 2]:
            for block in getattr(model, "layers", []) if new(model) else ():
                block.compile(**own_limit())
        for tokenizer in (self.tokenizer, self.ar_tokenizer):
            if isinstance(getattr(tokenizer, "decoder", None), nn.Module) and new(tokenizer):
                tokenizer.decoder.compile()
        self.compiled = True

    def in_dtype(self, dtype: AnyType) -> HybridPipeline:
        """This pairing with its image models in other types; made from the loaded weights once and kept.

        One network that is both models becomes two of them where it gets two types, and hands no cache over then.

        Raises:
            ValueError: quantized or spread by ``device_map``.
        """
        types = find_types(dtype, self.device)
        if self.quantized is not None or is_spread(self.ar):
            how = "spread by device_map" if is_spread(self.ar) else "with quantized weights"
            raise ValueError(f"dtype: a model {how} keeps the type that it was loaded in")
        self._other_types.setdefault(self.types, self)
        if types not in self._other_types:
            pool = list(self._other_types.values())
            other = copy.copy(self)
            other._types, other._measures = types, False
            for component in ("ar", "masked", "tokenizer", "ar_tokenizer"):
                module = getattr(pool[0], component)
                if isinstance(module, nn.Module):
                    same = [getattr(one, component) for one in pool if one.types.of(component) == types.of(component)]
                    setattr(other, component, same[0] if same else copy.deepcopy(module).to(types.of(component)))
            if self.masked is self.ar and types.ar == types.masked:
                other.masked = other.ar
            other.sampler = HybridSampler(
                other.ar, other.masked, other.tokenizer, ar_tokenizer=other.ar_tokenizer, lossy=self.lossy
            )
            if self.compiled:
                other._compile([part for one in pool for part in (one.ar, one.masked, one.tokenizer, one.ar_tokenizer)])
            self._other_types[types] = other
        other = self._other_types[types]
        other.defaults, other.grid = self.defaults, self.grid
        return other

    def types_for(self, dtype: AnyType | None, prompt: str | int | Sequence[str | int], copies: int) -> PhaseTypes:
        """What a request's ``dtype`` means for these prompts; a measurement is kept for their number."""
        if dtype is None and not self._measures:
            return self.types
        if dtype is not None and dtype != FASTEST:
            return find_types(dtype, self.device)
        if self.compiled or self.quantized is not None or is_spread(self.ar):
            raise ValueError("dtype fastest: measures plain networks, not compiled, quantized or spread ones")
        prompts = [entry for entry in as_list(prompt) for _ in range(copies)]
        if not prompts:
            return self.types
        if len(prompts) not in self._measured:
            self._measured[len(prompts)] = fastest_types(self, prompts)
        return self._measured[len(prompts)]

    # One request

    ask = asked.ask
    """What ``__call__`` would draw with the same arguments, put together and not drawn; see ``hybrid.asked``."""

    __call__ = asked.drawn(asked.ask)

    @property
    def device(self) -> torch.device:
        """Where the tokenizer, and with it the line, computes."""
        return self.tokenizer.codebook_kd.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the masked model's weights, or of the AR model's where it is alone."""
        return self.types.masked if self.masked is not None else self.types.ar

    @property
    def types(self) -> PhaseTypes:
        """Types of the models' and the tokenizer's weights; a missing model has the other's."""
        if self._types is not None:
            return self._types
        ar, masked = (self.masked if self.ar is None else self.ar), (self.ar if self.masked is None else self.masked)
        return PhaseTypes(*(_type_of(module) for module in (ar, masked, self.tokenizer)))

    def encode(self, prompts: Sequence[str | int], argument: str = "prompt") -> Prompts:
        """Prompts as what the models' ``condition`` takes: embeddings of captions, class labels, or the captions.

        Raises:
            ValueError: an empty caption (the message calls it ``argument``), or a class that is not one of ``classes``.
        """
        for entry in prompts:
            if isinstance(entry, str) and not entry.strip():
                raise ValueError(f"{argument}: is empty; say what to draw")
        if self.reads_captions:
            return [str(entry) for entry in prompts]
        if self.text is not None:
            captions = [str(entry) for entry in prompts]
            place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
            embedding, mask = self.text.encode(list(place))  # each once, however many pictures it is for
            rows = [place[caption] for caption in captions]
            return embedding[rows], mask[rows]
        return [find_label(entry, self.classes, self.name) for entry in prompts]


def _type_of(module: Any) -> torch.dtype:
    """Type of a network's weights; what has none counts as float32."""
    weight = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.float32 if weight is None else weight.dtype
