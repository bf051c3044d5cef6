"""Files under the engine: any tiling, any order, any mode gives the same bytes and sum."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import random
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fp8convert import fileio, pagecache
from fp8convert.calls import close, read_all
from fp8convert.errors import FormatError, Fp8ConvertError, ResumableError
from fp8convert.fileio import SourceFile, TargetFile, aligned_buffer, hash_file
from fp8convert.header import ALIGN as PAGE

from .crash import short_transfers

SIZES = sorted({max(n * PAGE + d, 0) for n in range(4) for d in (-1, 0, 1)})
MODES = ["auto", "buffered"]


def placed(data: bytes, begin: int) -> memoryview:
    """``data`` in memory whose address agrees with ``begin`` modulo a page."""
    shift = begin % PAGE
    view = memoryview(aligned_buffer(shift + len(data) + PAGE))
    view[shift : shift + len(data)] = data
    return view[shift : shift + len(data)]


def cuts(rng: random.Random, size: int, most: int = 12) -> list[tuple[int, int]]:
    """A random tiling of ``[0, size)``."""
    near = [n * PAGE + d for n in range(size // PAGE + 2) for d in (-1, 0, 1)]
    some = range(rng.randint(0, most))
    places = [rng.choice([rng.randrange(size), rng.choice(near)]) for _ in some]
    edges = [0, *sorted({c for c in places if 0 < c < size}), size]
    return list(itertools.pairwise(edges))


def write_all(file: TargetFile, data: bytes, tiles: list[tuple[int, int]], seed: int) -> str | None:
    """Write in random order; hash in file order, as the engine's workers do between them."""
    for begin, end in random.Random(seed).sample(tiles, len(tiles)):
        file.write(placed(data[begin:end], begin), begin)
    for begin, end in tiles:
        file.hash(memoryview(data)[begin:end], begin)
    return file.finish()


@pytest.fixture
def no_direct(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A filesystem that refuses O_DIRECT when it is set; one entry for each refusal."""
    refused: list[int] = []
    real = fcntl.fcntl

    def fake(fd: int, command: int, arg: int = 0) -> int:
        if command == fcntl.F_SETFL and arg & os.O_DIRECT:
            refused.append(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, arg)

    monkeypatch.setattr(fcntl, "fcntl", fake)
    return refused


class Late:
    """A filesystem that takes O_DIRECT and then refuses every direct read and write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        for name in ("preadv", "pwritev"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, real):
        def call(fd: int, views: list[memoryview], offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                self.refused += 1
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(fd, views, offset)

        return call


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in the page cache, however lately it was written."""
    monkeypatch.setattr(pagecache, "holds", lambda fd, begin, end: False)


@pytest.fixture(params=["cold", "auto", "buffered"])
def reading(request: pytest.FixtureRequest) -> str:
    """The mode of a source; cold is auto that finds nothing in the page cache."""
    if request.param == "cold":
        request.getfixturevalue("cold")
        return "auto"
    return str(request.param)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """No descriptor is left open by the test."""
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    yield
    after = os.listdir("/proc/self/fd") if before else []
    assert len(after) == len(before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_target_sizes(fast_path: Path, descriptors: None, mode: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    for seed in range(8):
        path = fast_path / f"{seed}"
        file = TargetFile(path, size, mode, checksum=True)
        tiles = cuts(random.Random(seed), size) if size else []
        assert write_all(file, data, tiles, seed) == hashlib.sha256(data).hexdigest()
        assert path.read_bytes() == data


@pytest.mark.parametrize("mode", MODES)
def test_target_on_the_disk(tmp_path: Path, mode: str) -> None:
    """The same on whatever filesystem temporary files are on (direct I/O, mostly)."""
    data = random.Random(1).randbytes(70_001)
    for seed in range(3):
        file = TargetFile(tmp_path / f"{seed}", len(data), mode, checksum=True)
        tiles = cuts(random.Random(seed), len(data), 30)
        assert write_all(file, data, tiles, seed) == hashlib.sha256(data).hexdigest()
        assert (tmp_path / f"{seed}").read_bytes() == data


def test_target_short_writes(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(2).randbytes(9 * PAGE + 77)
    moved = short_transfers(monkeypatch.setattr, seed=2)
    for mode in MODES:
        file = TargetFile(fast_path / mode, len(data), mode, checksum=True)
        tiles = [(0, 5), (5, 8 * PAGE + 1), (8 * PAGE + 1, len(data))]
        assert write_all(file, data, tiles, 3) == hashlib.sha256(data).hexdigest()
        assert (fast_path / mode).read_bytes() == data
    assert len(moved) > 6


def test_target_without_progress(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that writes nothing, for ever, is an error."""
    file = TargetFile(fast_path / "t", PAGE, "buffered", checksum=True)
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: 0)
    with pytest.raises(OSError, match="no progress"):
        file.write(placed(bytes(PAGE), 0), 0)
    file.close()


@pytest.mark.parametrize("mode", MODES)
def test_target_under_a_limit_within_a_page(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Direct I/O would write the last page whole; what is the file's own fits, and one byte less
    is told as what it is."""
    monkeypatch.setattr(fileio, "_preallocate", lambda fd, size: None)
    data = random.Random(5).randbytes(2 * PAGE + 77)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, fits in ((len(data), True), (len(data) - 1, False), (PAGE + 5, False)):
        file = TargetFile(fast_path / f"{limit}", len(data), mode, checksum=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            if fits:
                assert write_all(file, data, [(0, len(data))], 1)
                assert (fast_path / f"{limit}").read_bytes() == data
            else:
                with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                    write_all(file, data, [(0, len(data))], 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            file.close()


def test_target_falls_back(fast_path: Path, no_direct: list[int]) -> None:
    data = random.Random(4).randbytes(3 * PAGE + 5)
    file = TargetFile(fast_path / "t", len(data), "auto", checksum=True)
    assert no_direct
    tiles = cuts(random.Random(4), len(data))
    assert write_all(file, data, tiles, 4) == hashlib.sha256(data).hexdigest()
    assert (fast_path / "t").read_bytes() == data


def test_target_falls_back_late(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = Late(monkeypatch)
    data = random.Random(5).randbytes(7 * PAGE + 5)
    file = TargetFile(fast_path / "t", len(data), "auto", checksum=True)
    if not file.direct:
        pytest.skip("no direct I/O here")
    tiles = cuts(random.Random(5), len(data))
    assert write_all(file, data, tiles, 5) == hashlib.sha256(data).hexdigest()
    assert (fast_path / "t").read_bytes() == data
    assert late.refused == 1


def test_two_threads_fall_back_at_once(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are refused while direct I/O is on; the second learns of it when it is off."""
    both = threading.Barrier(2)
    real = os.pwritev

    def refuse(fd: int, views: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            if both.wait(30) == 1:
                deadline = time.monotonic() + 30
                while file.direct and time.monotonic() < deadline:
                    time.sleep(0.001)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, views, offset)

    file = TargetFile(fast_path / "t", 2 * PAGE, "auto", checksum=False)
    if not file.direct:
        pytest.skip("no direct I/O here")
    monkeypatch.setattr(os, "pwritev", refuse)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: file.write(placed(bytes([n]) * PAGE, 0), n * PAGE), range(2)))
    assert file.finish() is None
    assert (fast_path / "t").read_bytes() == bytes(PAGE) + b"\1" * PAGE


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_auto_takes_any_refusal_for_an_answer(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = fcntl.fcntl

    def fake(fd: int, command: int, arg: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(code, os.strerror(code))
        return real(fd, command, arg)

    monkeypatch.setattr(fcntl, "fcntl", fake)
    file = TargetFile(fast_path / "t", 1, "auto", checksum=True)
    assert not file.direct
    file.close()


def test_direct_demanded_and_refused(
    fast_path: Path, descriptors: None, no_direct: list[int]
) -> None:
    with pytest.raises(Fp8ConvertError, match=r"'t': direct I/O is refused .*use --io auto"):
        TargetFile(fast_path / "t", 5, "direct", checksum=True)
    assert no_direct
    assert not list(fast_path.iterdir())


def test_direct_demanded_and_refused_late(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        file = TargetFile(fast_path / "t", PAGE, "direct", checksum=True)
    except Fp8ConvertError:
        pytest.skip("no direct I/O here")
    Late(monkeypatch)
    with pytest.raises(Fp8ConvertError, match="use --io auto"):
        file.write(placed(bytes(PAGE), 0), 0)
    file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_no_room_to_preallocate(
    fast_path: Path, descriptors: None, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """What was allocated is given back, and the error names the file."""

    def fail(fd: int, begin: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    with pytest.raises(OSError, match="'t'") as e:
        TargetFile(fast_path / "t", 5, "auto", checksum=True)
    assert e.value.errno == code
    assert not list(fast_path.iterdir())


def test_no_preallocation_on_this_filesystem(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, begin: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    file = TargetFile(fast_path / "t", 5, "auto", checksum=True)
    assert os.fstat(file.fd).st_size == 5
    write_all(file, b"12345", [(0, 5)], 0)
    assert (fast_path / "t").read_bytes() == b"12345"


def test_preallocated(fast_path: Path) -> None:
    file = TargetFile(fast_path / "t", 300_000, "auto", checksum=True)
    state = os.fstat(file.fd)
    file.close()
    assert state.st_size == 300_000
    assert state.st_blocks * 512 >= 300_000


def test_target_never_overwrites(fast_path: Path, descriptors: None) -> None:
    (fast_path / "t").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        TargetFile(fast_path / "t", 5, "auto", checksum=True)
    assert (fast_path / "t").read_bytes() == b"mine"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_target_with_a_hole(fast_path: Path, mode: str, left_out: int) -> None:
    """A tile that was never written is an error, though the file has its size."""
    file = TargetFile(fast_path / "t", 3 * PAGE + 9, mode, checksum=False)
    tiles = [(0, PAGE + 5), (PAGE + 5, 2 * PAGE + 5), (2 * PAGE + 5, 3 * PAGE + 9)]
    for number, (begin, end) in enumerate(tiles):
        if number != left_out:
            file.write(placed(bytes(end - begin), begin), begin)
    with pytest.raises(Fp8ConvertError, match="wrote"):
        file.finish()
    file.close()


def test_hash_waits_for_its_turn(fast_path: Path) -> None:
    """Threads that come in the worst order feed the sum in file order."""
    data = random.Random(6).randbytes(40_000)
    tiles = [(at, at + 1000) for at in range(0, len(data), 1000)]
    file = TargetFile(fast_path / "t", len(data), "auto", checksum=True)

    def work(tile: tuple[int, int]) -> None:
        begin, end = tile
        file.write(placed(data[begin:end], begin), begin)
        file.hash(memoryview(data)[begin:end], begin)

    with ThreadPoolExecutor(len(tiles)) as pool:
        list(pool.map(work, reversed(tiles)))
    assert file.finish() == hashlib.sha256(data).hexdigest()
    assert (fast_path / "t").read_bytes() == data


def test_stop_wakes_the_waiting(fast_path: Path) -> None:
    file = TargetFile(fast_path / "t", 2, "auto", checksum=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(file.hash, memoryview(b"x"), 1)
        file.stop()
        with pytest.raises(ResumableError):
            waiting.result(30)
    file.close()


def test_close_fails_once(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that reports EIO has closed: trying again would close another's descriptor."""
    file = TargetFile(fast_path / "t", 0, "auto", checksum=True)
    closed: list[int] = []
    real = os.close

    def fail(fd: int) -> None:
        real(fd)
        closed.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.close()
    file.close()
    assert len(closed) == 1


def source(path: Path, mode: str) -> SourceFile:
    state = path.stat()
    fd = os.open(path, os.O_RDONLY)
    return SourceFile(fd, path.name, mode, state.st_size, state.st_mtime_ns)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("size", [s for s in SIZES if s])
def test_source_reads(
    fast_path: Path,
    descriptors: None,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    reading: str,
    short: bool,
) -> None:
    data = random.Random(size).randbytes(size)
    (fast_path / "s").write_bytes(data)
    file = source(fast_path / "s", reading)
    if short:
        assert short_transfers(monkeypatch.setattr, seed=size) == []
    for begin in range(0, size, PAGE):
        for end in {begin + 1, size, (begin + size + 1) // 2}:
            view = memoryview(aligned_buffer(end - begin))
            file.read(view, begin, end)
            assert view[: end - begin] == data[begin:end]
    file.close()


@pytest.mark.parametrize("left", [0, 1, PAGE, PAGE + 100, 2 * PAGE])
def test_source_truncated_under_the_reader(fast_path: Path, reading: str, left: int) -> None:
    """An error that says where, not SIGBUS and not zeros."""
    size = 3 * PAGE
    (fast_path / "s").write_bytes(bytes(size))
    file = source(fast_path / "s", reading)
    os.truncate(fast_path / "s", left)
    view = memoryview(aligned_buffer(size))
    with pytest.raises(FormatError, match=f"'s' ends at byte {left:,} .*expected {size:,} bytes"):
        file.read(view, 0, size)
    with pytest.raises(FormatError, match=f"changed .* {size:,} bytes then, {left:,} now"):
        file.check_unchanged()
    file.close()


def test_source_changed_before_it_is_opened(fast_path: Path, descriptors: None) -> None:
    path = fast_path / "s"
    path.write_bytes(b"12345")
    then = path.stat().st_mtime_ns
    for size, mtime_ns in ((4, then), (5, then + 1)):
        with pytest.raises(FormatError, match="changed since it was planned"):
            SourceFile(os.open(path, os.O_RDONLY), "s", "auto", size, mtime_ns)


def test_source_falls_back_late(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, cold: None
) -> None:
    late = Late(monkeypatch)
    data = random.Random(8).randbytes(5 * PAGE + 3)
    (fast_path / "s").write_bytes(data)
    file = source(fast_path / "s", "auto")
    if not file.direct:
        pytest.skip("no direct I/O here")
    view = memoryview(aligned_buffer(len(data)))
    file.read(view, 0, len(data))
    assert view[: len(data)] == data
    assert late.refused == 1
    file.close()


def test_read_errors_name_the_file(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fast_path / "s").write_bytes(b"12345")
    file = source(fast_path / "s", "buffered")

    def fail(fd: int, views: list[memoryview], at: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="'s'"):
        file.read(memoryview(aligned_buffer(5)), 0, 5)
    file.close()


@pytest.mark.parametrize("size", SIZES)
def test_hash_file(fast_path: Path, descriptors: None, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (fast_path / "s").write_bytes(data)
    assert hash_file(fast_path / "s") == hashlib.sha256(data).hexdigest()


def test_hash_file_of_several_reads(fast_path: Path) -> None:
    data = random.Random(9).randbytes((9 << 20) + 1)
    (fast_path / "s").write_bytes(data)
    assert hash_file(fast_path / "s") == hashlib.sha256(data).hexdigest()
    answers = iter([False, True])
    with pytest.raises(ResumableError):
        hash_file(fast_path / "s", lambda: next(answers))


def test_sync_of_a_failing_disk(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync fails the file, by name."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = TargetFile(fast_path / "t", 0, "auto", checksum=True)
    monkeypatch.setattr(fileio, "sync", fail)
    with pytest.raises(OSError, match="'t'"):
        file.finish()
    file.close()


def test_read_all_takes_what_it_gets(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a call brings; the end of the file ends it."""
    (fast_path / "s").write_bytes(bytes(range(200)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real(fd, min(n, 7), at))
    fd = os.open(fast_path / "s", os.O_RDONLY)
    try:
        assert read_all(fd, 100, 50, "s") == bytes(range(50, 150))
        assert read_all(fd, 100, 150, "s") == bytes(range(150, 200))
    finally:
        os.close(fd)


def test_an_error_of_a_read_has_the_file(fast_path: Path) -> None:
    fd = os.open(fast_path, os.O_RDONLY)  # a folder: EISDIR
    try:
        with pytest.raises(OSError, match="'its name'"):
            read_all(fd, 1, 0, "its name")
    finally:
        os.close(fd)


def test_an_interrupted_close_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor is another's then: to close it again would be to close that."""
    asked: list[int] = []

    def interrupted(fd: int) -> None:
        asked.append(fd)
        raise InterruptedError(errno.EINTR, "Interrupted system call")

    monkeypatch.setattr(os, "close", interrupted)
    close(77)
    monkeypatch.undo()
    assert asked == [77]
