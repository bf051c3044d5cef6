"""Headers read several at a time: the same catalogue, the same refusals, and nobody waits."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.catalogue import open_catalogue
from fp8convert.convert import prepare
from fp8convert.errors import FormatError
from fp8convert.folder import Folder
from fp8convert.lanes import mapped
from fp8convert.options import Unshard

from .checkpoints import pair, write

SHARDS = 9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Nine shards, of several weights each, of different sizes."""
    names = [[f"w{n}.{k}.weight" for k in range(n % 3 + 1)] for n in range(SHARDS)]
    shards = [
        {k: v for name in group for k, v in pair(name, 130 + n, 70, n).items()}
        for n, group in enumerate(names)
    ]
    return write(tmp_path / "src", shards)


class Looks:
    """Counts who looks at shards at the same time."""

    def __init__(self, patch: pytest.MonkeyPatch, lanes: int, together: int = 0) -> None:
        """``together``: so many have to, or nobody goes on."""
        self.now = self.most = self.all = 0
        lock, real = threading.Lock(), Folder.peek
        barrier = threading.Barrier(together) if together else None

        @contextlib.contextmanager
        def peek(folder: Folder, name: str) -> Iterator[Any]:
            with lock:
                self.now += 1
                self.all += 1
                self.most = max(self.most, self.now)
            try:
                if barrier:
                    barrier.wait()
                with real(folder, name) as found:
                    yield found
            finally:
                with lock:
                    self.now -= 1

        patch.setattr(Folder, "lanes", property(lambda self: lanes))
        patch.setattr(Folder, "peek", peek)


@pytest.mark.parametrize("lanes", [2, 3, 8, 64])
def test_the_same_catalogue(source: Path, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards in order of their names, tensors in order of their shards."""
    alone = open_catalogue(source)
    looks = Looks(monkeypatch, lanes)
    found = open_catalogue(source)
    assert found == alone
    assert list(found.tensors) == list(alone.tensors)
    assert found.shard_names == sorted(found.shard_names)
    assert (looks.all, looks.now) == (SHARDS, 0)
    assert looks.most <= lanes


def test_so_many_at_a_time(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, 3, together=3)
    open_catalogue(source)
    assert (looks.all, looks.most) == (SHARDS, 3)


def test_one_lane_is_no_thread(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
    looks = Looks(monkeypatch, 1)
    open_catalogue(source)
    assert (looks.all, looks.most) == (SHARDS, 1)


def test_plans_are_the_same(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = prepare(source, tmp_path / "dst").plan
    Looks(monkeypatch, 4)
    assert prepare(source, tmp_path / "dst").plan.id == alone.id


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_rank_sets_too(
    tiny_fp8: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8convert.shard_for_tp(tiny_fp8, tmp_path / "ranks", 2, layout=layout)
    alone = prepare(tmp_path / "ranks", tmp_path / "dst", Unshard()).plan
    looks = Looks(monkeypatch, 4)
    assert prepare(tmp_path / "ranks", tmp_path / "dst", Unshard()).plan.id == alone.id
    assert looks.all >= 2


@pytest.mark.parametrize("number", [1, 5, SHARDS])
def test_a_bad_header_is_refused_as_by_one(
    source: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(source / f"model-{number:05}-of-{SHARDS:06}.safetensors", 100)
    with pytest.raises(FormatError) as alone:
        open_catalogue(source)
    Looks(monkeypatch, 4)
    with pytest.raises(FormatError) as found:
        open_catalogue(source)
    assert str(found.value) == str(alone.value)
    assert f"model-{number:05}" in str(found.value)


def test_of_several_bad_ones_one_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (3, 7):
        os.truncate(source / f"model-{number:05}-of-{SHARDS:06}.safetensors", 100)
    Looks(monkeypatch, 4)
    with pytest.raises(FormatError, match=r"model-0000[37]"):
        open_catalogue(source)


# --- Threads that wait


def test_results_are_in_order_whatever_comes_first() -> None:
    """The first item is done when all others are."""
    others = threading.Barrier(4)

    def work(n: int) -> int:
        others.wait()
        return n * n

    assert mapped(work, range(4), 4) == [0, 1, 4, 9]
    assert mapped(lambda n: -n, range(100), 3) == [-n for n in range(100)]
    assert mapped(work, [], 4) == []


def test_an_error_is_told_though_others_still_wait() -> None:
    """Nobody waits for a network that is silent; and nothing more is begun."""
    silent, begun = threading.Event(), list[int]()

    def work(n: int) -> None:
        begun.append(n)
        if n == 1:
            raise ValueError(n)
        silent.wait()

    try:
        with pytest.raises(ValueError, match="1"):
            mapped(work, range(10), 2)
        assert sorted(begun) == [0, 1]
    finally:
        silent.set()


def test_an_interrupt_is_not_kept_waiting() -> None:
    """Ctrl-C while all wait."""
    silent, waiting = threading.Event(), threading.Barrier(2)

    def work(n: int) -> None:
        if waiting.wait() == 0:
            _thread.interrupt_main()
        silent.wait()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            mapped(work, range(4), 2)
    finally:
        signal.signal(signal.SIGINT, before)
        silent.set()
