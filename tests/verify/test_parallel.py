"""Threads of the checks: order, errors, counting."""

from __future__ import annotations

import os
import threading

import pytest

from fp8convert.errors import FormatError
from fp8convert.verify import verify
from fp8convert.verify.parallel import Tally, cores, each

from .made import Made


def test_answers_come_in_order_whoever_is_first() -> None:
    gate = threading.Event()

    def work(n: int) -> int:
        if n == 0:
            gate.wait(60)
        else:
            gate.set()
        return n * n

    assert each(work, range(50), 4) == [n * n for n in range(50)]


def test_after_an_error_no_job_is_begun() -> None:
    begun: list[int] = []

    def work(n: int) -> None:
        begun.append(n)
        if n == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        each(work, range(10_000), 1)
    assert begun[:4] == [0, 1, 2, 3]
    assert len(begun) < 10_000


def test_bytes_of_all_threads_are_counted_once() -> None:
    told: list[tuple[str, int, int]] = []
    tally = Tally("sums", 1000, lambda *now: told.append(now))
    each(tally.add, [1] * 1000, 8)
    assert told == [("sums", n, 1000) for n in range(1, 1001)]
    assert 1 <= cores() <= 16


def test_what_the_system_refuses_is_an_error_of_this_library(
    right: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    folder = right.output("v3")
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(FormatError, match=r"cannot be read: .*Permission denied"):
        verify(folder)
