"""What decoding in tiles costs: ``python -m hybrid.benchmarks.tiling PAIR --size 1024 --tiles 256 512``.

A picture is encoded, then its tokens are decoded whole and in tiles. The table gives, for each tile, the PSNR against
the whole, the largest difference of a pixel's channel, and the time. Without ``--image`` the picture is a drawn one:
smooth colours with sharp edges. This file knows pairings' tokenizers and nothing of the models beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hybrid import tiling
from hybrid.adapters import load
from hybrid.compare import load_note
from hybrid.losses import psnr
from hybrid.pairing import find_pair, read_pair
from hybrid.pictures import from_pil
from hybrid.request import find_device, find_dtype, find_grid
from hybrid.sampler import Clock
from hybrid.types import Grid
from hybrid.weights import resolve_weights


def load_tokenizer(pair: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The tokenizer of a pairing, alone."""
    path = find_pair(pair)
    spec = read_pair(path, None).tokenizer
    weights = None if spec.weights is None else resolve_weights(spec.weights, path.parent)
    return load(spec.kind, weights, spec.config, device=device, dtype=dtype)


def drawn_picture(size: int) -> Tensor:
    """A picture (1, 3, size, size) in [-1, 1]: waves of colour, and a disc and a bar with sharp edges."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    picture = torch.stack(((3 * x + y).sin(), (2 * y - x * x).cos(), (4 * x * y).sin()))
    picture = torch.where((x + 0.3).square() + (y - 0.2).square() < 0.15, -picture, picture)
    return torch.where((x - y).abs() < 0.05, torch.tensor([0.9, 0.8, -0.7])[:, None, None], picture)[None]


@torch.inference_mode()
def measure(tokenizer: Any, image_bchw: Tensor, tiles: Sequence[int], *, repeats: int = 3) -> list[dict[str, Any]]:
    """Decode a picture's tokens whole (tile None) and in tiles, after one run of each to warm up, taking turns.

    Returns:
        For each way its tile in pixels, the median seconds, and in dB and in [-1, 1] how it differs from the whole
        (None for the whole itself and where nothing differs).

    Raises:
        ValueError: a picture or a tile that the tokenizer cannot take.
    """
    tokens_bn = tokenizer.encode(image_bchw)
    grid = find_grid(image_bchw.shape[-2], image_bchw.shape[-1], tokenizer.factor)
    assert isinstance(grid, Grid)
    ways: list[int | None] = [None, *tiles]
    clock = Clock(tokenizer.codebook_kd.device)
    pictures: dict[int | None, Tensor] = {}
    seconds: dict[int | None, list[float]] = {tile: [] for tile in ways}
    for turn in range(repeats + 1):
        for tile in ways:
            started = clock.now()
            pictures[tile] = tiling.decode(tokenizer, tokens_bn, grid, tile=tile).float()
            if turn:
                seconds[tile].append(clock.now() - started)
    rows = []
    for tile in ways:
        largest = float((pictures[tile] - pictures[None]).abs().max())
        noise = float(psnr(pictures[tile], pictures[None].clamp(-1, 1))) if largest else None
        rows.append({"tile": tile, "seconds": median(seconds[tile]), "psnr": noise, "largest": largest or None})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.tiling", description=__doc__)
    parser.add_argument("pair", help="an embedded pair, a folder or a YAML")
    parser.add_argument("--size", type=int, default=512, metavar="P", help="sides of the picture (default: 512)")
    parser.add_argument("--tiles", type=int, nargs="+", default=[256], metavar="P", help="sides (default: 256)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture, resized (default: a drawn one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        device = find_device(arguments.device)
        dtype = find_dtype(arguments.dtype, device)
        tokenizer = load_tokenizer(arguments.pair, device, dtype)
        find_grid(arguments.size, arguments.size, tokenizer.factor)
        picture = drawn_picture(arguments.size) if arguments.image is None else _read(arguments.image, arguments.size)
        load = load_note()
        rows = measure(tokenizer, picture.to(device), arguments.tiles)
    except (ValueError, OSError) as error:
        print(f"tiling: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        head = {"pair": arguments.pair, "size": arguments.size, "dtype": str(dtype), "device": str(device)}
        print(json.dumps(head | {"load": load, "rows": rows}, indent=1))
        return 0
    print(f"{arguments.pair}, {arguments.size}x{arguments.size} pixels, {device}, {dtype}; {load}")
    for row in rows:
        what = "whole" if row["tile"] is None else f"tile {row['tile']}"
        apart = "" if row["psnr"] is None else f", {row['psnr']:.1f} dB, largest difference {row['largest']:.3f}"
        same = ", the same pixels" if row["tile"] is not None and row["psnr"] is None else apart
        print(f"{what}: {row['seconds']:.3f} s{same}")
    return 0


def _read(path: Path, size: int) -> Tensor:
    from PIL import Image

    with Image.open(path) as picture:
        return from_pil(picture.convert("RGB").resize((size, size)))[None]


if __name__ == "__main__":
    sys.exit(main())
