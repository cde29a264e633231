"""How likely pictures are to each way of drawing: enumerated distributions, losses known in advance, a tiny pair."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from fakes import SQUARE, FakeMasked, FakeTokenizer, neighbour_masked, table_ar, uniform_ar, uniform_masked
from pairs import class_pair
from tiny import data_folder

from hybrid import HybridPipeline
from hybrid.benchmarks.likelihood import (
    BLIND,
    asked_pictures,
    fill_nats,
    looked_at,
    main,
    measure,
    nats_of,
    rank,
)
from hybrid.benchmarks.scenes import unseen
from hybrid.data.folder import DataFolder
from hybrid.orders import halton_order
from hybrid.types import Grid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", ["spread", "halton", "raster"])
@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1], [3]])
def test_the_probabilities_of_all_pictures_sum_to_one(order: str, sizes: list[int]) -> None:
    """The AR model's first token and the passes after it, whatever the masked model makes of its neighbours."""
    grid = Grid(2, 2)
    ar, masked = table_ar(3, grid), neighbour_masked(3, grid)
    total = 0.0
    for picture in itertools.product(range(3), repeat=4):
        tokens = torch.tensor([picture])
        asked = masked.condition([1])
        first = nats_of(ar.score(tokens, ar.condition([1])), tokens)[:, 0]
        rest = 3 * fill_nats(masked, tokens, asked, 1, sizes, order, 8, generator())
        total += math.exp(-float(first + rest))
    assert total == pytest.approx(1, abs=1e-5)


def sure_of_zero(codes: int = 4) -> FakeMasked:
    """Code 0 is the likelier the more tokens are known."""

    def rule(tokens_n: torch.Tensor, label: int, grid: Grid) -> torch.Tensor:
        known = float((tokens_n >= 0).sum()) / 16
        return torch.tensor([known] + [0.0] * (codes - 1)).expand(len(tokens_n), -1)

    return FakeMasked(rule, codes)


def expected(known: int, sizes: list[int], codes: int = 4) -> float:
    """The mean nats of ``sure_of_zero`` at code 0."""
    total = 0.0
    for size in sizes:
        total += size * (math.log(math.exp(known / 16) + codes - 1) - known / 16)
        known += size
    return total / sum(sizes)


@pytest.mark.parametrize("order", BLIND)
def test_each_pass_sees_what_was_written_before_it(order: str) -> None:
    tokens = torch.zeros(3, 16, dtype=torch.long)
    for known, sizes in ((0, [1, 3, 12]), (4, [2, 10]), (15, [1]), (0, [1] * 16)):
        found = fill_nats(
            sure_of_zero(), tokens, sure_of_zero().condition([0, 1, 2]), known, sizes, order, 16, generator()
        )
        assert found.tolist() == pytest.approx([expected(known, sizes)] * 3, rel=1e-5)


def test_drawn_passes_stand_for_all_of_them() -> None:
    tokens = torch.zeros(1, 16, dtype=torch.long)
    sizes = [1, 2, 3, 4, 6]
    draws = [
        float(fill_nats(sure_of_zero(), tokens, sure_of_zero().condition([0]), 0, sizes, "spread", 3, generator(seed)))
        for seed in range(400)
    ]
    mean, scatter = torch.tensor(draws).mean(), torch.tensor(draws).std()
    assert scatter > 0.001
    assert float(mean) == pytest.approx(expected(0, sizes), abs=4 * float(scatter) / 20)
    assert looked_at(sizes, 5, generator()) == [(index, size / 16) for index, size in enumerate(sizes)]
    assert sum(share for _, share in looked_at(sizes, 3, generator())) == pytest.approx(1)


def test_turns() -> None:
    uniforms = torch.rand(2, 16, generator=generator())
    assert rank("raster", uniforms, SQUARE, 5).tolist() == [list(range(16))] * 2
    halton = rank("halton", uniforms, SQUARE, 0)[0]
    assert halton.argsort().tolist() == halton_order(4, 4).tolist()
    for order in BLIND:
        turns = rank(order, uniforms, SQUARE, 5)
        assert turns[:, :5].tolist() == [list(range(5))] * 2
        assert all(sorted(row) == list(range(16)) for row in turns.tolist())


def test_two_models_that_know_as_little_lose_nothing() -> None:
    pipe = HybridPipeline(FakeTokenizer(), ar=uniform_ar(), masked=uniform_masked())
    found = measure(pipe, torch.randint(16, (5, 16), generator=generator()), [0, 1, 2, 3, 4], passes=(2, 4))
    assert found["ar"]["value"] == pytest.approx(math.log(16))
    assert [row["passes"] for row in found["rows"] if row["ar_fraction"] == 0.25] == [2, 4, 12, 2, 4]
    assert [row["places"] for row in found["rows"] if row["order"] == "spread"] == [16, 16, 12, 12, 8, 8]
    for row in found["rows"]:
        assert row["over_ar"]["value"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    pipe = HybridPipeline(FakeTokenizer(), ar=uniform_ar(), masked=uniform_masked())
    tokens = torch.zeros(2, 16, dtype=torch.long)
    with pytest.raises(ValueError, match="order 'confidence': its likelihood is unknown; choose one of spread, halton"):
        measure(pipe, tokens, [0, 1], orders=("confidence",))
    with pytest.raises(ValueError, match="32 steps for 16 places: use at most 16 steps"):
        measure(pipe, tokens, [0, 1])
    with pytest.raises(ValueError, match="likelihoods need an AR and a masked model with the same codes"):
        measure(HybridPipeline(FakeTokenizer(), ar=uniform_ar()), tokens, [0, 1])


def test_the_command_writes_figures_and_their_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    class_pair().save_pretrained(tmp_path / "pair")
    data = data_folder(tmp_path / "data")
    arguments = [str(tmp_path / "pair"), "--data", str(data), "--pictures", "4", "--passes", "4", "2"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "likelihood.json").read_text())
    assert told["pictures"] == 4 and told["split"] == "heldout"
    assert len(told["rows"]) == 15 and "ar/model.safetensors" in told["weights"]
    assert (tmp_path / "likelihood.png").read_bytes().startswith(b"\x89PNG")
    assert "50% AR + 8 passes, random: " in capsys.readouterr().out


def test_pictures_that_were_never_trained_on(tmp_path: Path) -> None:
    folder = DataFolder.open(data_folder(tmp_path / "data"))
    assert unseen(folder) == "heldout"
    images, prompts = asked_pictures(folder, "heldout", 100)
    assert len(images) == 4 and prompts == [8 % 3, 9 % 3, 10 % 3, 11 % 3]
    assert asked_pictures(folder, "train", 2)[1] == [0, 4 % 3]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["emojy"],
        ["fashion", "--pictures", "1"],
        ["fashion", "--passes", "0"],
        ["fashion", "--data", str(tmp_path / "none")],
    ):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
