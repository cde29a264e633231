"""Counted operations and bytes against a closed form and against torch's own counter; the machine's figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import TRANSFORMER
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybrid.benchmarks import machine
from hybrid.benchmarks.cost import Cost, metered
from hybrid.pipeline import HybridPipeline


def cost(pipe: HybridPipeline, **request: Any) -> dict[str, Cost]:
    with metered(pipe) as parts:
        pipe([0, 2], seed=0, output_type="pt", **request)
    return parts


def test_ar_closed_form(pipe: HybridPipeline) -> None:
    """Two pictures, 16 places, one class token: 16 calls of w tokens each read c keys and give logits once."""
    width, layers, codes, hidden = TRANSFORMER["dim"], TRANSFORMER["n_layer"], 12, 48
    block = 4 * width**2 + 3 * width * hidden
    calls = 16  # the class token, then 15 of the 16 codes
    linear = 2 * 2 * calls * (layers * block + width * codes)
    attention = 2 * layers * sum(4 * width * (place + 1) for place in range(calls))
    found = cost(pipe, method="ar")["ar"]
    assert found.calls == calls and found.flops == linear + attention
    assert found.weight_bytes == 4 * calls * (layers * block + width * codes)
    assert found.cache_bytes == 4 * 2 * layers * sum(2 * width * (place + 1) for place in range(calls))


def test_parts_are_kept_apart(pipe: HybridPipeline) -> None:
    hybrid, masked = cost(pipe, ar_fraction=0.25, steps=3), cost(pipe, method="masked", steps=3)
    assert [hybrid[part].calls for part in ("ar", "masked", "decode")] == [4, 3, 1]
    assert masked["ar"] == Cost() and masked["masked"].calls == 3
    assert hybrid["decode"] == masked["decode"]
    assert hybrid["masked"].flops < masked["masked"].flops  # fewer places need logits


@pytest.mark.parametrize(
    "request_",
    [{"ar_fraction": 0.5, "steps": 2, "guidance_scale": 2.0}, {"method": "exact"}],
    ids=["guided hybrid", "exact"],
)
def test_torch_counts_the_same(pipe: HybridPipeline, request_: dict[str, Any]) -> None:
    counter = FlopCounterMode(display=False)
    # The mathematical form of attention consists of products that torch's counter sees on every device.
    with sdpa_kernel(SDPBackend.MATH), counter:
        pipe([0, 2], seed=0, output_type="pt", **request_)
    assert sum(part.flops for part in cost(pipe, **request_).values()) == counter.get_total_flops()


def test_the_meter_leaves_nothing_behind(pipe: HybridPipeline) -> None:
    before = {name: dict(vars(getattr(pipe, name))) for name in ("ar", "masked", "tokenizer")}
    with pytest.raises(ZeroDivisionError), metered(pipe) as parts:
        F.linear(torch.ones(1, 2), torch.ones(3, 2))  # outside any part
        raise ZeroDivisionError
    assert before == {name: dict(vars(getattr(pipe, name))) for name in before}
    assert all(part == Cost() for part in parts.values())


def test_peak_memory_sees_an_allocation() -> None:
    with machine.PeakMemory(torch.device("cpu")) as small:
        pass
    with machine.PeakMemory(torch.device("cpu")) as large:
        torch.ones(2**25).sum()
    assert large.bytes - small.bytes > 0.9 * 2**27 and "resident set" in large.how


@pytest.mark.gpu
def test_peak_memory_on_cuda() -> None:
    with machine.PeakMemory(torch.device("cuda")) as peak:
        before = torch.cuda.memory_allocated()
        torch.ones(2**20, device="cuda")
    assert peak.bytes - before >= 2**22 and peak.how == "torch.cuda.max_memory_allocated"


def test_limits_count_what_they_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "best_of", lambda run, device, tries=7: (run(), 0.5)[1])
    monkeypatch.setattr(machine, "MATRIX", {"cpu": 8})
    cpu = torch.device("cpu")
    assert machine.triad(cpu, 2**25) == machine.triad(cpu, 2**22) == 3 * 2**27 / 0.5  # small arrays go round more often
    assert machine.gemm(cpu, torch.float32) == 2 * 8**3 / 0.5


def test_machine_says_what_it_is() -> None:
    found = machine.describe(torch.device("cpu"))
    assert found["threads"] == torch.get_num_threads() and found["device"] and found["versions"]["torch"]
    assert set(found) == {"device", "cores", "threads", "load", "commit", "versions", "time"}
