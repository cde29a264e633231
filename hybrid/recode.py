"""A network carried over to another tokenizer's codes: what each new code stands for, told by pictures.

Both tokenizers read the same pictures. Where the new one writes a code, the old one wrote some of its own; the new
code's embedding and output rows are the mean of theirs. Blocks stay as they are: what they know of pictures does not
depend on the names of codes. The result is a beginning to train on, not a model to draw with.

This file knows codes and rows. It knows no file and no command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from hybrid.types import ImageTokenizer

ROWS = ("tok_embeddings.weight", "tok_emb.weight", "output.weight", "output_masked.weight")
"""Parameters of LlamaGen's, MaskGIL's and the unified network's forms that have a row for each code; rows after the
codes (MaskGIL's mask and classes) are none."""


def shared_places(
    old: ImageTokenizer,
    new: ImageTokenizer,
    batches_bchw: Iterable[Tensor],
    told: Callable[[int], None] = lambda pictures: None,
) -> Tensor:
    """How often each new code stands where each old one does, counts (k_new, k_old).

    Args:
        old, new: the tokenizers.
        batches_bchw: RGB pictures in [-1, 1].
        told: called with the number of pictures so far.

    Raises:
        ValueError: the tokenizers cut a picture into different numbers of tokens.
    """
    codes = len(old.codebook_kd)
    counts = torch.zeros(len(new.codebook_kd), codes, dtype=torch.float64)
    done = 0
    for images in batches_bchw:
        before_bn, after_bn = old.encode(images).cpu(), new.encode(images).cpu()
        if before_bn.shape != after_bn.shape:
            raise ValueError(
                f"the tokenizers cut a picture into {before_bn.shape[1]} and {after_bn.shape[1]} tokens; "
                "a network can be carried over only where each has as many"
            )
        pairs = after_bn.flatten() * codes + before_bn.flatten()
        counts += torch.bincount(pairs, minlength=counts.numel()).view_as(counts)
        done += len(images)
        told(done)
    return counts


def recode(state: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
    """The weights with a row for each new code: the mean of the old codes' rows by how often they stand in its place,
    or of all where the pictures never show it.

    Args:
        state: weights of a network of the old codes.
        counts: see ``shared_places``.

    Raises:
        ValueError: no tensor that has a row for each code, or one with too few rows.
    """
    overall = counts.sum(0, keepdim=True)
    shares = torch.where(counts.sum(1, keepdim=True) > 0, counts, overall)
    shares = (shares / shares.sum(1, keepdim=True)).float()
    codes, found = counts.shape[1], dict(state)
    for name in ROWS:
        if name not in state:
            continue
        rows = state[name]
        if len(rows) < codes:
            raise ValueError(f"{name} has {len(rows)} rows, but the old tokenizer {codes} codes")
        carried = shares.to(rows.device) @ rows[:codes].float()
        found[name] = torch.cat((carried.to(rows.dtype), rows[codes:]))
    if not any(name in state for name in ROWS):
        raise ValueError(f"no tensor with a row for each code; expected one of {', '.join(ROWS)}")
    return found
