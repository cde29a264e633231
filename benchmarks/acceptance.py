"""How many drafts the AR model accepts, where, and what verification costs: the masked model's drafts against Jacobi's.

``python -m hybrid.benchmarks.acceptance fashion --pictures 16 --out DIR`` draws the same pictures with every drafter
and looseness and writes ``acceptance.json`` and ``acceptance.png``. This file knows a pipeline and ``hybrid.verify``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hybrid.compare import load_note
from hybrid.data.concepts import EVERYDAY
from hybrid.loss_plot import can_plot
from hybrid.phases import ar_prefix
from hybrid.pipeline import HybridPipeline
from hybrid.request import find_sampling
from hybrid.sampling import uniforms
from hybrid.verify import Verify, exact_generate

from .figures import commit, versions, write_json

WAYS: dict[str, Verify] = {
    "jacobi": Verify(draft="jacobi"),
    "exact": Verify(),
    "relaxed 0.3": Verify(relax=0.3),
    "relaxed 0.6": Verify(relax=0.6),
    "relaxed 0.6, jacobi": Verify(relax=0.6, draft="jacobi"),
}
LOOKS = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", (0, (1, 3))))
"""Marker and dash of each way."""


def measure(pipe: HybridPipeline, prompts: Sequence[str | int], *, seed: int = 0) -> dict[str, Any]:
    """Draw one batch by the AR model and by each of ``WAYS``.

    Returns:
        Per way: AR and masked passes of the batch, the mean AR passes a picture needs alone, seconds, the share of
        looked-at drafts that were accepted, and that share by row and by column of the grid.

    Raises:
        ValueError: a model is missing.
    """
    if pipe.ar is None or pipe.masked is None:
        raise ValueError(f"{pipe.name}: verification needs an AR and a masked model")
    encoded = pipe.encode(list(prompts))
    asked, drafting = pipe.ar.condition(encoded), pipe.masked.condition(encoded)
    prefix, draft = find_sampling(pipe.defaults.ar, {}), find_sampling(pipe.defaults.masked, {})
    grid = asked.grid
    found: dict[str, Any] = {}
    started = time.perf_counter()
    with torch.inference_mode():
        noise = uniforms(_generators(seed, len(prompts)), (grid.places,))
        ar_prefix(pipe.ar, asked, asked.null(), grid.places, noise.to(pipe.device), prefix)
    found["ar"] = {"ar_passes": grid.places, "masked_passes": 0, "seconds": time.perf_counter() - started}
    for name, how in WAYS.items():
        started = time.perf_counter()
        made = exact_generate(
            pipe.ar,
            pipe.masked,
            asked,
            asked.null(),
            drafting,
            drafting.null(),
            generators=_generators(seed, len(prompts)),
            prefix=prefix,
            draft=draft,
            verify=how,
        )
        tested, accepted = (x.float().view(-1, grid.height, grid.width) for x in (made.tested_bn, made.accepted_bn))
        alone = (made.drafted_br > 0).sum(1).float() + 1
        found[name] = {
            "ar_passes": made.passes["ar"],
            "masked_passes": made.passes["masked"],
            "ar_passes_of_a_picture": float(alone.mean()),
            "seconds": time.perf_counter() - started,
            "accepted": float(accepted.sum() / tested.sum()),
            "accepted_by_row": (accepted.sum((0, 2)) / tested.sum((0, 2)).clamp(min=1)).tolist(),
            "accepted_by_column": (accepted.sum((0, 1)) / tested.sum((0, 1)).clamp(min=1)).tolist(),
        }
    return found


def _generators(seed: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def plot(ways: Mapping[str, Any], path: Path) -> None:
    """Accepted share by row and by column, one line a way, told apart without colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    drawn = [(name, way) for name, way in ways.items() if "accepted_by_row" in way]
    for axes, along in zip(figure.subplots(1, 2, sharey=True), ("row", "column"), strict=True):
        for (name, way), (marker, dash) in zip(drawn, LOOKS, strict=True):
            shares = way[f"accepted_by_{along}"]
            label = f"{name}: {way['ar_passes_of_a_picture']:.0f} AR passes a picture"
            axes.plot(range(1, len(shares) + 1), shares, linestyle=dash, color="black", marker=marker, markersize=4,
                      markerfacecolor="white", linewidth=1, label=label)  # fmt: skip
        axes.set_xlabel(f"{along} of the token grid")
        axes.set_ylim(0, 1)
        axes.grid(color="0.9")
    figure.axes[0].set_ylabel("share of tested drafts accepted")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.acceptance", description=__doc__)
    parser.add_argument("pair", help="an embedded pair, a folder or a YAML")
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="of one batch (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        if arguments.pictures < 1:
            raise ValueError(f"--pictures {arguments.pictures}: must be at least 1")
        if not can_plot():
            raise ValueError('the figure needs matplotlib: pip install "hybrid-imagegen[plots]"')
        pipe = HybridPipeline.from_pretrained(arguments.pair)
        names = pipe.classes or EVERYDAY
        prompts = [names[number % len(names)] for number in range(arguments.pictures)]
        load = load_note()
        ways = measure(pipe, prompts, seed=arguments.seed)
    except ValueError as error:
        print(f"acceptance: {error}", file=sys.stderr)
        return 2
    head = {"pair": pipe.name, "prompts": prompts, "seed": arguments.seed, "load": load}
    head |= {"threads": torch.get_num_threads(), "commit": commit(), "versions": versions()}
    write_json(arguments.out / "acceptance.json", head | {"ways": ways})
    plot(ways, arguments.out / "acceptance.png")
    for name, way in ways.items():
        shown = [
            f"{key.replace('_', ' ')} {value:.3g}" for key, value in way.items() if isinstance(value, (int, float))
        ]
        print(f"{name}: {', '.join(shown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
