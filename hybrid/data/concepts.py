"""From icon sets to captioned concepts: which drawings count, what each shows, which belong together, who is held out.

Pure functions on iconify's JSON; knows no file and renders nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid.data.names import (
    FLAGS,
    SYMBOLS,
    TONES,
    Emoji,
    Segmenter,
    key,
    natural,
    neutral_code,
    neutral_key,
    normal_code,
    unicode_keys,
)
from hybrid.data.spellings import ANIMALS, EVERYDAY_NAMES, FIREFOX, OTHERS, UNCOUNTED, WORDS

STYLES = {
    "noto": "noto",
    "noto-v1": "classic noto",
    "fluent-emoji-flat": "flat fluent",
    "fluent-emoji": "glossy fluent",
    "fxemoji": "firefox",
    "twemoji": "twitter",
    "emojione": "emojione",
    "streamline-emojis": "streamline",
}
HELDOUT = 0.06

_TONE = re.compile(r"-skin-tone|-tone-?\d|-dark-skin|-light-skin")
_FLUENT_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)(?=-|$)")
_VARIANT = re.compile(r"(?<=[a-z])-\d$")

# A drawing whose name has one of these words is written on, or means something else when mirrored.
UNFLIPPABLE = frozenset(
    """
    left right leftward rightward leftwards rightwards up down arrow arrows north south east west northeast northwest
    southeast southwest flag flags letter letters digit digits number numbers keycap latin ideograph katakana button
    sign symbol mark marks word words badge clock clockwise anticlockwise counterclockwise o'clock thirty watch timer
    stopwatch compass map globe japan calendar date schedule card cards joker mahjong atm teller sos id ok cool free
    new vs ng cl input abc abcd zodiac aries taurus gemini cancer leo virgo libra scorpius scorpio sagittarius
    capricorn aquarius pisces ophiuchus musical music score note notes currency exchange money banknote dollar yen
    euro pound heavy multiplication division plus minus equals question exclamation interrobang hundred points
    hospital hotel bank store school post office stop police taxi ambulance car engine chart newspaper page pages
    document book books ledger notebook scroll memo receipt ticket tickets admission passport name medal trophy
    billiards pool zzz sleep sleeping sleepy snoring om recycling copyright registered trade information regional
    indicator squared circled negative cjk cursing mouth symbols dvd disc disk floppy email mail fax keyboard
    typewriter computer television label price jersey bookmark cinema restroom toilet closet wc shirt end back soon
    top on part alternation infinity tm bus trolleybus minibus locomotive convenience envelope milk bottle box package
    quarter waxing waning sake lantern coin canned salt telephone ruler dna eight ten minidisc videocassette game dice
    die domino slot alphabet blood type steaming customs baggage luggage control wheelchair passing speech balloon
    accept reserved
    """.split()
)


@dataclass(frozen=True)
class Drawing:
    """One picture of one set, before it is drawn.

    box: left, top, width, height of its coordinate system; body: the SVG inside. code is empty where nobody knows it;
    same: other names the set gives the same drawing.
    """

    set: str
    slug: str
    body: str
    box: tuple[float, float, float, float]
    code: str = ""
    category: str = ""
    same: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.set}:{self.slug}"

    @property
    def base(self) -> str:
        """The slug without the number of a variant (`birthday-cake-2`)."""
        return _VARIANT.sub("", self.slug) if self.set == "streamline-emojis" else self.slug

    @property
    def words(self) -> str:
        """The vendor's own name as words, as far as a table or its hyphens tell."""
        if self.set == "fxemoji" and self.slug in FIREFOX:
            return FIREFOX[self.slug]
        words = natural(self.base)
        if self.set == "streamline-emojis" and self.category == "Flags" and "flag" not in words:
            words = f"flag of {words}"
        return OTHERS.get(words, words)


def is_toned(slug: str, codes: Iterable[str], fluent: bool) -> bool:
    """Whether a drawing is a skin-tone variant of another, by its slug or its code."""
    if _TONE.search(slug) or (fluent and _FLUENT_TONE.search(slug)):
        return True
    return any("-" in code and TONES & set(code.split("-")) for code in codes)


def read_set(data: Mapping[str, Any]) -> list[Drawing]:
    """The drawings of one iconify set, in its order, without hidden entries and skin-tone variants."""
    prefix = str(data["prefix"])
    codes: dict[str, list[str]] = defaultdict(list)
    for code, name in data.get("chars", {}).items():
        codes[name].append(normal_code(code))
    same: dict[str, list[str]] = defaultdict(list)
    for name, alias in data.get("aliases", {}).items():
        if not set(alias) & {"hFlip", "vFlip", "rotate"}:
            same[alias["parent"]].append(name)
    categories = {slug: name for name, slugs in data.get("categories", {}).items() for slug in slugs}
    found = []
    for slug, icon in data["icons"].items():
        if icon.get("hidden") or is_toned(slug, codes[slug], prefix.startswith("fluent")):
            continue
        left, top, width, height = (float(icon.get(side, data.get(side, default))) for side, default in _BOX)
        code = min(codes[slug], key=lambda code: (len(code), code), default="")
        others = tuple(name for name in same[slug] if not _TONE.search(name))
        box = (left, top, width, height)
        found.append(Drawing(prefix, slug, icon["body"], box, code, categories.get(slug, ""), others))
    return found


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def find_codes(drawings: Sequence[Drawing], emoji: Mapping[str, Emoji]) -> list[Drawing]:
    """Gives a code to drawings whose set has none, by the names of the sets that have, labels and Unicode's names."""
    known: dict[str, str] = {}
    for drawing in drawings:
        if drawing.code:
            known.setdefault(key(drawing.slug), drawing.code)
    for code, entry in emoji.items():
        known.setdefault(key(entry.label), code)
    for drawing in drawings:
        for name in drawing.same if drawing.code else ():
            known.setdefault(key(name), drawing.code)
    for name, code in unicode_keys(emoji).items():
        known.setdefault(name, code)
    return [drawing if drawing.code else replace(drawing, code=_code_of(drawing, known)) for drawing in drawings]


def _code_of(drawing: Drawing, known: Mapping[str, str]) -> str:
    words = drawing.words
    named = [words] if words != natural(drawing.base) else [drawing.slug, drawing.base, *drawing.same, words]
    return next((known[key(name)] for name in named if key(name) in known), "")


def name_drawings(drawings: Sequence[Drawing], emoji: Mapping[str, Emoji]) -> list[tuple[str, str]]:
    """(name, vendor's own words) of each drawing: the label of its code where known, else the best spelling."""
    spelled: dict[str, str] = {}
    for words in [entry.label for entry in emoji.values()] + [drawing.words for drawing in drawings]:
        if len(words.split()) > len(spelled.get(key(words), "").split()):
            spelled[key(words)] = words
    segmenter = Segmenter(
        [entry.label for entry in emoji.values()] + [d.base for d in drawings if d.set != "fxemoji"], WORDS
    )
    named = []
    for drawing in drawings:
        own = spelled.get(key(drawing.words), drawing.words)
        if drawing.set == "fxemoji" and " " not in own:
            own = segmenter.split(own)
        label = emoji[drawing.code].label if drawing.code in emoji else own
        if not all(segmenter.knows(word) for word in own.split()):
            own = label
        named.append((label, own))
    return named


def group_keys(drawings: Sequence[Drawing]) -> list[str]:
    """One key per drawing; drawings share a key when code, name, alias or identical body link them, whoever acts.

    The key is the smallest of the group's codes (`1f34e`), else the smallest of its names' keys.
    """
    parents: dict[str, str] = {}

    def root(node: str) -> str:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    def links(drawing: Drawing) -> list[str]:
        names = [f"name:{neutral_key(drawing.words)}"]
        names += [f"name:{neutral_key(name)}" for name in drawing.same]
        codes = [f"code:{neutral_code(drawing.code)}"] if drawing.code else []
        return [*codes, *names, "body:" + hashlib.sha1(drawing.body.encode()).hexdigest()]

    linked = [links(drawing) for drawing in drawings]
    for first, *others in linked:
        for other in others:
            parents[root(other)] = root(first)
    members: dict[str, set[str]] = defaultdict(set)
    for nodes in linked:
        members[root(nodes[0])].update(nodes)
    shown = {top: min(nodes, key=_key_order).split(":", 1)[1] for top, nodes in members.items()}
    return [shown[root(nodes[0])] for nodes in linked]


def _key_order(node: str) -> tuple[int, int, str]:
    kind = node.split(":", 1)[0]
    return ("code", "name", "body").index(kind), len(node), node


def split_of(group: str, heldout: float = HELDOUT) -> str:
    """`heldout` for about that share of the groups, by a hash of the key alone, so that no other set changes it."""
    number = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big")
    return "heldout" if number < heldout * 2**64 else "train"


def can_flip(drawing: Drawing, names: Iterable[str], emoji: Emoji | None) -> bool:
    """Whether a mirrored drawing shows the same thing: nothing written, nothing directional, no flag, no symbol."""
    if (
        "<text" in drawing.body
        or drawing.category in ("Symbols", "Flags")
        or (emoji is not None and emoji.group in (SYMBOLS, FLAGS, None))
    ):
        return False
    words = {word for name in (*names, drawing.slug) for word in natural(name).split()}
    return not words & UNFLIPPABLE and not any(letter.isdigit() for word in words for letter in word)


def captions_of(drawing: Drawing, name: str, own: str, emoji: Emoji | None) -> list[str]:
    """What the picture may be called: its name first, then with the style, other words for it, and keywords."""
    found = [name, f"{name}, {STYLES.get(drawing.set, natural(drawing.set))} style"]
    if _wants_article(name, emoji):
        found.append(f"{_article(name)} {name}")
    if own != name:
        found.append(own)
    animal = name.removesuffix(" face")
    found += [animal] if animal in ANIMALS and animal != name else []
    found += [EVERYDAY_NAMES[name]] if name in EVERYDAY_NAMES else []
    keywords = list(emoji.keywords) if emoji is not None else []
    start = int.from_bytes(hashlib.sha256(drawing.id.encode()).digest()[:4], "big")
    for step in range(min(2, len(keywords))):
        found.append(f"{name}, {keywords[(start + step * (len(keywords) // 2 or 1)) % len(keywords)]}")
    return list(dict.fromkeys(found))


def _wants_article(name: str, emoji: Emoji | None) -> bool:
    """Whether `a NAME` is English: things that count, by emojibase's groups (faces, animals, food, places, objects)."""
    if emoji is None or emoji.group not in (0, 3, 4, 5, 6, 7):
        return False
    last = name.split()[-1]
    face = emoji.group != 0 or last in ("face", "heart", "cat", "monkey", "ghost", "skull", "robot", "ogre", "goblin")
    plural = last.endswith("s") and not last.endswith("ss") and last != "bus"
    counted = last not in UNCOUNTED
    return face and counted and not plural and not last.endswith(("ing", "thirty", "o'clock"))


def _article(name: str) -> str:
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "one", "eu", "ewe"))
    return "an" if vowel or name.startswith(("hour", "x ray")) else "a"


# Everyday things, the ones a visitor asks for first in front; `common_words` keeps those that training has seen.
EVERYDAY: tuple[str, ...] = tuple(
    word.strip()
    for word in """red apple, dog, cat, house, car, heart, star, sun, moon, tree, fish, rose,
bird, pizza, banana, strawberry, rocket, airplane, bicycle, sailboat, umbrella, rainbow, snowman, fire, key, bell, book,
camera, guitar, soccer ball, basketball, balloon, crown, diamond, watermelon, lemon, grapes, tomato, mushroom,
hamburger, ice cream, birthday cake, cookie, cup of coffee, penguin, elephant, butterfly, snail, turtle, frog, pig,
lion, tiger, panda, rabbit, horse, owl, octopus, spider, tulip, sunflower, cactus, grinning face, ghost, robot,
skull, eyeglasses, t-shirt, jeans, dress, hammer, scissors, candle, light bulb, television, cloud, mountain, volcano,
carrot, cherries, pineapple, bread, egg, anchor, bus, tractor, helicopter, gift, teddy bear, trophy""".split(",")
)


def common_words(items: Iterable[Mapping[str, Any]], count: int = 48, least_sets: int = 3) -> list[str]:
    """The first `count` everyday captions that at least `least_sets` sets draw in the train split."""
    sets: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item["split"] == "train":
            for caption in item["captions"]:
                sets[caption].add(item["set"])
    return [word for word in EVERYDAY if len(sets[word]) >= least_sets][:count]


def describe(
    sets: Sequence[Mapping[str, Any]], emoji: Mapping[str, Emoji]
) -> tuple[list[Drawing], list[dict[str, Any]]]:
    """Every drawing of the sets with its line of `items.jsonl` (but `index`), in the order of the sets."""
    drawings = find_codes([drawing for data in sets for drawing in read_set(data)], emoji)
    licenses = {str(data["prefix"]): data["info"]["license"].get("spdx", "") for data in sets}
    items: list[dict[str, Any]] = []
    for drawing, (name, own), group in zip(drawings, name_drawings(drawings, emoji), group_keys(drawings), strict=True):
        entry = emoji.get(drawing.code)
        item = {
            "set": drawing.set,
            "slug": drawing.slug,
            "name": name,
            "captions": captions_of(drawing, name, own, entry),
            "group": group,
            "split": split_of(group),
            "license": licenses[drawing.set],
            "flip": can_flip(drawing, (name, own), entry),
        }
        items.append(item | ({"chars": drawing.code} if drawing.code else {}))
    return drawings, items
