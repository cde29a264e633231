"""The machine: what it is, how busy it is, and how fast it can be at best.

Two limits, both measured: bytes a second of a triad a = b + s · c (McCalpin's STREAM), and operations a second of a
square matrix product. This file knows no model.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hybrid.sampler import synchronise

from .figures import commit, versions

MEMORY_BYTES = 96 * 2**20
"""Each of the triad's three arrays, where memory and not a cache is meant."""

MATRIX = {"cpu": 1536, "cuda": 8192, "mps": 2048}


def describe(device: torch.device) -> dict[str, Any]:
    """Device, threads, load, versions and commit, now."""
    return {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "commit": commit(),
        "versions": versions() | {"transformers": _version("transformers")},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load() -> float | None:
    """Load average of the last minute, None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def device_name(device: torch.device) -> str:
    """The processor's or the graphics card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def limits(device: torch.device, dtypes: list[torch.dtype], weight_bytes: int) -> dict[str, Any]:
    """The two limits.

    Args:
        device: where.
        dtypes: of the matrix products.
        weight_bytes: of the AR model; a second triad of that working set tells what its caches give, since small
            weights stay there between passes.

    Returns:
        ``memory_bytes_per_second``, ``weights_bytes_per_second``, ``flops_per_second`` by type.
    """
    small = min(max(weight_bytes // 3, 2**16), MEMORY_BYTES)
    return {
        "memory_bytes_per_second": triad(device, MEMORY_BYTES),
        "weights_bytes_per_second": triad(device, small),
        "weight_bytes": weight_bytes,
        "flops_per_second": {str(dtype).removeprefix("torch."): gemm(device, dtype) for dtype in dtypes},
    }


def triad(device: torch.device, array_bytes: int) -> float:
    """Bytes a second of a = b + 2 c over three float32 arrays of ``array_bytes`` each."""
    b, c = (torch.ones(array_bytes // 4, device=device) for _ in range(2))
    a = torch.empty_like(b)
    calls = max(1, 2**27 // array_bytes)

    def run() -> None:
        for _ in range(calls):
            torch.add(b, c, alpha=2, out=a)

    return 3 * array_bytes * calls / best_of(run, device)


def gemm(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product."""
    size = MATRIX.get(device.type, 2048)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_of(lambda: torch.mm(a, b), device)


def best_of(run: Callable[[], Any], device: torch.device, tries: int = 7) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    found = []
    for _ in range(tries + 1):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


class PeakMemory:
    """The peak of a block: what the device allocated, or on a CPU what the process held.

    Attributes:
        bytes: the peak.
        how: what was measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes, self.how = device, 0, "torch.cuda.max_memory_allocated"

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            # 5 resets the kernel's high-water mark of this process (proc(5)).
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.how = "resident set, peak of the request"
        except OSError:
            self.how = "resident set, peak since the process began"
        return self

    def __exit__(self, *_: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self.bytes = _high_water()


def _high_water() -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
