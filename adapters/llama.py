"""The LLaMA block that LlamaGen, MaskGIL and their relatives share.

This file knows attention, rotary tables and a key-value cache. It does not know tokens, classes or captions.
Where nothing is learned, a CPU takes other routes for the one token of a decoding step, with the same results but for
rounding (``few_rows.Linear``, ``attend_one``).
Parameter names are those of LlamaGen's and MaskGIL's checkpoints (``layers.0.attention.wqkv.weight``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.few_rows import Linear, few_on_cpu, product
from hybrid.types import Grid


def ffn_width(dim: int, multiple_of: int = 256) -> int:
    """Width of SwiGLU's hidden layer: two thirds of 4·dim, rounded up (LLaMA)."""
    return -(-int(8 * dim / 3) // multiple_of) * multiple_of


# Rotary tables have the shape (positions, head_dim / 2, 2): cosine and sine of each interleaved pair.


def rope_1d(positions_n: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotary table of positions on a line (RoFormer)."""
    pairs = torch.arange(0, head_dim, 2, device=positions_n.device, dtype=torch.float32)
    angles = torch.outer(positions_n.float(), base ** (-pairs / head_dim))
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rope_2d(rows_n: Tensor, columns_n: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotary table of positions on a grid: the first half of the pairs turns with the row, the second with the column
    (LlamaGen)."""
    half = head_dim // 2
    pairs = torch.arange(0, half, 2, device=rows_n.device, dtype=torch.float32)[: half // 2]
    frequencies = base ** (-pairs / half)
    angles = torch.cat((torch.outer(rows_n.float(), frequencies), torch.outer(columns_n.float(), frequencies)), dim=-1)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def grid_rope(
    grid: Grid, condition_tokens: int, head_dim: int, *, keep_condition: bool, base: float, device: torch.device
) -> Tensor:
    """Table of [condition tokens, image tokens in raster order] with 2-D positions.

    LlamaGen zeroes the rows of condition tokens, which makes their queries and keys vanish. ``keep_condition`` places
    them on the diagonal that runs into the grid's first corner instead: token t of T at (t − T, t − T).
    """
    places = torch.arange(grid.places, device=device)
    image = rope_2d(places // grid.width, places % grid.width, head_dim, base)
    diagonal = torch.arange(-condition_tokens, 0, device=device)
    condition = rope_2d(diagonal, diagonal, head_dim, base)
    return torch.cat((condition if keep_condition else torch.zeros_like(condition), image))


def rotate(x_bnhd: Tensor, rope: Tensor) -> Tensor:
    """Turn each interleaved pair of x (b, n, heads, head_dim) by the table (n, pairs, 2) or (b, n, pairs, 2).

    As complex numbers, a sixth of the time on a CPU; by sines and cosines where complex numbers are not compiled or,
    on Apple's GPUs, not complete.
    """
    pairs = x_bnhd.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling() or x_bnhd.device.type == "mps":
        cos, sin = rope[..., None, :, 0], rope[..., None, :, 1]
        x, y = pairs[..., 0], pairs[..., 1]
        turned = torch.stack((x * cos - y * sin, y * cos + x * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope)[..., None, :])
    return turned.flatten(-2).type_as(x_bnhd)


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32, times a learned weight."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class KVCache:
    """Keys and values of every layer, allocated once, each on its layer's device. No gradient flows through it.

    Each is a tensor of its own: a compiled step writes a place of a whole tensor where it stands, but would copy one
    that holds both.

    Attributes:
        keys, values: for each layer (b, heads, capacity, head_dim).
        capacity: tokens that it holds.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | Sequence[torch.device],
    ) -> None:
        devices = [device] * layers if isinstance(device, torch.device) else device
        shape = (batch, heads, capacity, head_dim)
        self.capacity = capacity
        self.keys = [torch.zeros(shape, dtype=dtype, device=own) for own in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=own) for own in devices]

    @property
    def tensors(self) -> list[Tensor]:
        """All keys, then all values."""
        return self.keys + self.values

    def first(self, rows: int) -> KVCache:
        """The first rows, in the same memory."""
        part = copy.copy(self)
        part.keys, part.values = ([layer[:rows] for layer in half] for half in (self.keys, self.values))
        return part

    def copy_row(self, row: int, other: KVCache, source: int) -> None:
        """Make a row what another cache's is, as far as that one reaches."""
        for own, layer in zip(self.tensors, other.tensors, strict=True):
            own[row, :, : other.capacity] = layer[source]

    def layer(self, index: int, window: Window) -> LayerCache:
        """One layer's part, to be written in a window."""
        return LayerCache(self.keys[index], self.values[index], window)


def devices_of(layers: nn.ModuleList) -> list[torch.device]:
    """Where each layer computes: where its weights are or, of a layer that ``hybrid.dispatch`` keeps elsewhere, where
    they are brought to."""
    hooked = [getattr(getattr(layer, "_hf_hook", None), "execution_device", None) for layer in layers]
    own = [next(layer.parameters()).device for layer in layers]
    return [device if other is None else torch.device(other) for device, other in zip(own, hooked, strict=True)]


@dataclass(frozen=True)
class Window:
    """Where new tokens stand in the cache.

    Attributes:
        indices_bw: each token's index.
        start: the first index where all rows agree on it, else None.
        end: one past the last index of any row.
    """

    indices_bw: Tensor
    start: int | None
    end: int


def window_at(tokens_bw: Tensor, places: Sequence[int], offset: int) -> Window:
    """Where tokens go that stand at each row's place, and after it, behind ``offset`` condition tokens."""
    width, first, last = tokens_bw.shape[1], min(places), max(places)
    indices_bw = torch.arange(offset, offset + width, device=tokens_bw.device).expand_as(tokens_bw)
    # A number is no copy to the device, as a list would be.
    indices_bw = indices_bw + (first if first == last else torch.tensor(places, device=indices_bw.device)[:, None])
    return Window(indices_bw, offset + first if first == last else None, offset + last + width)


def require_fed(places: Sequence[int], filled_b: Tensor) -> None:
    """Refuse places that tokens cannot be fed at.

    Raises:
        ValueError: a row would skip a place.
    """
    filled = filled_b.tolist()
    if any(not 0 <= place <= held for place, held in zip(places, filled, strict=True)):
        raise ValueError(f"decode at places {places}: only {filled} tokens were fed")


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values (b, heads, capacity, head_dim) and where new ones go. It does not say which layer it
    is of, so that one compiled block serves them all."""

    keys: Tensor
    values: Tensor
    window: Window

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (b, heads, w, head_dim) at the window's indices; return all keys and values up to its end."""
        key, value, window = key.detach(), value.detach(), self.window
        if window.start is not None:
            self.keys[:, :, window.start : window.end] = key
            self.values[:, :, window.start : window.end] = value
        else:
            index = window.indices_bw.to(key.device)[:, None, :, None].expand_as(key)
            self.keys.scatter_(2, index, key)
            self.values.scatter_(2, index, value)
        return self.keys[:, :, : window.end], self.values[:, :, : window.end]


def attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query (b, heads, 1, head_dim) to n keys and values as sums, for inductor on a CPU: torch's own
    kernel starts a small product for every head.

    Args:
        mask: True where the query may look, broadcastable to (b, heads, 1, n).
    """
    scores = (query.float() * key.float()).sum(-1)[:, :, None] * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).transpose(-1, -2) * value.float()).sum(-2, keepdim=True).type_as(query)


LEARNT_TABLE = 512
"""Keys up to which training on a CPU attends by plain products, which keep a table of scores for the way back."""


def learns_on_cpu(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether ``attend_learning`` serves: few keys on a CPU, a mask that is no bias, and gradients."""
    few = mask.dtype == torch.bool and key.shape[2] <= LEARNT_TABLE
    return few and query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad


def attend_learning(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention as plain products, for training on a CPU: torch's own kernel with a mask takes two fifths of the way
    back, and a step is a fifth faster without it (3.8M parameters, 257 tokens, compiled, bf16, cores with matrix
    units).

    Args:
        mask: True where a query may look, broadcastable to (b, heads, queries, keys). A query that may look nowhere
            looks everywhere.
    """
    scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).float()
    return scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1).type_as(value) @ value


class Attention(nn.Module):
    """Multi-head attention with rotary positions and, as a switch, RMSNorm of each query and key head."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(dim, 3 * dim)
        self.wo = Linear(dim, dim)
        self.q_norm: nn.Module = RMSNorm(dim // heads, eps) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(dim // heads, eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x_bnd: Tensor,
        rope: Tensor,
        mask: Tensor | None,
        causal: bool,
        cache: LayerCache | None,
    ) -> Tensor:
        query, key, value = self.wqkv(x_bnd).unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        query = rotate(self.q_norm(query), rope).transpose(1, 2)
        key = rotate(self.k_norm(key), rope).transpose(1, 2)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.write(key, value)
        if torch.compiler.is_compiling() and query.shape[2] == 1 and few_on_cpu(x_bnd):
            out = attend_one(query, key, value, mask)
        elif mask is not None and learns_on_cpu(query, key, mask):
            out = attend_learning(query, key, value, mask)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.wo(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU. Where nothing is learned, gate and up projection can be one product, see ``fuse``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden)
        self.w3 = Linear(dim, hidden)
        self.w2 = Linear(hidden, dim)
        self._both: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._both is None or torch.is_grad_enabled():
            gate, up = self.w1(x), self.w3(x)
        else:
            gate, up = product(x, self._both).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)

    @torch.no_grad()
    def fuse(self) -> None:
        """Lay the weights of ``w1`` and ``w3`` side by side in memory, where each stays a parameter of its own. Casts
        and moves keep them so; a copy (``copy.deepcopy``) begins unfused."""
        self._both = torch.cat((self.w1.weight, self.w3.weight))
        self.w1.weight.data, self.w3.weight.data = self._both.chunk(2)

    def split(self) -> None:
        """Undo ``fuse``: before a weight is replaced."""
        self._both = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FeedForward:
        fused = self._both is not None
        self.split()
        super()._apply(fn, recurse)
        if fused:
            self.fuse()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_both": None}


class Block(nn.Module):
    """Attention and feed-forward, each normalised before it (LLaMA) or, with ``post_norm``, after it and before it
    joins the residual stream, which keeps the stream's norm from growing."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, qk_norm: bool, post_norm: bool, eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.dropout = dropout
        self.attention = Attention(dim, heads, qk_norm=qk_norm, eps=eps)
        self.feed_forward = FeedForward(dim, hidden)
        self.attention_norm = RMSNorm(dim, eps)
        self.ffn_norm = RMSNorm(dim, eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, causal: bool, cache: LayerCache | None) -> Tensor:
        if self.post_norm:
            x = x + self._drop(self.attention_norm(self.attention(x, rope, mask, causal, cache)))
            return x + self._drop(self.ffn_norm(self.feed_forward(x)))
        x = x + self._drop(self.attention(self.attention_norm(x), rope, mask, causal, cache))
        return x + self._drop(self.feed_forward(self.ffn_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def blocks(
    layers: int,
    dim: int,
    heads: int,
    hidden: int,
    *,
    qk_norm: bool = False,
    post_norm: bool = False,
    eps: float = 1e-5,
    dropout: float = 0.0,
) -> nn.ModuleList:
    """A stack of equal blocks."""
    if dim % heads:
        raise ValueError(f"dim {dim} is not a multiple of n_head {heads}")
    return nn.ModuleList(
        Block(dim, heads, hidden, qk_norm=qk_norm, post_norm=post_norm, eps=eps, dropout=dropout) for _ in range(layers)
    )


def run(
    layers: nn.ModuleList,
    x_bnd: Tensor,
    rope: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    cache: KVCache | None = None,
    window: Window | None = None,
) -> Tensor:
    """Send x through all blocks.

    Args:
        layers: what ``blocks`` made.
        x_bnd: input embeddings.
        rope: table (n, pairs, 2) or (b, n, pairs, 2).
        mask: True where a query may look at a key, broadcastable to (b, heads, queries, keys); excludes ``causal``.
        causal: hide every later place.
        cache: with ``window``, store keys and values there and look at all of them up to the window's end.
        window: see ``cache``.
    """
    for index, layer in enumerate(layers):
        own = cache.layer(index, window) if cache is not None and window is not None else None
        x_bnd = layer(x_bnd, rope, mask, causal, own)
    return x_bnd


def at_places(x_bnd: Tensor, places_bm: Tensor | None) -> Tensor:
    """x at the given places of each image, (b, m, d); at all of them where none are given."""
    return x_bnd if places_bm is None else x_bnd.gather(1, places_bm[..., None].expand(-1, -1, x_bnd.shape[-1]))


def spread(x_brd: Tensor, places_br: Tensor, places: int) -> Tensor:
    """The reverse: what stands at the given places of each image, zero at the others, (b, places, d)."""
    x_bnd = x_brd.new_zeros(len(x_brd), places, x_brd.shape[-1])
    return x_bnd.scatter(1, places_br[..., None].expand_as(x_brd), x_brd)


def fuse(module: nn.Module) -> None:
    """``FeedForward.fuse`` in every block."""
    for part in module.modules():
        if isinstance(part, FeedForward):
            part.fuse()


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Normal weights for linear layers and embeddings, as LlamaGen starts its training."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)


def spread_codes(table: Tensor, codebook_kd: Tensor, std: float = 0.02) -> None:
    """Fill the first k rows of an embedding table with a random projection of the code vectors plus noise."""
    codes = codebook_kd.float()
    codes = (codes - codes.mean(0)) / codes.std()
    projected = codes @ torch.randn(codes.shape[1], table.shape[1]) / codes.shape[1] ** 0.5
    table[: len(codes)] = (std * (projected + 0.5 * torch.randn_like(projected))).to(table)
