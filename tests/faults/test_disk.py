"""Disks that lose power: what is seen on one, what one keeps, and that none stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import cachedisk, disk, shim, stepping
from .aftermath import LOST_AND_FOUND, Case, Cut, broken_promises, examined
from .damages import cut, last_bit
from .lab import Lab, state_of

needs_disk = pytest.mark.skipif(bool(disk.missing()), reason=disk.missing())
needs_cache = pytest.mark.skipif(bool(cachedisk.missing()), reason=cachedisk.missing())
needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())


SPOILED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a flipped bit": ("out/model-00001-of-*", last_bit, "out: model-00001-of"),
    "a file cut off": ("out/model-00002-of-*", cut, "out: model-00002-of"),
    "a journaled file gone": ("out/model-00001-of-*", Path.unlink, "is not there"),
    "half a record": ("journal/*", cut, "journal/model"),
    "an empty record": ("journal/*", lambda p: os.truncate(p, 0), "journal/model"),
    "another sum": (
        "journal/*",
        lambda p: p.write_text(p.read_text().replace('"sha256": "', '"sha256": "0')) and None,
        "is not what it says",
    ),
    "half a job": ("job.json", cut, "job.json"),
}


@needs_shim
@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_spoiled_is_seen(made: Lab, spoiled: str) -> None:
    pattern, spoil, expected = SPOILED[spoiled]
    work, target = made.by_name["to-bf16"], made.new()
    arm = ("arm", str(target.parent), ["rename"], "kill-before", 8)
    assert made.run(work, target, tamper=arm).code == -signal.SIGKILL
    assert broken_promises(work, target) == []
    spoil(sorted(state_of(target).glob(pattern))[0])
    assert any(expected in note for note in broken_promises(work, target))


@needs_shim
@needs_disk
def test_work_that_is_done_twice_is_seen(made: Lab) -> None:
    """What the journal vouches for is kept; without the job it is not."""
    case, arm = Case("to-bf16"), ["rename"]
    with stepping.place(made) as folder:
        image = disk.new_image(folder / "image")
        for spoil in (False, True):
            with disk.mounted(image, folder / "mounted") as root:
                tamper = ("several", ("enter", os.getpid()))
                tamper += (("arm", str(root), arm, "kill-before", 8),)
                killed = made.run(made.by_name["to-bf16"], case.target(root), tamper=tamper)
                assert killed.code == -signal.SIGKILL
                if spoil:
                    (state_of(case.target(root)) / "job.json").unlink()
            after = examined(made, case, Cut(image, "", False))[1]
            assert ["were not kept" in note for note in after] == [True] * spoil
            with disk.mounted(image, folder / "mounted") as root:
                shutil.rmtree(case.target(root))


def test_half_a_target_is_seen(made: Lab) -> None:
    work, target = made.by_name["to-bf16"], made.new()
    assert broken_promises(work, target) == []
    target.mkdir()
    assert broken_promises(work, target) == []  # an empty folder that was there
    assert made.run(work, target).code == 0
    assert broken_promises(work, target) == []
    (target / "config.json").unlink()
    assert "config.json (0 of" in broken_promises(work, target)[0]


@needs_disk
def test_what_is_left_over_is_seen(made: Lab) -> None:
    """Also what the run that went on should have removed, and a filesystem that is damaged."""
    case = Case("to-bf16")
    with stepping.place(made) as folder:
        image = disk.new_image(folder / "image")
        with disk.mounted(image, folder / "mounted") as root:
            (root / "stray").touch()
        assert "stray" in examined(made, case, Cut(image, "", False))[1][0]
        assert examined(made, case, Cut(image, "", True))[0] == []  # its target is there now
        disk.run("debugfs", "-w", "-R", "clri dst", image)
        assert disk.broken(image)


@needs_disk
@pytest.mark.parametrize("synced", [True, False])
def test_a_disk_keeps_what_was_synced(made: Lab, synced: bool) -> None:
    with stepping.place(made) as folder:
        image, copy = disk.new_image(folder / "image"), folder / "copy"
        with disk.mounted(image, folder / "mounted", disk.STRICT) as root:
            written(root / "file", synced)
            disk.copy_sparse(image, copy)
        with disk.mounted(copy, folder / "mounted") as root:
            assert (root / "file").exists() == synced


def written(path: Path, synced: bool) -> None:
    with open(path, "wb") as f:
        f.write(bytes(10_000))
        f.flush()
        if synced:
            os.fsync(f.fileno())


@needs_cache
@pytest.mark.parametrize(("how", "kept"), [("none", {"a", "b"}), ("all", {"a"})])
def test_a_cache_keeps_what_was_flushed(made: Lab, how: str, kept: set[str]) -> None:
    """The last flush is that of file b: with all before it lost, only a is there."""
    log: cachedisk.Log = []
    with stepping.place(made) as folder:
        image = disk.new_image(folder / "image")
        with cachedisk.caching(image, log) as file, disk.mounted(file, folder / "m") as root:
            written(root / "a", True)
            first = len(log)
            written(root / "b", True)
            end = len(log)
        between = [n for n in range(first, end) if log[n] is None]
        at = between[0] if how == "all" else end
        cachedisk.Lost(at, how).image(image, log, folder / "lost", random.Random(0))
        with disk.mounted(folder / "lost", folder / "m") as root:
            assert {p.name for p in root.iterdir()} - {LOST_AND_FOUND} == kept


def test_some_of_a_cache_is_some_of_its_blocks() -> None:
    lost, held = cachedisk.Lost(1, "some"), [cachedisk.Write(8192, bytes(40 * 4096))]
    seen = {len(lost._kept(held, random.Random(seed))) for seed in range(20)}
    assert min(seen) < 10
    assert max(seen) > 30
    kept = lost._kept(held, random.Random(0))
    assert all(len(w.data) == 4096 and w.begin % 4096 == 0 and w.begin >= 8192 for w in kept)


@needs_disk
def test_nothing_stays_of_a_process_that_is_killed(made: Lab, tmp_path: Path) -> None:
    code = """
import os, signal, sys, pathlib
from tests.faults import disk
folder = pathlib.Path(sys.argv[1])
with disk.private_mounts(), disk.mounted(disk.new_image(folder / "image"), folder / "mounted"):
    print(open("/proc/self/mounts").read().count(str(folder)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "1\n"), ended
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert freed(tmp_path / "image")


@needs_disk
def test_nothing_stays_mounted(made: Lab) -> None:
    namespace, here = os.readlink("/proc/thread-self/ns/mnt"), os.getcwd()
    images = []

    def fail() -> None:
        with stepping.place(made) as folder:
            images.append(disk.new_image(folder / "image"))
            with disk.mounted(images[0], folder / "mounted"):
                assert os.readlink("/proc/thread-self/ns/mnt") != namespace
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (os.readlink("/proc/thread-self/ns/mnt"), os.getcwd()) == (namespace, here)
    assert not images[0].parent.exists()
    assert freed(images[0])


def freed(image: Path) -> bool:
    """Whether the loop device of an image is let go of, which the kernel does in its own time."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        devices = Path("/sys/block").glob("loop*/loop/backing_file")
        if not any(str(image) in read(p) for p in devices):
            return True
        time.sleep(0.01)
    return False


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just gone
        return ""
