"""What the page cache holds is read from there, and gives the same bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp8convert import pagecache
from fp8convert.fileio import SourceFile, aligned_buffer

PART = 4 << 20  # pages may be cached in large folios, evicted whole or not at all
SIZE = 3 * PART + 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "shard"
    file.write_bytes(os.urandom(SIZE))
    with file.open("rb") as f:
        os.fsync(f.fileno())
    return file


@pytest.fixture
def known(path: Path) -> Iterator[int]:
    """A descriptor of ``path``, where this kernel and filesystem can say what is cached."""
    fd = os.open(path, os.O_RDONLY)
    os.pread(fd, SIZE, 0)
    if not pagecache.holds(fd, 0, SIZE):
        os.close(fd)
        pytest.skip("cachestat needs Linux 6.5")
    yield fd
    os.close(fd)


def test_holds_only_when_every_page_is_there(known: int) -> None:
    assert pagecache.holds(known, 5, 4097)
    os.posix_fadvise(known, PART, PART, os.POSIX_FADV_DONTNEED)
    for _ in range(2):  # asking does not read
        assert not pagecache.holds(known, 0, SIZE)
        assert not pagecache.holds(known, PART + PART // 2, PART + PART // 2 + 1)
    assert not pagecache.holds(known, 0, PART + PART // 2)
    assert pagecache.holds(known, 0, PART)
    assert pagecache.holds(known, 2 * PART, SIZE)


def test_an_empty_range_and_a_kernel_that_cannot_say(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert not pagecache.holds(fd, 0, 0)
    monkeypatch.setattr(pagecache, "_syscall", lambda: lambda *_: -1)  # ENOSYS
    assert not pagecache.holds(fd, 0, SIZE)
    monkeypatch.setattr(pagecache, "_syscall", lambda: None)  # not Linux
    assert not pagecache.holds(fd, 0, SIZE)
    os.close(fd)


def read_all(path: Path, mode: str) -> tuple[bytes, list[int]]:
    """The bytes of ``path`` read by SourceFile, and the descriptors that preadv was called on."""
    state = path.stat()
    used: list[int] = []
    real = os.preadv

    def spy(fd: int, buffers: list[memoryview], offset: int) -> int:
        used.append(fd)
        return real(fd, buffers, offset)

    file = SourceFile(os.open(path, os.O_RDONLY), path.name, mode, state.st_size, state.st_mtime_ns)
    buffer = memoryview(aligned_buffer(SIZE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", spy)
        file.read(buffer, 0, SIZE)
    used = [int(fd != file.fd) for fd in used]
    file.close()
    return bytes(buffer[:SIZE]), used


@pytest.mark.parametrize("held", [True, False])
def test_cached_bytes_come_from_the_cache_and_are_the_same(
    path: Path, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "holds", lambda *_: held)
    data, through_cache = read_all(path, "auto")
    assert data == path.read_bytes()
    assert set(through_cache) == {int(held)}


def test_direct_means_direct(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "holds", lambda *_: True)
    data, through_cache = read_all(path, "direct")
    assert data == path.read_bytes()
    assert set(through_cache) == {0}


def test_without_proc_there_is_no_second_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    fd = os.open(path, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(pagecache.os, "open", refuse)
        assert pagecache.reopened(fd) == -1
    second = pagecache.reopened(fd)
    assert os.fstat(second).st_ino == os.fstat(fd).st_ino
    os.close(second)
    os.close(fd)
