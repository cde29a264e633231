"""Agreement and log-likelihood by closed forms; what raw fidelity rows hold of every region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_scene import Coarse
from pairs import class_pair

from hybrid.benchmarks.artist import Artist, Drawn
from hybrid.benchmarks.fidelity import Judge, agreement, regions
from hybrid.benchmarks.report import agreement_figures
from hybrid.types import Grid

GRID = Grid(4, 4)


def drawn(tokens: Any) -> Drawn:
    return Drawn(np.asarray(tokens, dtype=np.uint16), np.empty((len(tokens), 0), np.float16), GRID)


def test_agreement_by_region() -> None:
    """Two pictures of 4x4 tokens and 8x8 pixels: the first row of tokens equal in both, the rest in the second only."""
    one, other = np.zeros((2, 16)), np.zeros((2, 16))
    other[0, 4:] = 1
    black, grey = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
    grey[0, 2:] = 51  # a fifth of white, below the first row of tokens
    features = np.zeros((2, 2), np.float16), np.asarray([[3, 4], [0, 0]], np.float16)
    expected = {"all": ([0.25, 1], 0.03), "ar": ([1, 1], 0.0), "masked": ([0, 1], 0.04)}
    for region in regions(4, GRID):
        found = agreement(drawn(one), drawn(other), *features, black, grey, region)
        tokens, error = expected[region.name]
        assert found["tokens"] == tokens and found["squared_error"] == pytest.approx([error, 0])
        assert found["feature_distance"] == [5, 0]
        assert agreement_figures(found)["psnr_db"] == (pytest.approx(-10 * np.log10(error / 2)) if error else None)


def test_log_likelihood_of_known_models(tmp_path: Path) -> None:
    """A model that knows nothing gives every token 1 / 12; one that is drawn greedily is sure of what it drew."""
    pipe = class_pair()
    judge = Judge(Artist(pipe, {}, Coarse(), tmp_path), [0, 1])
    greedy = pipe([0, 1], method="ar", temperature=0, seed=0, output_type="tokens").tokens.numpy().astype(np.uint16)
    other = pipe([0, 1], method="ar", temperature=5.0, seed=0, output_type="tokens").tokens.numpy().astype(np.uint16)
    assert judge(greedy).shape == (2, 16) and judge(greedy).mean() > judge(other).mean()
    torch.nn.init.zeros_(pipe.ar.output.weight)
    assert judge(other) == pytest.approx(np.full((2, 16), -np.log(12)), abs=1e-6)


def test_log_likelihood_takes_each_token_after_those_before(tmp_path: Path) -> None:
    """The sum over a picture's tokens is what the model gives token by token through its cache."""
    pipe = class_pair()
    found = Judge(Artist(pipe, {}, Coarse(), tmp_path), [2])(np.arange(16, dtype=np.uint16)[None] % 12)
    asked = pipe.ar.condition(pipe.encode([2]))
    tokens = torch.arange(16)[None] % 12
    with torch.inference_mode():
        logits, state = pipe.ar.prefill(asked, 16)
        steps = [logits]
        for place in range(15):
            steps.append(pipe.ar.decode(tokens[:, place : place + 1], torch.tensor([place]), state)[:, -1])
    log_p = torch.stack(steps, 1).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert found == pytest.approx(log_p.double().numpy(), abs=1e-5)


def test_reconstructions_of_one_type_are_not_taken_for_anothers(tmp_path: Path) -> None:
    pipe = class_pair()
    images = torch.randint(256, (40, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    kept = [Artist(one, {}, Coarse(), tmp_path / "kept").reconstruct(images) for one in (pipe, pipe.in_dtype("bf16"))]
    fresh = Artist(pipe.in_dtype("bf16"), {}, Coarse(), tmp_path / "fresh").reconstruct(images)
    assert (kept[1].features_nd == fresh.features_nd).all()
    assert (kept[0].features_nd != kept[1].features_nd).any()
