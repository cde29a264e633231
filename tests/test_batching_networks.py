"""Continuous batching of real (tiny) networks: rows of one cache at different places, shared passes, late joiners."""

from __future__ import annotations

from typing import Any

import torch
from pairs import class_pair, one_network, text_pair

from hybrid.batching import Batcher
from hybrid.phases import Fill, Sampling
from hybrid.sampling import Guidance
from hybrid.tickets import Ticket
from hybrid.types import Generation, Grid


def finish(batcher: Batcher, tickets: list[Ticket]) -> list[Generation]:
    batcher.run()
    results = [ticket.result for ticket in tickets]
    assert all(results)
    return [result for result in results if result is not None]


def test_one_network_goes_on_in_its_cache_and_shares_passes_with_prefixes_of_its_length() -> None:
    sampler = one_network().sampler
    guided = Sampling(Guidance(2.0))
    half = Sampling(Guidance(2.0, "interval", 0.0, 0.5))
    requests: list[dict[str, Any]] = [
        {"prompts": [0], "seeds": [1], "ar_tokens": 5, "prefix": guided, "fill": Fill(steps=4, sampling=guided)},
        {"prompts": [1], "seeds": [2], "ar_fraction": 1.0},
        {"prompts": [2, 0], "seeds": [3, 4], "ar_tokens": 5, "prefix": guided, "fill": Fill(steps=6, sampling=half)},
        {"prompts": [1], "seeds": [5], "ar_fraction": 0.0, "fill": Fill(steps=3)},
        {"prompts": [2], "seeds": [6], "ar_tokens": 5, "prefix": guided, "fill": Fill(steps=3)},
        {"prompts": [1], "seeds": [7], "ar_tokens": 5, "fill": Fill(steps=2)},
        {"prompts": [2], "seeds": [8], "ar_tokens": 9, "prefix": guided, "fill": Fill(steps=4, sampling=guided)},
        {"prompts": [2], "seeds": [9], "ar_tokens": 1, "prefix": guided, "fill": Fill(steps=4)},
    ]
    alone = [sampler.generate(**request) for request in requests]
    batcher = Batcher(sampler)
    tickets = [batcher.submit(**request) for request in requests]
    for one, other in zip(finish(batcher, tickets), alone, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.origin, other.origin)
        assert one.phases.passes == other.phases.passes
    assert [ticket.first for ticket in tickets] == ["prefix"] * 3 + ["fill"] + ["prefix"] * 4
    assert not any(ticket.past for ticket in tickets)


def test_one_network_hands_over_whoever_joined_late() -> None:
    sampler = one_network().sampler
    guided = Sampling(Guidance(3.0))
    requests: list[dict[str, Any]] = [
        {"prompts": [number], "seeds": [number], "ar_tokens": 6, "prefix": guided, "fill": Fill(steps=3)}
        for number in range(3)
    ]
    alone = [sampler.generate(**request) for request in requests]
    batcher, tickets = Batcher(sampler), []
    for request in requests:
        tickets.append(batcher.submit(**request))
        batcher.step()
        batcher.step()
    for one, other in zip(finish(batcher, tickets), alone, strict=True):
        assert torch.equal(one.tokens, other.tokens)
    assert [ticket.most for ticket in tickets] == [3, 3, 3]


def test_a_cache_without_rows_for_the_guidance_of_the_fill_is_drawn_as_a_whole() -> None:
    sampler = one_network().sampler
    request: dict[str, Any] = {"prompts": [1], "seeds": [7], "ar_tokens": 5}
    request |= {"fill": Fill(steps=3, sampling=Sampling(Guidance(2.0)))}
    alone = sampler.generate(**request)
    batcher = Batcher(sampler)
    ticket = batcher.submit(**request)
    assert ticket.first == "whole"
    assert torch.equal(finish(batcher, [ticket])[0].tokens, alone.tokens)


def test_real_models_draw_the_same_tokens_in_slots_late_or_guided_or_not() -> None:
    pipe = class_pair()
    sampler = pipe.sampler
    requests: list[dict[str, Any]] = [
        {"prompts": [0], "seeds": [1], "ar_tokens": 6, "prefix": Sampling(Guidance(3.0))},
        {
            "prompts": [1, 2],
            "seeds": [2, 3],
            "ar_tokens": 9,
            "prefix": Sampling(temperature=0.7),
            "fill": Fill(steps=4),
        },
        {"prompts": [2], "seeds": [4], "ar_tokens": 2, "fill": Fill(steps=3, sampling=Sampling(Guidance(2.0)))},
        {
            "prompts": [2],
            "seeds": [5],
            "grid": Grid(2, 6),
            "ar_tokens": 7,
            "prefix": Sampling(Guidance(2.0)),
            "fill": Fill(steps=3),
        },
        {"prompts": [1], "seeds": [6], "ar_fraction": 1.0, "prefix": Sampling(Guidance(2.0), top_k=3)},
    ]
    alone = [sampler.generate(**request) for request in requests]
    batcher, tickets = Batcher(sampler, pictures=4), []
    for request in requests:
        tickets.append(batcher.submit(**request))
        batcher.step()
    for one, other in zip(finish(batcher, tickets), alone, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.origin, other.origin)
        assert torch.allclose(one.images, other.images, atol=1e-5)


def test_captions_of_different_lengths_share_a_batch() -> None:
    pipe = text_pair()
    captions = ["a red apple", "dog", "an unusually long caption of a very small house on a hill"]
    way = Sampling(Guidance(3.0))
    encoded = [pipe.encode([caption]) for caption in captions]
    options: dict[str, Any] = {"ar_tokens": 8, "prefix": way, "fill": Fill(steps=3, sampling=way)}
    alone = [pipe.sampler.generate(entry, seeds=[n], **options) for n, entry in enumerate(encoded)]
    batcher, tickets = Batcher(pipe.sampler), []
    for n, entry in enumerate(encoded):
        tickets.append(batcher.submit(entry, seeds=[n], **options))
        batcher.step()
    for one, other in zip(finish(batcher, tickets), alone, strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_logits_of_rows_at_different_places_are_those_of_rows_alone() -> None:
    model = class_pair().ar
    grid = Grid(4, 4)
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    with torch.inference_mode():
        expected = [model.score(tokens[row : row + 1], model.condition([row], grid)) for row in (0, 1)]
        state = model.slots(4, grid, 16)
        for row in (0, 1):
            _, one = model.prefill(model.condition([row], grid), 4)
            if row == 0:
                model.decode(tokens[:1, :2], torch.tensor([0]), one)
            state.copy_row(row, one, 0)
        both = state.first(torch.tensor([2, 0]))
        found = model.decode(torch.tensor([[4], [5]]), torch.tensor([2, 0]), both)
    torch.testing.assert_close(found[0, 0], expected[0][0, 3], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1, 0], expected[1][0, 1], atol=1e-4, rtol=0)
