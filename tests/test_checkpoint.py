"""Weight files: formats, wrappers, what is refused and what the one line says."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybrid import checkpoint
from hybrid.checkpoint import fit, read_weights, save_weights, sha256, source_name, unwrap

GOLDEN = Path(__file__).parent / "golden"


def weights() -> dict[str, Tensor]:
    return {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.tensor([1.0, -1.0])}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def model(width: int = 3) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"layer": nn.Linear(width, 2)})


class Malicious:
    """Pickles to a call that leaves a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", [None, *checkpoint.WRAPPERS])
def test_torch_files_with_and_without_a_wrapper(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(weights() if wrapper is None else {wrapper: weights(), "optimizer": {"step": torch.ones(1)}}, path)
    state, _ = read_weights(path)
    assert same(state, weights())


def test_the_model_is_taken_where_an_average_stands_beside_it(tmp_path: Path) -> None:
    averaged = {key: tensor + 1 for key, tensor in weights().items()}
    torch.save({"ema": averaged, "model": weights()}, tmp_path / "both.pt")
    assert same(read_weights(tmp_path / "both.pt")[0], weights())
    flattened = {
        f"{outer}.{key}": t for outer, part in (("ema", averaged), ("model", weights())) for key, t in part.items()
    }
    assert same(unwrap(flattened, "layer.weight"), weights())


def test_plain_values_beside_the_weights_become_metadata(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    torch.save({"model": weights(), "steps": 7, "args": argparse.Namespace(lr=1e-4), "config": {"dim": 8}}, path)
    assert read_weights(path)[1] == {"steps": 7, "args": {"lr": 1e-4}, "config": {"dim": 8}}


def test_a_learning_rate_by_numpy_does_not_hide_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "training.pth"
    states = {"param_groups": [{"lr": np.cos(np.float64(0.1)), "betas": (np.float32(0.9), 0.99)}]}
    torch.save({"model_state_dict": weights(), "optimizer_state_dict": states, "epoch": np.int64(3)}, path)
    assert same(read_weights(path)[0], weights())
    # numpy before 2 called the module numpy.core
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(older, "w") as made:
        for name in held.namelist():
            made.writestr(name, held.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in older.read_bytes()
    assert same(read_weights(older)[0], weights())


def test_the_old_torch_format(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": weights()}, path, _use_new_zipfile_serialization=False)
    assert same(read_weights(path)[0], weights())


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module.", "model.module."]
)
def test_flattened_prefixes_are_opened_by_an_expected_key(prefix: str) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in weights().items()}
    assert same(unwrap(state, ("not.there", "layer.weight")), weights())


def test_what_stands_outside_a_wrapper_is_dropped() -> None:
    state = {f"model.{key}": tensor for key, tensor in weights().items()} | {"labels": torch.zeros(3)}
    assert same(unwrap(state, "layer.weight"), weights())


def test_genuine_names_that_look_like_a_wrapper_stay() -> None:
    state = {"model.layers.0.weight": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    assert unwrap(state, "model.layers.0.weight").keys() == state.keys()
    wrapped = {f"model.{key}": tensor for key, tensor in state.items()}
    assert unwrap(wrapped, "model.layers.0.weight").keys() == state.keys()
    lumina, _ = read_weights(GOLDEN / "lumina.safetensors")
    assert "lm_head.weight" in unwrap(lumina, "model.layers.0.input_layernorm.weight")


def test_unwrap_says_what_is_lacking_and_what_is_there() -> None:
    with pytest.raises(
        ValueError, match=r"^x\.pt: has no tok\.weight or cls\.weight; its keys are layer\.bias, layer\.weight$"
    ):
        unwrap(weights(), ("tok.weight", "cls.weight"), source="x.pt")


def test_golden_metadata_is_parsed() -> None:
    state, metadata = read_weights(GOLDEN / "llamagen_vq.safetensors")
    assert metadata["config"]["ch_mult"] == [1, 2]
    assert "quantize.embedding.weight" in unwrap(state, "quantize.embedding.weight")


def test_a_mapping_is_a_source_too() -> None:
    assert same(read_weights({"state_dict": weights()})[0], weights())
    assert source_name(weights()) == "weights in memory"
    with pytest.raises(ValueError, match=r"^weights in memory: holds no weights; its keys are ema$"):
        read_weights({"ema": weights()})


@pytest.mark.parametrize("how", ["zip", "old", "bare pickle", "whole module"])
def test_a_pickle_that_asks_for_code_is_refused_and_never_run(tmp_path: Path, how: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    payload = {"model": weights(), "extra": Malicious(marker)}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    elif how == "whole module":
        torch.save(nn.Linear(2, 2), path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        ValueError, match=r"^evil\.pt: asks to run code .* convert it to safetensors with a tool you trust$"
    ):
        read_weights(path)
    assert not marker.exists()


def test_truncated_files(tmp_path: Path) -> None:
    big = {"weight": torch.zeros(4096)}
    save_file(big, tmp_path / "a.safetensors")
    torch.save(big, tmp_path / "b.pt")
    torch.save(big, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for size in (len(whole) // 2, 40, 5):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=rf"^{path.name}: (truncated|not a PyTorch file)[^\n]*$"):
                read_weights(path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "page.pt": (b"<html>404</html>", "not a PyTorch file"),
        "page.safetensors": (b"<html>404</html>", "truncated or not a safetensors file"),
        "empty.pt": (b"", "is empty"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "notes.txt": (b"hello", r"expected \.safetensors, \.pt, \.pth, \.bin, \.ckpt"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{name}: [^\n]*{message}[^\n]*$"):
            read_weights(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"^tensor\.pt: holds a Tensor, not a state dict$"):
        read_weights(tmp_path / "tensor.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"^archive\.pt: truncated or not a PyTorch file[^\n]*$"):
        read_weights(tmp_path / "archive.pt")
    with pytest.raises(FileNotFoundError, match=r"^lost\.pt: no such file or folder: .*lost\.pt$"):
        read_weights(tmp_path / "lost.pt")


def test_fit_assigns_into_a_meta_module_without_a_copy() -> None:
    module, state = model(), weights()
    fit(module, state, source="x.pt")
    assert same(module.state_dict(), state)
    assert module.state_dict()["layer.weight"].data_ptr() == state["layer.weight"].data_ptr()
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_fit_casts_to_float32_or_what_is_asked() -> None:
    half = {key: tensor.half() for key, tensor in weights().items()}
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        module = model()
        fit(module, half, source="x.pt", dtype=dtype)
        assert {parameter.dtype for parameter in module.parameters()} == {expected}


def test_fit_names_file_key_expected_and_actual_shape() -> None:
    module = nn.ModuleDict({"quantize": nn.ModuleDict({"embedding": nn.Embedding(16384, 8, device="meta")})})
    state = {"quantize.embedding.weight": torch.empty(8192, 8, device="meta")}
    with pytest.raises(ValueError) as error:
        fit(module, state, source="vq_ds16.pt")
    assert str(error.value) == "vq_ds16.pt: quantize.embedding.weight expected (16384, 8), got (8192, 8)"


def test_fit_names_missing_and_unexpected_keys_and_loads_nothing() -> None:
    module = model()
    with pytest.raises(ValueError) as error:
        fit(module, {"layer.weight": torch.zeros(2, 3), "other": torch.zeros(1)}, source="x.pt")
    assert str(error.value) == "x.pt: missing 1 of 2 keys: layer.bias; unexpected keys (1): other"
    assert all(parameter.is_meta for parameter in module.parameters())
    many = weights() | {f"extra.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"unexpected keys \(9\): extra\.0, .*extra\.4 and 4 more$"):
        fit(model(), many, source="x.pt")


def test_fit_refuses_integers_where_numbers_with_a_point_belong() -> None:
    state = weights() | {"layer.weight": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"layer\.weight expected torch\.float32, got torch\.int8$"):
        fit(model(), state, source="x.pt")


def test_fit_ignores_what_the_originals_store_for_nothing() -> None:
    fit(model(), weights() | {"freqs_cis": torch.zeros(1), "a.quantize.codebook_used": torch.zeros(1)}, source="x.pt")
    with pytest.raises(ValueError, match="unexpected keys"):
        fit(model(), weights() | {"freqs_cis_2": torch.zeros(1)}, source="x.pt")


def test_fit_renames_by_dict_and_by_function() -> None:
    state = {"w": weights()["layer.weight"], "layer.bias": weights()["layer.bias"]}
    module = model()
    fit(module, state, source="x.pt", rename={"w": "layer.weight"})
    assert same(module.state_dict(), weights())
    state = {f"net_{key}": tensor for key, tensor in weights().items()} | {"loss.weight": torch.zeros(1)}
    fit(model(), state, source="x.pt", rename=lambda key: key[4:] if key.startswith("net_") else None)
    with pytest.raises(ValueError, match=r"^x\.pt: layer\.weight and another key both become layer\.weight$"):
        fit(model(), {"w": torch.zeros(2, 3)} | weights(), source="x.pt", rename={"w": "layer.weight"})


def test_fit_refuses_a_table_left_on_the_meta_device() -> None:
    module = model()
    module.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"^x\.pt: buffers .* meta device: table$"):
        fit(module, weights(), source="x.pt")


def test_saving_and_reading_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "weights.safetensors"
    metadata = {"config": {"dim": 8, "levels": [8, 5]}, "note": "1.10", "steps": 3}
    shared = torch.arange(8.0)
    state = {"a": shared, "b": shared, "c": shared.view(2, 4).T}
    save_weights(path, state, metadata=metadata)
    read, header = read_weights(path)
    assert same(read, state)
    assert header == metadata | {"format": "pt"}
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(os.stat(path.parent).st_mode) & 0o666
    assert len(sha256(path)) == 64 and sha256(path) == sha256(path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, weights())

    def interrupted(state: dict[str, Tensor], part: Path, header: dict[str, str]) -> None:
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, {"other": torch.zeros(1)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]
    assert same(load_file(path), weights())


def test_a_full_disk_is_an_oserror_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: dict[str, Tensor], part: Path, header: dict[str, str]) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    for options in ({}, {"shard_bytes": 64}):
        with pytest.raises(OSError, match=r"safetensors: cannot be written \([^\n]*No space left on device"):
            save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(1)}, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.safetensors*/*")) and not (tmp_path / "w.safetensors").is_file()


def test_shards_with_and_without_their_index(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.full((4,), float(i)) for i in range(5)}
    save_weights(tmp_path, state, metadata={"config": {"dim": 4}}, shard_bytes=32)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [*(f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)), "model.safetensors.index.json"]
    read, metadata = read_weights(tmp_path)
    assert same(read, state) and metadata["config"] == {"dim": 4}
    index = tmp_path / "model.safetensors.index.json"
    promises = json.loads(index.read_text())
    promises["weight_map"]["layer.9"] = names[0]
    index.write_text(json.dumps(promises))
    with pytest.raises(ValueError, match=r"the shards lack layer\.9$"):
        read_weights(tmp_path)
    promises["weight_map"]["layer.9"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(promises))
    with pytest.raises(ValueError, match=r"shards outside its folder: \.\./elsewhere\.safetensors$"):
        read_weights(tmp_path)
    index.unlink()
    assert same(read_weights(tmp_path)[0], state)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"missing 1 of 3 shards: model-00002-of-00003\.safetensors$"):
        read_weights(tmp_path)


def test_folders_with_one_several_or_no_weight_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors, \.pt"):
        read_weights(tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert "other" in read_weights(tmp_path)[0]
    save_weights(tmp_path / "model.safetensors", weights())
    assert same(read_weights(tmp_path)[0], weights())
    save_weights(tmp_path / "ema.safetensors", weights())
    with pytest.raises(ValueError, match=r"several weight files, name one: ema\.safetensors, model\.safetensors$"):
        read_weights(tmp_path)
