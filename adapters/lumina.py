"""Lumina-mGPT 1.0 (arXiv 2408.02657) and 2.0 (arXiv 2507.17801): a language model that writes an image row by row.

A sequence is [prompt, image start, height, width, row, new line, row, new line, …]. This file counts those ids from the
place, and keeps the static cache of several streams (conditional and not, prompts of any length) in one batch. Where a
vocabulary keeps them is in ``lumina_prompt`` and ``lumina2``, the network in ``lumina_net``. An unconditional stream is
an empty prompt: it starts at the image's start with positions from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from hybrid.checkpoint import fit, read_weights, source_name, unwrap
from hybrid.types import Grid, Prompts

from . import lumina2
from .families import MARKERS
from .llama import KVCache, Window, require_fed
from .lumina_config import VERSIONS, LuminaConfig, find_config, plain_norms
from .lumina_net import Chameleon
from .lumina_prompt import LuminaCondition, check_codes, lumina_condition, read_tokenizer, size_ids


@dataclass
class LuminaState:
    """The cache of one batch.

    Attributes:
        cache: keys and values of [padding, prompt, image start, sizes, image].
        capacity: image tokens that it holds.
        width: tokens of a row.
        offset: index of the first image token, the same in all rows.
        padding_b: indices before each row's first real token.
        filled_b: image tokens that each row holds, on the CPU.
    """

    cache: KVCache
    capacity: int
    width: int
    offset: int
    padding_b: Tensor
    filled_b: Tensor

    def truncate(self, places_b: Tensor) -> None:
        """Forget everything fed at or after each row's given place."""
        self.filled_b = torch.minimum(self.filled_b, places_b.to(self.filled_b))


class Lumina(nn.Module):
    """The AR model. Implements ``hybrid.types.ARModel``.

    Attributes:
        ids: where the vocabulary keeps what an image is made of; that of 2.0 is complete once its tokenizer is set.
        grid: the checkpoint's own grid, None where it is unknown.
        begin: name of the token that begins a prompt of 2.0, to be set before the tokenizer.
        folder: where a tokenizer.json was looked for, or None.
        text_tokenizer: tokenises prompts that are passed as strings; its vocabulary is checked when it is set.
    """

    config: dict[str, Any]

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        self.model = Chameleon(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.version, self.vocabulary_size, self.codebook_size = config.version, config.vocab_size, config.codebook_size
        self.ids = VERSIONS[config.version][0]
        side = None if config.resolution is None else config.resolution // self.ids.token_pixels
        self.grid = None if side is None else Grid(side, side)
        self.begin: str | None = None
        self.folder: Path | None = None
        self._text_tokenizer: Any = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm_head.weight.device

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, which the pipeline compiles and ``hybrid.dispatch`` spreads."""
        return self.model.layers

    @property
    def text_tokenizer(self) -> Any:
        """A ``tokenizers.Tokenizer``, or None where only ids are taken."""
        return self._text_tokenizer

    @text_tokenizer.setter
    def text_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is not None and self.version == 2:
            self.ids = lumina2.read_ids(tokenizer.get_vocab(), self.begin)
        elif tokenizer is not None:
            check_codes(tokenizer.get_vocab(), self.ids.code, self.codebook_size)
        self._text_tokenizer = tokenizer

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> LuminaCondition:
        """Captions, or prompts that are already tokenised (1-D ids, with begin and end of turn), as a condition.

        Raises:
            ValueError: prompts of another kind, captions without a vocabulary, ids outside of it, no grid given and
                none of its own, or one that size tokens cannot name.
        """
        grid = grid or self.grid
        if grid is None:
            raise ValueError("this checkpoint's own grid is not known: pass the grid")
        captions = not isinstance(prompts, str) and any(isinstance(prompt, str) for prompt in prompts)
        if self.text_tokenizer is None and self.folder is not None and (captions or not self.ids.sizes):
            raise ValueError(f"{self.folder}: no tokenizer.json, which captions need; put the model's own there")
        return lumina_condition(prompts, grid, self.text_tokenizer, self.vocabulary_size, self.ids, self.device)

    def prefill(self, condition: Any, capacity: int) -> tuple[Tensor, LuminaState]:
        """Read the condition into a cache for ``capacity`` image tokens. Returns logits_bk of place 0 and the cache.

        Raises:
            ValueError: more capacity than the condition's grid has places.
        """
        grid: Grid = condition.grid
        if capacity > grid.places:
            raise ValueError(f"a cache for {capacity} image tokens, but a {grid} grid has {grid.places} places")
        ids_bs, padding_b = self._prefix(condition)
        batch, offset = ids_bs.shape
        # One index more than the tokens and new lines: rows that cross fewer line ends than others feed one in vain.
        length = offset + capacity + capacity // grid.width + 1
        cache = self.model.cache(batch, length)
        state = LuminaState(cache, capacity, grid.width, offset, padding_b, torch.zeros(batch, dtype=torch.long))
        indices = torch.arange(offset, device=self.device).expand(batch, offset)
        hidden = self._run(ids_bs, Window(indices, 0, offset), padding_b, cache)
        return self._logits(hidden[:, -1]), state

    def decode(self, tokens_bw: Tensor, places_b: Tensor, state: LuminaState) -> Tensor:
        """Feed w tokens standing at each row's place and after it. Returns logits_bwk of the place after each (those
        after the grid's last place mean nothing).

        Raises:
            ValueError: a row would skip a place, the cache is full, or a token is no code.
        """
        places, lowest, highest = torch.stack((places_b, tokens_bw.amin(1), tokens_bw.amax(1))).tolist()  # one transfer
        self._check_codes(min(lowest), max(highest))
        require_fed(places, state.filled_b)
        return self._decode(tokens_bw, places, state)

    def advance(self, tokens_b: Tensor, state: LuminaState) -> Tensor:
        """Feed each row its next token, which is taken to be a code. Returns logits_bk of the place after it; waits for
        no device.

        Raises:
            ValueError: the cache is full.
        """
        return self._decode(tokens_b[:, None], state.filled_b.tolist(), state)[:, -1]

    def _decode(self, tokens_bw: Tensor, places: list[int], state: LuminaState) -> Tensor:
        count, width, device = tokens_bw.shape[1], state.width, tokens_bw.device
        if max(places) + count > state.capacity:
            raise ValueError(f"the cache holds {state.capacity} image tokens, {max(places) + count} are needed")
        fed = count + max((place + count) // width - place // width for place in places)
        first = [state.offset + place + place // width for place in places]
        places_b = torch.full((len(places),), places[0], device=device)  # no copy to the device, as a list is
        if min(places) != max(places):
            places_b = torch.tensor(places, device=device)
        indices = state.offset + line_index(places_b, width)[:, None] + torch.arange(fed, device=places_b.device)
        window = Window(indices, first[0] if len(set(first)) == 1 else None, max(first) + fed)
        ids_bq = self._image_ids(tokens_bw, places_b, fed, width)
        hidden = self._run(ids_bq, window, state.padding_b, state.cache)
        state.filled_b = torch.tensor(places) + count
        return self._logits(pick(hidden, places_b, count, width))

    def score(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """Teacher-forced logits_bnk of every place, in one parallel pass. Fewer tokens than places are a prefix.

        Raises:
            ValueError: more tokens than the condition's grid has places, or a token is no code.
        """
        grid: Grid = condition.grid
        count = tokens_bn.shape[1]
        if count > grid.places:
            raise ValueError(f"{count} tokens are too many for a {grid} grid")
        self._check_codes(int(tokens_bn.min()), int(tokens_bn.max()))
        prefix_bs, padding_b = self._prefix(condition)
        places = torch.arange(count, device=self.device)
        before = line_index(places, grid.width) + prefix_bs.shape[1] - 1  # what stands before each place tells it
        start_b = torch.zeros_like(padding_b)
        image_bq = self._image_ids(tokens_bn, start_b, int(before[-1]) + 1 - prefix_bs.shape[1], grid.width)
        ids_bq = torch.cat((prefix_bs, image_bq), dim=1)
        window = Window(torch.arange(ids_bq.shape[1], device=self.device).expand_as(ids_bq), 0, ids_bq.shape[1])
        return self._logits(self._run(ids_bq, window, padding_b, None)[:, before])

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        """``score``, under the name that training wrappers call."""
        return self.score(tokens_bn, condition)

    def _prefix(self, condition: LuminaCondition) -> tuple[Tensor, Tensor]:
        """Ids before the first code, padded on the left, and each row's padding."""
        start = torch.tensor([self.ids.image_start, *size_ids(condition.grid, self.ids)], device=self.device)
        rows = [torch.cat((ids, start)) for ids in condition.prompts]
        ids_bs = pad_sequence(rows, batch_first=True, padding_side="left")
        return ids_bs, torch.tensor([ids_bs.shape[1] - len(row) for row in rows], device=self.device)

    def _image_ids(self, tokens_bw: Tensor, places_b: Tensor, count: int, width: int) -> Tensor:
        """The next ``count`` ids from each row's place on: codes, and a new line after each row of the grid."""
        index = line_index(places_b, width)[:, None] + torch.arange(count, device=places_b.device)
        row, column = index // (width + 1), index % (width + 1)
        # New lines and what is fed in vain (it is overwritten before anything looks at it) read any token.
        order = (row * width + column - places_b[:, None]).clamp(max=tokens_bw.shape[1] - 1)
        return torch.where(column == width, self.ids.new_line, tokens_bw.gather(1, order) + self.ids.code)

    def _run(self, ids_bq: Tensor, window: Window, padding_b: Tensor, cache: KVCache | None) -> Tensor:
        """Hidden states of ids at the window's indices."""
        keys, queries = torch.arange(window.end, device=ids_bq.device), window.indices_bw[..., None]
        # Padding sees itself, as a row of attention without any key is not a number.
        mask = (keys >= padding_b[:, None, None]) & (keys <= queries) | (keys == queries)
        return self.model(ids_bq, window.indices_bw - padding_b[:, None], mask[:, None], cache, window)

    def _logits(self, hidden: Tensor) -> Tensor:
        codes = slice(self.ids.code, self.ids.code + self.codebook_size)
        return F.linear(hidden, self.lm_head.weight[codes]).float()

    def _check_codes(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.codebook_size:
            raise ValueError(f"tokens {lowest}..{highest}: codes must be 0..{self.codebook_size - 1}")


def line_index(places: Tensor, width: int) -> Tensor:
    """Index of a place among codes and new lines."""
    return places + places // width


def pick(hidden_bqd: Tensor, places_b: Tensor, count: int, width: int) -> Tensor:
    """Of ids fed from each row's place on, the hidden states that tell the place after each of ``count`` tokens: the
    token's own, or the new line's after the last of a row."""
    after = places_b[:, None] + torch.arange(1, count + 1, device=places_b.device)
    index = line_index(after, width) - 1 - line_index(places_b, width)[:, None]
    return hidden_bqd.gather(1, index[..., None].expand(-1, -1, hidden_bqd.shape[-1]))


def build(config: LuminaConfig) -> Lumina:
    """The model of a configuration, with uninitialised weights on the meta device."""
    with torch.device("meta"):
        return Lumina(config)


def load(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Lumina:
    """See ``hybrid.adapters.load``. ``config.json`` beside the weights counts where no configuration is given, and a
    ``tokenizer.json`` beside them becomes ``text_tokenizer``; 2.0 needs the latter.

    Raises:
        ValueError: no weights, weights that do not fit, a vocabulary whose image codes stand elsewhere.
    """
    if weights is None:
        raise ValueError("lumina: no weights given")
    state, metadata = read_weights(weights)
    source = source_name(weights)
    state = unwrap(state, MARKERS["lumina"], source=source)
    folder = None
    if not isinstance(weights, Mapping):
        folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    fields = find_config(config, metadata, folder, state, source)
    state = plain_norms(state, fields.num_attention_heads, fields.num_key_value_heads)
    model = build(fields)
    fit(model, state, source=source, rename=language_key, ignore=("inv_freq",), dtype=dtype, device=device)
    model.config, model.folder = fields.model_dump(), folder
    if folder is not None and (folder / "tokenizer.json").is_file():
        model.begin = lumina2.begin_name(folder) if model.version == 2 else None
        model.text_tokenizer = read_tokenizer(folder / "tokenizer.json")
    return model.eval()


def language_key(key: str) -> str | None:
    """Drop the image encoder, which transformers' own files hold, and what stands outside the network."""
    keep = key.startswith(("model.", "lm_head.")) and not key.startswith("model.vqmodel.")
    return key if keep else None
