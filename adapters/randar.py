"""RandAR (Pang et al., arXiv 2412.01827) as a masked model: a LLaMA that writes image tokens in any order.

Its sequence is [class, instruction, token, instruction, token, …]: before each token stands an instruction, one
learned vector turned by the rotary table of the place that comes next, and the logits are read there. Released
class-conditional at 256² on LlamaGen's VQ-16 codes (0.3B, 0.7B) and on MaskGIT-VQ's (0.3B).

Three things differ from the original's loop. Known tokens stand in Halton order, not in the order in which they were
drawn. The queries of one pass do not see each other, where there a query sees the bare instructions of those before it
in the same pass, which never occurs in training (with one place a pass, in Halton order, the loops agree token for
token). And no cache is kept between passes, so each one runs over all known tokens anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.types import Grid, Prompts

from .any_order import AnyOrderConfig, opened, own_grid, prefix_and_queries_mask
from .conditions import ClassCondition, ClassEmbedding, class_condition
from .llama import RMSNorm, blocks, rotate, run
from .loading import load_network, shape_of
from .transformer_config import WIDTHS, infer_blocks

CONFIGS: dict[str, dict[str, Any]] = {
    "L-llamagen": {**WIDTHS["L"], "vocab_size": 16384},
    "XL-llamagen": {**WIDTHS["XL"], "vocab_size": 16384},
    "L-maskgit": {**WIDTHS["L"], "vocab_size": 1024},
}


class RandAR(nn.Module):
    """The masked model. Implements ``hybrid.types.MaskedModel``.

    Attributes:
        codebook_size: number of image codes.
        grid: the grid that it was trained on.
        classes: number of classes; the null class comes after them.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        codes: int,
        grid: Grid,
        classes: int,
        rope_base: float = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.codebook_size, self.grid, self.classes = codes, grid, classes
        self.heads, self.head_dim, self.rope_base = heads, dim // heads, rope_base
        self.cls_embedding = ClassEmbedding(classes, dim)
        self.tok_embeddings = nn.Embedding(codes, dim)
        self.pos_instruct_embeddings = nn.Parameter(0.02 * torch.randn(1, dim))
        self.layers = blocks(layers, dim, heads, hidden, eps=eps)
        self.norm = RMSNorm(dim, eps)
        self.output = nn.Linear(dim, codes, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.output.weight.device

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> ClassCondition:
        """Class labels as a condition; see ``conditions.class_condition``.

        Raises:
            ValueError: prompts that are no labels of the model, or a grid that it was not trained on.
        """
        return class_condition(prompts, self.classes, own_grid(grid, self.grid, "RandAR"), self.device)

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor | None = None) -> Tensor:
        """Logits over the codes at all places (b, n, k), or at ``places_bm`` (b, m, k). Tokens may hold MASK.

        An unknown place gets p(token | every known token, class). A known place is answered too, but with its own
        token in sight, which is no use.

        Raises:
            ValueError: the tokens do not fill the grid.
        """
        known, places_bm, table = opened(tokens_bn, places_bm, condition.grid, self.head_dim, self.rope_base)
        known_rope, asked_rope = table[1 + known.places_bk], table[1 + places_bm]
        pairs_b2kd = torch.stack((self._instructions(known_rope), self.tok_embeddings(known.tokens_bk)), dim=2)
        prefix_bld = torch.cat((self.cls_embedding(condition), pairs_b2kd.flatten(1, 2)), dim=1)
        class_rope = table[:1].expand(len(tokens_bn), -1, -1, -1)
        queries, prefix = places_bm.shape[1], prefix_bld.shape[1]
        x_bld = run(
            self.layers,
            torch.cat((prefix_bld, self._instructions(asked_rope)), dim=1),
            torch.cat((class_rope, known_rope.repeat_interleave(2, dim=1), asked_rope), dim=1),
            mask=prefix_and_queries_mask(prefix, queries, 1 + 2 * known.counts_b),
        )
        return self.output(self.norm(x_bld[:, prefix:])).float()

    def _instructions(self, rope_bm: Tensor) -> Tensor:
        """The instruction embedding of each place, (b, m, d), from the places' rotary rows (b, m, pairs, 2)."""
        vector = self.pos_instruct_embeddings.view(1, 1, self.heads, self.head_dim)
        return rotate(vector.expand(*rope_bm.shape[:2], -1, -1), rope_bm).flatten(2)


def build(config: AnyOrderConfig) -> RandAR:
    """The model of a configuration, with uninitialised weights."""
    return RandAR(**config.network())


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields that a state dict's shapes tell; heads are assumed 64 wide and the grid 16×16.

    Raises:
        ValueError: a weight that tells one of them is missing, or the width is no multiple of 64.
    """
    codes, dim = shape_of(state, "tok_embeddings.weight", source)
    fields = infer_blocks(state, dim, codes, source)
    return fields | {"num_classes": shape_of(state, "cls_embedding.embedding_table.weight", source)[0] - 1}


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> RandAR:
    """See ``hybrid.adapters.load``."""
    return load_network(
        "randar",
        weights,
        config,
        sizes=CONFIGS,
        fields=AnyOrderConfig,
        infer=infer,
        build=build,
        device=device,
        dtype=dtype,
    )
