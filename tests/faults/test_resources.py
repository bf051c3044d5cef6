"""Resources: the controls of their campaigns (a tool that is broken loses), and what is a table."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ..sharded.deepseek import deepseek
from ..sharded.forms import blocks, fp8_config
from . import cgroup, errors, memory, mounts, shim, shrinking, space, transfers
from .lab import SIZES, Lab, share
from .tally import Tally

needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
needs_cgroup = pytest.mark.skipif(bool(cgroup.missing()), reason=cgroup.missing())
needs_mounts = pytest.mark.skipif(bool(mounts.missing()), reason=mounts.missing())


# --- Broken tools: tamperings of a child, named "test_resources:...".


def sync_again() -> None:
    """After a failed fsync the same file is fsynced again, which says nothing of its bytes."""
    from fp8convert import durable as files
    from fp8convert import fileio

    durable = fileio.sync

    def twice(fd: int) -> None:
        try:
            durable(fd)
        except OSError:
            durable(fd)

    for module in (fileio, files):
        vars(module)["sync"] = twice


def swallow() -> None:
    """An error of a write is not looked at."""
    real = os.pwritev

    def written(fd: int, views: list[memoryview], offset: int) -> int:
        try:
            return real(fd, views, offset)
        except OSError:
            return sum(map(len, views))

    vars(os)["pwritev"] = written


def ignore_short() -> None:
    """What a write says it has written is not looked at."""
    real = os.pwritev

    def written(fd: int, views: list[memoryview], offset: int) -> int:
        real(fd, views, offset)
        return sum(map(len, views))

    vars(os)["pwritev"] = written


def write_in_place() -> None:
    """The target is written where it will be, so that an error leaves a part of it."""
    from fp8convert.publish import Staging

    def out(self: Staging) -> Path:
        self.target.mkdir(exist_ok=True)
        return self.target

    setattr(Staging, "out", property(out))  # noqa: B010 (a property is not to be assigned to)


def take_zeros() -> None:
    """What is read behind the end of a file is zeros, as of a mapping's last page."""
    from fp8convert.fileio import SourceFile

    real = os.preadv

    def read(fd: int, views: list[memoryview], offset: int) -> int:
        if n := real(fd, views, offset):
            return n
        for view in views:
            view[:] = bytes(len(view))
        return sum(map(len, views))

    vars(os)["preadv"] = read
    setattr(SourceFile, "check_unchanged", lambda self: None)  # noqa: B010 (a method is not to be)


def _errors(made: Lab, kinds: tuple[str, ...], broken: str) -> Tally:
    """Some faults of these kinds in one work, with a broken tool."""
    tally = Tally()
    cases = errors.cases(made, 0, [made.by_name["shard-deepseek"]])
    some = [c for c in cases if (c.side, c.action) == ("target", "fail") and c.call.kind in kinds]
    for case in some[:5]:
        errors.one(made, case, tally, [[f"test_resources:{broken}"]])
    return tally


@needs_shim
@pytest.mark.parametrize(("broken", "kinds"), [("sync_again", ("fsync",)), ("swallow", ("write",))])
def test_a_tool_that_ignores_errors_loses(broken: str, kinds: tuple[str, ...], made: Lab) -> None:
    """Undisturbed it does nothing wrong, so it is the faults that find out."""
    work, target = made.by_name["shard-deepseek"], made.new()
    assert made.run(work, target, tamper=(f"test_resources:{broken}",)).code == 0
    assert work.ended_right(target)
    assert _errors(made, kinds, broken).losses


@needs_shim
def test_a_tool_that_ignores_short_writes_loses(made: Lab) -> None:
    work = made.by_name["to-bf16"]
    whole = made.new()
    assert made.run(work, whole, tamper=("test_resources:ignore_short",)).code == 0
    assert work.ended_right(whole)
    fault = transfers.Fault("short", 1, 1)
    target = made.new()
    tamper = ("several", ["test_resources:ignore_short"], list(fault.tamper(made.root)))
    ended = made.run(work, target, "--quiet", "--checksum", "none", tamper=tamper)
    assert ended.code == 0, ended
    assert not work.ended_right(target)


@needs_mounts
def test_a_tool_that_writes_in_place_loses(made: Lab) -> None:
    """Out of quota: a part of the target stands under its final name."""
    work, target = made.by_name["to-bf16"], made.new()
    from .disk import private_mounts

    with private_mounts():
        arm = ("arm", str(target.parent), ["write"], "fail-on", 12, errno.EDQUOT)
        ended = space.attempt(made, work, target, ("test_resources:write_in_place",), arm)
        assert ended.code == 75, ended
        assert space.unfinished(target)
        assert not work.ended_right(target)


@needs_shim
def test_a_tool_that_takes_zeros_loses(made: Lab) -> None:
    """One that reads a file through a mapping, say, whose last page is zeros behind the end."""
    work, target = made.by_name["shard-hf"], made.new()
    source = shrinking.copied(made, work.source)
    begun: list[shrinking.Cut] = []
    arm = ["arm", str(source), ["read"], "stop"]
    argv = work.argv(target, "--quiet", "--workers", 1, source=source)
    made.forker.start(*argv, tamper=("several", ["test_resources:take_zeros"], arm))
    n = 0
    while not (ended := made.forker.wait()):
        n += 1
        if n == 30:  # planned, and some tiles done
            begun.append(shrinking.cut(source, share(0, "zeros")))
        made.forker.go()
    assert begun
    assert ended.code == 0, ended
    assert not work.ended_right(target)


# --- Commands that only read


@needs_shim
@pytest.mark.parametrize("action", ["fail", "fail-on"])
def test_inspect_survives_no_error_of_a_read(action: str, made: Lab) -> None:
    """Every call on the source fails; a message with the file's name, or nothing was lost."""
    log = made.root / f"inspect-{action}"
    kinds = list(shim.KINDS)
    made.forker.run(
        "inspect", made.fp8, tamper=("arm", str(made.fp8), kinds, "count", 1, 0, 0, str(log))
    )
    found = errors.calls(log)
    assert {c.kind for c in found} == {"open", "read", "close"}
    for step, call in enumerate(found, 1):
        arm = ("arm", str(made.fp8), kinds, action, step, errno.EIO)
        ended = made.forker.run("inspect", made.fp8, tamper=arm)
        failed = found[step - 1 :] if action == "fail-on" else [call]
        if all(c.kind == "close" for c in failed):
            assert ended.code == 0, (call, ended)
            continue
        names = [c.name for c in failed]
        assert ended.code == 75, (call, ended)
        assert any(name in ended.err for name in names), (call, ended)
        assert "Traceback" not in ended.err


@needs_shim
@pytest.mark.parametrize("step", [5, 30, 40, 50, 60])
def test_verify_reports_what_cannot_be_read(step: int, made: Lab) -> None:
    """An error of an open or a read of the output, by us or by a library that maps it."""
    output = made.root / "expected-to-bf16"
    arm = ("arm", str(output), ["open", "read"], "fail-on", step, errno.EIO)
    ended = made.forker.run("verify", output, "--workers", 1, tamper=arm)
    assert ended.code in (1, 3), ended
    assert ".safetensors" in ended.out + ended.err or ".json" in ended.out + ended.err
    assert "Traceback" not in ended.err


# --- Memory


HOARD = """
import os
from fp8convert.fileio import SourceFile
hoard, real = [], SourceFile.__init__
def opened(self, fd, *args):
    real(self, fd, *args)
    hoard.append(os.pread(fd, os.fstat(fd).st_size, 0))
SourceFile.__init__ = opened
"""


@needs_cgroup
def test_a_tool_that_reads_whole_files_is_killed(made: Lab) -> None:
    """The limit of the campaign is one that such a tool cannot keep."""
    with memory.jobs(made) as found:
        job = next(j for j in found if j.name == "quantize")
        more = ("--memory", "300MiB", "--workers", "1")
        wrong, right = memory.one(made, job, more, memory.LIBRARIES, HOARD * 2)
        assert "killed" in wrong
        assert not right
        assert memory.one(made, job, more, memory.LIBRARIES) == ("", True)


SHAPES = {
    "small": {"hidden_size": 256, "intermediate_size": 1024},
    "large weights": {"hidden_size": 1024, "intermediate_size": 8192},
    "many weights": {"hidden_size": 256, "intermediate_size": 1024, "n_routed_experts": 160},
}
GROWTH = 24 << 20  # of the peak, where weights are 32 times as large, or 10 times as many


@needs_cgroup
def test_peak_memory_is_flat(made: Lab, tmp_path: Path) -> None:
    """Over the size of weights and their number: some buffers fill up, and that is all."""
    peaks = {}
    for name, sizes in SHAPES.items():
        config = fp8_config(128, fmt="e4m3")
        source = deepseek(name, blocks(128), config, **{**SIZES, **sizes}).write(tmp_path / name)
        argv = ["to-bf16", str(source), str(tmp_path / f"{name} out"), "--workers", "1"]
        ended = memory.limited([*argv, "--memory", "300MiB"], 1 << 30)
        assert ended.code == 0, ended
        peaks[name] = ended.peak
    assert max(peaks.values()) - min(peaks.values()) < GROWTH, peaks


# --- A mapped file that is cut short: verify


CUT = """
import os
from fp8convert.verify.tensors import Opened
real = Opened.rows
def rows(self, name, begin, end):
    found = real(self, name, begin, end)
    os.truncate(self._survey.folder.root / self._owner[name], 0)
    return found
Opened.rows = rows
"""
UNWATCHED = """
import contextlib
from fp8convert.verify import mapped
mapped.watched = lambda watch: contextlib.nullcontext()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals of mappings are Linux's here")
@pytest.mark.parametrize(("more", "code"), [("", 1), (UNWATCHED, -signal.SIGBUS)])
def test_verify_of_a_file_cut_short_under_its_mapping(more: str, code: int, made: Lab) -> None:
    """An error that names the file; without the handler it is the signal that is the end."""
    output = shrinking.copied(made, made.root / "expected-to-bf16")
    script = f"{CUT}{more}\nfrom fp8convert.cli.main import main\nmain()"
    words = [sys.executable, "-c", script, "verify", str(output), "--workers", "1", "--quiet"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == code, ended
    if not more:
        assert "model-00001-of-000007.safetensors' changed while being read" in ended.stderr
        assert "now 0 bytes" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="signals of mappings are Linux's here")
def test_verify_of_a_file_cut_short_when_nobody_listens(made: Lab) -> None:
    """A closed stderr is no reason to go on, to the same page, without end."""
    output = shrinking.copied(made, made.root / "expected-to-bf16")
    script = f"{CUT}\nfrom fp8convert.cli.main import main\nmain()"
    words = [sys.executable, "-c", script, "verify", str(output), "--workers", "1", "--quiet"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        assert subprocess.run(words, stderr=closed, timeout=60).returncode == 1


# --- Modes


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("command", [0, 1, 2, 3, 4, 5, 6])
def test_files_get_the_modes_of_the_umask(mask: int, command: int, made: Lab) -> None:
    """Every file and folder of every command's output."""
    work, target = made.works[command], made.new()
    ended = made.run(work, target, "--quiet", tamper=("umask", mask))
    assert ended.code == 0, ended
    found = [target, *target.rglob("*")]
    assert len(found) == len(work.expected) + len([p for p in found if p.is_dir()])
    for path in found:
        mode = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~mask, path


# --- Refused up front


@needs_mounts
def test_not_enough_disk_is_refused_before_anything_is_made(made: Lab) -> None:
    """By every command; with the bytes needed and those that are free."""
    rng = share(0, "refused")
    from .disk import private_mounts

    with private_mounts():
        for work in made.works:
            found = space.refused(made, work, rng)
            assert found.ended.code == 75
            assert list(space.wrongs(found)) == []
            assert found.right
