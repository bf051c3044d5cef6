"""Power loss: that a tool that is broken would be found out, and that what is done stays done."""

from __future__ import annotations

import errno
import random
import shutil
import signal

import pytest

from . import cachedisk, disk, power, powercache, shim, stepping
from .aftermath import Case, examined
from .lab import Lab, state_of
from .tally import Tally

needs_disk = pytest.mark.skipif(bool(disk.missing()), reason=disk.missing())
needs_cache = pytest.mark.skipif(bool(cachedisk.missing()), reason=cachedisk.missing())
needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())

NO_FSYNC = (("pretend", ["fsync"]),)
NO_FOLDER_FSYNC = (("pretend", ["fsync-folder"]),)
EARLY = (("record_early",),)
AT_THE_END = "the run had ended with 0, and its target is not there"


@needs_shim
@needs_disk
class TestTools:
    """A tool that is broken on purpose is found out by the campaign."""

    @pytest.mark.parametrize(
        ("case", "loss"),
        [
            (Case("to-bf16", tamper=NO_FSYNC), "job.json: 0 bytes"),
            (Case("shard-deepseek", "buffered", tamper=NO_FSYNC), "journal/"),
            (Case("to-bf16", tamper=NO_FOLDER_FSYNC), AT_THE_END),
            (Case("unshard-hf", "buffered", tamper=NO_FOLDER_FSYNC), AT_THE_END),
            (Case("quantize", "buffered", tamper=EARLY), "out: model-0000"),
        ],
        ids=str,
    )
    def test_that_is_broken_loses(self, made: Lab, case: Case, loss: str) -> None:
        tally = Tally()
        power.run_case(made, case, 10, random.Random(1), tally)
        assert any(loss in lost for lost in tally.losses), tally
        assert len(tally.losses) == tally.injected - tally.survived

    @needs_cache
    @pytest.mark.parametrize(
        ("case", "loss"),
        [
            (Case("to-bf16", tamper=NO_FSYNC), "0 bytes"),
            (Case("shard-hf", tamper=NO_FOLDER_FSYNC), AT_THE_END),
            (Case("quantize", "buffered", tamper=EARLY), "out: model-0000"),
        ],
        ids=str,
    )
    def test_that_is_broken_loses_with_a_cache(self, made: Lab, case: Case, loss: str) -> None:
        tally = Tally()
        powercache.run_case(made, case, 10, random.Random(1), tally)
        assert any(loss in lost for lost in tally.losses), tally


@needs_shim
@needs_cache
def test_a_filesystem_that_does_not_flush_loses_with_a_cache_only(made: Lab) -> None:
    """The disk does reorder and lose: ext4 itself needs its flushes."""
    case, with_cache, without = Case("to-bf16", mount=f"{disk.STRICT},barrier=0"), Tally(), Tally()
    powercache.run_case(made, case, 3, random.Random(1), with_cache)
    assert any(AT_THE_END in lost for lost in with_cache.losses), with_cache
    power.run_case(made, case, 3, random.Random(1), without)
    assert not without.losses


@needs_shim
@needs_disk
def test_every_step_of_a_run_is_a_stop(made: Lab) -> None:
    case = Case("to-bf16")
    with stepping.place(made) as folder:
        found = stepping.steps(made, case, disk.new_image(folder / "start"))
    kinds = [step.split()[0] for step in found]
    files = len(made.by_name["to-bf16"].expected)
    assert kinds.count("rename") >= files + 2  # and job.json, and out/ itself
    assert kinds.count("fsync") >= files + 1
    assert kinds.count("fsync-folder") > kinds.count("rename")
    assert found[0].startswith("mkdir .dst.fp8convert")
    chosen = power.spread(found, 30, random.Random(0))
    assert len(chosen) == 30
    assert {kinds[n] for n in chosen} == set(kinds)


@pytest.fixture(scope="module")
def renamed(made: Lab) -> Case:
    """A run that was killed when the target had its name, which was not durable yet."""
    case = Case("to-bf16", before="killed")
    with stepping.place(made) as folder:
        image = disk.new_image(folder / "start")
        found = stepping.steps(made, case._replace(before=""), image)
    return case._replace(step=1 + found.index("rename dst") + 1)


@needs_shim
@needs_disk
@pytest.mark.parametrize("tamper", [(), NO_FOLDER_FSYNC], ids=["sound", "broken"])
def test_already_done_is_durable(
    made: Lab, renamed: Case, tamper: tuple[tuple[object, ...], ...]
) -> None:
    """The next run says "already done", and that is as good as done."""
    case = renamed._replace(tamper=tamper)
    with stepping.place(made) as folder:
        image = disk.new_image(folder / "start")
        done = stepping.cuts(made, case, image, [])[-1]
        assert done.done
        assert (AT_THE_END in examined(made, case, done)[0]) == bool(tamper)


@needs_shim
def test_already_done_is_not_said_of_what_cannot_be_made_durable(made: Lab) -> None:
    work, target = made.by_name["to-bf16"], made.new()

    def run(kinds: list[str], action: str, step: int, code: int = 0) -> int:
        arm = ("arm", str(target.parent), kinds, action, step, code, 0, str(log))
        return made.run(work, target, tamper=arm).code

    log = made.new()
    assert run(["rename"], "count", 1) == 0
    count = len(log.read_text().splitlines())
    shutil.rmtree(target)
    assert run(["rename"], "kill-after", count) == -signal.SIGKILL
    assert work.ended_right(target)
    assert run(["fsync-folder"], "fail", 1, errno.EIO) == 75
    assert state_of(target).is_dir()
    assert made.run(work, target).code == 0
    assert work.ended_right(target)
    assert not state_of(target).exists()
