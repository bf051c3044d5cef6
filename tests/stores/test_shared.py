"""The end of a run, and runs on one target at once: stores have no locks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp8convert import to_bf16
from fp8convert.convert import execute, prepare, undisturbed
from fp8convert.errors import FormatError, ResumableError, TargetError
from fp8convert.settings import Settings
from fp8convert.stores.staging import ObjectStaging
from fp8convert.stores.state import JOB, State
from fp8convert.target import MANIFEST

from ..mini import CUT
from .emulator import Emulator, Place
from .unfinished import DST, OPTIONS, converted, finish, left, prepared, staging


@pytest.fixture(scope="module")
def whole(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What it must end with."""
    return converted(mini, tmp_path_factory.mktemp("whole") / "dst")


# --- Commit


def test_the_manifest_comes_last_and_the_state_goes_after_it(
    mini: Path, bucket: Place, s3: Emulator
) -> None:
    execute(prepared(mini, bucket), Settings(workers=2))
    changed = [(r.method, r.key.partition(f"{DST}/")[2]) for r in s3.requests if r.method != "GET"]
    changed = [c for c in changed if c[0] != "HEAD"]
    assert changed[0] == ("PUT", JOB)
    at = changed.index(("PUT", MANIFEST))
    removed = changed[at + 1 :]
    assert {method for method, _ in removed} == {"DELETE"}
    assert removed[-1] == ("DELETE", JOB)
    assert all(method != "DELETE" for method, _ in changed[:at])
    assert not [n for n in bucket.files(DST) if n.startswith(".fp8convert")]


def test_until_the_manifest_is_there_no_one_takes_it_for_finished(
    mini: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped just before it: all other files are there."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    job = prepared(mini, place)
    with monkeypatch.context() as patch:
        patch.setattr("fp8convert.stores.staging.sealed", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(job)
    found = place.files(DST)
    assert MANIFEST not in found
    assert {"config.json", "model.safetensors.index.json"} <= set(found)
    with pytest.raises(FormatError, match="unfinished conversion"):
        prepare(place.at(DST), "unwritten")
    assert staging(job).left() == f"{place.at(DST)}/"
    execute(job)
    assert staging(job).left() is None


def test_what_came_meanwhile_bars_the_commit(
    mini: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared(mini, place)
    real = ObjectStaging.commit

    def commit(self: ObjectStaging, manifest: dict[str, Any]) -> dict[str, Any]:
        place.put(f"{DST}/model-99.safetensors", b"mine")
        return real(self, manifest)

    monkeypatch.setattr(ObjectStaging, "commit", commit)
    with pytest.raises(TargetError, match=r"model-99\.safetensors: 'None' then, '4' now"):
        execute(job)
    assert MANIFEST not in place.files(DST)


def test_an_object_written_by_another_meanwhile_bars_the_commit(
    mini: Path, place: Place, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, as by a run that was overtaken at its last step; the next makes it anew."""
    job = prepared(mini, place)
    real, name = ObjectStaging.commit, job.plan.tasks[1].file

    def commit(self: ObjectStaging, manifest: dict[str, Any]) -> dict[str, Any]:
        place.put(f"{DST}/{name}", whole[name][:-1] + b"?")
        return real(self, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStaging, "commit", commit)
        with pytest.raises(ResumableError, match=f"{name}.* changed since it was finished"):
            execute(job)
    assert MANIFEST not in place.files(DST)
    execute(job)
    assert place.files(DST) == whole


# --- Other runs


def test_joining(mini: Path, place: Place, whole: dict[str, bytes]) -> None:
    """Workers of one run, on its own name and no other; what they finish all can see."""
    job = prepared(mini, place)
    source = job.catalogue.fingerprint
    with staging(job).opened():
        run = staging(job).begin(source)
    one, two = staging(job), staging(job)
    with one.joined(source, run), two.joined(source, run):
        finish(one, job, 0, whole)
        finish(two, job, 0, whole)  # the same task twice
        finish(two, job, 1, whole)
    with staging(job).joined(source, run):
        pass
    seen = staging(job)
    assert [bool(seen.recorded(t)) for t in job.plan.tasks] == [True, True, False]
    for odd in ("", "run.other"):
        with pytest.raises(TargetError, match="is not of the run that was planned"):
            staging(job).joined(source, odd).__enter__()
    with pytest.raises(TargetError, match="is not this one"):
        staging(job).joined({}, run).__enter__()


def test_joining_what_is_not_there(mini: Path, place: Place) -> None:
    job = prepared(mini, place)
    with pytest.raises(TargetError, match=r"expected 'run.x' in its .*job.json, found 'None'"):
        staging(job).joined(job.catalogue.fingerprint, "run.x").__enter__()


def test_a_run_that_was_overtaken_ends(mini: Path, place: Place, whole: dict[str, bytes]) -> None:
    """At whatever it does next; it writes no record and no manifest any more."""
    job = prepared(mini, place)
    source = job.catalogue.fingerprint
    old, new = staging(job), staging(job)
    old.begin(source)
    finish(old, job, 0, whole)
    assert old.overtaken() is None
    new.begin(source)
    assert new.overtaken() is None
    before = place.marks(DST)
    for act in (
        lambda: finish(old, job, 1, whole),
        lambda: old.put_bytes("config.json", b"{}"),
        lambda: old.commit({"files": []}),
    ):
        with pytest.raises(ResumableError, match="has taken over"):
            act()
    assert place.marks(DST) == before
    assert isinstance(old.overtaken(), ResumableError)
    place.remove(f"{DST}/{JOB}")  # the other one has ended
    assert isinstance(old.overtaken(), ResumableError)


def test_two_plans_that_begin_at_the_same_moment(
    mini: Path, memory: Place, whole: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Both find an empty target. What the other has finished has the names and sizes of one's own:
    it is not taken for that."""
    one, two = prepared(mini, memory), prepared(mini, memory, replace(OPTIONS, dtype="float16"))
    check = State._check_own

    def first(self: State, seen: Any) -> None:
        monkeypatch.setattr(State, "_check_own", check)
        assert left(one, whole) == [two.plan.tasks[0].file]
        assert two.plan.tasks[0].size == one.plan.tasks[0].size

    monkeypatch.setattr(State, "_check_own", first)
    execute(two)
    to_bf16(mini, tmp_path / "dst", max_shard_size=CUT, dtype="float16")
    assert memory.files(DST) == {p.name: p.read_bytes() for p in (tmp_path / "dst").iterdir()}


def test_uploads_of_the_run_before_are_aborted(mini: Path, bucket: Place) -> None:
    """And it, if it is still at work, says why it ends."""
    job = prepared(mini, bucket)
    task, source = job.plan.tasks[0], job.catalogue.fingerprint
    old, new = staging(job), staging(job)
    old.begin(source)
    out = old.create(task, "auto")
    out.hash(memoryview(bytes(task.size)), 0)
    out.finish()
    assert len(bucket.uploads()) == 1
    new.begin(source)
    assert bucket.uploads() == []
    with pytest.raises(ResumableError, match="has taken over"), undisturbed(old):
        out.install()
    out.abandon()


def test_two_runs_at_once_leave_right_bytes(
    mini: Path, place: Place, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins when the first has written a file, and ends before it goes on."""
    job, ended = prepared(mini, place), []
    real = ObjectStaging.record

    def record(self: ObjectStaging, record: Any) -> None:
        monkeypatch.setattr(ObjectStaging, "record", real)
        ended.append(execute(prepared(mini, place), Settings(workers=1)))
        self.record(record)

    monkeypatch.setattr(ObjectStaging, "record", record)
    with pytest.raises(ResumableError, match="has taken over"):
        execute(job, Settings(workers=1))
    assert len(ended) == 1
    assert place.files(DST) == whole
    assert execute(prepared(mini, place)).already_done


def test_names_that_would_be_the_state_s(mini: Path, place: Place) -> None:
    job = prepared(mini, place)
    first, *rest = job.plan.tasks
    odd = [replace(first, file=".fp8convert/x"), *rest]
    with pytest.raises(TargetError, match="is where unfinished work goes"):
        staging(replace(job, plan=replace(job.plan, tasks=odd)))
