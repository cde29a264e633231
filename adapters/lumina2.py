"""The vocabulary of Lumina-mGPT 2.0 (arXiv 2507.17801), as its released code uses it.

The network and the prompt are 1.0's. The vocabulary is a language model's, to which names of Chameleon's were added;
image codes follow it without names, and one code is 8 pixels wide. Its ``tokenizer.json`` says where the size tokens
and the end of a turn stand, its ``tokenizer_config.json`` which token begins a prompt. This file knows no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .lumina_prompt import Ids

IDS = Ids(code=155000, image_start=151665, new_line=151670, sizes={}, begin=None, end_of_turn=None, token_pixels=8)
"""What the released code counts on; the rest is read from the vocabulary."""

CODES = 16384
"""Codes of its MoVQGAN."""

NAMES = {"<racm3:break>": IDS.image_start, "<reserved08799>": IDS.new_line}
END_OF_TURN = "<reserved08706>"
SIZE_NAME = re.compile(r"<reserved0(8[89]\d\d)>")
"""The number of ``SIZE_PIXELS`` on a side, plus 8800."""


def read_ids(vocabulary: Mapping[str, int], begin: str | None) -> Ids:
    """Ids of a vocabulary.

    Args:
        vocabulary: name -> id.
        begin: name of the token that begins a prompt; None where it is not known, so that captions are refused.

    Raises:
        ValueError: a name is missing, or one of an image's own stands elsewhere than the released code expects it.
    """
    for name, expected in NAMES.items():
        if vocabulary.get(name) != expected:
            raise ValueError(f"vocabulary: {name} expected id {expected}, got {vocabulary.get(name)}")
    sizes = {
        int(match[1]) - 8800: number for name, number in vocabulary.items() if (match := SIZE_NAME.fullmatch(name))
    }
    needed = (END_OF_TURN, "<reserved08801>", *(() if begin is None else (begin,)))
    for wanted in needed:
        if wanted not in vocabulary:
            raise ValueError(f"vocabulary: has no {wanted}")
    begin_id = None if begin is None else vocabulary[begin]
    return replace(IDS, sizes=sizes, begin=begin_id, end_of_turn=vocabulary[END_OF_TURN])


def begin_name(folder: Path) -> str | None:
    """The token that begins a prompt: ``bos_token`` of the folder's tokenizer_config.json, else its ``eos_token``; None
    without the file.

    Raises:
        ValueError: the file is broken or names neither.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    for key in ("bos_token", "eos_token"):
        token = fields.get(key)
        name = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(name, str):
            return name
    raise ValueError(f"{path}: names no bos_token or eos_token, one of which begins a prompt")
