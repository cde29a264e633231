"""The largest batch within an amount of memory, and what must lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid.budget import Budget, fit
from hybrid.cli import main
from hybrid.memory import Memory


def plan(batch: int) -> Memory:
    """Weights of 10 GB, 6 of them the AR model's, and 2 GB for each picture."""
    weights = {"ar": 6 * 10**9, "masked": 4 * 10**9}
    return Memory(weights, 0, {"fill": batch * 2 * 10**9})


@pytest.mark.parametrize(
    ("limit", "most", "batch"), [(12e9, 16, 1), (13.9e9, 16, 1), (14e9, 16, 2), (30e9, 16, 10), (99e9, 16, 16)]
)
def test_the_largest_batch_that_fits(limit: float, most: int, batch: int) -> None:
    assert fit(plan, limit, most) == Budget(batch, plan(batch))


def test_where_one_picture_does_not_fit_a_part_of_the_ar_model_goes_elsewhere() -> None:
    assert fit(plan, 8e9, 4, offload=True) == Budget(1, plan(1), 6 * 10**9)
    words = r"max_memory {} GB: one picture needs 12.00 GB \(10.00 GB of weights\); allow as much, or use .*"
    with pytest.raises(ValueError, match=words.format(8)):
        fit(plan, 8e9, 4)
    with pytest.raises(ValueError, match=words.format(6)):
        fit(plan, 6e9, 4, offload=True)  # the masked model alone, and what drawing needs


def test_what_was_chosen_in_words() -> None:
    assert str(Budget(1, plan(1))) == "1 picture at once needs 12.00 GB"
    assert str(Budget(3, plan(3))) == "3 pictures at once need 16.00 GB"
    assert "6.00 GB of the weights on the device" in str(Budget(1, plan(1), 6 * 10**9))


def test_the_command_draws_in_turns_and_the_pictures_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hybrid.memory import plan_pair
    from hybrid.pairing import find_pair, read_pair
    from hybrid.request import DTYPES

    pair = read_pair(find_pair("emoji"))
    two, three = (plan_pair(pair, DTYPES["fp32"], batch=batch, ar_fraction=0.0).peak for batch in (2, 3))
    asked = ["a red apple", "-n", "3", "--seed", "5", "--device", "cpu", "--steps", "2", "--ar-fraction", "0"]
    asked += ["--guidance-kind", "constant"]
    assert main([*asked, "-o", str(tmp_path / "whole")]) == 0
    assert main([*asked, "-o", str(tmp_path / "turns"), "--max-memory", f"{(two + three) / 2e9:.6f}"]) == 0
    assert "2 pictures at once need" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == 3
    for name in names:
        one, other = (np.asarray(Image.open(tmp_path / folder / name), int) for folder in ("whole", "turns"))
        assert abs(one - other).max() <= 2  # some CPUs round another batch's convolutions otherwise
    assert main([*asked, "-o", str(tmp_path / "none"), "--max-memory", "0.01"]) == 2
    assert capsys.readouterr().err.startswith("hybrid-generate: max_memory 0.01 GB: one picture needs ")
