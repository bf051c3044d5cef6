"""``quantize`` killed, interrupted, without resources, resumed: the same bytes, no hang or leak."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fp8convert
from fp8convert.coderun import CodeRun
from fp8convert.convert import Manifest
from fp8convert.errors import (
    DataError,
    ResumableError,
)
from fp8convert.header import ALIGN as PAGE
from fp8convert.publish import Staging
from fp8convert.settings import Settings

from .crash import CHANGES, Forker, contents, nothing, temporaries, trace
from .quantized.small import (
    MLP,
    SHAPES,
    in_time,
    make_small,
    tensors_of,
    write,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_small(tmp_path_factory.mktemp("small") / "src")


# --- Killed


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


class Run(NamedTuple):
    """One conversion of ``small``, as the library and as the command line take it."""

    scheme: str
    options: dict[str, Any]

    def argv(self, src: Path, dst: Path, *more: object) -> list[object]:
        flags = {"scale_search": "--scale-search", "max_shard_size": "--max-shard-size"}
        words = [w for key, value in self.options.items() for w in (flags[key], value)]
        return ["quantize", src, dst, "--scheme", self.scheme, "--workers", 1, *words, *more]

    def __call__(self, src: Path, dst: Path, **more: Any) -> Manifest:
        settings = {"workers": 1, **more}
        return fp8convert.quantize(src, dst, self.scheme, **self.options, **settings)


TENSOR = Run("fp8-tensor", {"scale_search": "mse", "max_shard_size": 60_000})
GROUPS = Run("nvfp4", {"max_shard_size": 40_000})


@pytest.fixture(scope="module")
def undisturbed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Run, Any]:
    """What every run of ``small`` must end with."""
    found = {}
    for n, run in enumerate((TENSOR, GROUPS)):
        dst = tmp_path_factory.mktemp("undisturbed") / f"{n}"
        run(small, dst)
        found[run.scheme] = contents(dst)
        assert len(found[run.scheme]) > 5
    return found


def steps(run: Run, src: Path, dst: Path) -> list[str]:
    """The calls that change the disk, in order; those on a spool are named so."""
    found: list[str] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        found.append(f"{name} {'spool' if '.spool.' in str(args[0]) else ''}")

    with pytest.MonkeyPatch.context() as patch:
        trace(patch.setattr, CHANGES, before, nothing)
        run(src, dst)
    return found


@pytest.mark.parametrize("run", [TENSOR, GROUPS], ids=lambda run: run.scheme)
def test_killed_and_resumed(
    run: Run, small: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, Any]
) -> None:
    """Before some of the calls that change the disk, also while a spool has a name."""
    calls = steps(run, small, fast_path / "traced" / "dst")
    named = [n for n, call in enumerate(calls, 1) if call.endswith("spool")]
    assert len(named) > 5
    left: set[str] = set()
    for n in sorted({*range(2, len(calls), 8), *named[:4], len(calls)}):
        dst = fast_path / f"{n}" / "dst"
        ended = forker.run(*run.argv(small, dst), tamper=("signal_at", n, signal.SIGKILL))
        assert ended.code == -signal.SIGKILL, ended
        assert not dst.exists() or contents(dst) == undisturbed[run.scheme]
        left |= {"spool" if ".spool." in p.name else "file" for p in temporaries(dst.parent)}
        last = forker.run(*run.argv(small, dst))
        assert last.code == 0, last
        assert contents(dst) == undisturbed[run.scheme]
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert left == {"spool", "file"}


# --- Calls that fail


def open_files() -> list[str]:
    """What this process has open, as far as it is a file of a test."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if "fp8convert" in name]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pwrite", errno.ENOSPC),  # to a spool
        ("pwrite", errno.EIO),
        ("pwritev", errno.ENOSPC),
        ("preadv", errno.EIO),  # from a spool, among others
        ("open", errno.EMFILE),
        ("open", errno.ENOSPC),
        ("posix_fallocate", errno.ENOSPC),
        ("fsync", errno.EIO),
    ],
)
def test_resources_run_out(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], name: str, code: int
) -> None:
    """For good, from some call on; three workers meet it at once. Nothing is left behind."""
    failed = 0
    for first in (1, 2, 3, 4, 5, 6, 11, 23):
        dst = fast_path / f"{first}" / "dst"
        calls, before = itertools.count(1), open_files()

        def fail(called: str, args: tuple[Any, ...], first: int = first) -> None:
            if next(calls) >= first:  # noqa: B023 (called before the next turn)
                raise OSError(code, os.strerror(code))

        error = None
        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, (name,), fail, nothing)
            try:
                in_time(lambda: GROUPS(small, dst, workers=3))  # noqa: B023
            except ResumableError as e:
                error = e
        if error:
            failed += 1
            assert error.exit_code == 75
            assert os.strerror(code) in str(error)
            assert not dst.exists()
            assert temporaries(fast_path) == []
        assert open_files() == before
        GROUPS(small, dst)
        assert contents(dst) == undisturbed[GROUPS.scheme]
    assert failed > 5


class Held:
    """Has one worker fail while another waits for it, at one of the places where that can be."""

    def __init__(self, patch: pytest.MonkeyPatch, place: str) -> None:
        self.patch, self.place = patch, place
        self.waiting, self.runs = threading.Event(), set[CodeRun]()
        self._first = threading.Lock()
        waits = "encode" if place == "measure" else "read"  # they begin with it
        self._wrap(CodeRun, waits, before=lambda run: (self.runs.add(run), self.waiting.set()))
        if place == "spool":
            self._wrap(os, "pwrite", before=self._fail)
        elif place == "codes":
            self._wrap(CodeRun, "encode", before=self._fail)
        else:
            self._wrap(CodeRun, "measure", before=self._fail)

    def _wrap(self, owner: Any, name: str, before: Callable[[Any], object]) -> None:
        real = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            before(first)
            return real(first, *args, **kwargs)

        self.patch.setattr(owner, name, call)

    def _fail(self, first: Any) -> None:
        if self._first.acquire(blocking=False):  # the first to come here, never given back
            assert self.waiting.wait(30), "nobody waits"
            raise OSError(errno.ENOSPC, "No space left on device")


def one_weight(folder: Path) -> Path:
    """64 kB of codes, and as many scales of four bytes if a block is one element."""
    return write(folder, [tensors_of({f"{MLP}.down_proj": (256, 256)})])


def held(src: Path, dst: Path, patch: pytest.MonkeyPatch, place: str) -> Callable[[], object]:
    """A run of several tiles of each kind, which will fail at ``place``."""
    patch.setattr(Settings, "tile", 8 * PAGE)
    scheme = "fp8-tensor" if place == "measure" else "fp8-block"
    options: dict[str, Any] = {} if place == "measure" else {"block": (1, 1)}
    return lambda: fp8convert.quantize(src, dst, scheme, workers=6, **options)


@pytest.mark.parametrize("place", ["spool", "codes", "measure"])
def test_nobody_waits_for_a_worker_that_has_failed(
    place: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = one_weight(fast_path / "src"), fast_path / "dst"
    with monkeypatch.context() as patch:
        work = held(src, dst, patch, place)
        made = Held(patch, place)
        with pytest.raises(ResumableError, match="No space left on device"):
            in_time(work)
        assert made.runs
    assert not dst.exists()
    assert temporaries(fast_path) == []
    with monkeypatch.context() as patch:
        held(src, dst, patch, place)()
        held(src, fast_path / "alone", patch, place)()
    assert contents(dst) == contents(fast_path / "alone")


@pytest.mark.parametrize("place", ["spool", "codes", "measure"])
def test_somebody_would_wait(place: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: unless the run is told to stop, it hangs, and the test above would say so."""
    src, real = one_weight(fast_path / "src"), CodeRun.stop
    with monkeypatch.context() as patch:
        work = held(src, fast_path / "dst", patch, place)
        made = Held(patch, place)
        patch.setattr(CodeRun, "stop", lambda run: None)
        ended = threading.Event()

        def until_released() -> None:
            with contextlib.suppress(ResumableError):
                work()
            ended.set()

        with pytest.raises(AssertionError, match="it hangs"):
            in_time(until_released, 0.5)
        for run in made.runs:
            real(run)
        assert ended.wait(30)


def test_a_spool_that_ends_too_early(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are lost are an error, not zeros or a loop."""
    src, opened = one_weight(fast_path / "src"), os.open
    spools: list[int] = []

    def noted(path: Any, *args: Any, **kwargs: Any) -> int:
        fd = opened(path, *args, **kwargs)
        spools.extend([fd] if ".spool." in str(path) else [])
        return fd

    monkeypatch.setattr(os, "open", noted)
    read = CodeRun.read

    def cut(run: CodeRun, *args: Any) -> None:
        os.ftruncate(spools[-1], 3)
        read(run, *args)

    monkeypatch.setattr(CodeRun, "read", cut)
    with pytest.raises(DataError, match="the spool of scales ended too early"):
        fp8convert.quantize(src, fast_path / "dst", "fp8-block", workers=1)


# --- The journal


def unfinished(src: Path, dst: Path) -> Path:
    """Have a run fail when all tensors are journaled; the journal it leaves."""

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "put_bytes", fail)
        with pytest.raises(ResumableError, match="No space left"):
            GROUPS(src, dst)
    return dst.with_name(f".{dst.name}.fp8convert") / "journal"


def test_errors_survive_a_resumption(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], written: list[str]
) -> None:
    """They are in the journal, so the manifest is the same, and no file is written again."""
    journal = unfinished(small, fast_path / "dst")
    records = [json.loads(path.read_text()) for path in journal.iterdir()]
    assert sum(len(r["errors"]) for r in records) == len(SHAPES) - 1  # o_proj has odd columns
    written.clear()
    GROUPS(small, fast_path / "dst", workers=3)
    assert written == []
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]


BROKEN: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("none", lambda errors: None),
    ("a list", lambda errors: list(errors)),
    ("a number", lambda errors: 0.5),
    ("two numbers", lambda errors: {name: e[:2] for name, e in errors.items()}),
    ("four numbers", lambda errors: {name: [*e, 0.0] for name, e in errors.items()}),
    ("integers", lambda errors: {name: [0, 0, 0] for name in errors}),
    ("words", lambda errors: {name: [str(n) for n in e] for name, e in errors.items()}),
    ("a null", lambda errors: {name: [None, *e[1:]] for name, e in errors.items()}),
    ("one of them", lambda errors: errors | {sorted(errors)[0]: {}}),
    ("no weight", lambda errors: {}),
    ("another weight", lambda errors: {f"{name}x": e for name, e in errors.items()}),
]


@pytest.mark.parametrize("how", [how for _, how in BROKEN], ids=[name for name, _ in BROKEN])
def test_records_with_broken_errors_are_redone(
    how: Callable[[dict[str, Any]], Any],
    small: Path,
    fast_path: Path,
    undisturbed: dict[str, Any],
    written: list[str],
) -> None:
    """And no others."""
    journal = unfinished(small, fast_path / "dst")
    written.clear()
    path = next(p for p in sorted(journal.iterdir()) if json.loads(p.read_text())["errors"])
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"errors": how(record["errors"])}))
    GROUPS(small, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]
    assert written == [record["file"]]


def test_a_record_without_errors_is_redone(
    small: Path, fast_path: Path, undisturbed: dict[str, Any], written: list[str]
) -> None:
    """As a version that did not know them would have left it."""
    journal = unfinished(small, fast_path / "dst")
    written.clear()
    for path in journal.iterdir():
        record = json.loads(path.read_text())
        del record["errors"]
        path.write_text(json.dumps(record))
    GROUPS(small, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed[GROUPS.scheme]
    assert len(written) == len(list(undisturbed[GROUPS.scheme])) - 3
