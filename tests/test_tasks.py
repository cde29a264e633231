"""Tasks: which pictures, captions and masks a numbered sample has, and what is said about contradictions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from hybrid.data.coded import FolderPictures
from hybrid.data.codes import CaptionTable
from hybrid.data.folder import DataFolder
from hybrid.data.splits import group_weights, pick
from hybrid.losses import mask_ratio
from hybrid.tasks import ARTask, draw_mask
from hybrid.training import sample_generator
from hybrid.types import MASK, Grid

CPU = torch.device("cpu")


def draws(share: float, number: int, places: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of samples 0..number-1, and which of them are hand-offs."""
    found = [draw_mask(places, sample_generator(3, sample), share) for sample in range(number)]
    return torch.stack([mask for mask, _ in found]), torch.tensor([handoff for _, handoff in found])


def test_mask_ratio_has_the_papers_mean_and_distribution() -> None:
    masks, handoffs = draws(0.0, 4000)
    assert not handoffs.any()
    ratio = masks.float().mean(1)
    # E[arccos(u) / (π/2)] = 2/π; its standard deviation is 0.25, plus the Bernoulli draws.
    assert float(ratio.mean()) == pytest.approx(2 / math.pi, abs=4 * 0.26 / 4000**0.5)
    # P(ratio < r) = 1 - cos(r π/2).
    for r in (0.25, 0.5, 0.75):
        assert float((ratio < r).float().mean()) == pytest.approx(1 - math.cos(r * math.pi / 2), abs=0.03)


def test_at_least_one_place_is_masked() -> None:
    assert draws(0.0, 2000, places=2)[0].any(1).all()
    assert draws(1.0, 2000, places=2)[0].any(1).all()


def test_handoffs_keep_a_prefix_and_have_their_share() -> None:
    masks, handoffs = draws(0.3, 4000)
    assert float(handoffs.float().mean()) == pytest.approx(0.3, abs=0.03)
    masks, handoffs = draws(1.0, 400)
    assert handoffs.all()
    for sample in range(400):
        generator = sample_generator(3, sample)
        _, length, uniform = torch.rand(3, generator=generator).tolist()
        kept = int(length * 64)
        expected = torch.rand(64, generator=generator) < mask_ratio(uniform)
        assert not masks[sample, :kept].any()
        assert torch.equal(masks[sample, kept:-1], expected[kept:-1])


def flattened(batch: Any) -> dict[str, torch.Tensor]:
    return {"labels": batch["condition"].labels_b, **{k: v for k, v in batch.items() if k != "condition"}}


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_a_sample_depends_on_its_number_only(folder: Path, kind: str) -> None:
    task, _ = tiny.task(kind, folder, condition_dropout=0.5)
    whole = flattened(task.batch(range(0, 24), CPU))
    for start, end in ((0, 12), (12, 24), (5, 6)):
        part = flattened(tiny.task(kind, folder, condition_dropout=0.5)[0].batch(range(start, end), CPU))
        for name, value in part.items():
            assert torch.equal(value, whole[name][start:end]), name
    other = flattened(tiny.task(kind, folder, condition_dropout=0.5, loop={"seed": 1})[0].batch(range(0, 24), CPU))
    assert not torch.equal(other["tokens"], whole["tokens"])


def test_an_epoch_shows_every_training_picture_once_and_no_other(folder: Path) -> None:
    task, _ = tiny.task("ar", folder, views=1, condition_dropout=0.0)
    tokens = task.batch(range(8, 16), CPU)["tokens"]
    expected = task.buckets[0].tokens(range(8), [0] * 8)
    assert sorted(map(tuple, tokens.tolist())) == sorted(map(tuple, expected.tolist()))


def test_condition_dropout_has_its_share(folder: Path) -> None:
    task, _ = tiny.task("ar", folder, condition_dropout=0.25)
    condition = task.batch(range(2000), CPU)["condition"]
    assert float((condition.labels_b == condition.null_label).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_balance_makes_groups_equally_likely() -> None:
    weights = group_weights([{"group": "a"}] * 3 + [{"group": "b"}])
    assert weights[:3].sum() == weights[3] == 1


def test_sets_choose_pictures(folder: Path) -> None:
    data = DataFolder.open(folder)
    assert pick(data, "train", None).tolist() == list(range(8))
    assert pick(data, "train", ["fancy"]).tolist() == [1, 3, 5, 7]
    task, _ = tiny.task("masked", folder, sets=["plain"])
    (pictures,) = task.buckets
    assert pictures.train.tolist() == [0, 2, 4, 6] and pictures.held.tolist() == [8, 10]
    with pytest.raises(ValueError, match=r"sets: no set is called 'noto'; .* has fancy, plain"):
        pick(data, "train", ["plain", "noto"])


def test_a_set_without_pictures_of_a_split_is_named(tmp_path: Path) -> None:
    records = tiny.items()
    for record in records[:8]:
        record["set"] = "plain"
    data = DataFolder.open(tiny.data_folder(tmp_path / "data", records))
    with pytest.raises(ValueError, match=r"sets: no train picture is of \['fancy'\]"):
        pick(data, "train", ["fancy"])


def test_loss_on_all_counts_every_place(folder: Path) -> None:
    some, _ = tiny.task("masked", folder)
    every, _ = tiny.task("masked", folder, loss_on="all")
    batch = some.batch(range(4), CPU)
    # Fresh models predict all codes alike, since their output starts at zero.
    share = batch["masked"].float().mean()
    assert some.loss(some.model, batch)[0].item() == pytest.approx(float(share) * math.log(tiny.CODES), rel=1e-4)
    assert every.loss(every.model, batch)[0].item() == pytest.approx(math.log(tiny.CODES), rel=1e-4)


def test_masked_places_are_hidden_from_the_model(folder: Path) -> None:
    task, _ = tiny.task("masked", folder)
    batch, seen = task.batch(range(4), CPU), []

    def model(tokens: torch.Tensor, _: object) -> torch.Tensor:
        seen.append(tokens)
        return torch.zeros(*tokens.shape, tiny.CODES)

    task.loss(model, batch)
    assert torch.equal(seen[0] == MASK, batch["masked"])
    assert torch.equal(seen[0][~batch["masked"]], batch["tokens"][~batch["masked"]])


@pytest.mark.parametrize("kind", ["tokenizer", "ar", "masked"])
def test_evaluation_in_parts_equals_one_batch(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = tiny.task(kind, folder)
    with torch.no_grad():
        for value in task.model.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        whole = task.evaluate(task.model)
        monkeypatch.setattr("hybrid.tasks.EVAL_BATCH", 3)
        assert task.evaluate(task.model) == pytest.approx(whole, rel=1e-5)
    assert set(whole) <= set(task.units) | {"codes_used"}


@pytest.mark.parametrize("kind", ["tokenizer", "ar", "masked"])
def test_sample_sheet(folder: Path, kind: str, tmp_path: Path) -> None:
    task, _ = tiny.task(kind, folder)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    for name in ("a.png", "b.png"):
        task.sample(task.model.eval(), tmp_path / name)
    with Image.open(tmp_path / "a.png") as page:
        assert page.size == (4 * 10 - 2, 2 * 10 - 2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_no_sheet_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    task, _ = tiny.task("ar", folder)
    task.tokenizer = None
    task.sample(task.model, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_captions_are_drawn_by_sample(tmp_path: Path) -> None:
    records = tiny.items(captions=True)
    data = DataFolder.open(tiny.data_folder(tmp_path / "data", records))
    names = sorted({caption for record in records for caption in record["captions"]})
    embedding = np.arange(len(names), dtype=np.float16)[:, None, None].repeat(2, 1).repeat(3, 2)
    table = CaptionTable(names, embedding, np.ones((len(names), 2), dtype=np.bool_))

    class Recorder(torch.nn.Module):
        def condition(self, prompts: Any, grid: Grid) -> Any:
            assert grid == Grid(2, 2)
            self.asked = prompts
            return self

        def drop(self, dropped: torch.Tensor) -> Any:
            return self

    model = Recorder()
    codes = np.arange(12, dtype=np.uint16)[:, None, None].repeat(2, 1).repeat(4, 2)  # a picture's codes are its number
    task = ARTask(model, [FolderPictures(data, codes, table)], seed=0, metadata={}, per_step=64)
    tokens = task.batch(range(64), CPU)["tokens"][:, 0].tolist()
    asked = [names[int(value)] for value in model.asked[0][:, 0, 0]]
    assert all(caption in records[picture]["captions"] for picture, caption in zip(tokens, asked, strict=True))
    assert len(set(asked)) == 16


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ar", {"model": tiny.MODELS["masked"]}, "tiny.yaml: model.kind: task 'ar' cannot train 'maskgil'; it trains"),
        ("ar", {"model": {"kind": "llamagn"}}, "cannot train 'llamagn'; did you mean 'llamagen'?"),
        ("ar", {"model": {"kind": "llamagen", "config": {"dmi": 1}}}, "tiny.yaml: llamagen config: unknown key 'dmi'"),
        ("tokenizer", {"model": {"kind": "fsq", "config": {"width": "x"}}}, "tiny.yaml: fsq config: width: "),
        ("ar", {"vocab_size": 11}, "tiny.yaml: model.config.vocab_size: 11, but the tokenizer has 12 codes"),
        ("masked", {"block_size": 4}, "tiny.yaml: model.config.block_size: 4, but pictures have 16 tokens"),
        ("ar", {"num_classes": 2}, "tiny.yaml: model.config.num_classes: 2, but the data has 3"),
        ("ar", {"model_type": "t2i"}, "tiny.yaml: model.config.model_type: t2i needs captions"),
    ],
)
def test_contradictions_are_one_line(folder: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    model = json.loads(json.dumps(tiny.MODELS[kind]))
    if "model" not in changes:
        model["config"] |= changes
        changes = {"model": model}
    with pytest.raises(ValueError) as caught:
        tiny.task(kind, folder, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_noise_misreads_tokens_of_other_pictures_and_leaves_what_is_to_predict(kind: str, folder: Path) -> None:
    noisy, _ = tiny.task(kind, folder, token_noise=0.8)
    plain, _ = tiny.task(kind, folder)
    one, other = noisy.batch(range(400), CPU), plain.batch(range(400), CPU)
    assert torch.equal(one["tokens"], other["tokens"]) and torch.equal(other["read"], other["tokens"])
    if kind == "masked":
        assert torch.equal(one["masked"], other["masked"])
    (bucket,) = noisy.buckets
    known = bucket.tokens(bucket.train.tolist(), [0] * len(bucket.train))
    wrong = one["read"] != one["tokens"]
    assert bool((one["read"][:, None] == known).any(1).all())  # some training picture has that code at that place
    # A sample's share is uniform in 0..0.8; of the tokens taken, those that happen to be equal do not show.
    differ = float((one["tokens"][:, None] != known).float().mean())
    assert float(wrong.float().mean()) == pytest.approx(0.4 * differ, abs=0.03)
    assert wrong.float().mean(1).std() > 0.125  # one share for all samples would give 0.11
    part = noisy.batch(range(100, 103), CPU)
    assert torch.equal(part["read"], one["read"][100:103])


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_samples_without_a_condition_have_a_share_of_noise_of_their_own(kind: str, folder: Path) -> None:
    noisy, _ = tiny.task(kind, folder, condition_dropout=0.5, null_noise=0.6)
    batch = noisy.batch(range(800), CPU)
    null = batch["condition"].labels_b == batch["condition"].null_label
    wrong = batch["read"] != batch["tokens"]
    assert 300 < int(null.sum()) < 500 and not bool(wrong[~null].any())
    (bucket,) = noisy.buckets
    known = bucket.tokens(bucket.train.tolist(), [0] * len(bucket.train))
    differ = float((batch["tokens"][null][:, None] != known).float().mean())
    assert float(wrong[null].float().mean()) == pytest.approx(0.6 * differ, abs=0.03)
    none, _ = tiny.task(kind, folder, condition_dropout=0.5, token_noise=0.8, null_noise=0.0)
    batch = none.batch(range(100), CPU)
    null = batch["condition"].labels_b == batch["condition"].null_label
    wrong = batch["read"] != batch["tokens"]
    assert bool(wrong[~null].any()) and not bool(wrong[null].any())


def test_the_loss_reads_the_noise_and_predicts_the_truth(folder: Path) -> None:
    task, _ = tiny.task("ar", folder, token_noise=0.8)
    batch = task.batch(range(8), CPU)
    torch.manual_seed(0)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        logits = task.model.score(batch["read"], batch["condition"])
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["tokens"])
        assert float(task.loss(task.model, batch)[0]) == pytest.approx(float(expected), rel=1e-5)
