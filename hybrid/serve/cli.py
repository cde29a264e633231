"""``hybrid-serve``: parse, bind, load, serve. Nothing heavy is imported before the options have been checked."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from hybrid.cli_options import Parser

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST = 1e9
"""Above what anybody needs of anything, and what a timer still counts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 after a clean stop, 2 after one line about a mistake."""
    try:
        options = _parser().parse_args(argv)
        _check(options)
        with _bound(options.host, options.port) as listener:
            return _serve(options, listener)
    except (ValueError, OSError) as error:
        print(f"hybrid-serve: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="hybrid-serve",
        description="A page to play with and an API in OpenAI's shape, over one pairing.",
        epilog="The page is at /, the API's description at /openapi.json, counters at /metrics. Ctrl-C stops: what "
        "waits and runs is finished within --grace seconds, the rest refused.",
        allow_abbrev=False,
    )
    parser.add_argument("--pair", metavar="NAME|YAML|FOLDER", default="emoji", help="what draws (default: emoji)")
    parser.add_argument(
        "--host", metavar="H", default="127.0.0.1", help="address (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", metavar="P", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument(
        "--token", metavar="T", help="clients must send it as a bearer token (default: $HYBRID_TOKEN, or none)"
    )
    parser.add_argument("--queue", metavar="N", type=int, default=64, help="pictures that may wait (default: 64)")
    parser.add_argument("--batch", metavar="N", type=int, default=16, help="pictures drawn at once (default: 16)")
    parser.add_argument("--deadline", metavar="S", type=float, default=60, help="seconds for a request (default: 60)")
    parser.add_argument(
        "--grace", metavar="S", type=float, default=20, help="seconds to finish at the end (default: 20)"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--dtype", metavar="T", default="auto", help="auto, fp32, bf16 or fp16 (default: auto)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """What can be wrong before anything is loaded.

    Raises:
        ValueError: an option out of range, a missing extra, or no such pairing.
    """
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port}: must be 0 to 65535")
    for name, least in (("queue", 1), ("batch", 1), ("threads", 1), ("deadline", 0.001), ("grace", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name} {value:g}: must be at least {least:g}")
        if value is not None and value > MOST:
            raise ValueError(f"--{name} {value:g}: must be at most {MOST:g}")
    options.token = options.token or os.environ.get("HYBRID_TOKEN") or None
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        raise ValueError(f"{missing[0]} is not installed; run: pip install 'hybrid-imagegen[serve]'")
    from hybrid.pairing import find_pair

    find_pair(options.pair)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket, before any time is spent on loading.

    Raises:
        ValueError: the port is taken or the address not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except socket.gaierror:
        raise ValueError(f"--host {host}: no such address") from None
    except OSError as error:
        hint = "; choose another with --port" if port else ""
        raise ValueError(f"{host}:{port}: {(error.strerror or str(error)).lower()}{hint}") from None
    return listener


def _serve(options: argparse.Namespace, listener: socket.socket) -> int:
    import logging

    import torch

    from hybrid.serve.app import create_app
    from hybrid.serve.engine import Capacity
    from hybrid.serve.start import load_engine, run

    logging.basicConfig(level=logging.WARNING, format="hybrid-serve: %(levelname)s: %(message)s")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    capacity = Capacity(options.queue, options.batch)
    engine = load_engine(options.pair, capacity, device=options.device, dtype=options.dtype)
    app = create_app(lambda: engine, token=options.token, deadline=options.deadline, grace=options.grace)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"hybrid-serve: {engine.pipe.name} at http://{shown}:{port} (Ctrl-C stops)", flush=True)
    if options.host not in LOOPBACK and options.token is None:
        print("hybrid-serve: note: other machines can reach it, and no --token is asked for", file=sys.stderr)
    run(app, engine, listener, grace=options.grace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
