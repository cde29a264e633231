"""CLIP score: how well pictures fit their captions, where CLIP and its weights are at hand.

The network is one of ``open_clip``'s (extra ``fid``), its weights a file that the user names. The score of a picture is
100 · max(cosine, 0) of its embedding and its caption's (Hessel et al., arXiv 2104.08718, with the factor that image
generation papers use); figures are means over pictures, and only those of one network can be compared.

This project's own machines had neither open_clip nor CLIP weights: what is here ran with a stand-in for them, and no
CLIP score is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from hybrid.checkpoint import sha256
from hybrid.perceptual import MISSING

MODEL = "ViT-B-32-quickgelu"
"""open_clip's name of OpenAI's ViT-B/32."""


class ClipNetwork:
    """Embeds pictures and captions.

    Args:
        weights: a checkpoint that ``open_clip`` loads.
        model: ``open_clip``'s name of its architecture.
        device: where to compute.
        batch: pictures at a time.

    Raises:
        ValueError: the extra ``fid`` is not installed; no file; no such model, or weights of another one.
    """

    def __init__(
        self, weights: str | Path, model: str = MODEL, *, device: str | torch.device = "cpu", batch: int = 32
    ) -> None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ValueError(f"CLIP score: no weights at {path}; give a checkpoint of open_clip's {model}")
        try:
            import open_clip  # type: ignore[import-not-found]
        except ImportError:
            raise ValueError(MISSING.format(purpose="CLIP score", extra="fid")) from None
        if model not in open_clip.list_models():
            raise ValueError(f"CLIP score: open_clip knows no model {model!r}")
        try:
            made, _, self._prepare = open_clip.create_model_and_transforms(
                model, pretrained=str(path), device=str(device)
            )
        except (RuntimeError, KeyError) as error:
            lines = str(error).splitlines()
            raise ValueError(f"CLIP score: {path} does not hold {model}: {lines[0] if lines else error}") from None
        self._network, self._tokenize = made.eval(), open_clip.get_tokenizer(model)
        self.device, self.batch, self.sha256 = torch.device(device), batch, sha256(path)
        self.name = f"CLIP {model} (open_clip), weights {self.sha256[:8]}"

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float64]:
        """The score of each picture, uint8 (b, h, w, 3), with its caption."""
        parts = []
        for start in range(0, len(images), self.batch):
            pixels = [self._prepare(Image.fromarray(image)) for image in images[start : start + self.batch]]
            words = self._tokenize(list(captions[start : start + self.batch])).to(self.device)
            seen = self._network.encode_image(torch.stack(pixels).to(self.device))
            parts.append(scores_of(seen, self._network.encode_text(words)))
        return np.concatenate(parts) if parts else np.empty(0)


def scores_of(images_bd: torch.Tensor, captions_bd: torch.Tensor) -> NDArray[np.float64]:
    """100 · max(cosine, 0), row by row, from embeddings of any length."""
    cosine = (F.normalize(images_bd.double(), dim=-1) * F.normalize(captions_bd.double(), dim=-1)).sum(-1)
    return (100 * cosine.clamp(min=0)).cpu().numpy()


def captions_of(prompts: Sequence[str | int] | None, source: str) -> list[str]:
    """Prompts as captions.

    Raises:
        ValueError: there are none, or they are classes.
    """
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"CLIP score: {source} was drawn from classes, not captions; give --prompts FILE")
    return [str(prompt) for prompt in prompts]
