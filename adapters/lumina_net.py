"""Chameleon's transformer (arXiv 2405.09818), which Lumina-mGPT is.

Parameter names are those of transformers' ``ChameleonModel``, without its image encoder. This file knows layers and a
window of a cache that its caller keeps; it does not know a vocabulary or an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .llama import KVCache, LayerCache, RMSNorm, Window, devices_of
from .lumina_config import LuminaConfig


def rotary(positions_bn: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines (b, n, head_dim / 2, 2) of positions on a line, float32 whatever the weights are."""
    pairs = torch.arange(0, head_dim, 2, device=positions_bn.device, dtype=torch.float32)
    angles = positions_bn.float()[..., None] * (1 / base ** (pairs / head_dim))
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate_halves(x_bnhd: Tensor, table: Tensor) -> Tensor:
    """Turn pair i, which is (x_i, x_{i + d/2}), by the table (b, n, d/2, 2): Hugging Face's layout of RoPE."""
    x, y = x_bnhd.float().chunk(2, dim=-1)
    cos, sin = table[..., None, :, 0], table[..., None, :, 1]
    return torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1).type_as(x_bnhd)


class HeadNorm(nn.Module):
    """LayerNorm of each head's query or key, with its own weight and bias (heads, head_dim)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, head_dim))

    def forward(self, x_bnhd: Tensor) -> Tensor:
        return F.layer_norm(x_bnhd, x_bnhd.shape[-1:], eps=1e-5) * self.weight + self.bias


class Attention(nn.Module):
    """Attention with normalised queries and keys, whose key heads groups of query heads may share."""

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        dim, bias = config.hidden_size, config.attention_bias
        self.head_dim = dim // config.num_attention_heads
        self.grouped = config.num_key_value_heads != config.num_attention_heads
        shared = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, shared, bias=bias)
        self.v_proj = nn.Linear(dim, shared, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm = HeadNorm(config.num_attention_heads, self.head_dim)
        self.k_norm = HeadNorm(config.num_key_value_heads, self.head_dim)

    def forward(self, x_bnd: Tensor, table: Tensor, mask: Tensor, cache: LayerCache | None) -> Tensor:
        heads = (-1, self.head_dim)
        query = rotate_halves(self.q_norm(self.q_proj(x_bnd).unflatten(-1, heads)), table).transpose(1, 2)
        key = rotate_halves(self.k_norm(self.k_proj(x_bnd).unflatten(-1, heads)), table).transpose(1, 2)
        value = self.v_proj(x_bnd).unflatten(-1, heads).transpose(1, 2)
        if cache is not None:
            key, value = cache.write(key, value)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=self.grouped)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        dim, hidden, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before it or, with ``swin_norm`` (34B), after it."""

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        self.swin_norm = config.swin_norm
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_bnd: Tensor, table: Tensor, mask: Tensor, cache: LayerCache | None) -> Tensor:
        if self.swin_norm:
            x_bnd = x_bnd + self.input_layernorm(self.self_attn(x_bnd, table, mask, cache))
            return x_bnd + self.post_attention_layernorm(self.mlp(x_bnd))
        x_bnd = x_bnd + self.self_attn(self.input_layernorm(x_bnd), table, mask, cache)
        return x_bnd + self.mlp(self.post_attention_layernorm(x_bnd))


class Chameleon(nn.Module):
    """Ids to normalised hidden states; the head is the caller's."""

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        self.shape = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache in the weights' type, on the layers' devices."""
        heads, dtype, devices = self.shape.num_key_value_heads, self.norm.weight.dtype, devices_of(self.layers)
        return KVCache(len(self.layers), batch, heads, capacity, self.head_dim, dtype=dtype, device=devices)

    def forward(
        self, ids_bn: Tensor, positions_bn: Tensor, mask: Tensor, cache: KVCache | None, window: Window
    ) -> Tensor:
        """Hidden states (b, n, d).

        Args:
            ids_bn: ids of the vocabulary.
            positions_bn: where each stands in its own sequence.
            mask: True where an id may look at a key, (b, 1, n, keys).
            cache: with it, keys and values are stored at the window's indices and those up to its end are looked at.
            window: see ``cache``; unused without one.
        """
        x_bnd = self.embed_tokens(ids_bn)
        table = rotary(positions_bn, self.head_dim, self.shape.rope_theta)
        for index, layer in enumerate(self.layers):
            x_bnd = layer(x_bnd, table, mask, None if cache is None else cache.layer(index, window))
        return self.norm(x_bnd)
