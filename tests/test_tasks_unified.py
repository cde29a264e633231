"""The training of one network for both phases: where samples are cut, and what its loss is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybrid.losses import mask_ratio
from hybrid.plan import sample_cost
from hybrid.plan_measure import made_up_loss
from hybrid.tasks_build import build_model
from hybrid.tasks_unified import UnifiedTask, draw_cut
from hybrid.training import sample_generator, train
from hybrid.types import MASK, Grid

CPU = torch.device("cpu")
MODEL = {"kind": "unified", "config": {**tiny.TRANSFORMER, "num_classes": 3}}


@pytest.fixture(params=[(0.0, 1.0), (0.5, 2.5)], ids=["clean", "noisy-weighted"])
def task(folder: Path, request: pytest.FixtureRequest) -> UnifiedTask:
    noise, weight = request.param
    settings = {"condition_dropout": 0.5, "token_noise": noise, "masked_weight": weight}
    built, _ = tiny.task("ar", folder, task="unified", model=MODEL, **settings)
    assert isinstance(built, UnifiedTask)
    return built


def test_cuts_rehearse_the_handoff_and_each_phase_alone() -> None:
    cuts = [draw_cut(64, sample_generator(3, sample), 0.5) for sample in range(4000)]
    lengths = torch.tensor([length for length, _ in cuts])
    assert float((lengths == 64).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((lengths == 0).float().mean()) == pytest.approx(0.25 + 0.5 / 64, abs=0.03)
    cut = lengths[(lengths > 0) & (lengths < 64)].float()
    assert float(cut.mean()) == pytest.approx(32, abs=4 * 18.5 / len(cut) ** 0.5)
    assert float((cut < 16).float().mean()) == pytest.approx(15 / 63, abs=0.04)
    shares = []
    for length, masked in cuts:
        assert not masked[:length].any() and bool(masked.any()) == (length < 64)
        if length < 32:
            shares.append(float(masked[length:].float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(2 / math.pi, abs=0.03)


def test_a_cut_masks_what_the_samples_stream_says() -> None:
    for sample in range(100):
        length, masked = draw_cut(64, sample_generator(3, sample), 1.0)
        generator = sample_generator(3, sample)
        _, share, uniform = torch.rand(3, generator=generator).tolist()
        assert length == int(share * 64)
        expected = torch.rand(64, generator=generator) < mask_ratio(uniform)
        assert torch.equal(masked[length:-1], expected[length:-1])


def test_a_sample_depends_on_its_number_only(task: UnifiedTask) -> None:
    def flat(samples: range) -> dict[str, torch.Tensor]:
        batch = task.batch(samples, CPU)
        return {"labels": batch["condition"].labels_b, **{k: v for k, v in batch.items() if k != "condition"}}

    whole = flat(range(24))
    for start, end in ((0, 12), (12, 24), (5, 6)):
        for name, value in flat(range(start, end)).items():
            assert torch.equal(value, whole[name][start:end]), name


def test_the_loss_is_the_one_written_by_hand(task: UnifiedTask) -> None:
    """Sample by sample, through the AR model's score and a fill from its cache instead of one mixed pass."""
    model = task.model.eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    batch = task.batch(range(12), CPU)
    assert torch.equal(batch["read"], batch["tokens"]) == (task.token_noise == 0)
    total, following, own = 0.0, [], []
    with torch.no_grad():
        loss, figures = task.loss(model, batch)
        for row in range(12):
            tokens, length = batch["tokens"][row : row + 1], int(batch["prefix"][row])
            condition: Any = model.condition([0])
            condition.labels_b[0] = batch["condition"].labels_b[row]
            read = batch["read"][row : row + 1]
            log_p = model.score(read, condition)[0].log_softmax(-1)
            following += [-float(log_p[place, tokens[0, place]]) for place in range(min(length + 1, tiny.PLACES))]
            if length == tiny.PLACES:
                continue
            _, state = model.prefill(condition, tiny.PLACES)
            grid = read.masked_fill(batch["masked"][row], MASK)
            log_p = model.after_prefix(state, length).logits(grid, condition)[0].log_softmax(-1)
            places = batch["masked"][row].nonzero()[:, 0].tolist()
            own += [-float(log_p[place - length, tokens[0, place]]) for place in places]
    total = sum(following) + task.masked_weight * sum(own)
    assert float(loss) == pytest.approx(total / (12 * tiny.PLACES), abs=1e-5)
    assert float(figures["nats_next"]) == pytest.approx(sum(following) / len(following), abs=1e-5)
    assert float(figures["nats_masked"]) == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_untrained_it_knows_nothing_and_a_short_run_learns(task: UnifiedTask, tmp_path: Path) -> None:
    with torch.no_grad():
        found = task.evaluate(task.model.eval())
    names = {"nats", "nats_without", "nats_wrong", "nats_half", "nats_quarter_prefix", "nats_half_prefix"}
    assert found == dict.fromkeys(names, pytest.approx(math.log(tiny.CODES)))
    assert set(task.units) >= names
    assert {task.units[name] for name in ("nats", "nats_without", "nats_wrong")} == {"nats per token"}
    loop = tiny.config("ar", loop={"steps": 30, "eval_every": 30, "sample_every": 30}).loop
    *_, last = train(task, loop, tmp_path / "run")
    assert last.figures["nats_next"] < math.log(tiny.CODES) - 0.1
    assert last.figures["nats_masked"] < math.log(tiny.CODES) - 0.1
    assert last.figures["eval_nats_quarter_prefix"] > 0
    assert (tmp_path / "run" / "samples" / "0000030.png").is_file()


def test_the_plan_counts_what_is_computed() -> None:
    config = tiny.config("ar", task="unified", model=MODEL)
    model = build_model("unified", "unified", MODEL["config"])[0]
    loss = made_up_loss(config, model, Grid(4, 4), 5)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        loss().backward()
    _, matrices, attention = sample_cost(model, "unified", Grid(4, 4))
    assert counter.get_total_flops() == 5 * (matrices + attention)


def test_a_masked_model_is_not_trained_as_both() -> None:
    with pytest.raises(ValueError, match=r"model\.kind: task 'unified' cannot train 'maskgil'; it trains 'unified'"):
        build_model("unified", "maskgil", {})


def test_evaluation_on_training_pictures_sees_these_and_changes_nothing(folder: Path) -> None:
    """The model is sure of one picture's tokens, whatever it reads: which pictures were looked at shows in the nats."""
    task, _ = tiny.task("ar", folder, task="unified", model=MODEL)
    assert isinstance(task, UnifiedTask)
    (bucket,) = task.buckets
    held = bucket.held.copy()
    known = task.on_training_pictures(4)
    for judge in (known, *known.judges):  # type: ignore[attr-defined]
        (seen,) = judge.judged
        assert len(seen.held) == 4 and set(seen.held) <= set(bucket.train) and not set(seen.held) & set(held)
    assert (bucket.held == held).all() and task.judged[0] is bucket
    places, codes = bucket.grid.places, task.model.codebook_size
    tokens = bucket.tokens(known.judged[0].held[:1].tolist(), [0])

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def score(self, tokens_bn: torch.Tensor, condition: Any) -> torch.Tensor:
            assert tokens_bn.shape[1] == places
            return 50.0 * nn.functional.one_hot(tokens, codes).float().expand(len(tokens_bn), -1, -1)

        logits = score

    def sure(pictures: list[int], counted: torch.Tensor) -> float:
        """Nats of such a model: ln K' where right, 50 more where wrong."""
        right = (bucket.tokens(pictures, [0] * len(pictures)) == tokens)[counted]
        normaliser = math.log(math.exp(50) + codes - 1)
        return float(torch.where(right, normaliser - 50, normaliser).mean())

    everywhere = torch.ones(4, places, dtype=torch.bool)
    found, before = known.evaluate(Sure()), task.evaluate(Sure())
    pictures = known.judged[0].held.tolist()
    assert found["nats"] == pytest.approx(sure(pictures, everywhere), rel=1e-5)
    rest = everywhere & (torch.arange(places) >= places // 2)
    assert found["nats_half_prefix"] == pytest.approx(sure(pictures, rest), rel=1e-5)
    everyone = torch.ones(len(held), places, dtype=torch.bool)
    assert before["nats"] == pytest.approx(sure(held.tolist(), everyone), rel=1e-5)
    assert before["nats"] != found["nats"]
