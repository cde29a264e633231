"""Names of emoji: from vendors' slugs and code points to natural words.

Pure functions and tables; knows no file and no picture. A *code* is a lower-case hexadecimal sequence joined by
hyphens without the variation selector FE0F (`1f468-200d-1f680`); a *key* is a name's letters and digits alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TONES = frozenset(f"1f3f{digit}" for digit in "bcdef")
SYMBOLS, FLAGS = 8, 9
"""Emojibase's group numbers."""

# Words and word pairs that labels and slugs spell in their own way.
SPELLINGS = {"oclock": "o'clock", "asterix": "asterisk", "piata": "pinata", "leftwards": "left", "rightwards": "right"}
PHRASES = (("e mail", "email"), ("t shirt", "t-shirt"), ("regional indicator ", "letter "))
SHORT = frozenset(["of", "on", "in", "no", "up", "ok", "at", "by", "to", "a"])
PEOPLE = frozenset("man men woman women person people mr mrs mx adult".split())
_PLURAL_PEOPLE = re.compile(r"^(family|kiss|couple with heart)\b.*\b(man|woman|person|boy|girl|adult|child)\b.*$")
# Code points of one idea that differ only by who does it.
_SAME_CODE = {
    "1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3",
    "1f934": "1fac5", "1f478": "1fac5", "1f936": "1f385", "1f9d1-200d-1f384": "1f385", "1f57a": "1f483",
    "1f46b": "1f46d", "1f46c": "1f46d", "1f9d1-200d-1f91d-200d-1f9d1": "1f46d", "1fac3": "1f930", "1fac4": "1f930",
}  # fmt: skip
_COUPLE, _KISS, _FAMILY = "1f491", "1f48f", "1f46a"
_HUMANS = frozenset(("1f468", "1f469", "1f9d1", "1f466", "1f467", "1f9d2", "1f476"))


@dataclass(frozen=True)
class Emoji:
    """What emojibase and emojilib say of one code."""

    code: str
    label: str
    keywords: tuple[str, ...] = ()
    group: int | None = None


def normal_code(code: str) -> str:
    """Lower case without FE0F: `2764-FE0F` → `2764`."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def key(name: str) -> str:
    """Letters and digits alone: `Red-Apple` → `redapple`."""
    plain = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in plain.lower() if letter.isascii() and letter.isalnum())


def natural(text: str) -> str:
    """A label or slug as plain lower-case words: `flag: Italy` → `flag of italy`, `keycap: 1` → `keycap 1`."""
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = text.replace("’", "'").replace("&", " and ").replace("_", " ").replace("-", " ").replace("#", " hash ")
    text = text.replace("*", " asterisk ") if "keycap" in text else text
    text = re.sub(r"^flag:? (?!in hole)(for |of )?(flag:? (for |of )?)?", "flag of ", text)
    text = re.sub(r"[^a-z0-9' ]+", " ", text)
    words = [SPELLINGS.get(word, word) for word in text.split()]
    text = " ".join(" ".join(words).split())
    for odd, plain in PHRASES:
        text = re.sub(rf"\b{odd}", plain, text)
    return text


def load_emoji(emojibase: Iterable[Mapping[str, Any]], emojilib: Mapping[str, Sequence[str]]) -> dict[str, Emoji]:
    """Every emoji of emojibase's `data.json` by code, with the keywords of both packages (emojibase's first)."""
    more = {normal_code("-".join(f"{ord(char):x}" for char in char_)): words for char_, words in emojilib.items()}
    found: dict[str, Emoji] = {}
    for entry in emojibase:
        code, label = normal_code(entry["hexcode"]), natural(entry["label"])
        words = [natural(word) for word in (*entry.get("tags", ()), *more.get(code, ())[1:])]
        used = set(label.split())
        keywords = tuple(
            dict.fromkeys(w for w in words if len(w) > 2 and w.replace(" ", "").isalpha() and not set(w.split()) & used)
        )
        found[code] = Emoji(code, label, keywords, entry.get("group"))
    return found


def neutral_code(code: str) -> str:
    """The code of a concept, whoever does it: gender signs and skin tones dropped, families and couples as one."""
    parts = [part for part in normal_code(code).split("-") if part not in TONES and part not in ("2640", "2642")]
    joined = re.sub(r"^(200d-)+|(-200d)+$", "", re.sub(r"-200d(-200d)+", "-200d", "-".join(parts)))
    parts = joined.split("-")
    if "1f48b" in parts and "200d" in parts:
        return _KISS
    if "2764" in parts and parts[0] in _HUMANS:
        return _COUPLE
    if sum(part in _HUMANS for part in parts) >= 2 and "1f91d" not in parts and "1f37c" not in parts:
        return _FAMILY
    joined = "-".join("1f9d1" if part in ("1f468", "1f469") else part for part in parts)
    return _SAME_CODE.get(joined, joined) or normal_code(code)


def neutral_key(name: str) -> str:
    """The key of a concept's name without who does it: `woman-running` and `person running` → `running`."""
    words = natural(name)
    crowd = _PLURAL_PEOPLE.match(words)
    if crowd:
        return key(crowd[1])
    kept = [word for word in words.split() if word not in PEOPLE]
    return key(" ".join(kept)) if kept else "person"


class Segmenter:
    """Splits words that a vendor joined (`statueofliberty`) by the words of everybody else's names."""

    def __init__(self, names: Iterable[str], words: Iterable[str] = ()) -> None:
        counts = Counter(word for name in names for word in natural(name).split() if len(word) > 2 or word in SHORT)
        counts.update(words)
        total = sum(counts.values())
        self._cost = {word: math.log(total / count) + 1.0 for word, count in counts.items() if len(word) > 1}

    def knows(self, word: str) -> bool:
        """Whether the word stands in somebody's name."""
        return word in self._cost

    def split(self, joined: str) -> str:
        """The cheapest split; a stretch that no word covers stays together and costs much per letter."""
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, len(joined) + 1):
            choices = []
            for start in range(max(0, end - 24), end):
                word = joined[start:end]
                cost = self._cost.get(word, 12.0 + 6.0 * len(word))
                choices.append((best[start][0] + cost, start))
            best.append(min(choices))
        words: list[str] = []
        end = len(joined)
        while end:
            start = best[end][1]
            words.append(joined[start:end])
            end = start
        return " ".join(reversed(words))


def unicode_keys(codes: Iterable[str]) -> dict[str, str]:
    """Unicode's own character names as keys, for single code points (`blackheartsuit` → `2665`)."""
    found: dict[str, str] = {}
    for code in codes:
        if "-" not in code:
            name = unicodedata.name(chr(int(code, 16)), "")
            if name:
                found.setdefault(key(name), code)
    return found
