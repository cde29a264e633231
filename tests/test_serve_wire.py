"""``hybrid-serve`` over real connections: clients that leave, signals, and the command line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serving import PATIENCE, Held, HeldSpeech, Paced, events, listening, until

from hybrid import HybridPipeline
from hybrid.serve import cli

GENERATE, HEAR = "/v1/images/generations", "/v1/audio/transcriptions"


def state(address: str) -> tuple[int, int]:
    told = httpx.get(f"{address}/health").json()
    return told["waiting"], told["running"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(pipe: HybridPipeline, stream: bool) -> None:
    held = Held(pipe)
    with listening(held) as address:
        body = {"prompt": "bag", "stream": stream}
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as stays:
            stays.sendall(_request(body))
            held.wait_until_begun()
            with socket.create_connection(stays.getpeername()) as leaves:
                leaves.sendall(_request(body))
                until(lambda: state(address) == (1, 1), "the second request in the queue")
            until(lambda: state(address) == (0, 1), "its place freed")
        until(lambda: 'end="cancelled"} 2.0' in httpx.get(f"{address}/metrics").text, "both cancelled")
        held.let_go(2)
        until(lambda: state(address) == (0, 0), "rest")
    assert len(held.asked) == 1 and held.steps in ([], [("prefix", 1)])


def test_a_client_that_leaves_between_two_previews_stops_the_drawing(pipe: HybridPipeline) -> None:
    paced = Paced(pipe, 0.05)
    with listening(paced) as address:
        before = paced.steps
        body = {"prompt": "bag", "stream": True, "method": "masked", "steps": 16}
        with httpx.stream("POST", f"{address}{GENERATE}", json=body) as response:
            next(response.iter_text())
        until(lambda: state(address) == (0, 0), "rest")
        assert paced.steps - before < 16


def test_previews_arrive_one_by_one(pipe: HybridPipeline) -> None:
    with listening(Paced(pipe, 0.02)) as address:
        body = {"prompt": "bag", "stream": True, "seed": 1}
        with httpx.stream("POST", f"{address}{GENERATE}", json=body) as response:
            chunks = list(response.iter_text())
    assert len(chunks) > 2 and len(events("".join(chunks))) == 5


def test_a_speaker_who_leaves_is_not_heard(pipe: HybridPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = HeldSpeech(monkeypatch)
    with listening(pipe) as address, ThreadPoolExecutor(1) as pool:

        def say(recording: bytes, patience: float) -> httpx.Response:
            timeout = httpx.Timeout(PATIENCE, read=patience)
            return httpx.post(f"{address}{HEAR}", files={"file": recording}, timeout=timeout)

        first = pool.submit(say, b"leaves while it is heard", 1.0)
        assert speech.begun.acquire(timeout=PATIENCE)
        with pytest.raises(httpx.ReadTimeout):
            say(b"leaves while it waits", 0.5)
        with pytest.raises(httpx.ReadTimeout):
            first.result()
        until(lambda: f'path="{HEAR}",status="499"}} 2.0' in httpx.get(f"{address}/metrics").text, "both gone")
        stays = pool.submit(say, b"stays", PATIENCE)
        speech.go.release(2)
        assert stays.result().json() == {"text": "bag", "prompt": "Bag"}
    assert speech.heard == [b"leaves while it is heard", b"stays"]


def _request(body: dict[str, object]) -> bytes:
    request = httpx.Request("POST", f"http://tiny{GENERATE}", json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {GENERATE} HTTP/1.1\r\n{head}\r\n".encode() + request.content


# The command


@pytest.fixture
def served(pair_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    line = [sys.executable, "-m", "hybrid.serve.cli", "--pair", str(pair_folder), "--port", "0", "--grace", "10"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.readline()
    address = re.fullmatch(r"hybrid-serve: tiny at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)\n", told)
    assert address, told
    yield process, address[1]
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly(served: tuple[subprocess.Popen[str], str], number: int) -> None:
    process, address = served
    assert len(httpx.post(f"{address}{GENERATE}", json={"prompt": "bag", "n": 2}).json()["data"]) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--pair emojy", "emojy: no such model, folder or file; did you mean 'emoji'?"),
        ("--port 65536", "--port 65536: must be 0 to 65535"),
        ("--port x", "argument --port: invalid int value: 'x'"),
        ("--queue 0", "--queue 0: must be at least 1"),
        ("--batch 0", "--batch 0: must be at least 1"),
        ("--deadline nan", "--deadline nan: must be at least 0.001"),
        ("--deadline inf", "--deadline inf: must be at most 1e+09"),
        ("--grace inf", "--grace inf: must be at most 1e+09"),
        ("--grace 1e300", "--grace 1e+300: must be at most 1e+09"),
        ("--grace nan", "--grace nan: must be at least 0"),
        ("--threads 0", "--threads 0: must be at least 1"),
        ("--quue 3", "unknown option --quue; did you mean --queue?"),
        ("--host 203.0.113.7", "203.0.113.7:8000: cannot assign requested address; choose another with --port"),
        ("--device tpu --port 0", "device 'tpu': use auto, cpu, cuda, mps"),
        ("--dtype fp8 --port 0 --device cpu", "dtype 'fp8': use auto, fp32, bf16, fp16"),
    ],
)
def test_a_mistake_is_one_line_with_code_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"hybrid-serve: {message}") and told.err.count("\n") == 1 and told.out == ""


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["--port", str(port)]) == 2
    expected = f"hybrid-serve: 127.0.0.1:{port}: address already in use; choose another with --port\n"
    assert capsys.readouterr().err == expected


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "NEEDED", ("fastapi", "surely_not_installed"))
    assert cli.main([]) == 2
    expected = "hybrid-serve: surely_not_installed is not installed; run: pip install 'hybrid-imagegen[serve]'\n"
    assert capsys.readouterr().err == expected


def test_the_token_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch, pair_folder: Path) -> None:
    seen = []
    monkeypatch.setattr(cli, "_serve", lambda options, listener: seen.append(options.token) or 0)
    monkeypatch.setenv("HYBRID_TOKEN", "from outside")
    for line in (["--token", "given"], []):
        assert cli.main(["--pair", str(pair_folder), "--port", "0", *line]) == 0
    monkeypatch.setenv("HYBRID_TOKEN", "")
    assert cli.main(["--pair", str(pair_folder), "--port", "0"]) == 0
    assert seen == ["given", "from outside", None]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hybrid.serve.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: print('LEFT', left.code)\n"
        "print('HEAVY', sorted({'torch', 'fastapi', 'pydantic', 'uvicorn', 'PIL'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    ).stdout
    assert "LEFT 0\nHEAVY []" in shown and "(default: 127.0.0.1, this machine only)" in shown
