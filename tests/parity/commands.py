"""Commands run in this process, which has PyTorch loaded already."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fp8convert.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """``run("parity", a, b)``: as typed after ``fp8convert``."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["fp8convert", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main.main()
        said = capsys.readouterr()
        return Done(int(e.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)
