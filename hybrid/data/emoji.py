"""The emoji set: eight permissive icon sets of iconify, drawn at 64×64 on white in several views, with captions.

Knows which packages are read and how a drawing is put on its canvas; names, groups and captions come from
`concepts`. Only `render` loads resvg.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.data import concepts
from hybrid.data.folder import DataError, DataFolder, Item, MappedImages, create_images, new_folder, write_records
from hybrid.data.names import load_emoji
from hybrid.data.sources import Package, npm_archive, read_members, sha256

ICONS = Package("@iconify/json", "2.2.535")
LABELS = Package("emojibase-data", "17.0.0")
KEYWORDS = Package("emojilib", "4.0.3")
LABELS_FILE, KEYWORDS_FILE = "en/data.json", "dist/emoji-en-US.json"
SETS = tuple(concepts.STYLES)
ARTWORK = {
    "fxemoji": {
        "title": "CC BY 4.0",
        "spdx": "CC-BY-4.0",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    }
}
"""Licences of drawings where Iconify names that of the code: mozilla/fxemoji's LICENSE.md has one of each."""

SIZE = 64
MARGIN = 2.0
"""Pixels left free on each side of the plain view."""
LARGEST_GROWTH = 1.2
"""A drawing with much empty space around it grows at most this much, so that a small square stays small."""
SMALLEST_VIEW = 0.82
LARGEST_SHIFT = 8.0
"""Pixels a view's middle may lie off the canvas's, so that flat drawings do not wander from edge to edge."""

Box = tuple[float, float, float, float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Placement:
    """A drawing's coordinates on the canvas: x·scale + shift, mirrored about the middle of its own ink if asked."""

    scale: float
    shift_x: float
    shift_y: float
    flip: bool = False


def svg(body: str, placement: Placement) -> str:
    """The drawing on a canvas of 64×64 units; the body keeps its own coordinates inside one group."""
    scale_x = -placement.scale if placement.flip else placement.scale
    matrix = f"{scale_x:.6f} 0 0 {placement.scale:.6f} {placement.shift_x:.4f} {placement.shift_y:.4f}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="0 0 {SIZE} {SIZE}"><g transform="matrix({matrix})">{body}</g></svg>'
    )


def render(text: str) -> NDArray[np.uint8]:
    """An SVG's own pixels, RGBA uint8 (height, width, 4)."""
    import resvg_py
    from PIL import Image

    data = resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA over a white canvas, RGB uint8."""
    alpha = pixels[..., 3:].astype(np.float32) / 255.0
    return np.round(pixels[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)


def ink_box(body: str, box: Box) -> Box | None:
    """Left, top, width, height of what is painted, in the drawing's coordinates; None if nothing shows on white."""
    left, top, width, height = box
    scale = SIZE / max(width, height)
    pixels = render(svg(body, Placement(scale, -left * scale, -top * scale)))
    if on_white(pixels).min() > 247:
        return None
    alpha = pixels[..., 3] > 8
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    x, y = columns[0] / scale + left, rows[0] / scale + top
    return float(x), float(y), (columns[-1] + 1 - columns[0]) / scale, (rows[-1] + 1 - rows[0]) / scale


def place(ink: Box, box: Box, view: int, flip: bool, uniforms: Sequence[float]) -> Placement:
    """Where a view puts the drawing: view 0 in the middle, others shrunk, shifted inside the canvas, maybe mirrored.

    uniforms: four numbers in [0, 1) for size, x, y and mirroring, unused by view 0.
    """
    x, y, width, height = ink
    scale = min((SIZE - 2 * MARGIN) / max(width, height), LARGEST_GROWTH * (SIZE - 2 * MARGIN) / max(box[2:]))
    at_x, at_y, mirrored = 0.5, 0.5, False
    if view:
        scale *= SMALLEST_VIEW + (1.0 - SMALLEST_VIEW) * uniforms[0]
        at_x, at_y, mirrored = uniforms[1], uniforms[2], flip and uniforms[3] < 0.5
    left, top = (_shifted(SIZE - length * scale, at) for length, at in ((width, at_x), (height, at_y)))
    shift_x = left + (x + width) * scale if mirrored else left - x * scale
    return Placement(scale, shift_x, top - y * scale, mirrored)


def _shifted(room: float, at: float) -> float:
    return room / 2 + (2 * at - 1) * min(room / 2, LARGEST_SHIFT)


def draw_views(drawing: concepts.Drawing, views: int, flip: bool, seed: int) -> NDArray[np.uint8] | None:
    """All views of a drawing, uint8 (views, 64, 64, 3), the same for the same (seed, drawing, view) always."""
    ink = ink_box(drawing.body, drawing.box)
    if ink is None:
        return None
    identity = int.from_bytes(hashlib.sha256(drawing.id.encode()).digest()[:8], "big")
    pictures = np.empty((views, SIZE, SIZE, 3), dtype=np.uint8)
    for view in range(views):
        uniforms = np.random.default_rng([seed, identity, view]).random(4)
        placement = place(ink, drawing.box, view, flip, [float(number) for number in uniforms])
        pictures[view] = on_white(render(svg(drawing.body, placement)))
    return pictures


def build_emoji(
    out: str | Path,
    *,
    sources: Path | None = None,
    views: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataFolder:
    """Builds the folder from the three npm packages; uint8 (pictures, views, 64, 64, 3).

    sources: a folder with the packages' archives; None lets npm fetch them into the cache. progress is called with
    (pictures done, pictures in all). Drawings that show nothing on white are left out and listed in `meta.json`.
    """
    if views < 1:
        raise DataError(f"views must be at least 1, got {views}")
    if seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}")
    _require_renderer()
    archives = {package: npm_archive(package, sources) for package in (ICONS, LABELS, KEYWORDS)}
    members = read_members(archives[ICONS], [f"json/{name}.json" for name in SETS])
    sets = {name: as_licensed(name, members[f"json/{name}.json"]) for name in SETS}
    emoji = load_emoji(
        read_members(archives[LABELS], [LABELS_FILE])[LABELS_FILE],
        read_members(archives[KEYWORDS], [KEYWORDS_FILE])[KEYWORDS_FILE],
    )
    drawings, items = concepts.describe(list(sets.values()), emoji)
    with new_folder(out) as work:
        images = create_images(work, (len(drawings), views, SIZE, SIZE, 3))
        kept: list[Item] = []
        empty: list[str] = []
        for done, (drawing, item) in enumerate(zip(drawings, items, strict=True), 1):
            pictures = draw_views(drawing, views, item["flip"], seed)
            if pictures is None:
                empty.append(drawing.id)
            else:
                images[len(kept)] = pictures
                kept.append({"index": len(kept), **item})
            if progress is not None and (done % 50 == 0 or done == len(drawings)):
                progress(done, len(drawings))
        images.flush()
        if empty:
            images = _shorten(work, images, len(kept))
        meta = _meta(kept, views, seed, empty)
        meta["packages"] = {package.name: package.version for package in archives}
        meta["inputs"] = {file.name: sha256(file) for file in archives.values()}
        write_records(work, kept, meta, attribution([sets[name]["info"] | {"prefix": name} for name in SETS]))
        del images
    return DataFolder.open(out)


def as_licensed(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """An icon set with its artwork's licence, where Iconify names that of the code."""
    if name not in ARTWORK:
        return data
    return data | {"info": data["info"] | {"license": ARTWORK[name]}}


def attribution(infos: Sequence[Mapping[str, Any]]) -> str:
    """LICENSES.md: author, licence and source of every set, with the line that CC-BY asks for."""
    lines = [
        "# Licences of the pictures",
        "",
        f"The emoji come from icon sets as packed by Iconify ({ICONS.name} {ICONS.version}, the packing itself MIT).",
        "They were rasterised at 64×64 on white, and shifted, scaled and mirrored in part of the copies; nothing else",
        f"was changed. Captions use {LABELS.name} {LABELS.version} and {KEYWORDS.name} {KEYWORDS.version} (both MIT).",
    ]
    for info in infos:
        author, license_ = info["author"], info["license"]
        home, terms = author.get("url", "no address given"), license_.get("url", "no address given")
        lines += [
            "",
            f"## {info['name']} (`{info['prefix']}`)",
            "",
            f"- Author: {author['name']}, {home}",
            f"- Licence: {license_['title']} (SPDX `{license_.get('spdx', 'none given')}`), {terms}",
        ]
        if str(license_.get("spdx", "")).startswith("CC-BY"):
            lines.append(
                f"- Attribution: “{info['name']}” by {author['name']} ({home}), licensed under {license_['title']} "
                f"({terms}); changed by rasterising, shifting, scaling and mirroring."
            )
    return "\n".join(lines) + "\n"


def _require_renderer() -> None:
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DataError("resvg_py is not installed; install it with: pip install 'hybrid-imagegen[data]'") from error


def _shorten(work: Path, images: MappedImages, count: int) -> MappedImages:
    """The same file with `count` pictures; written anew beside it, since the header holds the shape."""
    part = work / "part"
    part.mkdir()
    shorter = create_images(part, (count, *images.shape[1:]))
    for start in range(0, count, 256):
        shorter[start : min(start + 256, count)] = images[start : min(start + 256, count)]
    shorter.flush()
    (part / "images.npy").replace(work / "images.npy")
    part.rmdir()
    return shorter


def _meta(items: Sequence[Item], views: int, seed: int, empty: Sequence[str]) -> dict[str, Any]:
    groups = {item["group"]: item["split"] for item in items}
    return {
        "name": "emoji",
        "size": [SIZE, SIZE],
        "channels": 3,
        "views": views,
        "seed": seed,
        "pictures": len(items),
        "splits": dict(Counter(item["split"] for item in items)),
        "sets": dict(Counter(item["set"] for item in items)),
        "styles": dict(concepts.STYLES),
        "groups": dict(Counter(groups.values())),
        "flippable": sum(item["flip"] for item in items),
        "empty": list(empty),
    }
