"""Weight files: the only place that reads or writes them.

A loader is three lines, and a file of another family, size or codebook ends in one line that says so::

    state, metadata = read_weights(weights)
    state = unwrap(state, "tok_embeddings.weight", source=source_name(weights))
    fit(module, state, source=source_name(weights), dtype=dtype, device=device)

This file knows file formats, wrappers and shapes. It does not know any model. No pickle code is ever run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid.whole_files import replacing

WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
"""Names under which training scripts keep the weights, beside optimizer, step and (unused here) ``ema``."""

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
WRAPPER_PREFIX = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)}|_orig_mod)\.)*")
LFS_POINTER = b"version https://git-lfs"
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
PLAIN_DATA: list[Any] = [
    argparse.Namespace,  # a training script's arguments
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # a learning rate by numpy
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]
"""What training scripts leave beside weights that needs a name to be read. Making one runs no code of the file."""


class Mismatch(ValueError):
    """Weights that are not the module's, in one line; with every key that is wrong.

    Attributes:
        missing: keys of the module that the file lacks.
        unexpected: keys of the file that the module lacks.
        differing: keys of both, with expected and actual shape or kind.
    """

    def __init__(self, line: str, missing: list[str], unexpected: list[str], differing: list[str]) -> None:
        super().__init__(line)
        self.missing, self.unexpected, self.differing = missing, unexpected, differing


def source_name(source: str | Path | Mapping[str, Any]) -> str:
    """What messages call a source of weights: the file's or folder's name, or "weights in memory"."""
    return "weights in memory" if isinstance(source, Mapping) else Path(source).name or str(source)


def read_weights(
    source: str | Path | Mapping[str, Any], *, name: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict and its metadata.

    Nested wrappers (``{"model": {...}, "optimizer": ...}``) are opened here; wrappers that were flattened into key
    prefixes look like genuine names, so opening those takes a key that the caller knows: see ``unwrap``.

    Args:
        source: a .safetensors, .pt, .pth, .bin or .ckpt file; a folder holding one of them or shards (with an index
            or numbered ``model-00001-of-00003.safetensors``; safetensors are preferred over a pickle); or a mapping.
        name: what messages call it; None is ``source_name(source)``.

    Returns:
        The tensors, memory-mapped on the CPU where the format allows it, and the metadata: safetensors' own with JSON
        values parsed, or the plain values that stand beside the weights in a torch file.

    Raises:
        FileNotFoundError: no such file or folder, or a shard is missing.
        ValueError: truncated, not a weight file, several candidates in a folder, or a pickle that asks to run code.
    """
    name = source_name(source) if name is None else name
    if isinstance(source, Mapping):
        return _open_wrappers(source, name)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file or folder: {path}")
    if path.is_dir():
        return _read_folder(path, name)
    return _read_file(path, name)


def unwrap(
    state: Mapping[str, Tensor], expect: str | Sequence[str], *, source: str = "weights in memory"
) -> dict[str, Tensor]:
    """Open wrappers that were flattened into key prefixes (``model.``, ``module.``, ``_orig_mod.``, repeated).

    The shortest prefix under which an expected key exists wins, so genuine names (``model.layers.0`` of a Hugging
    Face file whose caller expects just that) stay as they are. Keys without the prefix are outside the wrapper and
    dropped: optimizer state, ``ema.*``, or golden inputs.

    Args:
        state: as ``read_weights`` gives it.
        expect: a key that the bare state dict has, or several alternatives.
        source: what the message calls the file.

    Raises:
        ValueError: no such key under any wrapper.
    """
    wanted = (expect,) if isinstance(expect, str) else tuple(expect)
    prefix = find_wrapper(state, wanted)
    if prefix is None:
        raise ValueError(f"{source}: has no {' or '.join(wanted)}; its keys are {_some(sorted(state))}")
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def find_wrapper(keys: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The shortest wrapper prefix under which one of the wanted keys stands ("" where it is bare), or None."""
    found = {
        key[: -len(want)]
        for key in keys
        for want in wanted
        if key.endswith(want) and WRAPPER_PREFIX.fullmatch(key[: -len(want)])
    }
    return min(found, key=lambda wrapper: (wrapper.count("."), wrapper), default=None)


def fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    rename: Mapping[str, str] | Callable[[str], str | None] | None = None,
    ignore: tuple[str, ...] = ("freqs_cis", "quantize.codebook_used"),
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Put a state dict into a module, strictly; everything is checked before anything is loaded.

    The tensors become the module's parameters (no copy where device and type already fit), so a module built under
    ``torch.device("meta")`` never holds its weights twice. Non-persistent buffers are not in any file and stay the
    module's own responsibility: one left on the meta device is an error, so compute such tables from the inputs, or
    create them on a real device. Ties between parameters are not kept; share one attribute instead.

    Args:
        module: the model; its ``state_dict`` is what the file must hold, name by name and shape by shape.
        state: as ``unwrap`` gives it.
        source: what messages call the file.
        rename: file key -> module key: a dict (keys not in it keep their name) or a function (None drops the key).
        ignore: keys that may stand in the file without being in the module, whole or after a dot.
        dtype: type of the floating-point tensors; None is float32.
        device: where they go.

    Raises:
        Mismatch: keys missing or unexpected, shapes or kinds that differ.
        ValueError: a buffer left on the meta device.
    """
    expected = module.state_dict()
    found = _renamed(state, rename, source)
    unexpected = [k for k in found if k not in expected and not any(k == i or k.endswith(f".{i}") for i in ignore)]
    missing = [k for k in expected if k not in found]
    both = [k for k in expected if k in found]
    differing = [line for k in both if (line := _difference(k, expected[k], found[k]))]
    problems = [
        f"missing {len(missing)} of {len(expected)} keys: {_some(missing)}" if missing else "",
        f"unexpected keys ({len(unexpected)}): {_some(unexpected)}" if unexpected else "",
        differing[0] + (f" ({len(differing)} differ)" if len(differing) > 1 else "") if differing else "",
    ]
    if any(problems):
        raise Mismatch(f"{source}: {'; '.join(filter(None, problems))}", missing, unexpected, differing)
    dtype = torch.float32 if dtype is None else dtype
    ready = {
        k: found[k].to(device=device, dtype=dtype if expected[k].is_floating_point() else expected[k].dtype)
        for k in both
    }
    module.load_state_dict(ready, strict=True, assign=True)
    unset = [k for k, buffer in module.named_buffers() if buffer.is_meta]
    if unset and torch.device(device).type != "meta":
        raise ValueError(f"{source}: buffers that no file holds were left on the meta device: {_some(unset)}")
    module.to(device)


def require_output(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write weights where they would not be read again, or over what they are made of.

    Raises:
        ValueError: ``out`` does not end in .safetensors, or is one of the ``inputs``.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: expected a name that ends in .safetensors")
    if any(out.resolve() == each.resolve() for each in inputs):
        raise ValueError(f"{out}: is a file to be read; name another one")


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write safetensors; an interruption leaves the old file or none, never half of one.

    Args:
        path: the file; with ``shard_bytes`` the folder, which gets ``model-00001-of-0000N.safetensors`` and, last,
            ``model.safetensors.index.json`` as Hugging Face writes them; shards of an earlier save go afterwards.
        state: the tensors. Those that share memory are written out each.
        metadata: values are stored as JSON (strings too) and come back parsed from ``read_weights``.
        shard_bytes: largest size of a shard's tensors, its header not counted; a bigger tensor gets its own.

    Raises:
        OSError: one line with the file where it cannot be written.
    """
    path = Path(path)
    header = {"format": "pt"} | {key: json.dumps(value) for key, value in (metadata or {}).items()}
    if shard_bytes is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, state, header)
        return
    path.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = tensor
        room -= tensor.nbytes
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for shard_name, shard in zip(names, shards, strict=True):
        _save(path / shard_name, shard, header)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    with replacing(path / "model.safetensors.index.json") as part:
        part.write_text(json.dumps(index, indent=2))
    for file in path.glob("model-*.safetensors"):
        if SHARD.fullmatch(file.name) and file.name not in names:
            file.unlink()


def _save(path: Path, state: Mapping[str, Tensor], header: dict[str, str]) -> None:
    try:
        with replacing(path) as part:
            save_file(_separate(state), part, header)
    except SafetensorError as error:  # of a full disk, and no OSError
        raise OSError(f"{path}: cannot be written ({error})") from None


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_folder(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    for ending in (".safetensors.index.json", ".bin.index.json"):
        indexes = [file for file in files if file.name.endswith(ending)]
        if len(indexes) > 1:
            raise ValueError(f"{name}: several indexes, name one file: {_some([i.name for i in indexes])}")
        if indexes:
            return _read_indexed(indexes[0], name)
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        weights = [file for file in files if file.suffix in suffixes]
        shards = [match for file in weights if (match := SHARD.fullmatch(file.name))]
        if shards and len(shards) == len(weights) and len({(s["stem"], s["count"]) for s in shards}) == 1:
            first = shards[0]
            numbered = (
                f"{first['stem']}-{i:05d}-of-{first['count']}.safetensors" for i in range(1, int(first["count"]) + 1)
            )
            return _read_shards([folder / shard for shard in numbered], name)
        if len(weights) > 1:
            raise ValueError(f"{name}: several weight files, name one: {_some([w.name for w in weights])}")
        if weights:
            return _read_file(weights[0], f"{name}/{weights[0].name}")
    raise FileNotFoundError(f"{name}: no .safetensors, {', '.join(TORCH_SUFFIXES)} file in {folder}")


def _read_indexed(index: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}/{index.name}: not an index of shards ({_line(error)})") from error
    shards = sorted(set(weight_map.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ValueError(f"{name}/{index.name}: shards outside its folder: {_some(outside)}")
    state, metadata = _read_shards([index.parent / shard for shard in shards], name)
    absent = [key for key in weight_map if key not in state]
    if absent:
        raise ValueError(f"{name}/{index.name}: the shards lack {_some(absent)}")
    return state, metadata


def _read_shards(shards: list[Path], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    lost = [shard.name for shard in shards if not shard.is_file()]
    if lost:
        raise FileNotFoundError(f"{name}: missing {len(lost)} of {len(shards)} shards: {_some(lost)}")
    state: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for shard in shards:
        part, header = _read_file(shard, f"{name}/{shard.name}")
        state |= part
        metadata |= header
    return state, metadata


def _read_file(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{name}: not a weight file; expected {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
    if not start:
        raise ValueError(f"{name}: is empty")
    if start == LFS_POINTER:
        raise ValueError(f"{name}: is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    return _read_safetensors(path, name) if path.suffix == ".safetensors" else _read_torch(path, start, name)


def _read_safetensors(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{name}: truncated or not a safetensors file ({_line(error)})") from error
    return state, {key: _parsed(value) for key, value in header.items()}


def _read_torch(path: Path, start: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    zipped = zipfile.is_zipfile(path)
    if start.startswith(b"PK") and not zipped:
        raise ValueError(f"{name}: truncated (its archive has no end)")
    try:
        with torch.serialization.safe_globals(PLAIN_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a refusal means is said below
            payload = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except pickle.UnpicklingError as error:
        wish = _code_wish(path, str(error))
        if wish:
            raise ValueError(
                f"{name}: asks to run code on reading ({wish}), which is refused; "
                "convert it to safetensors with a tool you trust"
            ) from None
        reason = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
        raise ValueError(f"{name}: not a PyTorch file{f' ({reason[1]})' if reason else ''}") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{name}: truncated or not a PyTorch file ({_line(error)})") from error
    if not isinstance(payload, Mapping):
        raise ValueError(f"{name}: holds a {type(payload).__name__}, not a state dict")
    return _open_wrappers(payload, name)


def _code_wish(path: Path, message: str) -> str:
    """The function that a refused pickle wanted, or "" where the file is merely no checkpoint. Runs nothing."""
    named = re.search(r"(?:GLOBAL|Unsupported class|instantiate class) ([\w.]+)", message)
    if named:
        return named[1]
    try:
        with path.open("rb") as file:
            opcodes = {opcode.name for opcode, _, _ in pickletools.genops(file)}
    except ValueError:
        return ""
    return "a pickled object" if opcodes & {"STACK_GLOBAL", "GLOBAL", "INST", "REDUCE"} else ""


def _open_wrappers(payload: Mapping[Any, Any], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    while True:
        metadata |= {
            str(key): vars(value) if isinstance(value, argparse.Namespace) else value
            for key, value in payload.items()
            if isinstance(value, (str, int, float, bool, argparse.Namespace)) or key == "config"
        }
        inner = next((payload[w] for w in WRAPPERS if isinstance(payload.get(w), Mapping)), None)
        if inner is None:
            break
        payload = inner
    state = {str(key): value for key, value in payload.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{name}: holds no weights; its keys are {_some([str(key) for key in payload])}")
    return state, metadata


def _renamed(
    state: Mapping[str, Tensor], rename: Mapping[str, str] | Callable[[str], str | None] | None, source: str
) -> dict[str, Tensor]:
    if rename is None:
        return dict(state)
    new_name = (lambda key: rename.get(key, key)) if isinstance(rename, Mapping) else rename
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        target = new_name(key)
        if target in renamed:
            raise ValueError(f"{source}: {key} and another key both become {target}")
        if target is not None:
            renamed[target] = tensor
    return renamed


def _difference(key: str, expected: Tensor, got: Tensor) -> str:
    if expected.shape != got.shape:
        return f"{key} expected {tuple(expected.shape)}, got {tuple(got.shape)}"
    if expected.is_floating_point() != got.is_floating_point():
        return f"{key} expected {expected.dtype}, got {got.dtype}"
    return ""


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another (safetensors refuses those)."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for key, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        separate[key] = own.clone() if address in seen else own
        seen.add(address)
    return separate


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
