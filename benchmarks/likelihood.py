"""How likely real pictures are to each way of drawing, in nats a token: what the masked phase loses, and by what.

``python -m hybrid.benchmarks.likelihood fashion --out DIR`` reads held-out pictures as tokens and writes
``likelihood.json`` and ``likelihood.png`` (``--split train``: of pictures that were learnt from). At temperature 1,
without guidance and in an order that does not look at the drawn tokens, a way of drawing gives every picture a
probability: the AR model by the chain rule, the masked model by the product over its passes, whose tokens are drawn
independently. One place a pass is a chain rule, too, so what the masked model lacks then is prediction; what fewer
passes lack beyond it is what the tokens of one pass cannot know of each other. Orders are drawn for each picture, so
the means are upper bounds of the mixture over orders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hybrid.data.codes import to_images
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.data.splits import spread
from hybrid.loss_plot import DASHES, MARKERS, can_plot
from hybrid.orders import ORDERS, priority
from hybrid.pipeline import HybridPipeline
from hybrid.schedules import counts
from hybrid.types import MASK, Condition, Grid, MaskedModel

from .artist import grid_of, pair_weights
from .figures import write_json
from .machine import describe
from .scenes import prompt_of, unseen
from .times import mean_of

BATCH = 64
FRACTIONS = (0.0, 0.25, 0.5)
PASSES = (4, 8, 16, 32)
"""And one place a pass, in random order."""

BLIND = tuple(order for order in ORDERS if order != "confidence")
"""Orders that need no drawn token; ``spread`` as its ranking alone, before it fades into confidence."""


def rank(order: str, uniforms_bn: Tensor, grid: Grid, known: int) -> Tensor:
    """Whose turn each place is (b, n): the first ``known`` places in raster order, then the others in the order."""
    nothing_bn = torch.zeros_like(uniforms_bn)
    early_bn = priority(order, grid=grid, confidence_bn=nothing_bn, uniforms_bn=uniforms_bn, noise=1.0)
    early_bn = early_bn.expand_as(uniforms_bn).clone()
    early_bn[:, :known] = torch.inf
    return early_bn.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def looked_at(sizes: Sequence[int], looks: int, generator: torch.Generator) -> list[tuple[int, float]]:
    """Passes to compute, and the share of the places that each speaks for: all of them, or ``looks`` drawn evenly along
    the places, so that the weighted mean is that of all passes in expectation."""
    places = sum(sizes)
    if len(sizes) <= looks:
        return [(index, size / places) for index, size in enumerate(sizes)]
    ends = np.cumsum(sizes)
    drawn = (torch.arange(looks) + torch.rand(looks, generator=generator)) * places / looks
    indices = np.searchsorted(ends, drawn.numpy(), side="right").clip(max=len(sizes) - 1)  # float32 may round up
    return [(int(index), 1 / looks) for index in indices]


def fill_nats(
    model: MaskedModel,
    tokens_bn: Tensor,
    condition: Condition,
    known: int,
    sizes: Sequence[int],
    order: str,
    looks: int,
    generator: torch.Generator,
) -> Tensor:
    """Nats a token of the places after the first ``known`` ones, mean of each picture (b,).

    Args:
        model: the masked model. One that is also the AR model reads the tokens before the first unknown place as its
            prefix.
        tokens_bn: whole pictures.
        condition: what they were asked for.
        known: places that the AR model wrote.
        sizes: places of each pass.
        order: one of ``BLIND``.
        looks: most passes to compute; of more the rest is estimated, see ``looked_at``. In random order every place
            that is unknown at a pass could be one of the pass, and all of them are averaged.
        generator: draws orders and passes.
    """
    grid, device = condition.grid, tokens_bn.device
    uniforms_bn = torch.rand(tokens_bn.shape, generator=generator).to(device)
    turn_bn = rank(order, uniforms_bn, grid, known)
    in_turn_bn, starts = turn_bn.argsort(dim=1), list(accumulate(sizes, initial=known))
    found_b = torch.zeros(len(tokens_bn), device=device)
    for index, weight in looked_at(sizes, looks, generator):
        start = starts[index]
        end = grid.places if order == "random" else start + sizes[index]
        places_bm = in_turn_bn[:, start:end]
        logits_bmk = model.logits(tokens_bn.masked_fill(turn_bn >= start, MASK), condition, places_bm)
        found_b += weight * nats_of(logits_bmk, tokens_bn.gather(1, places_bm)).mean(1)
    return found_b


def nats_of(logits_bmk: Tensor, tokens_bm: Tensor) -> Tensor:
    """−log p of each token."""
    return F.cross_entropy(logits_bmk.float().transpose(1, 2), tokens_bm, reduction="none")


@torch.inference_mode()
def measure(
    pipe: HybridPipeline,
    tokens_nk: Tensor,
    prompts: Sequence[str | int],
    *,
    fractions: Sequence[float] = FRACTIONS,
    passes: Sequence[int] = PASSES,
    orders: Sequence[str] = ("random", "spread"),
    looks: int = 8,
    seed: int = 0,
    told: Callable[[str], Any] = lambda what: None,
) -> dict[str, Any]:
    """Nats a token of whole pictures by the AR model, and what each hybrid adds at the places that it fills.

    Args:
        pipe: a pairing whose two models share their codes.
        tokens_nk: the pictures' tokens, of a square grid or the pairing's.
        prompts: what each was asked for.
        fractions: shares of the places that the AR model writes.
        passes: numbers of masked passes; ``random`` is also given one place a pass.
        orders: of ``BLIND``.
        looks: see ``fill_nats``.
        seed: of orders and passes.
        told: called with a line after each row.

    Returns:
        ``ar``, and ``rows`` with ``over_ar``: masked less AR nats a token of the filled places. Values have 95 %
        intervals from 2,000 resamples of the pictures.

    Raises:
        ValueError: a model is missing, their codes differ, an order that looks at drawn tokens, more passes than
            places.
    """
    alignment = pipe.sampler.alignment
    if pipe.ar is None or pipe.masked is None or alignment is None or alignment.kind != "identity":
        raise ValueError(f"{pipe.name}: likelihoods need an AR and a masked model with the same codes")
    for order in orders:
        if order not in BLIND:
            raise ValueError(f"order {order!r}: its likelihood is unknown; choose one of {', '.join(BLIND)}")
    grid = grid_of(pipe, tokens_nk.shape[1])
    plans = []
    for fraction in fractions:
        known = round(fraction * grid.places)
        for order in orders:
            most = (grid.places - known,) if order == "random" else ()
            for steps in (*passes, *most):
                plans.append((fraction, order, counts(pipe.defaults.schedule, steps, grid.places, known)))
    batches = [slice(start, start + BATCH) for start in range(0, len(tokens_nk), BATCH)]
    encoded = [pipe.encode(list(prompts[batch])) for batch in batches]
    ar_nk = torch.cat(
        [
            nats_of(pipe.ar.score(tokens_nk[batch], pipe.ar.condition(asked, grid)), tokens_nk[batch])
            for batch, asked in zip(batches, encoded, strict=True)
        ]
    )
    conditions = [pipe.masked.condition(asked, grid) for asked in encoded]
    rows = []
    for fraction, order, sizes in plans:
        known, generator = grid.places - sum(sizes), torch.Generator().manual_seed(seed)
        own_n = torch.cat(
            [
                fill_nats(pipe.masked, tokens_nk[batch], condition, known, sizes, order, looks, generator)
                for batch, condition in zip(batches, conditions, strict=True)
            ]
        )
        over = mean_of((own_n - ar_nk[:, known:].mean(1)).double().cpu().numpy())
        rows.append(
            {
                "ar_fraction": fraction,
                "order": order,
                "passes": len(sizes),
                "places": sum(sizes),
                "over_ar": over.told(),
            }
        )
        told(line_of(rows[-1]))
    return {"ar": mean_of(ar_nk.mean(1).double().cpu().numpy()).told(), "rows": rows}


def line_of(row: Mapping[str, Any]) -> str:
    """A row in words."""
    (low, high), value = row["over_ar"]["interval"], row["over_ar"]["value"]
    return (
        f"{row['ar_fraction']:.0%} AR + {row['passes']} passes, {row['order']}: {value:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"nats at each of {row['places']} places over the AR model's"
    )


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Nats over the AR model's against passes, a line for each fraction and order."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    rows = found["rows"]
    fractions, orders = (list(dict.fromkeys(row[name] for row in rows)) for name in ("ar_fraction", "order"))
    for fraction in fractions:
        for order in orders:
            line = [row for row in rows if (row["ar_fraction"], row["order"]) == (fraction, order)]
            values = [row["over_ar"]["value"] for row in line]
            errors = np.abs(np.array([row["over_ar"]["interval"] for row in line]).T - values)
            look: dict[str, Any] = {
                "marker": MARKERS[fractions.index(fraction) % len(MARKERS)],
                "linestyle": DASHES[orders.index(order) % len(DASHES)],
                "label": f"{fraction:.0%} AR, {order}",
            }
            axes.errorbar([row["passes"] for row in line], values, errors, color="black", linewidth=1, markersize=5,
                          elinewidth=0.7, markerfacecolor="white", **look)  # fmt: skip
    ticks = sorted({row["passes"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set_xlabel("masked passes (the last marks in random order: one place a pass)")
    axes.set_ylabel("nats at each filled place over the AR model's")
    axes.grid(color="0.9")
    figure.legend(loc="outside upper center", ncols=len(fractions), fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def asked_pictures(folder: DataFolder, split: str, count: int) -> tuple[NDArray[np.uint8], list[str | int]]:
    """Pictures of a split, from all parts of its order, and what they are asked for by.

    Raises:
        DataError: no such split.
    """
    places = spread(folder.indices(split), count)
    return np.ascontiguousarray(folder.images[places, 0]), [prompt_of(folder.items[int(place)]) for place in places]


@torch.inference_mode()
def tokens_of(pipe: HybridPipeline, images: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, h, w, channels) as tokens (n, places)."""
    parts = [
        pipe.tokenizer.encode(to_images(images[start : start + BATCH]).to(pipe.device, pipe.dtype))
        for start in range(0, len(images), BATCH)
    ]
    return torch.cat(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.likelihood", description=__doc__)
    parser.add_argument("pair", help="an embedded pair, a folder or a YAML")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: where hybrid-data writes PAIR)")
    parser.add_argument("--split", metavar="NAME", help="of the data (default: what was never trained on)")
    parser.add_argument("--pictures", type=int, default=256, metavar="N", help="of the split (default: 256)")
    parser.add_argument("--passes", type=int, nargs="+", default=PASSES, metavar="N", help="masked passes (4 8 16 32)")
    parser.add_argument("--looks", type=int, default=8, metavar="N", help="most passes to compute of a batch (8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        for name, least in (("pictures", 2), ("looks", 1), ("passes", 1)):
            if (given := np.min(getattr(arguments, name))) < least:
                raise ValueError(f"--{name} {given}: must be at least {least}")
        if not can_plot():
            raise ValueError('the figure needs matplotlib: pip install "hybrid-imagegen[plots]"')
        pipe = HybridPipeline.from_pretrained(arguments.pair, device=arguments.device, dtype="fp32")
        data = arguments.data or default_folder(pipe.name)
        folder = DataFolder.open(data)
        split = arguments.split or unseen(folder)
        images, prompts = asked_pictures(folder, split, arguments.pictures)
        machine = describe(pipe.device)
        found = measure(
            pipe,
            tokens_of(pipe, images),
            prompts,
            passes=sorted(arguments.passes),
            looks=arguments.looks,
            seed=arguments.seed,
            told=lambda line: print(line, flush=True),
        )
    except (ValueError, DataError) as error:
        print(f"likelihood: {error}", file=sys.stderr)
        return 2
    settings = {"split": split, "pictures": len(images), "looks": arguments.looks, "seed": arguments.seed}
    head = {"pair": pipe.name, "weights": pair_weights(arguments.pair), "schedule": pipe.defaults.schedule}
    write_json(arguments.out / "likelihood.json", head | settings | {"machine": machine} | found)
    plot(found, arguments.out / "likelihood.png")
    (low, high), value = found["ar"]["interval"], found["ar"]["value"]
    print(f"the AR model: {value:.3f} [{low:.3f}, {high:.3f}] nats a token of {len(images)} pictures ({split})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
