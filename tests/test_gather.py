"""Runs of bytes that lie apart in a shard, read into one buffer."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fp8convert import fileio, pagecache
from fp8convert.errors import FormatError, Fp8ConvertError
from fp8convert.fileio import NEAR, WINDOW, SourceFile, aligned_buffer
from fp8convert.header import ALIGN as PAGE

from .crash import short_transfers

Preadv = Callable[[int, list[memoryview], int], int]
# begin, bytes of a run, count, stride
RUNS = {
    "one": (3, 100, 1, 5000),
    "single bytes": (0, 1, 1000, 2),
    "touching": (17, 50, 20, 50),
    "near": (5, 300, 90, 1000),
    "at the limit of near": (1, 8, 40, NEAR),
    "far": (11, 64, 30, NEAR + 1),
    "far, long": (2, 70_000, 4, 90_001),
    "more than a window": (9, 16, 3 * (WINDOW // 512) + 5, 512),
    "a window exactly": (0, 128, WINDOW // 256, 256),
    "odd stride": (123, 7, 999, 333),
}
EACH = pytest.mark.parametrize(("begin", "length", "count", "stride"), RUNS.values(), ids=RUNS)
DATA = random.Random(1).randbytes(max(b + (n - 1) * s + k for b, k, n, s in RUNS.values()) + 3)


@pytest.fixture(params=["cold", "auto", "buffered", "direct"])
def file(
    request: pytest.FixtureRequest, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SourceFile]:
    """A source in each mode; cold is auto that finds nothing in the page cache."""
    path = fast_path / "s"
    path.write_bytes(DATA)
    if request.param == "cold":
        monkeypatch.setattr(pagecache, "holds", lambda fd, begin, end: False)
    try:
        found = opened(path, "auto" if request.param == "cold" else request.param)
    except Fp8ConvertError:
        pytest.skip("no direct I/O here")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    yield found
    found.close()
    found.close()  # harmless
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) < before


def opened(path: Path, mode: str) -> SourceFile:
    state = path.stat()
    return SourceFile(os.open(path, os.O_RDONLY), path.name, mode, state.st_size, state.st_mtime_ns)


def gathered(file: SourceFile, begin: int, length: int, count: int, stride: int) -> bytes:
    """Into the middle of a buffer whose other bytes must stay."""
    buffer = memoryview(aligned_buffer(length * count + 20))
    buffer[:] = b"\xee" * len(buffer)
    file.gather(buffer[7 : 7 + length * count], begin, count, stride)
    assert bytes(buffer[:7]) == b"\xee" * 7
    assert set(buffer[7 + length * count :]) == {0xEE}
    return bytes(buffer[7 : 7 + length * count])


def wanted(begin: int, length: int, count: int, stride: int) -> bytes:
    places = range(begin, begin + count * stride, stride)
    return b"".join(DATA[at : at + length] for at in places)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where and how much every positioned read asks for."""
    asked: list[tuple[int, int]] = []
    real: Preadv = os.preadv

    def call(fd: int, views: list[memoryview], offset: int) -> int:
        asked.append((offset, len(views[0])))
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & fileio.O_DIRECT  # nothing is aligned here
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", call)
    return asked


@EACH
def test_runs(file: SourceFile, begin: int, length: int, count: int, stride: int) -> None:
    for _ in range(2):
        got = gathered(file, begin, length, count, stride)
        assert got == wanted(begin, length, count, stride)


def test_reading_on_after_it(file: SourceFile) -> None:
    """Ordinary reads are what they were, and as direct as they were."""
    direct = file.direct
    for begin in (0, 4 * PAGE):
        gathered(file, *RUNS["near"])
        view = memoryview(aligned_buffer(2 * PAGE))
        file.read(view, begin, begin + 2 * PAGE)
        assert bytes(view) == DATA[begin : begin + 2 * PAGE]
    assert file.direct is direct


@EACH
def test_short_reads(
    file: SourceFile,
    begin: int,
    length: int,
    count: int,
    stride: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel may give less than was asked for, as often as it likes."""
    moved = short_transfers(monkeypatch.setattr, seed=length)
    assert gathered(file, begin, length, count, stride) == wanted(begin, length, count, stride)
    assert len(moved) >= 1


def test_one_byte_a_call(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:1]], at))
    for runs in ((5, 30, 9, 100), (5, 30, 3, NEAR + 7)):
        assert gathered(file, *runs) == wanted(*runs)


@pytest.mark.parametrize("name", ["near", "far", "more than a window"])
def test_what_is_asked_for(file: SourceFile, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near runs with their gaps, in few calls; far ones without; no byte beyond the last."""
    begin, length, count, stride = RUNS[name]
    asked = calls_of(monkeypatch)
    gathered(file, begin, length, count, stride)
    end = begin + (count - 1) * stride + length
    assert max(at + n for at, n in asked) == end
    assert min(at for at, _ in asked) == begin
    assert max(n for _, n in asked) <= WINDOW
    if stride > NEAR:
        assert asked == [(begin + k * stride, length) for k in range(count)]
    else:
        assert len(asked) == -(-count // (WINDOW // stride))
        assert sum(n for _, n in asked) <= count * stride


@pytest.mark.parametrize("name", ["near", "far", "single bytes", "more than a window"])
def test_a_file_that_ends_early(file: SourceFile, name: str, fast_path: Path) -> None:
    """An error that says where: not zeros, not an endless loop."""
    begin, length, count, stride = RUNS[name]
    last = begin + (count - 1) * stride
    for left in (last + length - 1, last, begin + stride, begin, 0):
        os.truncate(fast_path / "s", left)
        message = rf"'s' ends at byte [0-9,]+ while .*expected {len(DATA):,} bytes"
        with pytest.raises(FormatError, match=message):
            gathered(file, begin, length, count, stride)
    with pytest.raises(FormatError, match="changed since it was planned"):
        file.check_unchanged()


def test_errors_name_the_file(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, views: list[memoryview], at: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for name in ("near", "far"):
        with pytest.raises(OSError, match="'s'"):
            gathered(file, *RUNS[name])


def test_without_a_way_to_reopen(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc: the one descriptor gives up direct I/O and serves both."""
    monkeypatch.setattr(pagecache, "reopened", lambda fd: -1)
    (fast_path / "s").write_bytes(DATA)
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    for mode in ("auto", "buffered"):
        file = opened(fast_path / "s", mode)
        for runs in RUNS.values():
            assert gathered(file, *runs) == wanted(*runs)
        assert not file.direct
        view = memoryview(aligned_buffer(PAGE))
        file.read(view, PAGE, 2 * PAGE)
        assert bytes(view) == DATA[PAGE : 2 * PAGE]
        file.close()
    after = os.listdir("/proc/self/fd") if before else []
    assert len(after) == len(before)


def test_many_threads_at_once(file: SourceFile) -> None:
    """One more descriptor is opened, however many ask first."""
    names = list(RUNS) * 3
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: gathered(file, *RUNS[name]), names))
    assert found == [wanted(*RUNS[name]) for name in names]
