"""The data part on hand-made icon sets and idx files: no network, no real package."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.data import concepts, names
from hybrid.data import emoji as emoji_module
from hybrid.data.emoji import SIZE, as_licensed, attribution, build_emoji, place, svg
from hybrid.data.folder import DataError
from hybrid.data.names import Segmenter, key, load_emoji, natural, neutral_code, neutral_key

Sets = list[dict[str, Any]]
Emoji = Mapping[str, names.Emoji]

needs_resvg = pytest.mark.skipif(importlib.util.find_spec("resvg_py") is None, reason="resvg_py draws the SVGs")

RED = '<circle cx="8" cy="8" r="6" fill="#e02020"/>'
HALF = '<path d="M2 2h4v12h-4z" fill="#2040e0"/><path d="M6 2h8v12h-8z" fill="#e0c020"/>'
LABELS: list[dict[str, Any]] = [
    {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit", "red"], "group": 4},
    {"hexcode": "1F3C3", "label": "person running", "tags": ["marathon"], "group": 1},
    {"hexcode": "1F3C3-200D-2640-FE0F", "label": "woman running", "tags": ["marathon"], "group": 1},
    {"hexcode": "1F3C3-200D-2642-FE0F", "label": "man running", "tags": ["marathon"], "group": 1},
    {"hexcode": "1F1EE-1F1F9", "label": "flag: Italy", "tags": ["IT"], "group": 9},
    {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love", "emotion"], "group": 0},
    {"hexcode": "1F431", "label": "cat face", "tags": ["pet"], "group": 3},
]
KEYWORDS = {"🍎": ["red_apple", "school", "red apple"], "🐱": ["cat_face", "meow"]}


def icon_set(prefix: str, icons: Mapping[str, Any], spdx: str = "MIT", **more: Any) -> dict[str, Any]:
    info = {
        "name": prefix.title(),
        "author": {"name": "Somebody", "url": "https://example.org/somebody"},
        "license": {"title": spdx, "spdx": spdx, "url": "https://example.org/license"},
    }
    ready = {slug: icon if isinstance(icon, dict) else {"body": icon} for slug, icon in icons.items()}
    return {"prefix": prefix, "info": info, "width": 16, "height": 16, "icons": ready, **more}


@pytest.fixture
def emoji() -> dict[str, names.Emoji]:
    return load_emoji(LABELS, KEYWORDS)


@pytest.fixture
def sets() -> list[dict[str, Any]]:
    noto = icon_set(
        "noto",
        {
            "red-apple": RED,
            "woman-running": HALF,
            "man-running": HALF + RED,
            "italy": {"body": RED + RED, "hidden": True},
            "man-running-dark-skin-tone": RED + HALF,
            "flag-italy": HALF + HALF,
            "thing": RED * 5,
        },
        aliases={"gizmo": {"parent": "thing"}, "mirrored": {"parent": "thing", "hFlip": True}},
        chars={"1f34e": "red-apple", "1f3c3-200d-2640": "woman-running", "1f3c3-200d-2642": "man-running"},
    )
    firefox = icon_set(
        "fxemoji",
        {"redapple": RED * 2, "running": RED * 3, "italianflag": RED * 4, "gizmo": HALF * 3, "cat": HALF * 4},
    )
    streamline = icon_set(
        "streamline-emojis",
        {"red-apple-2": HALF * 5, "italy": HALF * 6, "same-drawing": RED * 5},
        "CC-BY-4.0",
        categories={"Flags": ["italy"]},
    )
    return [noto, firefox, streamline]


def by_id(sets: Sets, emoji: Emoji) -> dict[str, dict[str, Any]]:
    drawings, items = concepts.describe(sets, emoji)
    return {drawing.id: item for drawing, item in zip(drawings, items, strict=True)}


def test_hidden_and_toned_drawings_are_left_out(sets: Sets, emoji: Emoji) -> None:
    found = by_id(sets, emoji)
    assert "noto:italy" not in found and "noto:man-running-dark-skin-tone" not in found
    assert len(found) == 13
    assert concepts.is_toned("artist-medium-light", (), fluent=True)
    assert not concepts.is_toned("artist-medium-light", (), fluent=False)
    assert concepts.is_toned("waving", ("1f44b-1f3fd",), fluent=False)
    assert not concepts.is_toned("brown-swatch", ("1f3fd",), fluent=False)


def test_groups_merge_code_name_alias_gender_and_identical_bodies(sets: Sets, emoji: Emoji) -> None:
    found = by_id(sets, emoji)

    def groups(*ids: str) -> set[str]:
        return {found[one]["group"] for one in ids}

    assert groups("noto:red-apple", "fxemoji:redapple", "streamline-emojis:red-apple-2") == {"1f34e"}
    assert groups("noto:woman-running", "noto:man-running", "fxemoji:running") == {"1f3c3"}
    assert groups("noto:flag-italy", "fxemoji:italianflag", "streamline-emojis:italy") == {"1f1ee-1f1f9"}
    assert groups("noto:thing", "fxemoji:gizmo", "streamline-emojis:same-drawing") == {"gizmo"}
    assert len(groups(*found)) == 5


def test_a_group_stands_on_one_side_of_the_split(sets: Sets, emoji: Emoji) -> None:
    sides: dict[str, set[str]] = {}
    for item in by_id(sets, emoji).values():
        sides.setdefault(item["group"], set()).add(item["split"])
    assert all(len(side) == 1 for side in sides.values())
    share = np.mean([concepts.split_of(f"group {n}") == "heldout" for n in range(5000)])
    assert 0.05 < share < 0.07


def test_captions_are_names_with_style_article_and_keywords(sets: Sets, emoji: Emoji) -> None:
    found = by_id(sets, emoji)
    assert found["fxemoji:redapple"]["captions"][:3] == ["red apple", "red apple, firefox style", "a red apple"]
    assert set(found["fxemoji:redapple"]["captions"][3:]) == {"red apple, fruit", "red apple, school"}
    assert found["noto:flag-italy"]["captions"][0] == "flag of italy"
    assert {"cat face", "cat", "a cat face"} <= set(found["fxemoji:cat"]["captions"])
    every = [caption for item in found.values() for caption in item["captions"]]
    assert not {"fruit", "school", "marathon", "love", "pet", "meow"} & set(every)
    assert all(caption == caption.lower() for caption in every)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("flag: Italy", "flag of italy"),
        ("flag-for-flag-slovenia", "flag of slovenia"),
        ("Japanese “here” button", "japanese here button"),
        ("keycap: *", "keycap asterisk"),
        ("woman: red hair", "woman red hair"),
        ("piñata", "pinata"),
        ("regional indicator A", "letter a"),
        ("T-shirt", "t-shirt"),
        ("two-oclock", "two o'clock"),
        ("flagstone", "flagstone"),
    ],
)
def test_natural_words(label: str, words: str) -> None:
    assert natural(label) == words


@pytest.mark.parametrize(
    ("code", "neutral"),
    [
        ("1F468-200D-1F680", "1f9d1-200d-1f680"),
        ("1f3c3-200d-2640-fe0f", "1f3c3"),
        ("1f468-200d-1f469-200d-1f467", "1f46a"),
        ("1f469-200d-2764-fe0f-200d-1f48b-200d-1f468", "1f48f"),
        ("1f469-200d-2764-fe0f-200d-1f468", "1f491"),
        ("1f468-200d-2695-fe0f", "1f9d1-200d-2695"),
        ("2764-fe0f-200d-1f525", "2764-200d-1f525"),
        ("1f467", "1f9d2"),
    ],
)
def test_neutral_code(code: str, neutral: str) -> None:
    assert neutral_code(code) == neutral


def test_neutral_key_and_key() -> None:
    assert neutral_key("woman-running") == neutral_key("men running") == neutral_key("person-running") == "running"
    assert neutral_key("woman") == neutral_key("man") == "person"
    assert neutral_key("family-man-woman-boy") == neutral_key("family") == "family"
    assert neutral_key("mans-shoe") == "mansshoe"
    assert key("Red-Apple") == key("redapple") == "redapple"


def test_segmenter_splits_by_other_peoples_words() -> None:
    segmenter = Segmenter(["statue of liberty", "honey pot", "pot of food"])
    assert segmenter.split("statueofliberty") == "statue of liberty"
    assert segmenter.split("potofhoney") == "pot of honey"
    assert segmenter.knows("liberty") and not segmenter.knows("xyzzy")
    assert segmenter.split("xyzzy") == "xyzzy"


@pytest.mark.parametrize(
    ("slug", "group", "flips"),
    [
        ("red-apple", 4, True),
        ("flag-italy", 9, False),
        ("letter-a", 4, False),
        ("digit-two", 4, False),
        ("keycap-7", 8, False),
        ("two-oclock", 5, False),
        ("right-arrow", 4, False),
        ("magnifying-glass-tilted-left", 7, False),
        ("stop-sign", 5, False),
        ("ok-button", 4, False),
        ("wrapped-gift", 6, True),
    ],
)
def test_what_may_be_mirrored(slug: str, group: int, flips: bool) -> None:
    drawing = concepts.Drawing("noto", slug, RED, (0, 0, 16, 16))
    entry = names.Emoji("0", natural(slug), (), group)
    assert concepts.can_flip(drawing, (natural(slug),), entry) is flips


def test_text_symbols_and_flags_are_never_mirrored() -> None:
    drawing = concepts.Drawing("noto", "thing", "<text>A</text>", (0, 0, 16, 16))
    assert not concepts.can_flip(drawing, ("thing",), None)
    assert not concepts.can_flip(
        concepts.Drawing("x", "thing", RED, (0, 0, 1, 1), category="Symbols"), ("thing",), None
    )


def test_common_words_need_three_sets_in_training() -> None:
    def item(set_: str, caption: str, split: str = "train") -> dict[str, Any]:
        return {"set": set_, "captions": [caption], "split": split}

    items = (
        [item(s, "dog") for s in "abc"] + [item(s, "cat") for s in "ab"] + [item(s, "house", "heldout") for s in "abc"]
    )
    assert concepts.common_words(items) == ["dog"]


def test_placement_keeps_the_drawing_inside_and_centres_the_plain_view() -> None:
    box, ink = (0.0, 0.0, 16.0, 16.0), (2.0, 4.0, 12.0, 6.0)
    plain = place(ink, box, 0, True, [0.9, 0.9, 0.9, 0.0])
    assert plain.scale == pytest.approx(60 * 1.2 / 16) and not plain.flip
    assert plain.shift_x + (2 + 6) * plain.scale == pytest.approx(SIZE / 2)
    for corner in np.ndindex(2, 2, 2, 2):
        uniforms = [0.999 * number for number in corner]
        placed = place(ink, box, 3, True, uniforms)
        ends = [placed.shift_x + x * (-1 if placed.flip else 1) * placed.scale for x in (2, 14)]
        ends += [placed.shift_y + y * placed.scale for y in (4, 10)]
        assert min(ends) >= -1e-6 and max(ends) <= SIZE + 1e-6
        assert placed.flip is (uniforms[3] < 0.5)
        assert not place(ink, box, 3, False, uniforms).flip


def pack(folder: Path, file: str, members: Mapping[str, Any]) -> None:
    with tarfile.open(folder / file, "w:gz") as tar:
        for name, value in members.items():
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path: Path, sets: Sets, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three archives with the hand-made sets in place of the eight real ones."""
    folder = tmp_path / "packages"
    folder.mkdir()
    sets[2]["icons"]["empty"] = {"body": '<path d="M0 0"/>'}
    sets[0]["icons"]["tall"] = {"body": '<path d="M0 0h4v32h-4z"/>', "height": 32}
    monkeypatch.setattr(emoji_module, "SETS", tuple(one["prefix"] for one in sets))
    pack(folder, emoji_module.ICONS.file, {f"json/{one['prefix']}.json": one for one in sets})
    pack(folder, emoji_module.LABELS.file, {emoji_module.LABELS_FILE: LABELS})
    pack(folder, emoji_module.KEYWORDS.file, {emoji_module.KEYWORDS_FILE: KEYWORDS})
    return folder


@needs_resvg
def test_emoji_end_to_end(packages: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = build_emoji(tmp_path / "a", sources=packages, views=4, seed=3, progress=lambda *at: calls.append(at))
    assert data.images.shape == (14, 4, SIZE, SIZE, 3) and data.images.dtype == np.uint8
    assert calls[-1] == (15, 15)
    assert data.meta["empty"] == ["streamline-emojis:empty"]
    assert [item["index"] for item in data.items] == list(range(14))
    assert {"set", "name", "captions", "group", "split", "license", "flip"} <= set(data.items[0])
    assert data.meta["sets"] == {"noto": 6, "fxemoji": 5, "streamline-emojis": 3}
    assert data.meta["packages"]["emojilib"] == emoji_module.KEYWORDS.version and len(data.meta["inputs"]) == 3
    apple = data.images[0, 0]
    assert tuple(apple[32, 32]) == (0xE0, 0x20, 0x20) and (apple[:2] == 255).all() and (apple[:, -2:] == 255).all()
    assert "CC-BY-4.0" in (tmp_path / "a" / "LICENSES.md").read_text(encoding="utf-8")

    again = build_emoji(tmp_path / "b", sources=packages, views=4, seed=3)
    assert np.array_equal(data.images, again.images) and data.items == again.items
    other = build_emoji(tmp_path / "b", sources=packages, views=4, seed=4)
    assert np.array_equal(data.images[:, 0], other.images[:, 0])
    assert not np.array_equal(data.images[:, 1:], other.images[:, 1:])


@needs_resvg
def test_a_view_depends_on_seed_drawing_and_view_alone() -> None:
    drawing = concepts.Drawing("noto", "thing", HALF, (0, 0, 16, 16))
    eight = emoji_module.draw_views(drawing, 8, True, 0)
    three = emoji_module.draw_views(drawing, 3, True, 0)
    assert eight is not None and three is not None and np.array_equal(eight[:3], three)
    blue_left = [
        view[:, : SIZE // 2, 2].astype(int).mean() > view[:, SIZE // 2 :, 2].astype(int).mean() for view in eight
    ]
    assert len(set(blue_left)) == 2, "some of eight views are mirrored, some are not"


@needs_resvg
def test_rendering_covers_what_the_placement_says() -> None:
    plain = emoji_module.render(svg('<rect width="8" height="8"/>', emoji_module.Placement(4.0, 10.0, 20.0)))
    rows, columns = np.nonzero(plain[..., 3])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 51, 10, 41)


@needs_resvg
def test_a_killed_build_leaves_nothing(packages: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_emoji(tmp_path / "out" / "emoji", sources=packages, views=1, progress=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_renderer_names_the_remedy(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DataError, match=r"resvg_py is not installed; install it with: pip install"):
        build_emoji(tmp_path / "out", sources=packages)


def test_attribution_names_author_licence_and_what_cc_by_asks() -> None:
    infos = [
        icon_set("one", {})["info"] | {"prefix": "one"},
        icon_set("two", {}, "CC-BY-4.0")["info"] | {"prefix": "two"},
    ]
    text = attribution(infos)
    assert text.count("- Author: Somebody, https://example.org/somebody") == 2
    assert text.count("- Attribution:") == 1 and "“Two” by Somebody" in text


def test_shipped_attribution_covers_every_set() -> None:
    text = (Path(concepts.__file__).parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"(`{name}`)" in text for name in concepts.STYLES) and "Fashion-MNIST" in text
    assert text.count("- Attribution:") == 4


def test_artwork_has_its_own_licence_where_the_code_has_another() -> None:
    packed = icon_set("fxemoji", {}, "Apache-2.0")
    data = as_licensed("fxemoji", packed)
    assert data["info"]["license"]["spdx"] == "CC-BY-4.0" and packed["info"]["license"]["spdx"] == "Apache-2.0"
    assert "- Attribution: “Fxemoji” by Somebody" in attribution([data["info"] | {"prefix": "fxemoji"}])
    other = icon_set("noto", {}, "Apache-2.0")
    assert as_licensed("noto", other) == other
