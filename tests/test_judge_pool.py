"""Rules of acceptance: what they promise of any two distributions, and small cases by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pairs import class_pair
from torch import Tensor

from hybrid.benchmarks.judge_pool import compare, loosened, main, near_first, near_groups, pooled, rules
from hybrid.verify import accept

CODES = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0) * 0.1)  # twelve codes on a grid of two axes


def two(count: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(count, 12, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return p.softmax(-1), q.softmax(-1)


def variation(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().sum(1) / 2


def test_groups_are_near_codes() -> None:
    groups = near_groups(CODES, 3)
    assert [sorted((groups == number).nonzero()[:, 0].tolist()) for number in range(4)] == [
        [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11],
    ]  # fmt: skip
    assert near_groups(CODES, 12).unique().tolist() == [0]
    assert len(near_groups(CODES, 1).unique()) == 12


@pytest.mark.parametrize("name", rules(CODES))
def test_no_rule_accepts_more_than_its_total_variation_allows(name: str) -> None:
    p, q = two()
    accepted, emitted = rules(CODES)[name](p, q)
    assert torch.allclose(emitted.sum(1), torch.ones(200, dtype=torch.float64)) and bool((emitted > -1e-12).all())
    most = 1 - variation(p, q) + variation(emitted, p)
    assert bool((accepted <= most + 1e-9).all())
    if not name.startswith("pooled"):
        torch.testing.assert_close(accepted, most)  # these two pay for what they accept and for nothing else


def test_loosened_is_the_rule_of_the_core() -> None:
    p, q = two(1)
    images, relax = 40_000, 0.4
    noise = torch.rand(3, images, generator=torch.Generator().manual_seed(0))
    draft = torch.searchsorted(q[0].cumsum(0), noise[0].double()).clamp(max=11)
    wide = [x.float().expand(images, 1, 12) for x in (p, q)]
    kept, tokens = accept(*wide, draft[:, None], noise[1][:, None], noise[2], relax=relax)
    accepted, emitted = loosened(p, q, relax)
    assert float(kept.float().mean()) == pytest.approx(float(accepted[0]), abs=0.015)
    assert torch.allclose(torch.bincount(tokens[:, 0], minlength=12) / images, emitted[0].float(), atol=0.015)


def test_pooling_moves_mass_inside_groups_only() -> None:
    p, q = two()
    groups = near_groups(CODES, 3)
    for relax in (0.3, 1.0):
        emitted = pooled(p, q, relax, groups)[1]
        sums = [x.view(200, 4, 3).sum(2) for x in (p, emitted)]
        torch.testing.assert_close(*sums)
        assert bool((variation(emitted, p) <= relax).all())
    torch.testing.assert_close(pooled(p, q, 1.0, near_groups(CODES, 12))[1], q)


def test_near_codes_are_spent_on_before_far_ones() -> None:
    levels = [near_groups(CODES, most) for most in (3, 12)]
    p = torch.zeros(1, 12, dtype=torch.float64)
    q = p.clone()
    p[0, [0, 11]] = 0.5
    q[0, [1, 11]] = 0.5  # code 1 lies beside code 0
    for budget, kept in ((0.2, 0.2), (0.5, 0.5), (0.9, 0.5)):
        accepted, emitted = near_first(p, q, budget, levels)
        assert float(accepted[0]) == pytest.approx(0.5 + kept)
        assert emitted[0, [0, 1, 11]].tolist() == pytest.approx([0.5 - kept, kept, 0.5])
    q = p.roll(6, 1)  # nothing near to lend to: code 6 for code 0, code 5 for code 11
    accepted, emitted = near_first(p, q, 0.4, levels)
    assert float(accepted[0]) == pytest.approx(0.4) and float(variation(emitted, p)) == pytest.approx(0.4)


def test_figures_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]])
    q = torch.tensor([[1.0, 0.0, 0.0]])
    found = compare(p, q, torch.tensor([[0.0], [1.0], [3.0]]))
    exact = {"accepted": 0.5, "variation": 0.0, "nats": pytest.approx(torch.tensor(0.5).log().item()), "moved": 0.0}
    assert found["exact"] == exact
    loose = found["loosened 0.3"]  # 0.5 / 0.7 stays on code 0
    moved = 0.5 / 0.7 - 0.5
    assert loose["accepted"] == pytest.approx(0.5 / 0.7) and loose["variation"] == pytest.approx(moved)
    assert loose["moved"] == pytest.approx(2 * moved * moved)


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_pair().save_pretrained(tmp_path / "pair")
    out = tmp_path / "out"
    assert main([str(tmp_path / "pair"), "--pictures", "3", "--windows", "2", "--out", str(out)]) == 0
    told = json.loads((out / "pool.json").read_text())
    assert told["looks"] == 3 * 2 * 3 and told["rules"]["exact"]["variation"] == pytest.approx(0, abs=1e-9)
    assert (out / "pool.md").read_text() in capsys.readouterr().out
    for arguments in (["fashun", "--out", str(out)], ["fashion", "--windows", "0", "--out", str(out)]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
