"""Training from code shards: the same as from a data folder with the same codes, and buckets keyed by steps."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import after, distance, trained, untimed
from tiny_pictures import Lengths, captioned, class_folders, png, tar

from hybrid.adapters import load
from hybrid.checkpoint import read_weights, save_weights
from hybrid.data.buckets import bucket_grids
from hybrid.data.extract import Plan, asked_by, extract
from hybrid.data.folder import DataError, DataFolder
from hybrid.data.images import open_source
from hybrid.data.shard_text import TextFormat
from hybrid.data.shards import CodeShards, is_shards
from hybrid.data.splits import is_held_out
from hybrid.tasks import BucketOrder
from hybrid.tasks_build import build_task
from hybrid.types import Grid

pytestmark = pytest.mark.usefixtures("no_plots")

CPU = torch.device("cpu")
SQUARE, BUCKETS = (Grid(4, 4),), tuple(bucket_grids(4))


def shards_of(
    source: Path, out: Path, grids: tuple[Grid, ...] = SQUARE, held_out: float = 0.3, **options: Any
) -> CodeShards:
    opened = open_source([str(source)], shard_size=8)
    plan = Plan(grids, asked_by=asked_by(opened), held_out=held_out, shard_size=8)
    file = tiny.tokenizer_file(out)
    kind = {"kind": "fsq", "file": file.name, "config": None}
    extract(opened, load("fsq", file), out, plan, tokenizer_kind=kind, **options)
    return CodeShards(out)


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of three grids, about a third held out."""
    root = tmp_path_factory.mktemp("buckets")
    return shards_of(class_folders(root / "in", 40), root / "out", BUCKETS).path


# The same as a data folder.


def as_tar(folder: Path, path: Path) -> Path:
    """A data folder's plain pictures as a .tar file whose keys fall into the folder's own splits at 0.3."""
    data, members = DataFolder.open(folder), {}
    for place, item in enumerate(data.items):
        salts = (f"{place}-{salt}" for salt in range(1000))
        held = item["split"] == "heldout"
        key = next(salt for salt in salts if is_held_out(f"{path.name}/{salt}", 0.3) == held)
        members[f"{key}.png"] = png(Image.fromarray(data.images[place, 0]))
        members[f"{key}.cls"] = str(item["label"]).encode()
    return tar(path, members)


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_training_equals_the_data_folders(kind: str, tmp_path: Path) -> None:
    folder = tiny.data_folder(tmp_path / "data")
    shards = shards_of(as_tar(folder, tmp_path / "data.tar"), tmp_path / "codes")
    changes: dict[str, Any] = {"views": 1, "loop": {"eval_every": 3, "sample_every": 6}}
    expected = untimed(trained(kind, folder, tmp_path / "a", **changes))
    assert untimed(trained(kind, shards.path, tmp_path / "b", **changes)) == expected
    assert "eval_nats" in expected[-1] or "eval_nats_half" in expected[-1]
    assert distance(tmp_path / "a", tmp_path / "b") == 0
    pages = [(tmp_path / run / "samples" / "0000006.png").read_bytes() for run in ("a", "b")]
    assert pages[0] == pages[1]


def test_the_tokenizer_is_needed_for_sheets_only(bucketed: Path, tmp_path: Path) -> None:
    task = build_task(tiny.config("masked"), data=bucketed, tokenizer=None, source="tiny.yaml")
    given, _ = tiny.task("masked", bucketed)
    # The codebook that the embedding starts from lies beside the codes.
    assert torch.equal(task.model.tok_emb.weight, given.model.tok_emb.weight)
    task.sample(task.model, tmp_path / "none.png")
    given.sample(given.model.eval(), tmp_path / "page.png")
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]


# Buckets.


def test_every_step_is_of_one_grid(bucketed: Path) -> None:
    task, _ = tiny.task("masked", bucketed)
    seen: Counter[Grid] = Counter()
    total = sum(len(bucket.train) for bucket in task.buckets)
    for step in range(total):  # four epochs of four pictures a step
        batch = task.batch(range(4 * step, 4 * step + 4), CPU)
        grid = batch["condition"].grid
        assert batch["tokens"].shape == batch["masked"].shape == (4, grid.places)
        seen[grid] += 1
    assert seen == {bucket.grid: len(bucket.train) for bucket in task.buckets} and set(seen) == set(BUCKETS)
    assert task.places == pytest.approx(
        sum(len(bucket.train) * bucket.grid.places for bucket in task.buckets) / total, abs=0.5
    )


def test_processes_share_a_step(bucketed: Path) -> None:
    one, _ = tiny.task("ar", bucketed, condition_dropout=0.5)
    other, _ = tiny.task("ar", bucketed, condition_dropout=0.5)
    for step in (7, 2, 11):
        whole = one.batch(range(4 * step, 4 * step + 4), CPU)
        parts = [other.batch(range(first, first + 2), CPU) for first in (4 * step, 4 * step + 2)]
        assert torch.equal(whole["tokens"], torch.cat([part["tokens"] for part in parts]))
        assert torch.equal(whole["condition"].labels_b, torch.cat([part["condition"].labels_b for part in parts]))
    with pytest.raises(ValueError, match=r"samples 0\.\.239 are of several steps and grids"):
        one.batch(range(240), CPU)


def test_resumed_and_accumulated_equal_the_whole(bucketed: Path, tmp_path: Path) -> None:
    whole = untimed(trained("masked", bucketed, tmp_path / "whole", loop={"eval_every": 2}))
    trained("masked", bucketed, tmp_path / "parts", stop=after(4), loop={"eval_every": 2})
    parts = trained("masked", bucketed, tmp_path / "parts", loop={"eval_every": 2})
    assert untimed(parts) == whole and len(whole) == 6
    assert distance(tmp_path / "whole", tmp_path / "parts") == 0
    trained("masked", bucketed, tmp_path / "halves", loop={"batch_size": 2, "accumulate": 2})
    assert distance(tmp_path / "whole", tmp_path / "halves") < 1e-5


@pytest.mark.parametrize(("sizes", "per_step"), [([10, 6, 3], 4), ([8], 16), ([5, 1], 8), ([7, 0, 9], 2)])
def test_steps_draw_every_picture_equally_often(sizes: list[int], per_step: int) -> None:
    order = BucketOrder(sizes, per_step, seed=3)
    steps = [order[step] for step in range(sum(sizes))]  # per_step epochs, in which each picture is drawn that often
    assert [Counter(bucket for bucket, _ in steps)[bucket] for bucket in range(len(sizes))] == sizes
    for bucket, size in enumerate(sizes):
        assert [turn for chosen, turn in steps if chosen == bucket] == list(range(size))
    fresh = BucketOrder(sizes, per_step, seed=3)
    assert [fresh[step] for step in reversed(range(sum(sizes)))] == steps[::-1]


def test_the_order_of_buckets_depends_on_the_seed() -> None:
    runs = [[BucketOrder([50, 50], 1, seed)[step][0] for step in range(100)] for seed in (0, 1)]
    assert runs[0] != runs[1] and runs[0] != sorted(runs[0])


@pytest.mark.parametrize("kind", ["ar", "masked"])
def test_evaluation_counts_every_token_once(kind: str, bucketed: Path) -> None:
    task, _ = tiny.task(kind, bucketed)
    with torch.no_grad():
        for value in task.model.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        together, every = task.evaluate(task.model), task.judged
        assert len(every) == 3
        name = "nats" if kind == "ar" else "nats_half_prefix"
        total = tokens = 0.0
        for bucket in every:
            task.judged = [bucket]
            count = len(bucket.held) * (bucket.grid.places - (0 if kind == "ar" else bucket.grid.places // 2))
            total += task.evaluate(task.model)[name] * count
            tokens += count
    assert together[name] == pytest.approx(total / tokens, rel=1e-5)


# Captions.


def words(caption: str) -> list[list[float]]:
    """What ``Lengths`` makes of a caption, padded."""
    lengths = [float(len(word)) for word in caption.split()]
    return [[0.0] * 3] * (5 - len(lengths)) + [[length] * 3 for length in lengths]


def test_captions_are_embedded_at_extraction_or_later(tmp_path: Path) -> None:
    source = captioned(tmp_path / "in", 20)
    records = [{"file_name": f"{n:03}.png", "text": [f"thing {n}", f"number {n} of all"]} for n in range(20)]
    (source / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for text in source.glob("*.txt"):
        text.unlink()
    encoder = Lengths()
    text = TextFormat.of(encoder, "lengths", {"a": 1})
    at_once = shards_of(source, tmp_path / "now", BUCKETS, encoder=encoder, text=text)
    later = shards_of(source, tmp_path / "later", BUCKETS)
    with pytest.raises(DataError, match="captions are not embedded"):
        later.pictures()
    later.embed(encoder, text)
    for bucket, other in zip(at_once.pictures(), later.pictures(), strict=True):
        numbers = list(range(len(bucket.train)))
        for choice, place in ((0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1)):
            embedding, mask = bucket.prompts(numbers, [choice] * len(numbers))
            again, seen = other.prompts(numbers, [choice] * len(numbers))
            assert torch.equal(embedding, again) and torch.equal(mask, seen)
            captions = []
            for folder, counts in at_once.shards:
                if str(bucket.grid) in counts:
                    lines = (folder / f"{bucket.grid}.jsonl").read_text().splitlines()
                    captions += [json.loads(line)["captions"][place] for line in lines]
            expected = torch.tensor([words(captions[number]) for number in numbers])
            assert torch.equal(embedding, expected) and torch.equal(mask, expected[..., 0] > 0)
    seen_before = len(encoder.seen)
    CodeShards(tmp_path / "later").embed(encoder, text)
    assert len(encoder.seen) == seen_before  # nothing is embedded twice


def test_captions_train_a_text_model(tmp_path: Path) -> None:
    encoder = Lengths()
    text = TextFormat.of(encoder, "lengths", {"a": 1})
    shards = shards_of(captioned(tmp_path / "in", 40), tmp_path / "out", BUCKETS, encoder=encoder, text=text)
    model = json.loads(json.dumps(tiny.MODELS["masked"]))
    model["config"] |= {"model_type": "t2i", "cls_token_num": 5, "caption_dim": 3}
    log = trained("masked", shards.path, tmp_path / "run", model=model, loop={"eval_every": 6, "sample_every": 6})
    assert len(log) == 6 and np.isfinite(log[-1]["eval_nats_half"])
    assert (tmp_path / "run" / "samples" / "0000006.png").exists()
    model["config"]["caption_dim"] = 4
    with pytest.raises(ValueError, match=r"model\.config\.caption_dim: 4, but the embeddings' width is 3"):
        tiny.task("masked", shards.path, model=model)
    with pytest.raises(ValueError, match=r"text: \{'a': 2\}, but the captions of .* are embedded by lengths-"):
        tiny.task("masked", shards.path, text={"a": 2})


# What does not fit.


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("tokenizer", {}, "holds codes, and a tokenizer learns from pictures"),
        ("masked", {"balance": True}, "tiny.yaml: balance: goes with a data folder of pictures"),
        ("ar", {"vocab_size": 11}, "model.config.vocab_size: 11, but the tokenizer has 12 codes"),
        ("ar", {"block_size": 25}, "model.config.block_size: 25, but pictures have 16 tokens"),
        ("ar", {"num_classes": 2}, "model.config.num_classes: 2, but the data has 3"),
        ("ar", {"model_type": "t2i"}, "model.config.model_type: t2i needs captions"),
    ],
)
def test_contradictions_are_one_line(bucketed: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    if kind == "ar":
        model = json.loads(json.dumps(tiny.MODELS[kind]))
        model["config"] |= changes
        changes = {"model": model}
    with pytest.raises(ValueError) as caught:
        tiny.task(kind, bucketed, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(bucketed: Path, tmp_path: Path) -> None:
    def build(file: Path) -> None:
        build_task(tiny.config("ar"), data=bucketed, tokenizer=file, source="tiny.yaml")

    state, metadata = read_weights(tiny.tokenizer_file(bucketed))
    changed = dict(state)
    changed["decoder.0.bias"] = state["decoder.0.bias"] + 1
    save_weights(tmp_path / "other.safetensors", changed, metadata=metadata)
    message = r"other\.safetensors: is not the tokenizer that made the codes of .* \(decoder [0-9a-f]{8}, expected"
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"none\.pt: no such tokenizer; the codes of .* were made by tokenizer\.saf"):
        build(tmp_path / "none.pt")


def test_too_few_pictures_are_named(tmp_path: Path) -> None:
    shards = shards_of(class_folders(tmp_path / "in", 6), tmp_path / "out", held_out=0)
    with pytest.raises(ValueError, match="too few pictures to evaluate on: hold a larger share of them out"):
        tiny.task("ar", shards.path)
    assert is_shards(shards.path) and not is_shards(tmp_path / "in") and not is_shards(tmp_path)


def test_a_damaged_shard_is_one_line(tmp_path: Path) -> None:
    shards = shards_of(class_folders(tmp_path / "in", 20), tmp_path / "out")
    codes = shards.shards[2][0] / "4x4.codes.npy"
    whole = codes.read_bytes()
    for damage in (whole[:-4], b""):
        codes.write_bytes(damage)
        with pytest.raises(
            ValueError, match=r"00002/4x4\.codes\.npy: cannot be read \(.*; remove .*00002 and"
        ) as caught:
            tiny.task("ar", shards.path)
        assert "\n" not in str(caught.value)
    np.save(codes, np.load(shards.shards[0][0] / "4x4.codes.npy"))
    with pytest.raises(ValueError, match=r"4x4\.codes\.npy: cannot be read \(its shape is \(8, 1, 16\)\)"):
        tiny.task("ar", shards.path)
    shutil.rmtree(codes.parent)
    shards_of(tmp_path / "in", tmp_path / "out")
    assert codes.read_bytes() == whole


def test_the_share_held_out() -> None:
    held = [is_held_out(f"n0144/{number}.JPEG", 0.1) for number in range(5000)]
    assert sum(held) / 5000 == pytest.approx(0.1, abs=0.02)
    assert not any(is_held_out(str(number), 0.0) for number in range(100))
    smaller = [is_held_out(f"n0144/{number}.JPEG", 0.05) for number in range(5000)]
    assert all(large for small, large in zip(smaller, held, strict=True) if small)
