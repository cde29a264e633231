"""Records of a tiny emoji folder."""

from __future__ import annotations

from typing import Any


def drawings() -> list[dict[str, Any]]:
    """Forty seen groups of two vendors, six held-out ones: a colour variant and five new nouns."""
    records: list[dict[str, Any]] = []
    for number in range(46):
        name = (
            "green ball" if number == 40 else "red ball" if number == 0 else f"{'abcdefgh'[number % 8]}oo{number} toy"
        )
        for vendor in ("noto", "twemoji"):
            captions = [name, f"{name}, {vendor} style", f"a {name}", f"{name} again"]
            split = "train" if number < 40 else "heldout"
            record = {"set": vendor, "name": name, "captions": captions, "group": f"g{number}", "split": split}
            records.append(record)
    return records
