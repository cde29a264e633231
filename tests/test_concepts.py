"""Which concepts are asked for, what their names say, and planted copies of training pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tiny_emoji import drawings

from hybrid.benchmarks import memorisation
from hybrid.benchmarks.concepts import SEEDS, aliases, core_of, filled, plan, recombined
from hybrid.data.concepts import STYLES


def test_plan_asks_each_scored_name_four_times_and_a_short_plan_starts_a_long_one() -> None:
    items = drawings()
    places = [place for place, item in enumerate(items) if item["split"] == "train"]
    short, long = plan(items, places, 40, seed=2), plan(items, places, 80, seed=2)
    assert short.distinct.places == long.distinct.places[:40] and len(set(long.distinct.places)) == 80
    assert len(long.scored) == 40 and len(short.scored) == 20 and short.scored == long.scored[:20]
    assert short.ranked == long.ranked == long.scored
    everything = (*long.distinct.places, *long.again.places)
    for group, rows in zip(long.scored, long.rows, strict=True):
        own = [items[everything[row]] for row in rows]
        assert len(rows) == SEEDS == len(set(rows)) and {item["group"] for item in own} == {group}
        assert Counter(item["set"] for item in own) == {"noto": 2, "twemoji": 2}
    item = items[long.distinct.places[0]]
    assert long.distinct.prompts[0] == f"{item['name']}, {STYLES[item['set']]} style"
    assert plan(items, places, 80, seed=3).scored != long.scored
    with pytest.raises(ValueError, match="no picture of this split and these sets to ask for"):
        plan(items, [], 80, seed=0)


def test_names_of_concepts() -> None:
    assert aliases(drawings()[:2]) == {"g0": ["red ball", "red ball again"]}
    assert filled(["a", "b"], ["b", "c", "d"], 3) == ["a", "b", "c"] and filled(["a", "b"], [], 1) == ["a", "b"]
    assert core_of("Green Heart") == "heart" == core_of("heart") and core_of("woman") == "" == core_of("red")
    seen = {"1": ["red heart"], "2": ["man singer"], "3": ["white"]}
    heldout = {"4": ["blue heart"], "5": ["singer"], "6": ["heart with arrow"], "7": ["black"]}
    assert recombined(heldout, seen) == {"4", "5"}


def test_memorisation_by_planted_copies() -> None:
    generator = np.random.default_rng(0)
    train = generator.integers(0, 50, (30, 2, 16)).astype(np.uint16)
    drawn = generator.integers(0, 50, (10, 16)).astype(np.uint16)
    drawn[3] = train[17, 1]
    found = memorisation.nearest_by_tokens(drawn, train)
    assert found.value_n[3] == 1 and found.place_n[3] == 17 and (np.delete(found.value_n, 3) < 0.5).all()
    features = generator.normal(size=(30, 6))
    nearest = memorisation.nearest_by_features(2 * features[[4, 9]], features)
    assert nearest.place_n.tolist() == [4, 9] and nearest.value_n == pytest.approx([1, 1], abs=1e-5)
    real = memorisation.nearest_by_tokens(generator.integers(0, 50, (200, 16)).astype(np.uint16), train)
    assert memorisation.closeness(found, real)["below_first_percentile"] == pytest.approx(0.1)
    assert memorisation.closeness(real, real)["below_first_percentile"] <= 0.01
    pictures = generator.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    page = np.asarray(memorisation.closest_pairs(pictures, pictures[::-1][..., :1], found, count=4))
    left, top, side, gap = memorisation.LABEL, memorisation.GAP, memorisation.SIDE, memorisation.GAP
    one, other = (page[y : y + side, left : left + side][:: side // 8, :: side // 8] for y in (top, top + side + gap))
    assert np.array_equal(one, pictures[3]) and np.array_equal(other[..., 0], pictures[6][..., 0])
