"""A network carried over to another tokenizer's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from hybrid.adapters import fsq, llamagen, load, maskgil, unified
from hybrid.checkpoint import read_weights, save_weights
from hybrid.recode import ROWS, recode, shared_places
from hybrid.recode_cli import main
from hybrid.tasks_build import build_task

MODULES = {"llamagen": llamagen, "maskgil": maskgil, "unified": unified}


def tokenizer(path: Path, **changes: Any) -> str:
    torch.manual_seed(0)
    model, fields = fsq.create(tiny.TOKENIZER | changes)
    torch.nn.init.normal_(model.encoder[-1].weight, std=5.0)  # so that pictures show many of its codes
    save_weights(path, model.state_dict(), metadata={"kind": "fsq", "config": fields})
    return f"fsq:{path}"


def network(path: Path, kind: str, **changes: Any) -> str:
    torch.manual_seed(1)
    model, fields = MODULES[kind].create(tiny.TRANSFORMER | {"num_classes": 3} | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_weights(path, model.state_dict(), metadata={"kind": kind, "config": fields})
    return f"{kind}:{path}"


class Codes:
    """A tokenizer whose tokens are written down."""

    def __init__(self, size: int, tokens: list[list[int]]) -> None:
        self.codebook_kd, self.tokens = torch.zeros(size, 1), torch.tensor(tokens)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens[: len(images)]


def test_places_are_counted_and_rows_are_their_means() -> None:
    old, new = Codes(3, [[0, 0, 1, 2]]), Codes(4, [[3, 0, 0, 1]])
    picture = torch.zeros(1, 3, 2, 2)
    counts = shared_places(old, new, [picture, picture])  # type: ignore[arg-type]
    assert counts.to_dense().tolist() == [[2, 2, 0], [0, 0, 2], [0, 0, 0], [2, 0, 0]]
    rows = torch.tensor([[1.0, 0.0], [3.0, 4.0], [8.0, 8.0], [7.0, 7.0]])
    found = recode({"output.weight": rows, "norm.weight": rows[0]}, counts)
    # The third code never stands anywhere: the mean of all places. The row after the codes stays.
    expected = [[2.0, 2.0], [8.0, 8.0], [3.25, 3.0], [1.0, 0.0], [7.0, 7.0]]
    assert found["output.weight"].tolist() == expected and found["norm.weight"].tolist() == [1.0, 0.0]


def test_other_grids_and_networks_are_refused() -> None:
    picture = [torch.zeros(1, 3, 2, 2)]
    with pytest.raises(ValueError, match="into 2 and 1 tokens"):
        shared_places(Codes(3, [[0, 1]]), Codes(3, [[0]]), picture)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tensor with a row for each code"):
        recode({"other": torch.zeros(3, 2)}, torch.ones(4, 3).to_sparse())
    with pytest.raises(ValueError, match=r"output\.weight has 2 rows, but the old tokenizer 3 codes"):
        recode({"output.weight": torch.zeros(2, 2)}, torch.ones(4, 3).to_sparse())


@pytest.mark.parametrize("kind", MODULES)
def test_the_same_tokenizer_changes_nothing(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = tokenizer(tmp_path / "one.safetensors")
    given = network(tmp_path / "net.safetensors", kind)
    out = tmp_path / "out.safetensors"
    assert main([given, "--from", codes, "--to", codes, "--data", str(folder), "-o", str(out)]) == 0
    assert f"{out}: {kind} of 12 codes instead of 12, by 8 pictures" in capsys.readouterr().out
    before, after = read_weights(tmp_path / "net.safetensors")[0], read_weights(out)[0]
    seen = shared_seen(codes, folder)
    assert len(seen) > 2
    for name, value in before.items():
        rows = [*seen, *range(12, len(value))] if name in ROWS else slice(None)
        assert torch.allclose(after[name][rows], value[rows], atol=1e-6), name


def shared_seen(codes: str, folder: Path) -> list[int]:
    """The codes that training pictures show."""
    from hybrid.data.codes import to_images
    from hybrid.data.folder import DataFolder

    pictures = DataFolder.open(folder)
    places = pictures.indices("train").tolist()
    return load("fsq", codes[4:]).encode(to_images(pictures.images[places, 0])).unique().tolist()


def test_a_network_learns_other_codes_from_there(folder: Path, tmp_path: Path) -> None:
    old, new = tokenizer(tmp_path / "old.safetensors"), tokenizer(tmp_path / "new.safetensors", levels=[3, 2])
    given = network(tmp_path / "net.safetensors", "unified")
    out = tmp_path / "out.safetensors"
    assert main([given, "--from", old, "--to", new, "--data", str(folder), "--pictures", "5", "-o", str(out)]) == 0
    model = load("unified", out)
    assert model.codebook_size == 6 and model.output_masked.weight.shape == (6, 16)
    settings = {"task": "unified", "model": {"kind": "unified", "config": model.config, "init": str(out)}}
    config = tiny.config("ar", **settings)
    task: Any = build_task(config, data=folder, tokenizer=tmp_path / "new.safetensors", source="tiny.yaml")
    batch = task.batch(range(4), torch.device("cpu"))
    assert torch.isfinite(task.loss(task.model, batch)[0])


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes, few = tokenizer(tmp_path / "one.safetensors"), tokenizer(tmp_path / "few.safetensors", levels=[3, 2])
    coarse = tokenizer(tmp_path / "coarse.safetensors", factor=4)
    given, out = network(tmp_path / "net.safetensors", "unified"), str(tmp_path / "out.safetensors")
    for arguments, message in (
        ([given, "--from", few, "--to", codes, "-o", out], "knows 12 codes, but --from"),
        ([given, "--from", codes, "--to", coarse, "-o", out], "into 16 and 4 tokens"),
        (["halton:x.pth", "--from", codes, "--to", few, "-o", out], "a KIND of llamagen, maskgil, unified"),
        (["unified", "--from", codes, "--to", few, "-o", out], "expected KIND:FILE[:CONFIG]"),
        ([given, "--from", given, "--to", few, "-o", out], "is no tokenizer of pictures"),
        ([given, "--from", "fsq", "--to", few, "-o", out], "--from fsq: expected KIND:FILE[:CONFIG]"),
        ([given, "--from", codes, "--to", "fsq:nowhere.safetensors", "-o", out], "nowhere.safetensors"),
        ([given, "--from", codes, "--to", few, "-o", given[8:]], "is a file to be read; name another one"),
        ([given, "--from", codes, "--to", few, "-o", "out.pt"], "expected a name that ends in .safetensors"),
        ([given, "--from", codes, "--to", few, "-o", out, "--pictures", "0"], "--pictures 0: must be at least 1"),
    ):
        assert main([*arguments, "--data", str(folder)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("hybrid-recode: ") and message in told and told.count("\n") == 1, told
    assert main([given, "--from", codes, "--to", few, "--data", str(tmp_path / "nothing"), "-o", out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
