"""The AR phase of several requests in one batch, each at its own place and with its own settings.

A model that keeps slots (``SlotModel``) lets requests join and leave while others go on: a row of the cache is copied.
Of any other model, requests that begin together are drawn together, and no one joins later. This file knows the
protocols; when who joins is for ``hybrid.batching`` to say.
"""

from __future__ import annotations

from functools import reduce
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from hybrid.sampling import guide
from hybrid.types import ARModel, Grid, State

if TYPE_CHECKING:
    from hybrid.tickets import Ticket


class SlotState(State, Protocol):
    """A cache of fixed rows, of which the first ones are in use."""

    def first(self, filled_b: Tensor) -> State:
        """The first rows, as many as ``filled_b`` has, in the same memory; each holds that many tokens."""
        ...

    def copy_row(self, row: int, other: Any, source: int) -> None:
        """Make a row what another one is, of this state or of one that ``prefill`` made."""
        ...


@runtime_checkable
class SlotModel(Protocol):
    """What an ``ARModel`` has beside the protocol where requests may join at any time."""

    def slots(self, rows: int, grid: Grid, capacity: int) -> SlotState:
        """An empty cache for so many rows of ``capacity`` tokens."""
        ...


class Row(NamedTuple):
    """A row of the cache: a picture of a request, as it was asked for or, for guidance, without that."""

    ticket: Ticket
    picture: int
    null: bool


class Lane:
    """Requests of one grid that the AR model writes together.

    Args:
        model: the AR model.
        grid: of its tokens.
        pictures: the most at once.

    Attributes:
        tickets: requests whose prefix is being written.
    """

    def __init__(self, model: ARModel, grid: Grid, pictures: int) -> None:
        self.model, self.grid, self.pictures = model, grid, pictures
        self.tickets: list[Ticket] = []
        self._keeper = model if isinstance(model, SlotModel) else None
        self._slots: SlotState | None = None
        self._state: Any = None
        self._rows: list[Row] = []
        self._room = 0

    @property
    def open(self) -> bool:
        """Whether requests may join."""
        return self._keeper is not None or not self._rows

    def join(self, tickets: list[Ticket]) -> None:
        """Read the conditions of new requests in one pass, and draw their first tokens."""
        rows = [Row(ticket, picture, False) for ticket in tickets for picture in range(ticket.count)]
        rows += [Row(ticket, picture, True) for ticket in tickets if ticket.guided for picture in range(ticket.count)]
        parts = [ticket.ready.ar_asked for ticket in tickets]
        parts += [ticket.ready.ar_null for ticket in tickets if ticket.guided]
        condition = reduce(lambda some, more: some.cat(more), parts)
        if self._keeper is not None:
            # What is copied into a slot needs no room for tokens of its own.
            logits_rk, state = self.model.prefill(condition, 1)
            slots = self._slots_for(self._keeper, len(self._rows) + len(rows))
            for source, row in enumerate(rows):
                slots.copy_row(len(self._rows), state, source)
                self._rows.append(row)
        else:
            logits_rk, self._state = self.model.prefill(condition, max(ticket.ready.length for ticket in tickets))
            self._rows = rows
        self.tickets += tickets
        _draw(tickets, rows, logits_rk)
        self._look()

    def advance(self) -> None:
        """Feed each request its last tokens, and draw the next ones."""
        live = set(self.tickets)
        ahead = self.tickets[0].place - 1  # rows of a request that left a closed lane go along with the others
        places = [row.ticket.place - 1 if row.ticket in live else ahead for row in self._rows]
        first = dict(zip(self.tickets, accumulate((t.count for t in self.tickets), initial=0), strict=False))
        written_p = torch.cat([ticket.tokens_bn[:, ticket.place - 1] for ticket in self.tickets])
        source = [first[row.ticket] + row.picture if row.ticket in live else 0 for row in self._rows]
        fed_r = written_p[torch.tensor(source, device=written_p.device)]
        places_r = torch.tensor(places, device=written_p.device)
        logits_rk = self.model.decode(fed_r[:, None], places_r, self._state)[:, -1]
        _draw(self.tickets, self._rows, logits_rk)

    def past(self, ticket: Ticket) -> State:
        """A request's rows in a cache of their own, with room for the whole grid: its pictures as they were asked for,
        then, where it is guided, without that. Of a model that keeps slots."""
        assert self._keeper is not None and self._slots is not None
        own = sorted((row.null, row.picture, index) for index, row in enumerate(self._rows) if row.ticket is ticket)
        slots = self._keeper.slots(len(own), self.grid, self.grid.places)
        for row, (_, _, index) in enumerate(own):
            slots.copy_row(row, self._slots, index)
        return slots.first(torch.full((len(own),), ticket.place - 1))

    def leave(self, ticket: Ticket) -> None:
        """Free a request's rows; the last rows move into their places."""
        self.tickets.remove(ticket)
        if self._slots is None:
            return
        for index in reversed(range(len(self._rows))):
            if self._rows[index].ticket is ticket:
                last = len(self._rows) - 1
                if index != last:
                    self._slots.copy_row(index, self._slots, last)
                    self._rows[index] = self._rows[last]
                self._rows.pop()
        self._look()

    def _slots_for(self, keeper: SlotModel, rows: int) -> SlotState:
        """The slots, with room for so many rows: at least twice as many as before where there are too few."""
        if self._slots is None or rows > self._room:
            self._room = max(rows, min(2 * self._room, 2 * self.pictures))
            slots = keeper.slots(self._room, self.grid, self.grid.places)
            for row in range(len(self._rows)):
                slots.copy_row(row, self._slots, row)
            self._slots = slots
        return self._slots

    def _look(self) -> None:
        """Take the rows in use as the state that ``decode`` gets."""
        if self._slots is not None:
            self._state = self._slots.first(torch.tensor([max(row.ticket.place - 1, 0) for row in self._rows]))


def _draw(tickets: list[Ticket], rows: list[Row], logits_rk: Tensor) -> None:
    """Draw each request's next tokens from its rows' logits, those of equal sampling together."""
    at = {row: index for index, row in enumerate(rows)}
    pictures = [(ticket, picture) for ticket in tickets for picture in range(ticket.count)]
    device = logits_rk.device
    asked_p = torch.tensor([at[Row(*picture, False)] for picture in pictures], device=device)
    logits_pk = logits_rk[asked_p].float()
    guided = [place for place, (ticket, _) in enumerate(pictures) if ticket.scales[ticket.place] != 1]
    if guided:
        chosen = torch.tensor(guided, device=device)
        null_p = torch.tensor([at[Row(*pictures[place], True)] for place in guided], device=device)
        scales = [pictures[place][0].scales[pictures[place][0].place] for place in guided]
        floors = [pictures[place][0].prefix.guidance.floor for place in guided]
        logits_pk[chosen] = guide(
            logits_pk[chosen],
            logits_rk[null_p],
            torch.tensor(scales, device=device)[:, None],
            torch.tensor(floors, device=device)[:, None] if any(floors) else 0.0,
        )
    noise_p = torch.cat([ticket.ready.noise_bn[:, ticket.place] for ticket in tickets])
    ways: dict[Any, list[int]] = {}
    for place, (ticket, _) in enumerate(pictures):
        way = ticket.prefix
        ways.setdefault((way.temperature, way.top_k, way.top_p), []).append(place)
    tokens_p = torch.empty(len(pictures), dtype=torch.long, device=device)
    sound_p = torch.empty(len(pictures), dtype=torch.bool, device=device)
    for places in ways.values():
        chosen = torch.tensor(places, device=device)
        tokens_p[chosen], sound_p[chosen] = pictures[places[0]][0].prefix.unseen(logits_pk[chosen], noise_p[chosen])
    counts = [ticket.count for ticket in tickets]
    for ticket, tokens_b, sound_b in zip(tickets, tokens_p.split(counts), sound_p.split(counts), strict=True):
        ticket.tokens_bn[:, ticket.place] = tokens_b
        ticket.sound_b &= sound_b
        ticket.place += 1
