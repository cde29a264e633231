"""Which concepts an emoji figure asks for: names, vendors, seeds, candidates, and what is new about held-out ones.

Pure functions of a data folder's items; draws nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.data.concepts import STYLES
from hybrid.data.names import PEOPLE, key, natural

SCORED = 500
SEEDS = 4
COLOURS = frozenset(
    "red orange yellow green blue purple violet brown black white grey gray pink cyan teal light dark".split()
)
GENDERS = PEOPLE | frozenset("boy boys girl girls male female child children".split())


@dataclass(frozen=True)
class Asked:
    """Pictures to draw, each with the real picture of the same name and vendor.

    Attributes:
        places: the real pictures.
        prompts: what to ask for, "name, vendor style".
        groups: the concept groups.
    """

    places: tuple[int, ...]
    prompts: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Plan:
    """What is asked for in one split.

    Attributes:
        distinct: pictures of different drawings, for Fréchet and KID. A shorter plan is the start of a longer one.
        again: further seeds of scored names that have fewer drawings than seeds.
        scored: the groups that retrieval scores, ``SEEDS`` pictures of each in ``rows``.
        rows: for each scored group, places in ``distinct`` followed by ``again``.
        ranked: the groups that retrieval ranks, the same however short the plan.
    """

    distinct: Asked
    again: Asked
    scored: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    ranked: tuple[str, ...]


def plan(items: Sequence[Mapping[str, Any]], places: Sequence[int], count: int, seed: int) -> Plan:
    """Choose names and drawings.

    Args:
        items: of the data folder.
        places: pictures that may be asked for: one split, the trained sets.
        count: distinct drawings; fewer where there are not as many.
        seed: of the order of groups and drawings.

    Raises:
        ValueError: no picture to choose from.
    """
    if not len(places):
        raise ValueError("no picture of this split and these sets to ask for")
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = defaultdict(list)
    for place in places:
        members[items[place]["group"]].append(int(place))
    groups = [sorted(members)[index] for index in rng.permutation(len(members))]
    named: dict[str, list[int]] = {}
    for group in groups:
        own = [members[group][index] for index in rng.permutation(len(members[group]))]
        # One name a group, the one that most vendors draw.
        names = Counter(items[place]["name"] for place in own)
        name = min(names, key=lambda entry: (-names[entry], entry))
        named[group] = [place for place in own if items[place]["name"] == name]
    first = [place for group in groups[:SCORED] for place in named[group][:SEEDS]]
    taken = set(first)
    rest = [place for group in groups for place in members[group] if place not in taken]
    chosen = (first + rest)[:count]
    row_of = {place: row for row, place in enumerate(chosen)}
    scored: list[str] = []
    rows: list[tuple[int, ...]] = []
    again: list[int] = []
    for group in groups[:SCORED]:
        own = named[group][:SEEDS]
        if any(place not in row_of for place in own):
            break
        repeats = [own[index % len(own)] for index in range(SEEDS - len(own))]
        scored.append(group)
        rows.append(
            tuple([row_of[place] for place in own] + [len(chosen) + len(again) + i for i in range(len(repeats))])
        )
        again += repeats
    return Plan(_asked(items, chosen), _asked(items, again), tuple(scored), tuple(rows), tuple(groups[:SCORED]))


def _asked(items: Sequence[Mapping[str, Any]], places: Sequence[int]) -> Asked:
    prompts = [f"{items[place]['name']}, {style(items[place])} style" for place in places]
    return Asked(tuple(places), tuple(prompts), tuple(items[place]["group"] for place in places))


def style(item: Mapping[str, Any]) -> str:
    """What captions call a picture's vendor."""
    return STYLES.get(item["set"], natural(item["set"]))


def aliases(items: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """All names of each group: names and captions without a vendor, a keyword or an article."""
    found: dict[str, set[str]] = defaultdict(set)
    for item in items:
        plain = [caption for caption in item["captions"] if "," not in caption]
        names = {caption for caption in plain if caption.split(" ", 1)[0] not in ("a", "an")}
        found[item["group"]] |= names | {item["name"]}
    return {group: sorted(names) for group, names in found.items()}


def filled(scored: Sequence[str], others: Sequence[str], count: int = SCORED) -> list[str]:
    """The groups to rank where there are fewer scored ones than ``count``: those, then others."""
    taken = set(scored)
    return [*scored, *(group for group in others if group not in taken)][: max(count, len(scored))]


def core_of(name: str) -> str:
    """A name's key without colours and genders: ``green heart`` → ``heart``. Empty where nothing else is left."""
    return key(" ".join(word for word in natural(name).split() if word not in COLOURS and word not in GENDERS))


def recombined(heldout: Mapping[str, Sequence[str]], seen: Mapping[str, Sequence[str]]) -> set[str]:
    """Held-out groups of which a colour or gender variant was seen; the others are new nouns.

    Args:
        heldout: names of each held-out group.
        seen: names of each group in training.
    """
    known = {core_of(name) for names in seen.values() for name in names} - {""}
    return {group for group, names in heldout.items() if any(core_of(name) in known for name in names)}
