"""Continuous batching: requests of different prompts, seeds and settings in the same forward passes.

``Batcher.step`` does one unit of work, for all requests that take part in it: it reads new conditions, writes one AR
token of each prefix, runs one masked pass, or decodes what is finished. A request joins the AR phase while others are
amid theirs, and is handed over as soon as its own prefix is there; masked passes know no past, so that requests at
different passes, of different numbers of passes, share them. Each keeps its own uniforms: a picture is what it would be
alone, up to the arithmetic of the models (see ``hybrid.sampler``). There are no threads here and no clock decides
anything, so that a run can be repeated step by step. Whatever comes after it, what has begun comes to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybrid import tiling
from hybrid.handoff import is_shared
from hybrid.lanes import Lane, SlotModel
from hybrid.phases import Callback, Cancelled, Fill, Sampling, Step, pass_scale, write_pass
from hybrid.prepare import device_of, join, prepare, translate
from hybrid.refine import Refine
from hybrid.sampler import Clock, HybridSampler, settings_of
from hybrid.sampling import require_sound
from hybrid.tickets import Ticket, guided_logits, shares
from hybrid.types import FROM_INPUT, MASK, Generation, Grid, Phases, Prompts
from hybrid.verify import Verify
from hybrid.zipar import ZipAR

PATIENCE = 8
"""AR tokens for which a finished prefix waits, so that others finish and share its masked passes. As many are written
between two turns of the masked model, which last until those are done that began them."""


class Batcher:
    """Draws requests together.

    Args:
        sampler: its models; used by one thread at a time.
        pictures: the most that are drawn at once, from the first token of the prefix to the decoded picture.
        patience: see ``PATIENCE``.

    Of a network that is both models, requests with prefixes of one length share masked passes: each goes on in its own
    part of the AR phase's cache.

    Verification, refinement, ZipAR and approximate reuse draw a request as a whole: when those that began before it are
    done, together with all that began and are drawn in the same way, in one step, in which the others wait. A network
    that is both models draws so, too, where it keeps no slots or where guidance begins with the fill.
    """

    def __init__(self, sampler: HybridSampler, *, pictures: int = 16, patience: int = PATIENCE) -> None:
        if pictures < 1 or patience < 0:
            raise ValueError(f"pictures {pictures}, patience {patience}: must be at least 1 and 0")
        self.sampler, self.pictures, self.patience = sampler, pictures, patience
        lead = sampler.masked if sampler.masked is not None else sampler.ar
        self._device = device_of(lead, sampler.tokenizer)
        self._clock = Clock(self._device)
        self._turn: list[Ticket] = []
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._lanes: list[Lane] = []

    @property
    def waiting(self) -> int:
        """Pictures that have not begun."""
        return sum(ticket.count for ticket in self._waiting)

    @property
    def running(self) -> int:
        """Pictures that have begun."""
        return sum(ticket.count for ticket in self._running)

    @property
    def seconds(self) -> dict[str, float]:
        """What has been spent so far, by phase, each pass counted once; callbacks left out."""
        return dict(self._clock.seconds)

    @torch.inference_mode()
    def submit(
        self,
        prompts: Prompts,
        *,
        seeds: Sequence[int | torch.Generator],
        grid: Grid | None = None,
        ar_fraction: float | None = None,
        ar_tokens: int | None = None,
        prefix: Sampling | None = None,
        fill: Fill | None = None,
        verify: Verify | None = None,
        refine: Refine | None = None,
        zipar: ZipAR | None = None,
        negative: Prompts | None = None,
        tokens: Tensor | None = None,
        keep: Tensor | None = None,
        callback: Callback | None = None,
        decode: bool = True,
        tile: int | None = None,
    ) -> Ticket:
        """Queue a request; the arguments are ``HybridSampler.generate``'s. Nothing is drawn before ``step``.

        Raises:
            ValueError: settings that contradict each other or the models; more pictures than are drawn at once.
        """
        if len(seeds) > self.pictures:
            raise ValueError(f"{len(seeds)} pictures: at most {self.pictures} are drawn at once")
        if tile is not None:
            tiling.check_tile(self.sampler.tokenizer, tile)
        prefix, fill = prefix or Sampling(), fill or Fill()
        before = self._clock.seconds["condition"]
        with self._clock.phase("condition"):
            ready = prepare(
                self.sampler,
                prompts,
                seeds=seeds,
                grid=grid,
                ar_fraction=ar_fraction,
                ar_tokens=ar_tokens,
                fill=fill,
                verify=verify,
                refine=refine,
                negative=negative,
                tokens=tokens,
                keep=keep,
            )
        judged = {"verify": verify, "refine": refine, "zipar": zipar}
        ticket = Ticket(ready, prefix, fill, callback, decode, tile, judged)
        if any(judged.values()) or (not ready.only_ar and (fill.reuse > 1 or self._lacks_cache(ticket))):
            ticket.first = "whole"
        elif not ready.length:
            ticket.first = ticket.plan_fill()
        ticket.seconds["condition"] = self._clock.seconds["condition"] - before
        self._waiting.append(ticket)
        return ticket

    def _hands_over(self, ticket: Ticket) -> bool:
        """Whether the fill goes on in the AR phase's cache."""
        shared = is_shared(self.sampler.ar, self.sampler.masked)
        return shared and ticket.ready.length > 0 and not ticket.ready.only_ar

    def _lacks_cache(self, ticket: Ticket) -> bool:
        """Whether the cache that is to be handed over has no rows for the fill's guidance, or is in no slots."""
        if not self._hands_over(ticket):
            return False
        guided = any(pass_scale(ticket.fill, index) != 1 for index in range(ticket.fill.steps))
        return (guided and not ticket.guided) or not isinstance(self.sampler.ar, SlotModel)

    @torch.inference_mode()
    def cancel(self, ticket: Ticket) -> None:
        """Give a request up and free its places at once. Called between two steps, or by a callback."""
        if not ticket.over:
            ticket.cancelled = True
            self._end(ticket)

    def run(self) -> None:
        """Step until nothing is left."""
        while self._waiting or self._running:
            self.step()

    @torch.inference_mode()
    def step(self) -> list[Ticket]:
        """One unit of work. Returns the requests that ended by it; does nothing where nothing waits or runs."""
        before = list(self._running)
        self._admit()
        before += [ticket for ticket in self._running if ticket not in before]
        fills = self._of("fill")
        new = [ticket for ticket in self._of("prefix") if ticket.place == 0]
        if finished := self._of("decode"):
            self._decode(finished)
        elif before and before[0].stage == "whole":
            self._draw_whole([ticket for ticket in self._running if ticket.draws_like(before[0])])
        elif self._masked_turn(fills):
            self._pass([ticket for ticket in fills if ticket.shares_passes == fills[0].shares_passes])
        elif new and (joined := self._join(new)):
            self._after_token(joined)
        elif self._lanes:
            self._after_token(self._advance())
        return [ticket for ticket in before if ticket.over]

    def _of(self, stage: str) -> list[Ticket]:
        return [ticket for ticket in self._running if ticket.stage == stage]

    def _admit(self) -> None:
        """Begin what waits, first come first served, as far as there is room."""
        while self._waiting and self.running + self._waiting[0].count <= self.pictures:
            ticket = self._waiting.popleft()
            ticket.stage = ticket.first
            self._running.append(ticket)

    def _masked_turn(self, fills: list[Ticket]) -> bool:
        """Whether the next pass is the masked model's. Whoever joins its turn midway prolongs no turn, but may begin
        the next one when the AR model has had its own."""
        self._turn = [ticket for ticket in self._turn if ticket.stage == "fill"]
        waited = any(ticket.waited >= max(self.patience, min(ticket.index, 1)) for ticket in fills)
        if not self._turn and (waited or not self._of("prefix")):
            self._turn = fills
        return bool(self._turn)

    @contextmanager
    def _counted(self, phase: str, tickets: list[Ticket], passes: int = 1) -> Iterator[None]:
        start = self._clock.now()
        yield
        spent, pictures = self._clock.now() - start, sum(ticket.count for ticket in tickets)
        self._clock.seconds[phase] += spent
        for ticket in tickets:
            ticket.seconds[phase] += spent
            ticket.passes[phase] += passes
            ticket.most = max(ticket.most, pictures)

    def _join(self, new: list[Ticket]) -> list[Ticket]:
        """Put new requests of one grid into a lane. Empty where a closed lane must end first."""
        assert self.sampler.ar is not None
        grid = new[0].ready.ar_grid
        lane = next((lane for lane in self._lanes if lane.grid == grid), None)
        if lane is None:
            lane = Lane(self.sampler.ar, grid, self.pictures)
            self._lanes.append(lane)
        if not lane.open:
            return []
        joining = [ticket for ticket in new if ticket.ready.ar_grid == grid]
        with self._counted("prefix", joining):
            lane.join(joining)
        return joining

    def _advance(self) -> list[Ticket]:
        """One more token in the lane that has waited longest."""
        lane = self._lanes.pop(0)
        self._lanes.append(lane)
        tickets = list(lane.tickets)
        with self._counted("prefix", tickets):
            lane.advance()
        return tickets

    def _after_token(self, tickets: list[Ticket]) -> None:
        """Tell of finished rows, and hand over finished prefixes."""
        for waiting in self._of("fill"):
            waiting.waited += 1
        for ticket in tickets:
            grid, length, place = ticket.ready.ar_grid, ticket.ready.length, ticket.place
            if place % grid.width == 0 or place == length:
                try:
                    require_sound(ticket.sound_b)
                except ValueError as error:
                    self._fail(ticket, error)
                self._tell(ticket, "prefix", -(-place // grid.width), -(-length // grid.width), ticket.tokens_bn, grid)
            if place == length and not ticket.over:
                if self._hands_over(ticket):
                    ticket.past = next(lane for lane in self._lanes if ticket in lane.tickets).past(ticket)
                self._leave_lane(ticket)
                self._hand_over(ticket)

    def _hand_over(self, ticket: Ticket) -> None:
        if ticket.ready.only_ar:
            ticket.codes_bn, ticket.stage = ticket.tokens_bn, "decode"
            return
        with self._counted("align", [ticket], passes=0):
            assert self.sampler.alignment is not None
            ticket.codes_bn = translate(self.sampler, ticket.tokens_bn, ticket.ready)
            ticket.lossy = self.sampler.alignment.lossy
        ticket.stage = ticket.plan_fill()

    def _pass(self, tickets: list[Ticket]) -> None:
        """One masked pass, each request at its own."""
        assert self.sampler.masked is not None
        with self._counted("fill", tickets):
            for ticket, (logits_bmk, places_bm) in zip(
                tickets, guided_logits(self.sampler.masked, tickets), strict=True
            ):
                counts_bt = torch.tensor(ticket.plan_bt, device=places_bm.device)
                noise, grid, index = ticket.ready.noise_bt2n, ticket.ready.grid, ticket.index
                try:
                    ticket.codes_bn, chosen_bn = write_pass(
                        ticket.codes_bn, logits_bmk, places_bm, noise, counts_bt, grid, ticket.fill, index
                    )
                except ValueError as error:
                    self._fail(ticket, error)
                    continue
                ticket.index, ticket.waited = index + 1, 0
                ticket.origin_bn = torch.where(chosen_bn, ticket.index, ticket.origin_bn)
        for ticket in tickets:
            steps = ticket.fill.steps
            self._tell(ticket, "fill", ticket.index, steps, ticket.codes_bn, ticket.ready.grid)
            if ticket.index == steps and not ticket.over:
                ticket.stage = "decode"

    def _decode(self, finished: list[Ticket]) -> None:
        """Make the pictures of finished requests that have a grid, a decoder and tiles in common, in one batch."""
        tickets = [ticket for ticket in finished if ticket.decoding == finished[0].decoding]
        if tickets[0].decode:
            own = self.sampler.decoder(only_ar=tickets[0].ready.only_ar)
            with self._counted("decode", tickets):
                codes_bn = torch.cat([ticket.codes_bn for ticket in tickets])
                images = tiling.decode(own, codes_bn, tickets[0].ready.grid, tile=tickets[0].tile).float()
            parts: Sequence[Any] = images.split([ticket.count for ticket in tickets])
        else:
            parts = [None] * len(tickets)
        for ticket, part in zip(tickets, parts, strict=True):
            ready, origin_bn = ticket.ready, ticket.origin_bn
            origin_bn = torch.where(ready.codes_bn != MASK, FROM_INPUT, origin_bn)
            phases = Phases(ticket.seconds, ticket.passes)
            settings = settings_of(ready, ticket.prefix, ticket.fill, tile=ticket.tile)
            ticket.result = Generation(part, ticket.codes_bn, origin_bn, ready.grid, phases, settings, ticket.lossy)
            self._end(ticket)

    def _draw_whole(self, tickets: list[Ticket]) -> None:
        """Draw requests that are drawn alike, in one batch or, where one of them breaks it, each alone."""
        clock, counts = Clock(self._device), [ticket.count for ticket in tickets]

        def tell(step: Step) -> bool:
            with clock.pause():
                for ticket, tokens_bn in zip(tickets, step.tokens_bn.split(counts), strict=True):
                    self._tell(ticket, step.phase, step.index, step.total, tokens_bn, step.grid)
            return not all(ticket.over for ticket in tickets)

        try:
            ready = join([ticket.ready for ticket in tickets])
            drawn = self.sampler.draw(ready, clock, callback=tell, **tickets[0].settings)
        except Cancelled:
            return
        except ValueError as error:
            for ticket in [ticket for ticket in tickets if not ticket.over]:
                if len(tickets) > 1:
                    self._draw_whole([ticket])
                else:
                    self._fail(ticket, error)
            return
        finally:
            for phase, spent in clock.seconds.items():
                self._clock.seconds[phase] += spent
        for ticket, result in zip(tickets, shares(drawn, tickets), strict=True):
            if not ticket.over:
                ticket.result, ticket.most = result, sum(counts)
                self._end(ticket)

    def _tell(self, ticket: Ticket, phase: str, index: int, total: int, tokens_bn: Tensor, grid: Grid) -> None:
        if ticket.over or ticket.callback is None:
            return
        if ticket.callback(Step(phase, index, total, tokens_bn.clone(), grid)) is False:
            self.cancel(ticket)

    def _fail(self, ticket: Ticket, error: ValueError) -> None:
        """End a request by an error of its own."""
        if not ticket.over:
            ticket.error = error
            self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        """Free what a request holds."""
        self._leave_lane(ticket)
        ticket.past = None
        for place in (self._running, self._waiting, self._turn):
            if ticket in place:
                place.remove(ticket)
        ticket.stage = "over"

    def _leave_lane(self, ticket: Ticket) -> None:
        for lane in list(self._lanes):
            if ticket in lane.tickets:
                lane.leave(ticket)
                if not lane.tickets:
                    self._lanes.remove(lane)
