"""Ways that were tried, on fakes that say what they must draw; verdicts from rows whose order is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_scene import Coarse, write_scene
from fakes import FakeAR, FakeMasked, always_ar, neighbour_masked, table_ar, uniform_masked
from pairs import class_pair
from torch import Tensor

from hybrid.benchmarks import judge, machine
from hybrid.benchmarks.judge import Verdict, judge_sweep, main, open_tried, points, table, verdicts
from hybrid.benchmarks.judge_ways import JudgedModel, Tried, scatter_seeds
from hybrid.benchmarks.report import make_report, read_raw
from hybrid.benchmarks.sweep import Runner
from hybrid.orders import halton_order
from hybrid.phases import Sampling
from hybrid.sampling import Guidance
from hybrid.types import FROM_INPUT, MASK, Grid


def judged(ar: FakeAR, masked: FakeMasked, **options: Any) -> JudgedModel:
    return JudgedModel(
        masked, ar, options.pop("sampling", Sampling()), **{"weight": 0.5, "everywhere": False, **options}
    )


def test_the_first_unknown_place_hears_the_ar_model_and_no_other() -> None:
    ar, masked = table_ar(), neighbour_masked()
    model = judged(ar, masked)
    tokens = torch.tensor([[3, 7, MASK, 5, *[MASK] * 12], [*[2] * 15, MASK]])
    asked = model.condition([1, 2])
    found, plain = model.logits(tokens, asked), masked.logits(tokens, asked.masked)
    for row, place, before in ((0, 2, [3, 7]), (1, 15, [2] * 15)):
        wanted = plain[row, place] + 0.5 * ar.rule(torch.tensor(before), row + 1).log_softmax(-1)
        torch.testing.assert_close(found[row, place], wanted)
        found[row, place] = plain[row, place]
    assert torch.equal(found, plain) and ar.batches == [2]
    at = torch.tensor([[2, 4], [15, 0]])
    assert torch.equal(model.logits(tokens, asked, at)[0, 1], plain[0, 4])


def test_everywhere_takes_the_likeliest_tokens_for_what_is_not_known() -> None:
    likely = torch.arange(16.0).roll(1).expand(16, -1)  # code 0 is the likeliest
    ar = table_ar()
    model = judged(ar, FakeMasked(lambda *_: likely, 16), everywhere=True, weight=2.0)
    tokens = torch.tensor([[3, MASK, 5, *[MASK] * 13]])
    found = model.logits(tokens, model.condition([1]))
    torch.testing.assert_close(found[0, 3], likely[3] + 2 * ar.rule(torch.tensor([5]), 1).log_softmax(-1))
    torch.testing.assert_close(found[0, 4], likely[4] + 2 * ar.rule(torch.tensor([0]), 1).log_softmax(-1))
    assert torch.equal(found[0, 2], likely[2])  # known places hear nothing


def test_guidance_of_the_masked_model_leaves_what_the_ar_model_says_alone() -> None:
    ar, masked = table_ar(), neighbour_masked()
    model = judged(ar, masked, sampling=Sampling(Guidance(3)))
    tokens = torch.full((1, 16), MASK)
    asked = model.condition([1])
    both = model.logits(tokens.repeat(2, 1), asked.cat(asked.null()))
    plain = masked.logits(tokens.repeat(2, 1), asked.masked.cat(asked.masked.null()))
    empty = torch.tensor([], dtype=torch.long)
    with_, without = (ar.rule(empty, label) for label in (1, -1))
    said = 0.5 * (without + 3 * (with_ - without)).log_softmax(-1)
    torch.testing.assert_close(both[:, 0], plain[:, 0] + said)
    assert torch.equal(both[:, 1:], plain[:, 1:]) and ar.batches == [2]


def test_seeds_stand_where_halton_says_and_see_each_other() -> None:
    seen: list[list[int]] = []

    def rule(tokens_n: Tensor, label: int, grid: Grid) -> Tensor:
        seen.append(tokens_n.tolist())
        return torch.nn.functional.one_hot(torch.tensor(len(seen)), 16).expand(16, -1) * 50.0

    masked = FakeMasked(rule, 16)
    asked = masked.condition([1])
    made = scatter_seeds(masked, asked, asked.null(), torch.full((1, 3), 0.5), Sampling(temperature=0.5))[0]
    first = halton_order(4, 4)[:3]
    assert made[first].tolist() == [1, 2, 3] and int((made != MASK).sum()) == 3
    assert seen[2] == [made[n].item() if n in first[:2] else MASK for n in range(16)]
    guided = uniform_masked()
    scatter_seeds(guided, asked, asked.null(), torch.full((1, 3), 0.5), Sampling(Guidance(2, "linear")))
    assert guided.batches == [2, 2, 2]


def test_tried_ways_are_the_pipeline_s_own_where_they_change_nothing() -> None:
    pipe = class_pair()
    tried = Tried(pipe)
    request: dict[str, Any] = {"ar_fraction": 0.25, "steps": 4, "seed": 3, "output_type": "tokens"}
    plain = pipe([0, 2], method="hybrid", **request)
    assert torch.equal(tried([0, 2], method="hybrid", **request).tokens, plain.tokens)
    unheard = tried([0, 2], method="guided", weight=0.0, everywhere=True, **request)
    assert torch.equal(unheard.tokens, plain.tokens)
    heard = tried([0, 2], method="guided", weight=9.0, everywhere=True, **request)
    assert not torch.equal(heard.tokens, plain.tokens) and torch.equal(heard.tokens[:, :4], plain.tokens[:, :4])
    assert pipe.masked is not None and not isinstance(pipe.masked, JudgedModel)


def test_an_ar_model_that_knows_one_code_makes_the_guided_fill_draw_it() -> None:
    model = judged(always_ar(3), uniform_masked(), everywhere=True, weight=1.0)
    tokens = torch.full((2, 16), MASK)
    assert (model.logits(tokens, model.condition([0, 1])).argmax(-1) == 3).all()


def test_scattered_counts_its_passes_and_keeps_its_seeds() -> None:
    request: dict[str, Any] = {"method": "scattered", "seeds": 5, "seed_temperature": 0.5, "steps": 2}
    made = Tried(class_pair())([0, 1, 2], seed=4, **request)
    alone = Tried(class_pair())([1], seed=5, **request)
    assert torch.equal(made.tokens[1], alone.tokens[0]) and made.images[0].size == (8, 8)
    assert made.phases.passes["fill"] == 7 and made.settings["dtype"] == "float32"
    assert ((made.origin == FROM_INPUT).nonzero()[:, 1].view(3, 5) == halton_order(4, 4)[:5].sort().values).all()
    with pytest.raises(ValueError, match="tiny: needs an AR and a masked model"):
        Tried(class_pair(parts="ar"))


def row(label: str, seconds: float, frechet: float, scores: list[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A report's row and its raw figures."""
    own = {"frechet": frechet, "frechet_draws": [frechet * factor for factor in (0.9, 1.0, 1.1)]}
    raw = {"regions": {"all": {"own": own, "log_likelihood": [-2.0, -2.0], "ar_log_likelihood": [-1.5, -1.5]}}}
    shown = {"key": label, "label": label, "method": label.split()[0], "region": "all"}
    return shown | {"median": seconds, "frechet": frechet}, {"fidelity": {**raw, "score": scores}}


def test_the_rival_is_the_best_plain_setting_that_takes_no_longer() -> None:
    made = [
        row("ar", 0.9, 1.0, [1, 1]),
        row("masked 8", 0.2, 9.0, [0, 1]),
        row("hybrid 8", 0.4, 6.0, [1, 1]),
        row("hybrid 12", 0.6, 4.0, [1, 1]),
        row("refined", 0.59, 2.0, [1, 1]),  # as slow as hybrid 12 within the scatter of medians
        row("guided", 0.45, 12.0, [0, 1]),
    ]
    report = {"rows": [shown for shown, _ in made], "header": HEADER}
    found = {one.label: one for one in verdicts(report, {"rows": {shown["key"]: raw for shown, raw in made}})}
    assert list(found) == ["masked 8", "hybrid 8", "guided", "refined", "hybrid 12"]
    assert [one.rival for one in found.values()] == [None, "masked 8", "hybrid 8", "hybrid 12", "hybrid 8"]
    assert found["refined"].frechet is not None and found["guided"].score is not None
    assert found["refined"].frechet.value == 0.5 and found["refined"].frechet.interval == pytest.approx((0.5, 0.5))
    assert found["guided"].score.value == -0.5 and found["guided"].likelihood.value == -0.5
    words = {label: one.words for label, one in found.items()}
    assert (
        words["refined"] == "better" and words["guided"] == "worse" and words["masked 8"] == "nothing plain is as fast"
    )
    text = table(report, list(found.values()))
    assert "| refined | 590 ms | hybrid 12 | 0.5 [0.5, 0.5] | 0 [0, 0] | -0.5 [-0.5, -0.5] | better |" in text


def test_an_interval_that_holds_one_shows_no_difference() -> None:
    made = [row("masked", 0.2, 4.0, [1, 1]), row("refined", 0.5, 3.9, [1, 1])]
    made[1][1]["fidelity"]["regions"]["all"]["own"]["frechet_draws"] = [3.0, 4.0, 5.0]
    report = {"rows": [shown for shown, _ in made], "header": HEADER}
    found = verdicts(report, {"rows": {shown["key"]: raw for shown, raw in made}})
    assert found[1].words == "no difference shown"


HEADER = {"pair": "tiny", "pictures": 2, "device": "a machine", "threads": 2, "score": "accuracy"}


def test_the_comparison_runs_on_a_tiny_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(machine, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(machine, "MATRIX", {"cpu": 64})
    hybrid = {"method": "hybrid", "ar_fraction": 0.25, "steps": 2}
    ways = [hybrid, {**hybrid, "method": "guided", "weight": 1.0, "everywhere": False}]
    ways.append({"method": "scattered", "seeds": 2, "seed_temperature": 0.5, "steps": 2})
    monkeypatch.setattr(judge, "WAYS", tuple(ways))
    pair, data = write_scene(tmp_path)
    sweep = judge_sweep(str(pair), "fashion", 80, 5)
    list(Runner(sweep, tmp_path / "run", data=data, opened=open_tried, network=Coarse()).jobs())
    raw = read_raw(tmp_path / "run")
    found = verdicts(make_report(raw), raw)
    assert {one.label for one in found} == {point.label for point in points()} and len(found) == 3
    assert all(np.isfinite(one.likelihood.value) for one in found)
    judge.write(tmp_path / "run", tmp_path / "out", name="judge", series=judge.SERIES)
    assert (tmp_path / "out" / "judge.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "report.json").is_file()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--pictures", "20"], "judge: --pictures 20: the statistics need 80"),
        (["--pair", "fashun"], "judge: "),
        (["--repeats", "1"], "judge: judge: speed.repeats"),
    ):
        assert main([str(tmp_path / "run"), "--out", str(tmp_path), *arguments]) == 2
        told = capsys.readouterr().err
        assert told.startswith(message) and len(told.splitlines()) == 1
    assert Verdict("x", 1.0, None, None, None, None).words == "nothing plain is as fast"  # type: ignore[arg-type]
