"""T5 encoders as ``hybrid.types.TextEncoder``; LlamaGen's text-conditional models read captions through flan-t5-xl.

This file knows the folder that Hugging Face publishes, T5's weight names, truncation and padding on the left. It does
not know any image model; how captions are cleaned is in ``captions``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hybrid.checkpoint import fit, read_weights, source_name
from hybrid.config import parse

from .captions import clean_caption
from .text import embed, require_text

logger = logging.getLogger(__name__)

EMBEDDING = "embed_tokens.weight"
UNUSED = ("decoder", "lm_head")
"""The other half of a T5 checkpoint, which embeds nothing."""


class T5Config(BaseModel):
    """Fields of the encoder, beside the folder's own config.json.

    Attributes:
        tokens: text tokens of the output, with the end token; LlamaGen has 120.
        clean: clean captions as LlamaGen does; otherwise they are only put in lower case and stripped, which is the
            original's other setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=120, gt=1)
    clean: bool = True


class T5(nn.Module):
    """A frozen T5 encoder: its last hidden states, after the final norm."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, tokens: int, clean: bool = True) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.tokens, self.clean = encoder, tokenizer, tokens, clean

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to (embedding_bsd, mask_bs) of ``tokens`` places: the real ones last, zeros and mask 0 before them.

        A longer caption is cut before the end token, and one of which cleaning leaves nothing is read as the end token
        alone, both with a warning.

        Raises:
            ValueError: a caption with halves of surrogate pairs, which is no text.
        """
        require_text(captions)
        prepared = [clean_caption(caption) if self.clean else caption.lower().strip() for caption in captions]
        for caption, text in zip(captions, prepared, strict=True):
            if not text:
                logger.warning("caption is empty after cleaning: %r", caption)
        return embed(self.encoder, captions, self.tokenizer.encode_batch(prepared), self.tokens)


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> T5:
    """See ``hybrid.adapters.load``. ``weights`` is a folder: config.json, weights, and tokenizer.json or spiece.model.

    In float16 the feed-forward layers' second matrices stay in float32, as in transformers: T5 overflows otherwise.

    Raises:
        ValueError: no such folder, a piece of it (a shard, say) is missing or another model's, or a named size instead
            of a mapping.
    """
    if weights is None or isinstance(weights, Mapping) or isinstance(config, str):
        raise ValueError("t5: weights must be a folder and config a mapping")
    fields = parse(T5Config, config or {}, "t5 config")
    folder = Path(weights)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one of a T5 encoder, such as google/flan-t5-xl")
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    with torch.device("meta"):
        encoder = T5EncoderModel(read_config(folder)).encoder
    tokenizer = read_tokenizer(folder, fields.tokens, encoder.embed_tokens.num_embeddings)
    try:
        state, _ = read_weights(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    source = source_name(folder)
    state = encoder_keys(state, source)
    fit(encoder, state, source=source, dtype=dtype, device=device)
    if dtype == torch.float16:
        for name, module in encoder.named_modules():
            if name.endswith(".wo"):
                module.weight = nn.Parameter(state[f"{name}.weight"].to(device, torch.float32))
    return T5(encoder, tokenizer, fields.tokens, fields.clean).eval().requires_grad_(False)


def read_config(folder: Path) -> Any:
    """The folder's config.json as transformers' T5Config.

    Raises:
        ValueError: it is missing, no JSON, or another model's.
    """
    from transformers.models.t5.configuration_t5 import T5Config as Architecture

    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; expected a folder of a T5 encoder, such as google/flan-t5-xl")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != "t5":
        raise ValueError(f"{path}: model_type: expected 't5', got {kind!r}")
    return Architecture.from_dict(fields)


def read_tokenizer(folder: Path, tokens: int, rows: int) -> Any:
    """A ``tokenizers.Tokenizer`` that cuts after ``tokens`` and pads to the longest caption, on the right.

    Args:
        folder: with tokenizer.json or, where sentencepiece is installed, spiece.model.
        tokens: most tokens of a caption, with the end token.
        rows: rows of the model's embedding table.

    Raises:
        ValueError: neither file can be read, the vocabulary has no ``<pad>``, or it is larger than the table.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower class
            raise ValueError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None
    else:
        path = folder / "spiece.model"
        if not path.is_file():
            raise ValueError(f"{folder}: neither tokenizer.json nor spiece.model; captions need one of them")
        absent = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if absent:
            needed = "pip install sentencepiece protobuf, or put the model's tokenizer.json beside it"
            raise ValueError(f"{path}: cannot be read without {' and '.join(absent)}; {needed}")
        from transformers.models.t5.tokenization_t5 import T5Tokenizer

        try:
            tokenizer = T5Tokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        except Exception as error:  # transformers tries other formats in turn; the last one's error misleads
            raise ValueError(f"{path}: not a SentencePiece model") from error
    pad = tokenizer.token_to_id("<pad>")
    if pad is None:
        raise ValueError(f"{path}: no token '<pad>'; expected T5's vocabulary")
    if (size := tokenizer.get_vocab_size()) > rows:
        raise ValueError(f"{path}: {size} tokens, but the model embeds {rows}")
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(pad_id=pad, pad_token="<pad>")
    return tokenizer


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is absent
        return False


def encoder_keys(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A T5 checkpoint's encoder under the encoder's own names; the decoder's half is dropped.

    The token table is one tensor under up to four names. Files hold ``shared.weight``, the encoder's name, or both.

    Raises:
        ValueError: no encoder in the file.
    """
    if not any(key.startswith("encoder.") for key in state):
        shown = ", ".join(sorted(state)[:5])
        raise ValueError(f"{source}: has no encoder.*; its keys are {shown}")
    kept = {key.removeprefix("encoder."): value for key, value in state.items() if key.split(".")[0] not in UNUSED}
    shared = kept.pop("shared.weight", None)
    if shared is not None:
        kept[EMBEDDING] = shared
    return kept
