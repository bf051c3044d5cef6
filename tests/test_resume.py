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

from fp8convert import convert, engine, fileio, options, plan, taskrun
from fp8convert.convert import to_bf16
from fp8convert.errors import FormatError, Fp8ConvertError, ResumableError, TargetError
from fp8convert.fileio import SourceFile, TargetFile

from .crash import (
    CHANGES,
    Ended,
    FailAt,
    Forker,
    contents,
    marks,
    nothing,
    short_transfers,
    trace,
)
from .mini import CUT
from .privileges import bound_by_modes

PROGRAM = Path(sys.executable).with_name("fp8convert")
KILLS = 20
FILES = [f"model-{n:05}-of-000003.safetensors" for n in (1, 2, 3)]  # of mini, cut


def run(src: Path, dst: Path, **options: Any) -> convert.Manifest:
    """The library's way, with the options that most tests here share."""
    return to_bf16(src, dst, **{"max_shard_size": CUT, "workers": 1, **options})


def argv(src: Path, dst: Path, *more: object) -> list[object]:
    """The command line's way."""
    return ["to-bf16", src, dst, "--max-shard-size", CUT, "--workers", 1, *more]


def state_of(dst: Path) -> Path:
    return dst.with_name(f".{dst.name}.fp8convert")


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


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


@pytest.fixture
def copied(mini: Path, fast_path: Path) -> Path:
    """A source of one's own, to change."""
    return Path(shutil.copytree(mini, fast_path / "src"))


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


def test_killed_at_random_moments(sample: Sample, fast_path: Path, forker: Forker) -> None:
    """Three workers on a slow disk; often the resumption is killed as well, and its own."""
    rng, kills, kept, n = random.Random(2), 0, 0, 0
    slow = ("slow", 0.002)
    begun = time.monotonic()
    first = forker.run("to-bf16", sample.src, fast_path / "0", *sample.options, tamper=slow)
    whole = time.monotonic() - begun
    assert first.code == 0
    shutil.rmtree(fast_path / "0")
    while kills < KILLS:
        n += 1
        assert n < 10 * KILLS
        dst = fast_path / f"{n}"
        command = ("to-bf16", sample.src, dst, *sample.options)
        while True:
            ended = forker.run(*command, tamper=slow, kill_after=rng.uniform(0, whole))
            kills += ended.code == -signal.SIGKILL
            if ended.code == 0 or rng.random() < 0.4:
                break
            assert ended.code == -signal.SIGKILL, ended
            assert not dst.exists() or contents(dst) == sample.files
        journal = state_of(dst) / "journal"
        kept += len(list(journal.glob("*.json"))) if journal.exists() else 0
        assert forker.run(*command).code == 0
        assert contents(dst) == sample.files
        shutil.rmtree(dst)
    assert kept > 0  # some of them had something to go on with
    assert not [p for p in fast_path.iterdir() if p.name.startswith(".")]


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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    mini: Path, fast_path: Path, forker: Forker, undisturbed: dict[str, bytes], signum: int
) -> None:
    """Exit code 75 and a word on how to go on, whenever it comes."""
    codes = []
    for n in (1, 9, 13, 16, 20, 30, 45):
        dst = fast_path / f"{n}" / "dst"
        ended = forker.run(*argv(mini, dst), tamper=("signal_at", n, signum))
        codes.append(ended.code)
        if ended.code == 75:
            assert not dst.exists()
            assert "interrupted" in ended.err
            assert "Run the same command again to resume." in ended.err
            assert "Traceback" not in ended.err
            assert not temporaries(fast_path / f"{n}")
        assert forker.run(*argv(mini, dst)).code == 0
        assert contents(dst) == undisturbed
    assert set(codes) <= {0, 75}  # 0: it came while the last step was being made
    assert codes.count(75) >= 5


def test_interrupted_while_checking_what_is_there(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    unfinished(mini, fast_path / "dst")

    def stop(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "hash_file", stop)
        with pytest.raises(ResumableError, match="interrupted"):
            run(mini, fast_path / "dst")
    run(mini, fast_path / "dst")
    assert contents(fast_path / "dst") == undisturbed


# --- What a resumption refuses


def unfinished(src: Path, dst: Path, **options: Any) -> Path:
    """Have a run fail when all tensors are journaled; the state it leaves."""

    def fail(self: Any, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert.Staging, "put_bytes", fail)
        with pytest.raises(ResumableError, match="No space left"):
            run(src, dst, **options)
    state = state_of(dst)
    assert len(os.listdir(state / "journal")) == len(os.listdir(state / "out")) == 3
    return state


def refused(src: Path, dst: Path, words: str, **options: Any) -> None:
    """Refused with ``words``, nothing under ``dst``'s parent touched."""
    before = marks(dst.parent)
    with pytest.raises(TargetError) as e:
        run(src, dst, **options)
    assert e.value.exit_code == 1
    assert words in str(e.value)
    assert marks(dst.parent) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float32"}, "options.dtype: 'bfloat16' then, 'float32' now"),
        ({"max_shard_size": 9}, f"options.max_shard_size: '{CUT}' then, '9' now"),
        ({"checksum": "none"}, "options.checksum: 'sha256' then, 'none' now"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_options(
    mini: Path, fast_path: Path, options: dict[str, Any], words: str, finished: bool
) -> None:
    unfinished(mini, fast_path / "dst")
    if finished:
        run(mini, fast_path / "dst")
    refused(mini, fast_path / "dst", words, **options)


@pytest.mark.parametrize("finished", [False, True])
def test_another_version(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    unfinished(mini, fast_path / "dst")
    if finished:
        run(mini, fast_path / "dst")
    words = f"fp8convert: '{plan.VERSION}' then, '99.0' now"
    monkeypatch.setattr(plan, "VERSION", "99.0")
    refused(mini, fast_path / "dst", words)


def test_source_of_another_time(copied: Path, fast_path: Path) -> None:
    unfinished(copied, fast_path / "out" / "dst")
    shard = copied / "model-00002-of-00002.safetensors"
    state = shard.stat()
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    words = f"{shard.name}.mtime_ns: '{state.st_mtime_ns}' then, '{state.st_mtime_ns + 1}' now"
    refused(copied, fast_path / "out" / "dst", words)


def test_source_with_another_header(copied: Path, fast_path: Path) -> None:
    """Same size, same time, other header: named, and which shard it is."""
    unfinished(copied, fast_path / "out" / "dst")
    shard = copied / "model-00002-of-00002.safetensors"
    state = shard.stat()
    data = shard.read_bytes()
    assert data.count(b'"format":"pt"') == 1
    shard.write_bytes(data.replace(b'"format":"pt"', b'"format":"tp"'))
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    refused(copied, fast_path / "out" / "dst", f"source.{shard.name}.header_sha256: '")


def test_other_config(copied: Path, fast_path: Path) -> None:
    unfinished(copied, fast_path / "out" / "dst")
    config = json.loads((copied / "config.json").read_bytes())
    (copied / "config.json").write_text(json.dumps({**config, "vocab_size": 3}))
    refused(copied, fast_path / "out" / "dst", "texts.config.json: '")


def test_settings_may_differ(mini: Path, fast_path: Path, undisturbed: dict[str, bytes]) -> None:
    """Threads, memory and I/O decide no byte, so a resumption is free to change them."""
    unfinished(mini, fast_path / "dst", workers=1, io="buffered")
    run(mini, fast_path / "dst", workers=3, memory=300 << 20, io="auto")
    assert contents(fast_path / "dst") == undisturbed


# --- What any run refuses


def test_finished_target(mini: Path, fast_path: Path, undisturbed: dict[str, bytes]) -> None:
    assert not run(mini, fast_path / "dst").already_done
    before = marks(fast_path)
    manifest = run(mini, fast_path / "dst", workers=2)
    assert manifest.already_done
    assert manifest.data == json.loads(undisturbed["manifest.json"])
    assert marks(fast_path) == before


def test_foreign_folder(mini: Path, fast_path: Path, forker: Forker) -> None:
    (fast_path / "dst").mkdir()
    (fast_path / "dst" / "mine").write_text("mine")
    refused(mini, fast_path / "dst", "exists and is not empty")
    ended = forker.run(*argv(mini, fast_path / "dst"))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: ")
    assert os.listdir(fast_path) == ["dst"]


def test_target_is_a_file(mini: Path, fast_path: Path) -> None:
    (fast_path / "dst").write_text("mine")
    refused(mini, fast_path / "dst", "is not a folder")


@pytest.mark.parametrize("place", [".", "sub", "sub/sub", "..", "../link"])
def test_target_and_source_overlap(copied: Path, fast_path: Path, place: str) -> None:
    (fast_path / "link").symlink_to(copied)
    before = marks(fast_path)
    with pytest.raises(TargetError, match="must not contain each other"):
        run(copied, copied / place)
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


# --- What happened to finished files between two runs


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [None, truncate, grow, flip, empty, Path.unlink])
def test_damaged_files_are_redone(
    mini: Path,
    fast_path: Path,
    undisturbed: dict[str, bytes],
    written: list[str],
    damage: Callable[[Path], None] | None,
) -> None:
    """And only those."""
    state = unfinished(mini, fast_path / "dst")
    assert written == FILES
    written.clear()
    if damage:
        damage(state / "out" / FILES[1])
    run(mini, fast_path / "dst")
    assert written == ([FILES[1]] if damage else [])
    assert contents(fast_path / "dst") == undisturbed


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
def test_damaged_records_are_redone(
    mini: Path,
    fast_path: Path,
    undisturbed: dict[str, bytes],
    written: list[str],
    damage: Callable[[Path], None],
) -> None:
    state = unfinished(mini, fast_path / "dst")
    written.clear()
    for file in FILES[:2]:
        damage(state / "journal" / f"{file}.json")
    run(mini, fast_path / "dst")
    assert set(written) <= set(FILES[:2])
    assert written or damage is truncate  # of the line's end only: still the whole record
    assert contents(fast_path / "dst") == undisturbed


def test_the_record_of_another_task(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes], written: list[str]
) -> None:
    state = unfinished(mini, fast_path / "dst")
    written.clear()
    shutil.copy(state / "journal" / f"{FILES[0]}.json", state / "journal" / f"{FILES[1]}.json")
    run(mini, fast_path / "dst")
    assert written == [FILES[1]]
    assert contents(fast_path / "dst") == undisturbed


def test_without_checksums_sizes_are_checked(
    mini: Path, fast_path: Path, written: list[str]
) -> None:
    state = unfinished(mini, fast_path / "dst", checksum="none")
    written.clear()
    truncate(state / "out" / FILES[2])
    (state / "out" / FILES[0]).unlink()
    manifest = run(mini, fast_path / "dst", checksum="none")
    assert written == [FILES[0], FILES[2]]
    run(mini, fast_path / "alone", checksum="none")
    assert contents(fast_path / "dst") == contents(fast_path / "alone")
    assert manifest.files[0]["sha256"] is None


def test_overflows_survive_a_resumption(mini: Path, fast_path: Path) -> None:
    """What decoding met is in the journal, so the manifest is the same."""
    run(mini, fast_path / "alone", dtype="float16")
    unfinished(mini, fast_path / "dst", dtype="float16")
    run(mini, fast_path / "dst", dtype="float16")
    assert contents(fast_path / "dst") == contents(fast_path / "alone")


# --- A source that changes


@pytest.mark.parametrize("how", ["touched", "written", "grown", "truncated", "replaced", "gone"])
def test_source_changed_mid_run(
    copied: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    shard = copied / "model-00002-of-00002.safetensors"
    real, reads = SourceFile.read, 0

    def change() -> None:
        state = shard.stat()
        if how == "written":
            with shard.open("r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(b"x")
        elif how == "grown":
            grow(shard)
        elif how == "truncated":
            os.truncate(shard, 5000)
        elif how == "replaced":
            data = shard.read_bytes()
            shard.unlink()
            shard.write_bytes(data)
        elif how == "gone":
            return shard.unlink()
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))

    def read(self: SourceFile, *args: Any) -> None:
        nonlocal reads
        reads += 1
        if reads == 1:
            change()
        real(self, *args)

    monkeypatch.setattr(SourceFile, "read", read)
    with pytest.raises(FormatError, match=shard.name) as e:
        run(copied, fast_path / "dst")
    assert reads
    assert e.value.exit_code == 1
    assert not (fast_path / "dst").exists()
    assert not temporaries(fast_path)


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
