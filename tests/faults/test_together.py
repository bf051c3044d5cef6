"""Who may write where locks do not keep runs apart; controls of the campaign."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert import publish
from fp8convert.convert import Job, execute, prepare, to_bf16
from fp8convert.errors import ResumableError, TargetError
from fp8convert.fence import Fence
from fp8convert.options import ToBf16
from fp8convert.plan import Plan
from fp8convert.publish import JOB, Staging, opened
from fp8convert.target import MANIFEST

from ..crash import contents
from ..mini import CUT
from . import shim, together
from .lab import Lab
from .together import Case, Reader, Stage, rounds, stage, unlike, without

SOURCE = {"model-00001-of-00002.safetensors": {"size": 1, "mtime_ns": 2}}


def job(mini: Path, dst: Path, **options: Any) -> Job:
    return prepare(mini, dst, ToBf16(max_shard_size=CUT, **options))


@pytest.fixture
def plan(mini: Path, fast_path: Path) -> Plan:
    return job(mini, fast_path / "dst").plan


@pytest.fixture
def first(fast_path: Path, plan: Plan) -> Staging:
    """One that is at work."""
    made = Staging(fast_path / "dst", plan)
    made.state.mkdir()
    made.begin(SOURCE)
    return made


def tokens(staging: Staging) -> list[str]:
    return [n for n in os.listdir(staging.state) if n.startswith("run.")]


# --- Taking over


def test_whoever_begins_later_takes_over(first: Staging) -> None:
    """From then on the first one finds nothing of its own, and can write and rename nothing."""
    (first.out / "mine").write_text("x")
    second = Staging(first.target, first.plan)
    second.begin(SOURCE)
    assert first.fence.is_overtaken()
    assert not second.fence.is_overtaken()
    assert tokens(first) == [second.fence.way.name]
    with pytest.raises(FileNotFoundError):
        first.put_bytes("config.json", b"{}")
    with pytest.raises(FileNotFoundError):
        first.commit({"files": []})
    assert first.recorded(first.plan.tasks[0]) is None
    first.fence.let_go()
    assert not second.fence.is_overtaken()
    assert second.put_bytes("config.json", b"{}")["size"] == 2
    assert os.listdir(second.out) == ["config.json"]


def test_another_plan_takes_nothing_over(first: Staging, mini: Path) -> None:
    """It is refused, and the run that is at work is not disturbed."""
    other = Staging(first.target, job(mini, first.target, dtype="float16").plan)
    with pytest.raises(TargetError, match="is not this one"):
        other.begin(SOURCE)
    assert not first.fence.is_overtaken()
    assert tokens(first) == [first.fence.way.name]


def test_of_two_that_begin_at_once_the_later_name_goes_on(
    first: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have made their links before either looks for the other's: not both may give up."""
    second = Staging(first.target, first.plan)
    real = Fence._links
    looks = 0

    def seen(self: Staging) -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 2:  # after its own was made
            (self.state / f"run.2.{'z' * 32}").symlink_to(".")
        return real(self)

    monkeypatch.setattr(Fence, "_links", seen)
    with pytest.raises(ResumableError, match="has taken over"):
        second.begin(SOURCE)
    assert f"run.2.{'z' * 32}" in tokens(first)
    assert second.fence.way == second.state  # its own is gone
    third = Staging(first.target, first.plan)
    third.begin(SOURCE)
    assert tokens(first) == [third.fence.way.name]
    assert third.fence.way.name.startswith("run.3.")


def test_a_filesystem_without_links(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock has to do; anything but that is an error."""

    def fail(code: int) -> None:
        def symlink(src: Any, dst: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "symlink", symlink)

    fail(errno.EPERM)
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
    assert os.listdir(fast_path) == ["dst"]
    fail(errno.EIO)
    with pytest.raises(ResumableError, match="Input/output error"):
        to_bf16(mini, fast_path / "other", max_shard_size=CUT, workers=1)
    assert not (fast_path / "other").exists()


def test_the_link_goes_with_the_run(first: Staging, mini: Path, fast_path: Path) -> None:
    """One that stops leaves none: whoever copies the folder does not go round in circles."""
    first.fence.let_go()
    with pytest.raises(TargetError), opened(Staging(first.target, first.plan)):
        raise TargetError("stopped")
    assert tokens(first) == []
    assert first.out == first.state / "out"


def test_what_is_removed_by_hand_is_named(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a run at work is removed: as good as taken over."""
    real = Staging.put_bytes

    def put(self: Staging, name: str, data: bytes) -> Any:
        shutil.rmtree(self.state)
        return real(self, name, data)

    monkeypatch.setattr(Staging, "put_bytes", put)
    with pytest.raises(ResumableError, match=r"has taken over, or .* was removed") as e:
        execute(job(mini, fast_path / "dst"))
    assert e.value.exit_code == 75
    assert os.listdir(fast_path) == []


# --- The end of both


def test_a_target_that_another_run_finished(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before the last rename: it is what was to go there, and nothing is left over."""
    dst = fast_path / "dst"
    to_bf16(mini, fast_path / "other", max_shard_size=CUT)
    real = os.rename

    def rename(src: Any, to: Any) -> None:
        if Path(to) == dst:
            shutil.copytree(fast_path / "other", dst)
        real(src, to)

    monkeypatch.setattr(os, "rename", rename)
    execute(job(mini, dst))
    assert contents(dst) == contents(fast_path / "other")
    assert sorted(os.listdir(fast_path)) == ["dst", "other"]


def test_already_done_clears_a_second_run_of_the_same(mini: Path, fast_path: Path) -> None:
    """Killed while another finished the target; but not the work of another plan."""
    dst = fast_path / "dst"
    for options, left in (({}, ["dst"]), ({"dtype": "float16"}, [".dst.fp8convert", "dst"])):
        other = job(mini, dst, **options)
        work = Staging(dst, other.plan)
        work.state.mkdir()
        work.begin(other.catalogue.fingerprint)
        work.fence.let_go()
        (fast_path / "state").exists() or os.rename(work.state, fast_path / "state")
        assert not execute(job(mini, dst)).already_done or left != ["dst"]
        os.rename(fast_path / "state", work.state)
        assert execute(job(mini, dst)).already_done
        assert sorted(os.listdir(fast_path)) == left
    assert (work.state / JOB).exists()


def test_the_folder_is_removed_before_it_is_locked(
    first: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run that ends just then; the message says so."""
    first.fence.let_go()
    monkeypatch.setattr(publish, "make_folder", lambda folder: shutil.rmtree(folder))
    with pytest.raises(TargetError, match="has just finished"), opened(first):
        pytest.fail("locked a file that is gone")


# --- Controls: broken ones lose


@pytest.fixture(scope="module")
def staged(made: Lab) -> Iterator[Stage]:
    with stage(made, few=True) as found:
        yield found


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "there is one")
@pytest.mark.parametrize(
    ("case", "place", "broken"),
    [
        (without, -1, ["together:sharing"]),  # one is about to publish: the last rename
        (unlike, 5, ["breaks:broken", "forgetful"]),  # one has journaled a file
    ],
)
def test_broken_tools_lose(
    case: Case, place: int, broken: list[str], staged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the link keeps runs apart; only the job keeps one from what another one has begun."""

    def ahead(rng: random.Random, kinds: list[str]) -> int:
        return [n for n, kind in enumerate(kinds, 1) if kind == "rename"][place]

    monkeypatch.setattr(together, "_ahead", ahead)
    monkeypatch.setattr(together, "BURSTS", ((40, 100),))
    assert rounds(staged._replace(broken=[broken]), 4, 2, [case]).losses
    assert rounds(staged, 4, 2, [case]).losses == []


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "there is one")
def test_a_tool_that_writes_under_the_final_name_loses(staged: Stage) -> None:
    """The reader sees files that are not complete."""
    tally = rounds(staged._replace(broken=[["breaks:broken", "in_place"]]), 2, 1, [without])
    assert any("a target of" in loss for loss in tally.losses)


def test_the_reader(tmp_path: Path) -> None:
    target = tmp_path / "dst"
    reader = Reader(target, {"a": b"1", "b": b"2"}, {"a": b"3"})
    for change in (lambda: None, target.mkdir, lambda: (target / "a").write_text("3")):
        change()
        reader.look()
    assert (reader.wrong, reader.looks, reader.whole) == ([], 3, 1)
    (target / "a").write_text("1")
    reader.look()
    assert len(reader.wrong) == 1
    (tmp_path / MANIFEST).touch()
    reader.look()
    assert reader.wrong[1] == f"beside it: ['{MANIFEST}']"
