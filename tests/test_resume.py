"""Whatever ends a run, the same command again ends it right: byte for byte as if undisturbed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fp8convert import convert, engine, fileio, options, plan, staged, taskrun
from fp8convert.convert import to_bf16
from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError
from fp8convert.fileio import TargetFile
from fp8convert.publish import Staging

from .crash import (
    CHANGES,
    Ended,
    FailAt,
    Forker,
    contents,
    marks,
    nothing,
    short_transfers,
    state_of,
    temporaries,
    trace,
)
from .mini import CUT
from .privileges import bound_by_modes

PROGRAM = Path(sys.executable).with_name("fp8convert")
FILES = [f"model-{n:05}-of-000003.safetensors" for n in (1, 2, 3)]  # of mini, cut


def run(src: Path, dst: Path, **options: Any) -> convert.Manifest:
    """The library's way, with the options that most tests here share."""
    return to_bf16(src, dst, **{"max_shard_size": CUT, "workers": 1, **options})


def argv(src: Path, dst: Path, *more: object) -> list[object]:
    """The command line's way."""
    return ["to-bf16", src, dst, "--max-shard-size", CUT, "--workers", 1, *more]


@pytest.fixture(scope="module")
def undisturbed(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What every run of mini must end with."""
    dst = tmp_path_factory.mktemp("undisturbed") / "dst"
    manifest = run(mini, dst)
    files = contents(dst)
    assert [t for t in files if t.endswith(".safetensors")] == FILES
    assert [f["name"] for f in manifest.files][-1] == "model.safetensors.index.json"
    return files


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


# --- Killed


def test_killed_at_every_step(
    mini: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, bytes]
) -> None:
    """Before each call that changes the disk; some resumptions are killed too, at a random one."""
    rng, n = random.Random(1), 0
    while True:
        n += 1
        dst = fast_path / f"{n}" / "dst"
        ended = forker.run(*argv(mini, dst), tamper=("signal_at", n, signal.SIGKILL))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
        assert not dst.exists() or contents(dst) == undisturbed
        if n % 3 == 0:
            again = ("signal_at", rng.randint(1, 70), signal.SIGKILL)
            twice = forker.run(*argv(mini, dst), tamper=again)
            assert twice.code in (0, -signal.SIGKILL), twice
        last = forker.run(*argv(mini, dst))
        assert last.code == 0, last
        assert contents(dst) == undisturbed
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert n > 70  # it really was killed at that many steps


class Sample(NamedTuple):
    """The tiny sample, and what it becomes in 30 files."""

    src: Path
    files: dict[str, bytes]
    options: tuple[object, ...]


@pytest.fixture(scope="module")
def sample(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    options = ("--max-shard-size", "1MB", "--workers", 3, "--memory", "240MiB")
    dst = tmp_path_factory.mktemp("tiny") / "dst"
    to_bf16(tiny_fp8, dst, max_shard_size=1_000_000)
    files = contents(dst)
    assert len(files) > 30
    return Sample(tiny_fp8, files, options)


def test_console_script_resumes(sample: Sample, fast_path: Path, forker: Forker) -> None:
    """The installed command: goes on after a kill, says when there is nothing to do, refuses."""
    dst = fast_path / "dst"
    killed = forker.run(
        "to-bf16", sample.src, dst, *sample.options, tamper=("signal_at", 200, signal.SIGKILL)
    )
    assert killed.code == -signal.SIGKILL
    assert list((state_of(dst) / "journal").glob("*.json"))

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        words = [PROGRAM, "to-bf16", sample.src, dst, *sample.options, *more]
        return subprocess.run([str(w) for w in words], capture_output=True, text=True)

    other = command("--dtype", "float16")
    assert (other.returncode, other.stdout) == (1, "")
    assert "options.dtype: 'bfloat16' then, 'float16' now" in other.stderr
    done = command()
    assert done.returncode == 0, done.stderr
    assert contents(dst) == sample.files
    before = marks(dst)
    again = command()
    assert again.returncode == 0
    assert again.stdout == f"already done: {dst} is finished, by this very plan\n"
    refused = command("--dtype", "float16")
    assert refused.returncode == 1
    assert "exists and is not empty: it was made by another plan" in refused.stderr
    assert marks(dst) == before


def test_interrupted_while_checking_what_is_there(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    unfinished(mini, fast_path / "dst")

    def stop(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staged, "hash_file", stop)
        with pytest.raises(ResumableError, match="interrupted"):
            run(mini, fast_path / "dst")
    run(mini, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed


# --- Unfinished and finished


def unfinished(src: Path, dst: Path, **options: Any) -> Path:
    """Have a run fail when all tensors are journaled; the state it leaves."""

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "put_bytes", fail)
        with pytest.raises(ResumableError, match="No space left"):
            run(src, dst, **options)
    state = state_of(dst)
    assert len(os.listdir(state / "journal")) == len(os.listdir(state / "out")) == 3
    return state


def test_finished_target(mini: Path, fast_path: Path, undisturbed: dict[str, bytes]) -> None:
    assert not run(mini, fast_path / "dst").already_done
    before = marks(fast_path)
    manifest = run(mini, fast_path / "dst", workers=2)
    assert manifest.already_done
    assert manifest.data == json.loads(undisturbed["manifest.json"])
    assert marks(fast_path) == before


def test_two_runs_at_once(
    mini: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, bytes]
) -> None:
    """The second is refused and changes nothing, the first ends right."""
    dst, gate = fast_path / "dst", fast_path / "gate"
    gate.touch()
    forker.start(*argv(mini, dst), tamper=("hold", str(gate)))
    deadline = time.monotonic() + 60
    while not Path(f"{gate}.held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    before = marks(state_of(dst))
    with pytest.raises(TargetError, match="another run is writing"):
        run(mini, dst)
    assert marks(state_of(dst)) == before
    gate.unlink()
    assert forker.end().code == 0
    assert contents(dst) == undisturbed


def test_overflows_survive_a_resumption(mini: Path, fast_path: Path) -> None:
    """What decoding met is in the journal, so the manifest is the same."""
    run(mini, fast_path / "alone", dtype="float16")
    unfinished(mini, fast_path / "dst", dtype="float16")
    run(mini, fast_path / "dst", dtype="float16")
    assert contents(fast_path / "dst") == contents(fast_path / "alone")


# --- Disks that fail


@pytest.mark.parametrize("late", [False, True])
def test_every_call_fails_once(
    mini: Path,
    fast_path: Path,
    undisturbed: dict[str, bytes],
    late: bool,
) -> None:
    """EIO from each call that changes the disk, or right after it was done all the same."""
    failed: dict[str, int] = {}
    n = 0
    while True:
        n += 1
        dst = fast_path / f"{n}" / "dst"
        fail = FailAt(n)
        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, CHANGES, *((nothing, fail) if late else (fail, nothing)))
            error = attempt(mini, dst)
        if error:
            assert fail.failed, error
            assert "Input/output error" in str(error)
            assert not dst.exists() or contents(dst) == undisturbed
            # A name that a failed call has made none the less is for the next run to sweep.
            assert fail.failed == "open" or not temporaries(dst.parent)
        else:
            assert fail.failed in ("", "unlink", "rmdir") or (late and fail.failed == "mkdir")
            assert contents(dst) == undisturbed
        if not fail.failed:
            break
        failed[fail.failed] = failed.get(fail.failed, 0) + 1
        run(mini, dst)
        assert contents(dst) == undisturbed
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert set(failed) == set(CHANGES)
    assert failed["fsync"] > 20
    assert failed["replace"] > 10


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("preadv", errno.EIO),
        ("pwritev", errno.ENOSPC),
        ("pwritev", errno.EDQUOT),
        ("pwritev", errno.EFBIG),
        ("posix_fallocate", errno.ENOSPC),
        ("ftruncate", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("mkdir", errno.EROFS),
        ("mkdir", errno.EACCES),
        ("open", errno.EMFILE),
        ("close", errno.EIO),
    ],
)
def test_resources_run_out(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], name: str, code: int
) -> None:
    """For good, from the first call or a later one on; several workers meet it at once."""
    for n in (1, 2, 7):
        dst = fast_path / f"{n}" / "dst"
        calls = 0

        def fail(called: str, args: tuple[Any, ...], first: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls >= first:
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            before, after = (nothing, fail) if name == "close" else (fail, nothing)
            trace(patch.setattr, (name,), before, after)
            if name == "close":  # it is everywhere: only that of a target counts
                patch.undo()
                patch.setattr(TargetFile, "close", closing(fail))
            error = attempt(mini, dst, workers=3)
        if error:
            assert calls >= n
            assert error.exit_code == 75
            assert os.strerror(code) in str(error)
            assert not dst.exists()
            assert not temporaries(fast_path)
        else:
            assert calls < n
        run(mini, dst)
        assert contents(dst) == undisturbed
    assert (fast_path / "1").exists()


def closing(fail: Callable[[str, tuple[Any, ...]], None]) -> Callable[[TargetFile], None]:
    real = TargetFile.close

    def close(self: TargetFile) -> None:
        was_open = self.fd >= 0
        real(self)
        if was_open:
            fail("close", ())

    return close


def attempt(src: Path, dst: Path, **options: Any) -> ResumableError | None:
    """The error a run ended with, if it did."""
    try:
        run(src, dst, **options)
    except ResumableError as e:
        return e
    return None


def test_the_message_names_the_file(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace(monkeypatch.setattr, ("preadv",), FailAt(1), nothing)
    with pytest.raises(ResumableError, match=r"Input/output error \('model-0000\d-of-00002"):
        run(mini, fast_path / "dst")


def test_memory_runs_out(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    def fail(nbytes: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "aligned_buffer", fail)
        with pytest.raises(ResumableError, match="out of memory"):
            run(mini, fast_path / "dst", workers=3)
    run(mini, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed


def test_threads_run_out(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    """The threads that did start are stopped, not left to do the whole work first."""
    real, started = engine.threading.Thread.start, 0

    def start(self: Any) -> None:
        nonlocal started
        if self.name.startswith("fp8convert_"):
            started += 1
            if started == 2:
                raise RuntimeError("can't start new thread")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(engine.threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            run(mini, fast_path / "dst", workers=3)
    assert not (fast_path / "dst").exists()
    assert not temporaries(fast_path)
    run(mini, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed


def test_interrupted_while_starting_a_thread(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, but whoever started it was told otherwise: its file is still waited for."""
    real_start, real_init = engine.threading.Thread.start, taskrun.TaskRun.__init__
    begun: list[Any] = []

    def start(self: Any) -> None:
        real_start(self)
        if self.name.startswith("fp8convert_"):
            while not begun:
                time.sleep(0.001)
            raise KeyboardInterrupt

    def init(self: Any, *args: Any) -> None:
        begun.append(self)
        time.sleep(0.1)
        real_init(self, *args)

    monkeypatch.setattr(engine.threading.Thread, "start", start)
    monkeypatch.setattr(taskrun.TaskRun, "__init__", init)
    with pytest.raises(ResumableError, match="interrupted"):
        run(mini, fast_path / "dst")
    seen = marks(fast_path)
    time.sleep(0.2)
    assert marks(fast_path) == seen
    assert len(begun) == 1
    assert not temporaries(fast_path)


@pytest.mark.parametrize("io", ["direct", "auto", "buffered"])
def test_short_reads_and_writes(
    sample: Sample, fast_path: Path, monkeypatch: pytest.MonkeyPatch, io: str
) -> None:
    moved = short_transfers(monkeypatch.setattr, seed=3)
    try:
        to_bf16(sample.src, fast_path / "dst", max_shard_size=1_000_000, io=io)
    except Fp8ConvertError as e:
        if "direct I/O is refused" not in str(e):
            raise
        pytest.skip("no direct I/O here")
    monkeypatch.undo()
    assert contents(fast_path / "dst") == sample.files
    assert len(moved) > 300


def test_interrupted_system_calls(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """A signal with a handler that returns: EINTR is nobody's error."""
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda signum, frame: caught.append(signum))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        run(mini, fast_path / "dst", workers=3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught
    assert contents(fast_path / "dst") == undisturbed


def test_not_enough_disk(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    """Said at once, with both numbers, and nothing is made; what is there already counts."""
    usage = shutil.disk_usage(fast_path)
    needed = convert.prepare(
        mini, fast_path / "dst", options.ToBf16(max_shard_size=CUT)
    ).plan.bytes_out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    words = f"{needed:,} bytes needed, {needed - 1:,} free"
    with pytest.raises(ResumableError, match=words):
        run(mini, fast_path / "dst")
    with pytest.raises(ResumableError, match=words):
        run(mini, fast_path / "new" / "folder" / "dst")
    assert not list(fast_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    unfinished(mini, fast_path / "dst")
    small = sum(len(d) for n, d in undisturbed.items() if n not in (*FILES, "manifest.json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=small - 1))
    with pytest.raises(ResumableError, match=f"{small:,} bytes needed, {small - 1:,} free"):
        run(mini, fast_path / "dst")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=small))
    run(mini, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed


def test_parent_is_read_only(mini: Path, fast_path: Path) -> None:
    parent = fast_path / "parent"
    parent.mkdir(mode=0o555)
    with bound_by_modes(), pytest.raises(ResumableError, match="Permission denied"):
        run(mini, parent / "dst")
    assert not list(parent.iterdir())


def test_direct_demanded_and_refused(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that names the way out, not a quiet fallback."""
    monkeypatch.setattr(fileio, "O_DIRECT", 0)
    with pytest.raises(Fp8ConvertError, match="use --io auto") as e:
        run(mini, fast_path / "dst", io="direct")
    assert e.value.exit_code == 1
    assert not (fast_path / "dst").exists()
    assert not temporaries(fast_path)
    run(mini, fast_path / "dst", io="auto")


def test_a_failing_callback_stops_everyone(sample: Sample, fast_path: Path) -> None:
    """An error of the caller's own comes through, no thread is left waiting."""

    def progress(now: Any) -> None:
        if now.written > 5_000_000:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        to_bf16(sample.src, fast_path / "dst", workers=4, progress=progress, memory=240 << 20)
    assert not (fast_path / "dst").exists()
    assert not temporaries(fast_path)


def test_ended_is_what_it_says(forker: Forker) -> None:
    """The helper reports exit codes and signals faithfully, or the tests above prove nothing."""
    assert forker.run("--version") == Ended(0, f"fp8convert, version {plan.VERSION}\n", "")
    assert forker.run("no-such-command").code == 2
