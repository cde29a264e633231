"""From the AR model's codes to the masked model's: are two tokenizers the same, and if not, what maps one to the other?

A code means what its decoder makes of it, so two tokenizers agree only if both their effective codebooks (after
l2-normalisation where the model applies it) and their decoders agree. This file knows codebooks and hashes; it knows
no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from hybrid.types import MASK, ImageTokenizer

EXACT = 1e-5
"""Largest distance of two code vectors to be the same one, as a share of the mean code length."""


Lossy: TypeAlias = 'bool | Literal["pixels"]'
"""What may be lost on the way: nothing, as much as nearest codes lose (True), or a transcoding through pixels."""


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a tokenizer.

    Attributes:
        codebook: sha256 of the effective codebook's shape and float32 values.
        decoder: sha256 of the decoding weights, or None where the tokenizer is no module.
    """

    codebook: str
    decoder: str | None


@dataclass(frozen=True)
class Alignment:
    """How tokens are carried over.

    Attributes:
        kind: ``identity``, ``offset``, ``permutation``, ``nearest`` or ``pixels`` (see ``hybrid.transcode``).
        table_k: the masked model's code of each AR code, or None for the identity and ``pixels``.
        lossy: what is lost, in words, or None where the mapping is exact.
    """

    kind: str
    table_k: Tensor | None
    lossy: str | None = None

    def translate(self, tokens_bn: Tensor) -> Tensor:
        """AR codes to the masked model's; MASK stays MASK."""
        if self.table_k is None:
            return tokens_bn
        known = tokens_bn != MASK
        return torch.where(known, self.table_k.to(tokens_bn.device)[tokens_bn.clamp(min=0)], tokens_bn)


def fingerprint(tokenizer: ImageTokenizer) -> Fingerprint:
    """Hash of the effective codebook and of everything a module decodes with.

    Of a module, the decoder is every tensor but the codebook and the encoding half, that is all names that do not
    start with ``encoder.`` or ``quant_conv.`` and are no codebook.
    """
    decoder = None
    if isinstance(tokenizer, nn.Module):
        digest = hashlib.sha256()
        for name, value in sorted(tokenizer.state_dict().items()):
            if not name.startswith(("encoder.", "quant_conv.", "quantize.")) and name != "codebook_kd":
                digest.update(f"{name}{tuple(value.shape)}".encode())
                digest.update(_bytes(value))
        decoder = digest.hexdigest()
    codebook = tokenizer.codebook_kd
    digest = hashlib.sha256(str(tuple(codebook.shape)).encode())
    digest.update(_bytes(codebook))
    return Fingerprint(digest.hexdigest(), decoder)


def _bytes(value: Tensor) -> bytes:
    return value.detach().float().cpu().contiguous().numpy().tobytes()


def align(ar: ImageTokenizer, masked: ImageTokenizer, *, lossy: Lossy = False) -> Alignment:
    """The mapping from one tokenizer's codes to the other's.

    Args:
        ar: the AR model's tokenizer.
        masked: the masked model's tokenizer, which decodes the final image.
        lossy: accept nearest codes where the codebooks differ; ``pixels`` accepts any two tokenizers, whose prefixes
            are decoded and encoded anew.

    Raises:
        ValueError: tokenizers that share no meaning; the message names the ways out.
    """
    if ar is masked:
        return Alignment("identity", None)
    if lossy == "pixels":
        for name, tokenizer in (("AR", ar), ("masked", masked)):
            if not hasattr(tokenizer, "factor"):
                raise ValueError(f"lossy pixels: the {name} model's tokenizer has no factor (pixels per token)")
        return Alignment("pixels", None, "the AR rows were decoded and encoded anew by the other tokenizer")
    here, there = fingerprint(ar), fingerprint(masked)
    if here.decoder is None or there.decoder is None:
        raise ValueError(
            "a tokenizer that is no torch module has no decoder to compare; pass one object for both models, "
            "or transcode whole rows through pixels (lossy: pixels)"
        )
    if here.decoder != there.decoder:
        although = " although the codebooks are equal" if here.codebook == there.codebook else ""
        raise ValueError(
            f"the tokenizers have different decoders (sha256 {here.decoder[:8]} and {there.decoder[:8]}), so their "
            f"codes mean different things{although}; "
            "use models of one tokenizer, or transcode whole rows through pixels (lossy: pixels)"
        )
    if here.codebook == there.codebook:
        return Alignment("identity", None)
    source, target = ar.codebook_kd.float().cpu(), masked.codebook_kd.float().cpu()
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"code vectors have different widths: {tuple(source.shape)} and {tuple(target.shape)}; "
            "use models of one tokenizer, or transcode whole rows through pixels (lossy: pixels)"
        )
    distance_k, table_k = nearest(source, target)
    length = float(source.norm(dim=1).mean())
    if bool((distance_k <= EXACT * length).all()):
        shift = table_k - torch.arange(len(table_k))
        kind = "offset" if bool((shift == shift[0]).all()) else "permutation"
        return Alignment(kind, table_k)
    mean = float(distance_k.mean())
    message = f"nearest codes, mean distance {mean:.4g} where code vectors have mean length {length:.4g}"
    if not lossy:
        raise ValueError(
            f"the codebooks differ ({message}); pass lossy=True to accept nearest codes, or lossy='pixels' to transcode"
        )
    return Alignment("nearest", table_k, message)


def nearest(source_kd: Tensor, target_kd: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Euclidean distance and index of the nearest target vector for each source vector."""
    distances, indices = [], []
    for part in source_kd.split(chunk):
        # Differences, not the expanded square, which loses the digits that tell equal from nearly equal.
        found = torch.cdist(part, target_kd, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)
