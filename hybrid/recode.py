"""A network carried over to another tokenizer's codes: what each new code stands for, told by pictures.

Both tokenizers read the same pictures. Where the new one writes a code, the old one wrote some of its own; the new
code's embedding and output rows are the mean of theirs. Blocks stay as they are: what they know of pictures does not
depend on the names of codes. The result is a beginning to train on, not a model to draw with.

This file knows codes and rows. It knows no file and no command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hybrid.types import ImageTokenizer

ROWS = ("tok_embeddings.weight", "tok_emb.weight", "output.weight", "output_masked.weight")
"""Parameters of LlamaGen's, MaskGIL's and the unified network's forms that have a row for each code; rows after the
codes (MaskGIL's mask and classes) are none."""


def shared_places(old: ImageTokenizer, new: ImageTokenizer, batches_bchw: Iterable[Tensor]) -> Tensor:
    """How often each new code stands where each old one does, sparse counts (k_new, k_old).

    Args:
        old, new: the tokenizers.
        batches_bchw: RGB pictures in [-1, 1].

    Raises:
        ValueError: the tokenizers cut a picture into different numbers of tokens.
    """
    shape = (len(new.codebook_kd), len(old.codebook_kd))

    def sparse(pairs_2n: Tensor) -> Tensor:
        once = torch.ones(pairs_2n.shape[1], dtype=torch.float64)
        return torch.sparse_coo_tensor(pairs_2n, once, shape, check_invariants=True)

    counts = sparse(torch.zeros(2, 0, dtype=torch.long))
    for images in batches_bchw:
        before_bn, after_bn = old.encode(images).cpu(), new.encode(images).cpu()
        if before_bn.shape != after_bn.shape:
            raise ValueError(
                f"the tokenizers cut a picture into {before_bn.shape[1]} and {after_bn.shape[1]} tokens; "
                "a network can be carried over only where each has as many"
            )
        counts = (counts + sparse(torch.stack((after_bn.flatten(), before_bn.flatten())))).coalesce()
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
    codes, found = counts.shape[1], dict(state)
    seen_k1, used_k = counts.sum(1).to_dense()[:, None], counts.sum(0).to_dense()
    for name in ROWS:
        if name not in state:
            continue
        rows = state[name]
        if len(rows) < codes:
            raise ValueError(f"{name} has {len(rows)} rows, but the old tokenizer {codes} codes")
        old_kd = rows[:codes].cpu().double()
        usual_d = used_k @ old_kd / used_k.sum()
        new_kd = torch.where(seen_k1 > 0, torch.sparse.mm(counts, old_kd) / seen_k1.clamp(min=1), usual_d)
        found[name] = torch.cat((new_kd.to(rows), rows[codes:]))
    if not any(name in state for name in ROWS):
        raise ValueError(f"no tensor with a row for each code; expected one of {', '.join(ROWS)}")
    return found
