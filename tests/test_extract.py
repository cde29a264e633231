"""Pictures of one's own to code shards: the same codes as the tokenizer's own, whatever the source or a kill does."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_pictures
import torch
from PIL import Image
from tiny_pictures import Lengths, captioned, class_folders, contents, picture, png, tar

from hybrid.adapters import load
from hybrid.data import extract as extract_module
from hybrid.data.buckets import Views, bucket_grids, centre_crop, nearest_grid
from hybrid.data.codes import to_images
from hybrid.data.extract import Plan, asked_by, extract
from hybrid.data.folder import DataError
from hybrid.data.images import BadSample, Keys, decode, open_source
from hybrid.data.shard_text import TextFormat, padded, read_records, write_rows
from hybrid.data.shards import CodeShards, parse_grid
from hybrid.data.splits import is_held_out
from hybrid.types import Grid

GRIDS = tuple(bucket_grids(4))


@pytest.fixture
def tokenizer(weights: Path) -> Any:
    return load("fsq", weights)


def extracted(tokenizer: Any, out: Path, *sources: Path, plan: Plan | None = None, **options: Any) -> CodeShards:
    source = open_source([str(path) for path in sources], shard_size=8)
    plan = plan or Plan(GRIDS, asked_by=asked_by(source), held_out=0.3, shard_size=8)
    extract(source, tokenizer, out, plan, tokenizer_kind={"kind": "fsq", "file": "t", "config": None}, **options)
    return CodeShards(out)


def rows(shards: CodeShards) -> dict[str, tuple[Grid, np.ndarray, dict[str, Any]]]:
    """Grid, codes and record of every picture, by its key."""
    found = {}
    for folder, counts in shards.shards:
        for name in counts:
            codes = np.load(folder / f"{name}.codes.npy")
            for code, record in zip(codes, read_records(folder, parse_grid(name)), strict=True):
                found[record["key"]] = (parse_grid(name), code, record)
    return found


def direct(tokenizer: Any, image: Image.Image, grid: Grid) -> np.ndarray:
    """What the tokenizer makes of a picture's centre."""
    crop = centre_crop(image, 2 * grid.height, 2 * grid.width)
    return tokenizer.encode(to_images(np.asarray(crop)[None]))[0].numpy()


# Codes.


def test_codes_labels_and_grids_of_class_folders(tokenizer: Any, tmp_path: Path) -> None:
    shards = extracted(tokenizer, tmp_path / "out", class_folders(tmp_path / "in"), batch=3)
    found = rows(shards)
    assert len(found) == 20 and shards.meta["shards"] == 3 and shards.labelled
    for number in range(20):
        name = ("zebra", "ant", "bee")[number % 3]
        grid, codes, record = found[f"{name}/{number:03}.png"]
        image = picture(number)
        assert grid == nearest_grid(*image.size, GRIDS)
        assert np.array_equal(codes[0], direct(tokenizer, image, grid)) and codes.dtype == np.uint16
        assert record["label"] == ("ant", "bee", "zebra").index(name)
        assert record["split"] == ("heldout" if is_held_out(record["key"], 0.3) else "train")
    assert {grid for grid, _, _ in found.values()} == set(GRIDS) == set(shards.grids)
    assert shards.meta["classes"] == ["ant", "bee", "zebra"] and sum(shards.meta["pictures"].values()) == 20
    assert shards.meta["held"] == sum(record["split"] == "heldout" for _, _, record in found.values())
    assert np.array_equal(shards.codebook(), tokenizer.codebook_kd)


def test_views_are_encoded_in_order(tokenizer: Any, tmp_path: Path) -> None:
    plan = Plan((Grid(4, 4),), Views(ten_crop=(1.25,)), held_out=0, shard_size=8)
    shards = extracted(tokenizer, tmp_path / "out", class_folders(tmp_path / "in", 4), plan=plan, batch=32)
    _, codes, _ = rows(shards)["ant/001.png"]
    crops = plan.views.crops(picture(1), 8, 8)
    expected = tokenizer.encode(to_images(np.stack([np.asarray(crop) for crop in crops])))
    assert codes.shape == (10, 16) and np.array_equal(codes, expected)


def test_large_codebooks_get_wider_codes(tmp_path: Path) -> None:
    class Wide(torch.nn.Module):
        factor = 2

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codebook_kd", torch.zeros(70_000, 1))

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 16), 69_999)

    plan = Plan((Grid(4, 4),), shard_size=8)
    shards = extracted(Wide(), tmp_path / "out", class_folders(tmp_path / "in", 2), plan=plan)
    _, codes, _ = rows(shards)["ant/001.png"]
    assert codes.dtype == np.uint32 and (codes == 69_999).all()


# Sources.


def test_captions_beside_pictures_and_in_records(tokenizer: Any, tmp_path: Path) -> None:
    beside = extracted(tokenizer, tmp_path / "out1", captioned(tmp_path / "a", 3))
    assert not beside.labelled
    assert [rows(beside)[f"{n:03}.png"][2]["captions"] for n in range(3)] == [[f"thing {n}"] for n in range(3)]
    folder = tmp_path / "b"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x.png").write_bytes(png(picture(0)))
    (folder / "y.PNG").write_bytes(png(picture(1)))
    lines = ({"file_name": "deep/x.png", "text": ["one", " two "]}, {"file_name": "y.PNG", "text": "three"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rows(extracted(tokenizer, tmp_path / "out2", folder))
    assert found["deep/x.png"][2]["captions"] == ["one", "two"] and found["y.PNG"][2]["captions"] == ["three"]


def test_webdataset(tokenizer: Any, tmp_path: Path) -> None:
    first = {
        "a/0.png": png(picture(0)),
        "a/0.txt": b"zero\n",
        "a/1.txt": b"one",
        "a/1.front.png": png(picture(1)),
        "b/1.json": json.dumps({"caption": "two", "label": 7}).encode(),
        "b/1.jpg": png(picture(2)),
    }
    files = tar(tmp_path / "in" / "00.tar", first), tar(tmp_path / "in" / "01.tar", {"0.png": png(picture(3))})
    source = open_source([str(tmp_path / "in")])
    assert len(source) == 2 and asked_by(source) == "captions"
    keys = ["00.tar/a/0", "00.tar/a/1", "00.tar/b/1"]
    assert [sample.key for sample in source[0]] == keys
    assert [sample.read().captions for sample in source[0]] == [("zero",), ("one",), ("two",)]
    assert [sample.read().label for sample in source[0]] == [None, None, 7]
    out = tmp_path / "out"
    shards = extracted(tokenizer, out, files[0])
    found = rows(shards)
    for number, key in enumerate(keys):
        grid, codes, _ = found[key]
        assert np.array_equal(codes[0], direct(tokenizer, picture(number), grid))
    classes = tar(tmp_path / "c.tar", {"0.png": png(picture(0)), "0.cls": b"3"})
    assert open_source([str(classes)])[0][0].read().label == 3


def test_what_precedes_a_tars_damage_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    members = {f"{n}.{kind}": data for n in range(3) for kind, data in (("cls", b"1"), ("png", png(picture(n))))}
    file = tar(tmp_path / "a.tar", members)
    file.write_bytes(file.read_bytes()[:4096])  # in the second picture
    with pytest.raises(DataError, match=r"a\.tar: a\.tar/1: a\.tar is truncated; .*--skip-bad") as caught:
        extracted(tokenizer, tmp_path / "out", file)
    assert "\n" not in str(caught.value)
    shards = extracted(tokenizer, tmp_path / "out", file, skip_bad=True)
    assert list(rows(shards)) == ["a.tar/0"]
    skipped = json.loads((shards.shards[0][0] / "counts.json").read_text())["skipped"]
    assert skipped[0] == "a.tar/1: a.tar is truncated" and skipped[1].startswith("a.tar: is no readable .tar file")


def damaged(whole: bytes, how: str) -> bytes:
    headers = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]
    third = headers[2]
    return {
        "bit": whole[: third + 100] + bytes([whole[third + 100] ^ 64]) + whole[third + 101 :],
        "header": whole[: third + 200],
        "member": whole[:third],
        "two": whole + whole,
    }[how]


@pytest.mark.parametrize("how", ["bit", "header", "member", "two"])
def test_a_tar_that_ends_too_soon_is_told(how: str, tokenizer: Any, tmp_path: Path) -> None:
    """Python's tarfile stops at these without a word."""
    members = {f"{n}.{kind}": data for n in range(3) for kind, data in (("cls", b"1"), ("png", png(picture(n))))}
    file = tar(tmp_path / "a.tar", members)
    assert len(open_source([str(file)])[0]) == 3
    file.write_bytes(damaged(file.read_bytes(), how))
    samples = open_source([str(file)])[0]
    assert len(samples) == (4 if how == "two" else 2)
    with pytest.raises(
        BadSample, match=r"is no readable \.tar file from here on: damaged, truncated, or several in one"
    ):
        samples[-1].read()


def test_the_plainest_name_of_a_sample_is_its_picture(tmp_path: Path) -> None:
    members = {"0.mask.png": png(picture(1)), "0.png": png(picture(0)), "0.a.txt": b"no", "0.txt": b"yes"}
    content = open_source([str(tar(tmp_path / "a.tar", members))])[0][0].read()
    assert content.picture == png(picture(0)) and content.captions == ("yes",)
    only = open_source([str(tar(tmp_path / "b.tar", {"0.front.png": png(picture(2)), "0.cls": b"1"}))])[0][0].read()
    assert only.picture == png(picture(2))


def fake_datasets(rows: list[dict[str, Any]], features: dict[str, Any]) -> ModuleType:
    """The few names of the package ``datasets`` that are used."""

    class Image:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class Rows(list[dict[str, Any]]):
        def __init__(self, values: list[dict[str, Any]], kinds: dict[str, Any]) -> None:
            super().__init__(values)
            self.features = {key: Image() if kind == "image" else kind for key, kind in kinds.items()}

        def select_columns(self, names: list[str]) -> Rows:
            found = Rows([{key: row[key] for key in names} for row in self], {})
            found.features = {key: self.features[key] for key in names}
            return found

        def cast_column(self, name: str, kind: Image) -> Rows:
            assert name == "img" and not kind.decode
            return self

    module = ModuleType("datasets")
    module.Image = Image  # type: ignore[attr-defined]
    loaded = {"train": Rows(rows, features), "test": Rows(rows[:1], features)}
    module.load_dataset = lambda name, split: loaded if split is None else loaded[split]  # type: ignore[attr-defined]
    module.load_from_disk = lambda folder: loaded["train"]  # type: ignore[attr-defined]
    return module


def test_hugging_face_datasets(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Classes:
        names = ("cat", "dog")

    file = tmp_path / "1.png"
    file.write_bytes(png(picture(1)))
    images = [{"bytes": png(picture(0)), "path": None}, {"bytes": None, "path": str(file)}, None]
    values = [{"img": image, "label": number % 2, "mask": None} for number, image in enumerate(images)]
    features = {"label": Classes(), "img": "image", "mask": "image"}
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(values, features))
    with pytest.raises(DataError, match=r"hf://x/y: several splits; choose with --split one of train, test"):
        open_source(["hf://x/y"])
    source = open_source(["hf://x/y"], split="train", shard_size=2)
    assert len(source) == 2 and source.classes == ("cat", "dog") and asked_by(source) == "label"
    assert set(source.rows[0]) == {"img", "label"}, "a second column of pictures would be decoded with each row"
    contents_read = [sample.read() for sample in source[0]]
    assert [content.picture for content in contents_read] == [png(picture(0)), png(picture(1))]
    assert [content.label for content in contents_read] == [0, 1]
    with pytest.raises(BadSample, match="has no picture"):
        source[1][0].read()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert len(open_source([str(tmp_path / "saved")], shard_size=3)[0]) == 3
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"need the package: pip install 'hybrid-imagegen\[datasets\]'"):
        open_source(["hf://x/y"])


def test_a_real_dataset_saved_to_disk(tokenizer: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    values = {"picture": [picture(n) for n in range(5)], "text": [f"thing {n}" for n in range(5)]}
    kinds = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(values, features=kinds).save_to_disk(tmp_path / "in")
    found = rows(extracted(tokenizer, tmp_path / "out", tmp_path / "in"))
    assert [found[f"row {n}"][2]["captions"] for n in range(5)] == [[f"thing {n}"] for n in range(5)]
    for number in range(5):
        grid, codes, _ = found[f"row {number}"]
        assert np.array_equal(codes[0], direct(tokenizer, picture(number), grid))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": 2**31}, "its label is no class number"),
        ({"text": "smile \ud83d"}, "its caption is not valid Unicode"),
    ],
)
def test_a_record_that_no_shard_can_hold_is_a_bad_sample(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        Keys().content(b"", record)
    assert Keys().content(b"", {"label": 2**31 - 1, "text": "smile \U0001f600"}).label == 2**31 - 1


def test_odd_exif_beside_a_good_orientation() -> None:
    tags = struct.pack("<HHII", 0x0112, 3, 1, 6)  # turned
    tags += struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")  # an X resolution that is a text
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(file, "JPEG", exif=exif)
    assert decode(file.getvalue()).size == (2, 4)


def test_pictures_are_turned_and_put_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    assert np.array_equal(decode(png(clear)), np.full((1, 2, 3), 255))
    grey = Image.fromarray(np.array([[0, 9]], dtype=np.uint8))
    assert np.array_equal(decode(png(grey)), [[[0] * 3, [9] * 3]])
    with pytest.raises(BadSample, match="its mode is I;16, not eight bits a channel"):
        decode(png(Image.fromarray(np.zeros((2, 2), dtype=np.uint16))))
    with pytest.raises(BadSample, match="not a picture in a known format"):
        decode(b"hello")
    with pytest.raises(BadSample, match="not a readable picture"):
        decode(png(tiny_pictures.picture(3))[:1000])


@pytest.mark.parametrize(
    ("record", "message"),
    [({"text": 3}, r"its caption is no text \(3\)"), ({"label": -1}, r"its label is no class number \(-1\)")],
)
def test_odd_records_are_bad_samples(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        Keys().content(b"", record)


# Interruptions.


def test_a_kill_in_mid_shard_changes_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "in")
    extracted(tokenizer, tmp_path / "whole", source, batch=2)
    encode, calls = tokenizer.encode, iter(range(100))

    def killed(images: torch.Tensor) -> torch.Tensor:
        if next(calls) == 6:  # the first shard of eight pictures takes at most six batches
            raise KeyboardInterrupt
        return encode(images)

    tokenizer.encode = killed
    with pytest.raises(KeyboardInterrupt):
        extracted(tokenizer, tmp_path / "out", source, batch=2)
    tokenizer.encode = encode
    kept = contents(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000"]
    with pytest.raises(DataError, match=r"out: 1 of 3 shards are finished; run the hybrid-data codes that began it"):
        CodeShards(tmp_path / "out")

    def killed_while_writing(*arguments: Any) -> None:
        (arguments[0] / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(extract_module, "write_shard", killed_while_writing)
    with pytest.raises(KeyboardInterrupt):
        extracted(tokenizer, tmp_path / "out", source, batch=2)
    monkeypatch.undo()
    assert contents(tmp_path / "out") == kept
    (tmp_path / "out" / "shards" / ".00001-left").mkdir()  # as after a kill -9
    extracted(tokenizer, tmp_path / "out", source, batch=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out" / "shards").iterdir()) == ["00000", "00001", "00002"]


def test_parts_make_the_whole(tokenizer: Any, tmp_path: Path) -> None:
    source = captioned(tmp_path / "in")
    text = TextFormat.of(Lengths(), "lengths", {})
    extracted(tokenizer, tmp_path / "whole", source, encoder=Lengths(), text=text)
    with pytest.raises(DataError, match="1 of 3 shards are finished"):
        extracted(tokenizer, tmp_path / "parts", source, part=(2, 2), encoder=Lengths(), text=text)
    (tmp_path / "parts" / "shards" / ".DS_Store").write_text("Finder's")
    extracted(tokenizer, tmp_path / "parts", source, part=(1, 2), encoder=Lengths(), text=text, workers=1)
    (tmp_path / "parts" / "shards" / ".DS_Store").unlink()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_folder_begun_otherwise_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", 3)
    extracted(tokenizer, tmp_path / "out", source)
    with pytest.raises(
        DataError, match=r"out: begun with held_out 0\.3, asked for 0; give another --out or move it away"
    ):
        extracted(tokenizer, tmp_path / "out", source, plan=Plan(GRIDS, held_out=0, shard_size=8))
    with pytest.raises(DataError, match="in exists and holds no code shards"):
        extracted(tokenizer, source, source)


def test_a_full_disk_is_one_line_and_loses_nothing(tokenizer: Any, tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk; the second shard's codes are above it."""
    first = tar(tmp_path / "in" / "0.tar", {"0.png": png(picture(0)), "0.cls": b"1"})
    many = {f"{n}.{kind}": data for n in range(400) for kind, data in (("png", png(picture(0))), ("cls", b"1"))}
    second = tar(tmp_path / "in" / "1.tar", many)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(DataError) as caught:
            extracted(tokenizer, tmp_path / "out", first, second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "out: cannot be written (" in message and "finished shards are kept, the same command goes on" in message
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000"]
    assert sum(extracted(tokenizer, tmp_path / "out", first, second).meta["pictures"].values()) == 401


# Text.


def test_rows_are_written_one_after_the_other(tmp_path: Path) -> None:
    parts = [np.arange(rows * 3, dtype=np.float16).reshape(rows, 3) for rows in (2, 0, 150_000)]
    write_rows(tmp_path / "table.npy", iter(parts), 3)
    assert np.array_equal(np.load(tmp_path / "table.npy", mmap_mode="r"), np.concatenate(parts))
    write_rows(tmp_path / "empty.npy", [], 3)
    assert np.load(tmp_path / "empty.npy").shape == (0, 3)


def test_padding_comes_back() -> None:
    encoder = Lengths()
    embedding, mask = encoder.encode(["a bee", "cats", "one two three four five"])
    tables = [each[seen.bool()].numpy().astype(np.float16) for each, seen in zip(embedding, mask, strict=True)]
    again, seen = padded(tables, TextFormat.of(encoder, "lengths", {}))
    assert torch.equal(again, embedding) and torch.equal(seen, mask.bool())


def test_the_name_of_embeddings_tells_what_made_them() -> None:
    names = {TextFormat.of(Lengths(), kind, config).name for kind in ("a", "b") for config in ({}, {"tokens": 5})}
    assert len(names) == 4
