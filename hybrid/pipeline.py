"""``HybridPipeline``: a pairing of checkpoints as one object, with diffusers' habits.

This file knows prompts, folders and pictures; the line itself is in ``sampler``. Components are loaded through
``hybrid.adapters.load`` by the names that a pairing's YAML or ``model_index.json`` gives.
"""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hybrid.checkpoint import save_weights
from hybrid.config import DefaultsConfig, PairConfig, PhaseConfig, parse, read_yaml
from hybrid.pictures import from_pil, mask_from_pil, to_pil
from hybrid.sampler import Fill, HybridSampler, Sampling, Step
from hybrid.sampling import Guidance
from hybrid.types import Generation, Grid, Phases, Prompts

if TYPE_CHECKING:
    from PIL import Image

INDEX = "model_index.json"
COMPONENTS = ("ar", "masked", "tokenizer", "ar_tokenizer", "text")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUTPUT_TYPES = ("pil", "np", "pt", "tokens")


def find_pair(name: str | Path) -> Path:
    """The file that describes a pairing: a YAML, a folder's ``model_index.json``, or one shipped under this name.

    Raises:
        ValueError: nothing of that name; the message lists what is shipped.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ValueError(f"{path}: no {INDEX} in this folder")
        return path / INDEX
    if path.is_file():
        return path
    embedded, configs = Path(str(files("hybrid.pretrained"))), Path(str(files("hybrid.configs")))
    for candidate in (embedded / path / INDEX, configs / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted({entry.parent.name for entry in embedded.glob(f"*/{INDEX}")} | {*_pair_configs(configs)})
    near = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}: no such model, folder or file{hint} Known: {', '.join(known)}")


def _pair_configs(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("train-")]


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
        lossy: accept nearest codes where the codebooks differ.
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
        lossy: bool = False,
        name: str = "pipeline",
    ) -> None:
        self.sampler = HybridSampler(ar, masked, tokenizer, ar_tokenizer=ar_tokenizer, lossy=lossy)
        self.ar, self.masked, self.tokenizer, self.ar_tokenizer, self.text = ar, masked, tokenizer, ar_tokenizer, text
        self.classes = list(classes) if classes is not None else None
        self.grid, self.lossy, self.name = grid, lossy, name
        self.defaults = defaults or DefaultsConfig()
        self.kinds: dict[str, str] = {}
        self.card = ""
        self._other_dtypes: dict[torch.dtype, HybridPipeline] = {}

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        compile: bool = False,
        overrides: dict[str, Any] | None = None,
    ) -> HybridPipeline:
        """Load a pairing.

        Args:
            name: an embedded pair (``emoji``, ``fashion``), a folder, a YAML file, or a shipped configuration's name.
            device: ``auto``, ``cpu``, ``cuda``, ``mps`` or a device.
            dtype: ``auto`` (bf16 on CUDA, else fp32), ``fp32``, ``bf16``, ``fp16`` or a type.
            compile: compile the networks with torch.compile; the first request is slow then.
            overrides: top-level fields that replace the file's.

        Raises:
            ValueError: one line naming file, key or component, and the remedy.
        """
        from hybrid.adapters import load

        path = find_pair(name)
        fields = json.loads(path.read_text(encoding="utf-8")) if path.name == INDEX else read_yaml(path)
        fields = {key: value for key, value in fields.items() if not key.startswith("_")} | (overrides or {})
        config = parse(PairConfig, fields, str(path))
        where, kept = find_device(device), find_dtype(dtype, find_device(device))
        parts: dict[str, Any] = {}
        kinds: dict[str, str] = {}
        for component in COMPONENTS:
            spec = getattr(config, component)
            if spec is None:
                continue
            weights = None if spec.weights is None else path.parent / Path(spec.weights).expanduser()
            parts[component] = load(spec.kind, weights, spec.config, device=where, dtype=kept)
            kinds[component] = spec.kind
        grid = None if config.grid is None else Grid(*config.grid)
        pipeline = cls(
            **parts,
            classes=config.classes,
            grid=grid,
            defaults=config.defaults,
            lossy=config.lossy,
            name=path.parent.name if path.name == INDEX else path.stem,
        )
        pipeline.kinds = kinds
        card = path.parent / "README.md"
        if path.name == INDEX and card.is_file():
            pipeline.card = card.read_text(encoding="utf-8")
        if compile:
            pipeline.compile()
        return pipeline

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every component as safetensors + JSON, ``model_index.json`` and a model card.

        Args:
            folder: where; made if missing.
            dtype: type of the stored floating-point weights; None keeps each tensor's own.

        Raises:
            ValueError: a component that was not loaded by an adapter, so nothing says how to load it again.
        """
        folder = Path(folder)
        index: dict[str, Any] = {"_class_name": "HybridPipeline"}
        for component in COMPONENTS:
            module = getattr(self, component)
            if module is None:
                continue
            kind = self.kinds.get(component)
            if kind is None:
                raise ValueError(f"{component}: not loaded by an adapter; set pipeline.kinds[{component!r}] first")
            config = getattr(module, "config", {})
            spec: dict[str, Any] = {"kind": kind, "config": config}
            if component != "text":
                spec["weights"] = f"{component}/model.safetensors"
                (folder / component).mkdir(parents=True, exist_ok=True)
                (folder / component / "config.json").write_text(
                    json.dumps(spec | {"weights": "model.safetensors"}, indent=1)
                )
                state = {key: _cast(value, dtype) for key, value in module.state_dict().items()}
                save_weights(folder / spec["weights"], state, metadata={"kind": kind, "config": config})
            index[component] = spec
        index["classes"], index["lossy"] = self.classes, self.lossy
        index["grid"] = None if self.grid is None else [self.grid.height, self.grid.width]
        index["defaults"] = self.defaults.model_dump()
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        (folder / "README.md").write_text(self.card or self._plain_card())

    def _plain_card(self) -> str:
        lines = [
            f"# {self.name}",
            "",
            "A pairing for hybrid AR and masked image generation.",
            "",
            "| part | kind | parameters |",
        ]
        lines.append("|---|---|---|")
        for component, kind in self.kinds.items():
            module = getattr(self, component)
            count = sum(value.numel() for value in module.parameters())
            lines.append(f"| {component} | {kind} | {count / 1e6:.1f}M |")
        use = f'HybridPipeline.from_pretrained("{self.name}")'
        return "\n".join([*lines, "", f"Load it with `{use}`. Data, recipe, figures and limits: not stated.", ""])

    def compile(self) -> None:
        """Compile the transformer blocks and the decoder in place (torch.compile)."""
        for model in (self.ar, self.masked):
            for block in getattr(model, "layers", []):
                block.compile()
        for tokenizer in (self.tokenizer, self.ar_tokenizer):
            if isinstance(getattr(tokenizer, "decoder", None), nn.Module):
                tokenizer.decoder.compile()

    def in_dtype(self, dtype: torch.dtype) -> HybridPipeline:
        """This pairing with its image models in another type; made from the loaded weights once and kept."""
        if dtype not in self._other_dtypes:
            other = copy.copy(self)
            for component in ("ar", "masked", "tokenizer", "ar_tokenizer"):
                module = getattr(self, component)
                if isinstance(module, nn.Module):
                    setattr(other, component, copy.deepcopy(module).to(dtype))
            other.sampler = HybridSampler(
                other.ar, other.masked, other.tokenizer, ar_tokenizer=other.ar_tokenizer, lossy=self.lossy
            )
            self._other_dtypes[dtype] = other
        return self._other_dtypes[dtype]

    # One request

    def __call__(
        self,
        prompt: str | int | Sequence[str | int],
        *,
        negative_prompt: str | int | Sequence[str | int] | None = None,
        method: str | None = None,
        ar_fraction: float | None = None,
        ar_tokens: int | None = None,
        steps: int | None = None,
        schedule: str | None = None,
        resume: str | None = None,
        order: str | None = None,
        noise: float | None = None,
        guidance_scale: float | None = None,
        guidance_kind: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        mask: Any = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        dtype: str | torch.dtype | None = None,
        callback_on_step_end: Callable[[HybridPipeline, int, str, dict[str, Any]], Any] | None = None,
    ) -> Generation:
        """Draw pictures.

        Args:
            prompt: a caption or a class (name or label), or several.
            negative_prompt: what guidance moves away from, instead of the null condition.
            method: ``hybrid``, ``ar`` (fraction 1) or ``masked`` (fraction 0).
            ar_fraction: share of the tokens that the AR model writes, in [0, 1].
            ar_tokens: the same as a number of tokens.
            steps: masked passes.
            schedule, resume, order, noise: see ``hybrid.sampler.Fill``.
            guidance_scale, guidance_kind: u + s (c − u) for both phases; 1 is none.
            temperature, top_k, top_p: for both phases; temperature 0 is argmax.
            height, width: picture size in pixels; None is the checkpoint's own.
            image, mask: in-painting: a picture of the right size and a mask whose white places are drawn anew.
            num_images_per_prompt: pictures of each prompt.
            seed: picture i of the request has seed + i; None draws one, which the result's settings tell.
            generator: a CPU generator from which each picture's seed is drawn, or one for each picture.
            output_type: ``pil``, ``np`` (b, h, w, 3 in [0, 1]), ``pt`` (b, 3, h, w in [-1, 1]) or ``tokens``.
            dtype: run the image models in another type than they were loaded in.
            callback_on_step_end: called with (pipeline, index, phase, {"step": Step}) after each AR row and masked
                pass; returning False cancels by raising ``Cancelled``.

        Raises:
            ValueError: one line naming the argument, what is wrong with it and what would be right.
            Cancelled: the callback returned False.
        """
        if dtype is not None and find_dtype(dtype, self.device) != self.dtype:
            return self.in_dtype(find_dtype(dtype, self.device))(**_arguments(locals()))
        defaults = self.defaults
        prompts = _as_list(prompt)
        if not prompts:
            raise ValueError("prompt: give at least one")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt {num_images_per_prompt}: must be at least 1")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
        repeated = [entry for entry in prompts for _ in range(num_images_per_prompt)]
        seeds, first_seed = _seeds(seed, generator, len(repeated))
        fraction, count = self._split(method or defaults.method, ar_fraction, ar_tokens, inpainting=image is not None)
        guidance = {"guidance_scale": guidance_scale, "guidance_kind": guidance_kind}
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        prefix = _sampling(defaults.ar, guidance | drawing)
        fill = Fill(
            steps=defaults.steps if steps is None else steps,
            schedule=schedule or defaults.schedule,
            resume=resume or defaults.resume,  # type: ignore[arg-type]
            order=order or defaults.order,
            noise=defaults.noise if noise is None else noise,
            sampling=_sampling(defaults.masked, guidance | drawing),
        )
        grid = self._grid(height, width)
        tokens, keep = self._inpainting(image, mask, grid)
        started = time.perf_counter()
        encoded, negative = self.encode(repeated), None
        if negative_prompt is not None:
            entries = _as_list(negative_prompt)
            if len(entries) not in (1, len(prompts)):
                raise ValueError(
                    f"negative_prompt: {len(entries)} given for {len(prompts)} prompts; give one or as many"
                )
            entries = entries * len(prompts) if len(entries) == 1 else entries
            negative = self.encode([entry for entry in entries for _ in range(num_images_per_prompt)])
        encoding = time.perf_counter() - started
        report: Callable[[Step], Any] | None = None
        if callback_on_step_end is not None:
            tell = callback_on_step_end

            def report(step: Step) -> Any:
                return tell(self, step.index, step.phase, {"step": step})

        result = self.sampler.generate(
            encoded,
            seeds=seeds,
            grid=grid,
            ar_fraction=fraction,
            ar_tokens=count,
            prefix=prefix,
            fill=fill,
            negative=negative,
            tokens=tokens,
            keep=keep,
            callback=report,
            decode=output_type != "tokens",
        )
        settings = {
            "model": self.name,
            "prompt": prompts if len(prompts) > 1 else prompts[0],
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "seed": first_seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            **result.settings,
        }
        images = None if output_type == "tokens" else _output(result.images, output_type)
        seconds = dict(result.phases.seconds)
        seconds["condition"] += encoding
        passes = dict(result.phases.passes)
        passes["condition"] = 0 if self.text is None else 1 + (negative is not None)
        return replace(result, images=images, phases=Phases(seconds, passes), settings=settings)

    @property
    def device(self) -> torch.device:
        """Where the tokenizer, and with it the line, computes."""
        return self.tokenizer.codebook_kd.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the models' weights."""
        model = self.masked if self.masked is not None else self.ar
        return next(model.parameters()).dtype if isinstance(model, nn.Module) else torch.float32

    def encode(self, prompts: Sequence[str | int]) -> Prompts:
        """Prompts as what the models' ``condition`` takes: embeddings of captions, or class labels.

        Raises:
            ValueError: an empty caption, or a class that is not one of ``classes``.
        """
        for entry in prompts:
            if isinstance(entry, str) and not entry.strip():
                raise ValueError("prompt: is empty; say what to draw")
        if self.text is not None:
            return self.text.encode([str(entry) for entry in prompts])
        if all(isinstance(entry, int) for entry in prompts):
            return list(prompts)
        return [self._label(entry) for entry in prompts]

    def _label(self, prompt: str | int) -> int:
        """The class that a name or a number in words means."""
        if isinstance(prompt, int) or prompt.strip().isdigit():
            return int(prompt)
        if self.classes is None:
            return prompt  # type: ignore[return-value]  # the model's own condition() reads captions, or says it cannot
        name = prompt.strip().lower()
        names = [entry.lower() for entry in self.classes]
        for spelling in (name, name.removesuffix("s"), name.removeprefix("a ").removeprefix("an ")):
            if spelling in names:
                return names.index(spelling)
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(self.classes[:12]) + (", …" if len(self.classes) > 12 else "")
        raise ValueError(f"prompt {prompt!r}: not a class of {self.name}{hint} Classes: {shown}")

    def _split(
        self, method: str, fraction: float | None, tokens: int | None, *, inpainting: bool
    ) -> tuple[float | None, int | None]:
        """The method as a share or number of AR tokens."""
        fixed = {"ar": 1.0, "masked": 0.0}
        if method not in ("hybrid", *fixed):
            raise ValueError(f"method {method!r}: use hybrid, ar or masked")
        if method in fixed:
            if tokens is not None or fraction not in (None, fixed[method]):
                raise ValueError(f"method {method} fixes the AR fraction at {fixed[method]:g}; drop one of the two")
            return fixed[method], None
        if fraction is None and tokens is None:
            fraction = (
                1.0 if self.masked is None else 0.0 if inpainting or self.ar is None else self.defaults.ar_fraction
            )
        return fraction, tokens

    def _grid(self, height: int | None, width: int | None) -> Grid | None:
        if height is None and width is None:
            return self.grid
        if height is None or width is None:
            raise ValueError("give height and width together")
        factor = self.tokenizer.factor
        if height < 1 or width < 1 or height % factor or width % factor:
            raise ValueError(f"size {height}x{width}: both sides must be multiples of {factor} pixels")
        return Grid(height // factor, width // factor)

    def _inpainting(self, image: Any, mask: Any, grid: Grid | None) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the picture, and which of them stay: those whose pixels are all black in the mask."""
        if (image is None) != (mask is None):
            raise ValueError("in-painting takes image and mask together")
        if image is None:
            return None, None
        factor = self.tokenizer.factor
        wanted = grid or getattr(self.masked if self.masked is not None else self.ar, "grid", None)
        pixels = from_pil(image).to(self.device, self.dtype)
        size = pixels.shape[-2:]
        if wanted is not None and tuple(size) != (wanted.height * factor, wanted.width * factor):
            raise ValueError(
                f"image is {size[1]}x{size[0]} pixels; this model needs {wanted.width * factor}x{wanted.height * factor}"
            )
        drawn = mask_from_pil(mask).to(self.device)
        if drawn.shape != size:
            raise ValueError(f"mask is {drawn.shape[1]}x{drawn.shape[0]} pixels, the image {size[1]}x{size[0]}")
        blocks = drawn.unflatten(0, (-1, factor)).unflatten(2, (-1, factor))
        keep = ~blocks.any(dim=3).any(dim=1).flatten()
        with torch.inference_mode():
            return self.tokenizer.encode(pixels[None])[0], keep


def find_device(device: str | torch.device) -> torch.device:
    """``auto`` is the best there is.

    Raises:
        ValueError: a device this machine or this torch does not have.
    """
    if device == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r}: use auto, cpu, cuda or mps") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this machine or this torch build has no CUDA; use --device cpu")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: not available here; use --device cpu")
    return found


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on CUDA and fp32 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments from its locals, to make the same call on another pipeline."""
    return {name: value for name, value in scope.items() if name not in ("self", "dtype")}


def _as_list(prompt: str | int | Sequence[str | int]) -> list[str | int]:
    return [prompt] if isinstance(prompt, (str, int)) else list(prompt)


def _seeds(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> tuple[list[int | torch.Generator], int | None]:
    """A seed or generator for each picture, and the seed that repeats the request (None with generators)."""
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(generator, torch.Generator):
        return [int(value) for value in torch.randint(2**62, (count,), generator=generator)], None
    if generator is not None:
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} pictures")
        return list(generator), None
    first = secrets.randbelow(2**31) if seed is None else seed
    if first < 0:
        raise ValueError(f"seed {first}: must be 0 or above")
    return [first + place for place in range(count)], first


def _sampling(defaults: PhaseConfig, given: dict[str, Any]) -> Sampling:
    """A phase's defaults with what the request says in their place."""
    chosen = defaults.model_dump() | {key: value for key, value in given.items() if value is not None}
    kind = chosen["guidance_kind"]
    window = {"start": chosen["guidance_start"], "end": chosen["guidance_end"]} if kind == "interval" else {}
    guidance = Guidance(chosen["guidance_scale"], kind, **window)
    return Sampling(guidance, chosen["temperature"], chosen["top_k"], chosen["top_p"])


def _output(images_bchw: Tensor, output_type: str) -> list[Image.Image] | Any:
    if output_type == "pt":
        return images_bchw
    if output_type == "np":
        return ((images_bchw.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
    return [to_pil(image) for image in images_bchw]


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value
