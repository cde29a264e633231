"""Tokens and tensors as PNG files in memory: previews with holes, and finished pictures that know their settings."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybrid import __version__
from hybrid.dtypes import find_types
from hybrid.picture_files import KEY, PictureSettings
from hybrid.pictures import to_pil
from hybrid.request import as_defaults
from hybrid.types import MASK, Generation, fill_unknown

if TYPE_CHECKING:
    from hybrid.phases import Step
    from hybrid.pipeline import HybridPipeline


def preview_pngs(pipe: HybridPipeline, step: Step) -> list[bytes]:
    """Pictures as far as they are written; the rest is transparent.

    Args:
        pipe: decodes.
        step: what the sampler told.
    """
    tokenizer = pipe.sampler.ar_tokenizer if step.phase in ("prefix", "verify") else pipe.tokenizer
    tokens_bn = step.tokens_bn
    # A place that is not written yet repeats the picture's first known code, so that its neighbours look right.
    known_bn = tokens_bn != MASK
    first_b1 = tokens_bn.gather(1, known_bn.long().argmax(dim=1, keepdim=True)).clamp(min=0)
    with torch.inference_mode():
        images = tokenizer.decode(fill_unknown(tokens_bn, first_b1.expand_as(tokens_bn)), step.grid).float()
    factor = images.shape[-1] // step.grid.width
    known_bhw = known_bn.unflatten(1, (step.grid.height, step.grid.width))
    alpha_bhw = known_bhw.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).byte().mul(255).cpu()
    files = []
    for image, alpha_hw in zip(images, alpha_bhw, strict=True):
        picture = to_pil(image)
        picture.putalpha(Image.fromarray(alpha_hw.numpy()))
        files.append(_png(picture))
    return files


def finished_png(pipe: HybridPipeline, pair: str, result: Generation, place: int, prompt: str, seed: int) -> bytes:
    """One picture of a result. ``hybrid-generate --from`` repeats it by the settings inside, but for in-painting.

    Args:
        pipe: drew it.
        pair: what ``from_pretrained`` loads again.
        result: with PIL images.
        place: of the picture in it.
        prompt, seed: the picture's own.
    """
    picture, told = result.images[place], result.settings
    info = PngInfo()
    if (result.origin[place] >= 0).all():
        tokens = result.tokens[place].to("cpu", torch.int32).numpy().astype("<i4")
        settings = PictureSettings(
            version=__version__,
            config=pair,
            prompt=prompt,
            negative_prompt=told["negative_prompt"],
            seed=seed,
            height=picture.height,
            width=picture.width,
            drawing=as_defaults(told, pipe.defaults),
            dtype=str(find_types(told["dtype"], pipe.device)),
            device=pipe.device.type,
            tokens_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        )
        info.add_text(KEY, json.dumps(settings.model_dump()))
    return _png(picture, pnginfo=info)


def _png(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()
