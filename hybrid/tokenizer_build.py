"""From a training configuration to the tokenizer task: its losses, put together.

This file knows settings and what they contradict. It does not know the loop.
"""

from __future__ import annotations

from typing import Any

from hybrid.config import CodebookConfig, TrainConfig
from hybrid.data.folder import DataFolder
from hybrid.discriminator import PatchDiscriminator
from hybrid.perceptual import DISTANCES
from hybrid.tokenizer_task import Adversary, TokenizerTask

FIXED_CODES = ("fsq",)
"""Adapters whose codes are not learned, so that no loss pulls at them."""


def build_tokenizer_task(
    config: TrainConfig, model: Any, folder: DataFolder, metadata: dict[str, Any]
) -> TokenizerTask:
    """The task of ``config``.

    Raises:
        ValueError: a setting that contradicts another one, the pictures or what is installed.
    """
    kind, loop = config.model.kind, config.loop
    codebook = None
    if kind in FIXED_CODES:
        if config.codebook is not None:
            raise ValueError(f"codebook: the codes of {kind} are fixed; remove it")
    else:
        weights = config.codebook or CodebookConfig()
        codebook = (weights.commitment, weights.entropy)
    if config.decoder_only:
        if config.codebook is not None:
            raise ValueError("codebook: stays as it is with decoder_only; remove one of the two")
        if config.model.init is None:
            raise ValueError("decoder_only: the encoder needs weights that were trained; name them by --init")
        codebook = None
        model.freeze_codes()
    adversary = None
    if config.adversarial is not None:
        if loop.compile:
            raise ValueError(
                "adversarial: takes gradients within the loss, which cannot be compiled; use compile: false"
            )
        asked = config.adversarial
        discriminator = PatchDiscriminator(width=asked.width, layers=asked.layers)
        start = asked.start * loop.batch_size * loop.accumulate
        adversary = Adversary(discriminator, asked.weight, start, asked.lr)
    return TokenizerTask(
        model,
        folder,
        seed=loop.seed,
        metadata=metadata,
        sets=config.sets,
        feature=DISTANCES[config.feature_loss]() if config.feature_weight else None,
        feature_weight=config.feature_weight,
        adversary=adversary,
        codebook=codebook,
    )
