"""Load on a running ``hybrid-serve``: many clients for a while, then what they waited, what failed and what it cost.

    python -m hybrid.benchmarks.serve_load http://127.0.0.1:8000 --clients 50 --seconds 60 [--out DIR]

This file knows the API and its counters. It starts no server, and runs on the server's machine where figures are kept
(``--out`` describes the machine it runs on). A client that is refused with 429 waits as long as the
answer says and asks again. Needs the package ``httpx``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPTS = ("a red apple", "a blue car", "a smiling cat", "a green tree", "an umbrella", "a pizza", "a full moon")
SAMPLES = 12
"""Looks at the server's memory while it is loaded."""

MEMORY, DRAWN = "process_resident_memory_bytes", "hybrid_pictures_total"
BATCHES, TOGETHER = "hybrid_batch_pictures_count", "hybrid_batch_pictures_sum"


@dataclass
class Tally:
    """What the clients saw: seconds of each finished request, and how many ended in which way."""

    seconds: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no request was finished, so there is nothing to measure")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def read_counters(text: str) -> dict[str, float]:
    """Prometheus' text by name and labels."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def summary(
    tally: Tally, before: dict[str, float], during: Sequence[float], after: dict[str, float], lasted: float
) -> dict[str, Any]:
    """The result as one JSON object; memory in MiB.

    Args:
        tally: what the clients saw.
        before, after: the server's counters.
        during: bytes of its memory at even intervals under load.
        lasted: seconds.
    """
    drawn, batches, together = (after[name] - before[name] for name in (DRAWN, BATCHES, TOGETHER))
    errors = {end: count for end, count in tally.ends.items() if end not in ("200", "429")}
    return {
        "finished": len(tally.seconds),
        "refused_429": tally.ends["429"],
        "errors": errors,
        "seconds": {name: round(quantile(tally.seconds, share), 3) for name, share in (("p50", 0.5), ("p95", 0.95))},
        "pictures_per_second": round(drawn / lasted, 2),
        "pictures_per_batch": round(together / batches, 2) if batches else 0.0,
        "memory": {
            "before": _mib(before[MEMORY]),
            "under_load": [_mib(value) for value in during],
            "after": _mib(after[MEMORY]),
        },
    }


def _mib(value: float) -> float:
    return round(value / 2**20, 1)


async def _client(http: Any, body: dict[str, Any], number: int, end: float, tally: Tally) -> None:
    turn = 0
    while time.monotonic() < end:
        asked = body | {"prompt": PROMPTS[(number + turn) % len(PROMPTS)], "seed": 1000 * number + turn}
        began = time.monotonic()
        try:
            answer = await http.post("/v1/images/generations", json=asked)
        except Exception as error:
            tally.ends[type(error).__name__] += 1
            await asyncio.sleep(1.0)
            continue
        tally.ends[str(answer.status_code)] += 1
        if answer.status_code == 429:
            await asyncio.sleep(min(float(answer.headers["retry-after"]), max(0.0, end - time.monotonic())))
            continue
        if answer.status_code == 200:
            tally.seconds.append(time.monotonic() - began)
        turn += 1


async def measure(
    address: str, clients: int, seconds: float, body: dict[str, Any], token: str | None
) -> dict[str, Any]:
    """Load a server and sum up.

    Args:
        address: of the server.
        clients: at once.
        seconds: (above 0) after which clients ask no more; what is under way is waited for.
        body: the request beside prompt and seed.
        token: the server's, if it asks for one.

    Raises:
        ValueError: no server there, or nothing was finished.
    """
    import httpx

    limits = httpx.Limits(max_connections=clients + 2)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, headers=headers) as http:

        async def counters() -> dict[str, float]:
            answer = await http.get("/metrics")
            if answer.status_code != 200:
                raise ValueError(f"{address}/metrics: answered {answer.status_code}; is the --token right?")
            return read_counters(answer.text)

        try:
            await http.post("/v1/images/generations", json=body | {"prompt": PROMPTS[0]})
            before = await counters()
        except httpx.TransportError as error:
            raise ValueError(f"{address}: no server answers there ({error}); start hybrid-serve first") from None
        during: list[float] = []

        async def watch() -> None:
            for _ in range(SAMPLES):
                await asyncio.sleep(seconds / SAMPLES)
                during.append((await counters())[MEMORY])

        tally, began = Tally(), time.monotonic()
        end = began + seconds
        await asyncio.gather(watch(), *(_client(http, body, number, end, tally) for number in range(clients)))
        found = summary(tally, before, during, await counters(), time.monotonic() - began)
        left = (await http.get("/health")).json()
        return found | {"left": {name: left[name] for name in ("waiting", "running")}}


def page(result: Mapping[str, Any]) -> str:
    """A result in Markdown."""
    memory, seconds, machine = result["memory"], result["seconds"], result["machine"]
    method = result["method"] or "the pairing's own"
    return f"""# Load

Made by `python -m hybrid.benchmarks.serve_load` on a running `{result["server"]}`, client and server on one machine:
{machine["device"]}, {machine["cores"]} cores, commit {machine["commit"]}, {machine["time"]}.
{result["clients"]} clients ask for one picture after another for {result["asked_for_seconds"]:g} s; a client that is
refused with 429 waits as long as it is told. Method: {method}. The figures are also in [load.json](load.json).

| | |
| --- | --- |
| finished requests | {result["finished"]} |
| refused with 429 | {result["refused_429"]} |
| other errors | {sum(result["errors"].values())} |
| seconds a request, median | {seconds["p50"]:.2f} |
| seconds a request, 95th percentile | {seconds["p95"]:.2f} |
| pictures a second | {result["pictures_per_second"]:.2f} |
| pictures a batch | {result["pictures_per_batch"]:.2f} |
| the server's memory before, MiB | {memory["before"]} |
| … at even intervals under load | {", ".join(f"{value:.0f}" for value in memory["under_load"])} |
| … after | {memory["after"]} |
| requests left in the server afterwards | {sum(result["left"].values())} |
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 1 where there was an error other than 429, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="serve_load", description="Load a running hybrid-serve and sum up.")
    parser.add_argument("address", help="such as http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=50, help="at once (default: 50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long (default: 60)")
    parser.add_argument("--method", help="hybrid, ar, masked, … (default: the model's own)")
    parser.add_argument("--token", help="the server's token")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write load.json and README.md there, too")
    parser.add_argument("--server", default="hybrid-serve", metavar="LINE", help="how it was started, for README.md")
    options = parser.parse_args(argv)
    body = {} if options.method is None else {"method": options.method}
    try:
        if options.clients < 1 or not options.seconds > 0:
            raise ValueError("--clients must be at least 1 and --seconds above 0")
        result = asyncio.run(measure(options.address, options.clients, options.seconds, body, options.token))
    except (ValueError, ImportError) as error:
        print(f"serve_load: {error}", file=sys.stderr)
        return 2
    asked = {"clients": options.clients, "asked_for_seconds": options.seconds, "method": options.method}
    result = asked | result
    if options.out is not None:
        import torch

        from .machine import describe

        machine = describe(torch.device("cpu"))
        del machine["threads"]  # this process's, not the server's
        result |= {"server": options.server, "machine": machine}
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "load.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (options.out / "README.md").write_text(page(result), encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
