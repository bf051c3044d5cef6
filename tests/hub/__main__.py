"""``python -m tests.hub ROOT``: a hub in the foreground, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from .server import Hub


def main() -> None:
    """Serve; the first line says where."""
    options = _parser().parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Hub(options.root, port=options.port, rate=options.rate) as hub:
        for name, folder in options.add:
            hub.add(name, Path(folder))
        for name, token in options.private:
            hub.private(name, token)
        print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HOME"):
            print(f"{name}={hub.settings[name]}", flush=True)
        ended.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=main.__doc__)
    parser.add_argument("root", type=Path, help="a folder for all that the hub keeps")
    parser.add_argument("--port", type=int, default=0, help="where to listen; default: any")
    parser.add_argument("--rate", type=float, help="bytes a second over all connections")
    for option, value in (("--add", "FOLDER"), ("--private", "TOKEN")):
        parser.add_argument(
            option, action="append", default=[], type=_pair, metavar=f"ORG/NAME={value}"
        )
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (sign and value and "/" in name):
        raise argparse.ArgumentTypeError(f"expected org/name=..., got {text!r}")
    return name, value


if __name__ == "__main__":
    main()
