"""``hybrid-bench fid``: Inception FID and IS, and CLIP score, of pictures that are there. Parse, call, show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.threads import use_threads


def add_command(commands: Any) -> None:
    """Add ``fid`` to ``hybrid-bench``."""
    fid = commands.add_parser(
        "fid",
        help="Inception FID and IS, CLIP score",
        description="Score pictures by networks whose weights you have (extra fid): Inception FID against --reference "
        "and Inception Score, and with --clip the CLIP score.",
    )
    fid.add_argument("samples", type=Path, metavar="SAMPLES", help="what hybrid-bench sample wrote; .npz; or a folder")
    real = "real pictures: .npz (arr_0, or mu and sigma), a folder of pictures, a data folder"
    fid.add_argument("--reference", type=Path, metavar="REF", help=real)
    fid.add_argument("--split", metavar="NAME", help="split of a data folder, for example test")
    fid.add_argument("--inception", type=Path, metavar="FILE", help="Inception weights (default: torch hub's place)")
    fid.add_argument("--clip", type=Path, metavar="FILE", help="CLIP weights; without it no CLIP score")
    fid.add_argument("--clip-model", metavar="NAME", help="open_clip's name of them (ViT-B-32-quickgelu)")
    fid.add_argument("--prompts", type=Path, metavar="FILE", help="captions, one a line, in turn (default: as drawn)")
    fid.add_argument("--no-inception", action="store_true", help="CLIP score alone")
    fid.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    fid.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (auto)")
    fid.add_argument("--threads", type=int, help="CPU threads")
    fid.set_defaults(call=_fid)


def _fid(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from hybrid.request import find_device

    from . import clip_score, inception
    from .cli_sweep import Bars
    from .figures import commit, versions, write_json
    from .picture_sets import open_set

    if arguments.no_inception and arguments.clip is None:
        raise ValueError("--no-inception: leaves nothing to do without --clip FILE")
    for name, home in (("split", "reference"), ("prompts", "clip"), ("clip_model", "clip")):
        if getattr(arguments, name) is not None and getattr(arguments, home) is None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: does nothing without --{home}; add it, or leave {option} out")
    for name in ("reference", "inception"):
        if arguments.no_inception and getattr(arguments, name) is not None:
            raise ValueError(f"--{name}: does nothing with --no-inception; leave one of them out")
    use_threads(arguments.threads)
    device = find_device(arguments.device)
    drawn = open_set(arguments.samples)
    if drawn.count < 2:
        raise ValueError(f"{arguments.samples}: {drawn.count} picture; give at least 2")
    content: dict[str, Any] = {"samples": str(arguments.samples), "pictures": drawn.count}
    with Bars(Console(stderr=True)) as bars:
        if not arguments.no_inception:
            network = inception.InceptionNetwork(arguments.inception, device=device)
            real = _reference(arguments, network, bars)
            features = _features(drawn, network, bars, "drawn pictures")
            content |= {"network": network.name, "network_sha256": network.sha256}
            content |= {"reference": None if real is None else str(arguments.reference)}
            content |= {"reference_pictures": None if real is None else real.pictures}
            content |= inception.scores(features, real, network)
        if arguments.clip is not None:
            clip = clip_score.ClipNetwork(arguments.clip, arguments.clip_model or clip_score.MODEL, device=device)
            prompts = _captions(arguments, drawn.prompts)
            found: list[Any] = []
            for block in drawn.batches():
                start = sum(map(len, found))
                found.append(clip(block, [prompts[place % len(prompts)] for place in range(start, start + len(block))]))
                bars.inside("CLIP score", start + len(block), drawn.count)
            content |= {"clip_score": float(np.concatenate(found).mean()), "clip_network": clip.name}
    content |= {"commit": commit(), "versions": versions()}
    if arguments.out is not None:
        write_json(arguments.out, content)
    _show(content, inception.PUBLISHED)
    return 0


def _reference(arguments: argparse.Namespace, network: Any, bars: Any) -> Any:
    from .inception import moments, read_moments
    from .picture_sets import open_set

    path = arguments.reference
    if path is None:
        return None
    if path.is_file() and path.suffix == ".npz" and arguments.split is None:
        held = read_moments(path)
        if held is not None:
            return held
    return moments(_features(open_set(path, arguments.split), network, bars, "reference"))


def _features(pictures: Any, network: Any, bars: Any, what: str) -> Any:
    parts: list[Any] = []
    done = 0
    for block in pictures.batches():
        parts.append(network(block))
        done += len(block)
        bars.inside(what, done, pictures.count)
    return np.concatenate(parts)


def _captions(arguments: argparse.Namespace, drawn: Any) -> list[str]:
    from .cli_sweep import read_prompts
    from .clip_score import captions_of

    asked = drawn if arguments.prompts is None else read_prompts(arguments.prompts)
    return captions_of(asked, str(arguments.samples))


def _show(content: dict[str, Any], published: int) -> None:
    if content["pictures"] < published:
        print(f"{content['pictures']} pictures; published figures are of {published:,}, and fewer make FID too high")
    if content.get("fid") is not None:
        of = content["reference_pictures"]
        where = "the moments in" if of is None else f"{of} pictures of"
        print(f"FID {content['fid']:.4g} against {where} {content['reference']}")
    if content.get("inception_score") is not None:
        print(f"IS {content['inception_score']:.4g} ± {content['inception_score_std']:.2g}")
    if "clip_score" in content:
        print(f"CLIP score {content['clip_score']:.4g} ({content['clip_network']})")
