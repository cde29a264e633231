"""A request on its way through continuous batching, and what a masked pass over several of them sees.

This file knows the protocols; ``hybrid.batching`` says what is done when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hybrid.phases import Callback, Fill, Sampling, pass_scale, plan_passes, unknown_ahead, unknown_places
from hybrid.prepare import Ready
from hybrid.sampling import guide
from hybrid.types import FROM_AR, MASK, PHASES, Generation, Grid, MaskedModel, Phases


class Ticket:
    """A request on its way. What the batcher tells is ``result``, ``error`` or ``cancelled``, once it is ``over``.

    Attributes:
        count: pictures.
        stage: ``waiting``, ``prefix``, ``fill``, ``decode``, ``whole`` (drawn in one step) or ``over``.
        first: the stage after waiting.
        place: tokens of the prefix that are written.
        index: masked passes done.
        most: the most pictures, its own among them, that shared a pass with it.
        waited: tokens that the AR model wrote since the request's last masked pass, or its hand-over.
        past: the cache that the AR phase left, where one network is both models and goes on in it.
        sound_b: whether the AR model's logits have been sound.
        judged: further arguments of ``HybridSampler.draw``, where the request is drawn as a whole.
        result: what ``HybridSampler.generate`` would return; seconds are of the passes that the request took part in,
            without callbacks.
        error: what a model or a setting was wrong about.
    """

    def __init__(
        self,
        ready: Ready,
        prefix: Sampling,
        fill: Fill,
        callback: Callback | None,
        decode: bool,
        tile: int | None,
        judged: Mapping[str, Any],
    ) -> None:
        self.ready, self.prefix, self.fill, self.callback = ready, prefix, fill, callback
        self.decode, self.tile, self.judged = decode, tile, judged
        self.count, self.stage, self.first = len(ready.codes_bn), "waiting", "prefix"
        self.place = self.index = self.waited = self.most = 0
        self.result: Generation | None = None
        self.error: ValueError | None = None
        self.cancelled = False
        self.seconds, self.passes = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0)
        self.scales = prefix.guidance.along(ready.ar_grid.places, ready.ar_grid.width)[: ready.length]
        self.guided = any(scale != 1 for scale in self.scales)
        self.tokens_bn = ready.noise_bn.new_full((self.count, ready.ar_grid.places), MASK, dtype=torch.long)
        self.sound_b = torch.ones(self.count, dtype=torch.bool, device=ready.noise_bn.device)
        self.codes_bn, self.origin_bn = ready.codes_bn.clone(), torch.full_like(ready.codes_bn, FROM_AR)
        self.plan_bt: list[list[int]] = []
        self.past: Any = None
        self.lossy: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.stage == "over"

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of ``HybridSampler.draw``."""
        own = {"prefix": self.prefix, "fill": self.fill, "decode": self.decode, "tile": self.tile}
        return {**own, **self.judged}

    @property
    def decoding(self) -> tuple[bool, bool, Grid, int | None]:
        """What requests that are decoded together agree on: whether at all, by whose tokenizer, grid and tiles."""
        return self.decode, self.ready.only_ar, self.ready.grid, self.tile

    def draws_like(self, other: Ticket) -> bool:
        """Whether both are drawn as a whole, and can be so in one batch."""
        one, two = self.ready, other.ready
        alike = (one.grid, one.ar_grid, one.length) == (two.grid, two.ar_grid, two.length)
        return self.stage == other.stage == "whole" and alike and self.settings == other.settings

    def plan_fill(self) -> str:
        """Plan the masked passes. Returns the stage that comes now: decoding, with nothing to write.

        Raises:
            ValueError: settings that do not fit the places.
        """
        unknown_b = (self.codes_bn == MASK).sum(1).tolist()
        if not any(unknown_b):
            return "decode"
        self.plan_bt = plan_passes(self.fill, self.ready.grid.places, unknown_b)
        pass_scale(self.fill, 0)  # raises where the guidance is of a kind that no masked model has
        return "fill"

    @property
    def known(self) -> int:
        """Tokens from the first on that masked passes do not run over, because their cache is there."""
        return 0 if self.past is None else self.ready.length

    @property
    def shares_passes(self) -> tuple[Grid, int]:
        """What requests whose masked passes are shared agree on."""
        return self.ready.grid, self.known

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
    tokens_bn, known = torch.cat([ticket.codes_bn for ticket in tickets]), tickets[0].known
    places_bm = known + unknown_places(tokens_bn[:, known:], max(ticket.unknown for ticket in tickets))
    sizes = [ticket.count for ticket in tickets]
    own_places = places_bm.split(sizes)
    scales = [ticket.scale for ticket in tickets]
    guided = [number for number, scale in enumerate(scales) if scale != 1]
    parts = [ticket.ready.asked for ticket in tickets] + [tickets[number].ready.null for number in guided]
    condition = reduce(lambda some, more: some.cat(more), parts)
    tokens_rn = torch.cat((tokens_bn, *(tickets[number].codes_bn for number in guided)))
    places_rm = torch.cat((places_bm, *(own_places[number] for number in guided)))
    if known:
        masked = after_pasts(masked, tickets, [tickets[number] for number in guided])
    logits = list(masked.logits(tokens_rn, condition, places_rm).split(sizes + [sizes[n] for n in guided]))
    nulls = dict(zip(guided, logits[len(tickets) :], strict=True))
    found = []
    for number, ticket in enumerate(tickets):
        asked, places = logits[number][:, : ticket.unknown], own_places[number][:, : ticket.unknown]
        if number in nulls:
            asked = guide(
                asked, nulls[number][:, : ticket.unknown], scales[number], ticket.fill.sampling.guidance.floor
            )
        found.append((asked, places))
    return found


def after_pasts(network: Any, tickets: list[Ticket], guided: list[Ticket]) -> MaskedModel:
    """The masked model that reads the prefixes of requests from their caches. Those of several are put into one for a
    pass: rows of all, then the null's rows of those that are guided."""
    ready = tickets[0].ready
    if len(tickets) == 1:  # its cache holds these rows in this order
        return network.after_prefix(tickets[0].past, ready.length)  # type: ignore[no-any-return]
    rows = [(ticket.past, picture) for ticket in tickets for picture in range(ticket.count)]
    rows += [(ticket.past, ticket.count + picture) for ticket in guided for picture in range(ticket.count)]
    slots = network.slots(len(rows), ready.grid, ready.grid.places)
    for row, (past, source) in enumerate(rows):
        slots.copy_row(row, past, source)
    # The AR phase drew the last token of the prefix and did not feed it.
    state = slots.first(torch.full((len(rows),), ready.length - 1))
    return network.after_prefix(state, ready.length)  # type: ignore[no-any-return]


def shares(drawn: Generation, tickets: list[Ticket]) -> list[Generation]:
    """The result of each request, from that of all of them in one batch."""
    counts = [ticket.count for ticket in tickets]
    images = [None] * len(tickets) if drawn.images is None else drawn.images.split(counts)
    parts = zip(tickets, images, drawn.tokens.split(counts), drawn.origin.split(counts), strict=True)
    found = []
    for ticket, image, tokens_bn, origin_bn in parts:
        phases = Phases({**drawn.phases.seconds, "condition": ticket.seconds["condition"]}, drawn.phases.passes)
        found.append(replace(drawn, images=image, tokens=tokens_bn, origin=origin_bn, phases=phases))
    return found
