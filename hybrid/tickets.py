"""A request on its way through continuous batching, and what a masked pass over several of them sees.

This file knows the protocols; ``hybrid.batching`` says what is done when.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hybrid.phases import Callback, Fill, Sampling, pass_scale, plan_passes, unknown_ahead, unknown_places
from hybrid.prepare import Ready
from hybrid.sampling import guide
from hybrid.types import FROM_AR, MASK, PHASES, Generation, MaskedModel


class Ticket:
    """A request on its way. What the batcher tells is ``result``, ``error`` or ``cancelled``, once it is ``over``.

    Attributes:
        count: pictures.
        stage: ``waiting``, ``prefix``, ``fill``, ``decode``, ``whole`` (drawn in one step) or ``over``.
        place: tokens of the prefix that are written.
        index: masked passes done.
        most: the most pictures, its own among them, that shared a pass with it.
        result: what ``HybridSampler.generate`` would return; seconds are of the passes that the request took part in.
        error: what a model or a setting was wrong about.
    """

    def __init__(
        self, ready: Ready, prefix: Sampling, fill: Fill, callback: Callback | None, decode: bool, tile: int | None
    ) -> None:
        self.ready, self.prefix, self.fill, self.callback = ready, prefix, fill, callback
        self.decode, self.tile = decode, tile
        self.count, self.stage = len(ready.codes_bn), "waiting"
        self.place = self.index = self.waited = self.most = 0
        self.result: Generation | None = None
        self.error: ValueError | None = None
        self.cancelled = False
        self.whole: dict[str, Any] | None = None
        self.seconds, self.passes = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0)
        self.scales = prefix.guidance.along(ready.ar_grid.places, ready.ar_grid.width)[: ready.length]
        self.guided = any(scale != 1 for scale in self.scales)
        self.tokens_bn = ready.noise_bn.new_full((self.count, ready.ar_grid.places), MASK, dtype=torch.long)
        self.codes_bn, self.origin_bn = ready.codes_bn.clone(), torch.full_like(ready.codes_bn, FROM_AR)
        self.plan_bt: list[list[int]] = []
        self.lossy: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.stage == "over"

    def begin_fill(self) -> None:
        """Plan the masked passes; with nothing to write, go on to decoding."""
        unknown_b = (self.codes_bn == MASK).sum(1).tolist()
        self.stage = "fill" if any(unknown_b) else "decode"
        self.plan_bt = plan_passes(self.fill, self.ready.grid.places, unknown_b)

    @property
    def unknown(self) -> int:
        """Places that are still to be written, of the picture that has the most."""
        return unknown_ahead(self.plan_bt, self.index)

    @property
    def scale(self) -> float:
        """Guidance of the next masked pass."""
        return pass_scale(self.fill, self.index)


def guided_logits(masked: MaskedModel, tickets: list[Ticket]) -> list[tuple[Tensor, Tensor]]:
    """Guided logits_bmk of each request at its unknown places_bm, from one pass of the model."""
    tokens_bn = torch.cat([ticket.codes_bn for ticket in tickets])
    places_bm = unknown_places(tokens_bn, max(ticket.unknown for ticket in tickets))
    sizes = [ticket.count for ticket in tickets]
    own_places = places_bm.split(sizes)
    scales = [ticket.scale for ticket in tickets]
    guided = [number for number, scale in enumerate(scales) if scale != 1]
    parts = [ticket.ready.asked for ticket in tickets] + [tickets[number].ready.null for number in guided]
    condition = reduce(lambda some, more: some.cat(more), parts)
    tokens_rn = torch.cat((tokens_bn, *(tickets[number].codes_bn for number in guided)))
    places_rm = torch.cat((places_bm, *(own_places[number] for number in guided)))
    logits = list(masked.logits(tokens_rn, condition, places_rm).split(sizes + [sizes[n] for n in guided]))
    nulls = dict(zip(guided, logits[len(tickets) :], strict=True))
    found = []
    for number, ticket in enumerate(tickets):
        asked, places = logits[number][:, : ticket.unknown], own_places[number][:, : ticket.unknown]
        if number in nulls:
            asked = guide(asked, nulls[number][:, : ticket.unknown], scales[number])
        found.append((asked, places))
    return found
