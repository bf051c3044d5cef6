"""Conversions from and to Google's store: their bytes, killed runs, other runs, refusals."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fp8convert import origins, to_bf16
from fp8convert.convert import execute, prepare
from fp8convert.errors import FormatError, Fp8ConvertError, ResumableError, TargetError
from fp8convert.settings import Settings
from fp8convert.stores import store as storing
from fp8convert.stores.address import ObjectPath
from fp8convert.stores.google import Resumable
from fp8convert.stores.state import JOURNAL
from fp8convert.stores.store import Store

from ..crash import Forker
from ..faults.lab import tree
from ..mini import CUT
from .gcs import CUT as CUT_OFF
from .gcs import LOST, Answer, Before, Bucket, Google, Request, at
from .test_commands import same
from .unfinished import DST, converted, prepared

BUSY = Answer.error(503)
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What it must end with."""
    return converted(mini, tmp_path_factory.mktemp("whole") / "dst")


@pytest.fixture(scope="module")
def children(google: Google) -> Iterator[Forker]:
    """Runs in processes of their own, which use the emulator."""
    made = Forker(modules=["gcsfs"])
    yield made
    made.close()


def argv(source: object, cloud: Bucket, *more: object) -> list[object]:
    """The command."""
    return ["to-bf16", source, cloud.at(DST), "--max-shard-size", CUT, "--workers", 1, *more]


# --- Bytes


def test_folder_to_store_to_folder(
    mini: Path, cloud: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """What is within the store is in test_commands.py, with every command."""
    to_bf16(mini, cloud.at(DST), max_shard_size=CUT)
    assert cloud.files(DST) == whole
    assert cloud.uploads() == []
    to_bf16(cloud.upload(mini, "src"), tmp_path / "dst", max_shard_size=CUT)
    assert same(tree(tmp_path / "dst"), whole)


def test_a_console_s_marker_of_a_folder_is_no_file(cloud: Bucket) -> None:
    for name, data in (("src/", b""), ("src/rank0/", b""), ("src/x", b"x")):
        cloud.put(name, data)
    origin = origins.at(cloud.at("src"))
    assert origin.names() == ["rank0", "x"]
    assert origin.names("rank0") == []


def test_only_its_json_api_is_spoken(cloud: Bucket) -> None:
    """gcsfs's newer class asks which kind a bucket is by gRPC, for a minute where none answers; to
    some kinds it writes objects that are seen before they are whole."""
    found = type(Store(ObjectPath.of(cloud.at("x")), TargetError).fs)
    assert (found.__module__, found.__name__) == ("gcsfs.core", "GCSFileSystem")
    assert issubclass(fsspec.get_filesystem_class("gs"), found)


# --- Killed, resumed, at once


KILLED = [  # before which step, its number, how many files are kept
    ("google", "Resumable", "finish", 2, 1),
    ("google", "Session", "put", 1, 0),
    ("staging", "ObjectStaging", "record", 1, 0),
    ("state", "State", "clear", 1, 3),
]


@pytest.mark.parametrize(
    ("module", "owner", "method", "number", "kept"), KILLED, ids=[k[2] for k in KILLED]
)
def test_killed_and_run_again(
    mini: Path, cloud: Bucket, google: Google, children: Forker, whole: dict[str, bytes],
    module: str, owner: str, method: str, number: int, kept: int,
) -> None:  # fmt: skip
    """What is recorded is not sent again."""
    tamper = ("breaks:at", f"stores.{module}", owner, method, signal.SIGKILL, number)
    assert children.run(*argv(mini, cloud), tamper=tamper).code == -signal.SIGKILL
    finished = method == "clear"
    assert ("manifest.json" in cloud.files(DST)) == finished
    google.requests.clear()
    ended = children.run(*argv(mini, cloud))
    assert ended.code == 0, ended
    assert ("already done" in ended.out) == finished
    assert cloud.files(DST) == whole
    assert len(google.asked("begin")) == 3 - kept


def test_interrupted(mini: Path, cloud: Bucket, children: Forker, whole: dict[str, bytes]) -> None:
    tamper = ("breaks:at", "stores.google", "Resumable", "finish", signal.SIGINT, 2)
    ended = children.run(*argv(mini, cloud), tamper=tamper)
    assert ended.code == 75, ended
    assert f"Unfinished work is in {cloud.at(DST)}/ (remove it to give up)" in ended.err
    assert "manifest.json" not in cloud.files(DST)
    assert cloud.uploads() == []
    assert children.run(*argv(mini, cloud)).code == 0
    assert cloud.files(DST) == whole


def test_another_run_takes_over(
    mini: Path, cloud: Bucket, children: Forker, whole: dict[str, bytes]
) -> None:
    """The first stands still at its very last look, and completes its upload afterwards: Google's
    cannot be found and cancelled. The bytes are the same; it ends by itself."""
    tamper = ("breaks:at", "stores.google", "Resumable", "commit", signal.SIGSTOP)
    children.start(*argv(mini, cloud), tamper=tamper)
    assert children.wait() is None
    other = Forker(modules=["gcsfs"])
    assert other.run(*argv(mini, cloud)).code == 0
    assert cloud.files(DST) == whole
    children.go()
    ended = children.end()
    assert ended.code == 75, ended
    assert "has taken over" in ended.err
    assert cloud.files(DST) == whole
    ended = other.run(*argv(mini, cloud))
    assert (ended.code, "already done" in ended.out) == (0, True)
    other.close()


def test_workers_that_share_nothing_but_the_store(
    mini: Path, cloud: Bucket, google: Google, children: Forker, whole: dict[str, bytes],
    tmp_path: Path,
) -> None:  # fmt: skip
    """One of them is killed; nothing is made twice that was recorded."""
    plan, source = tmp_path / "plan.json", cloud.upload(mini, "src")
    assert children.run("plan", *argv(source, cloud)[:-2], "--out", plan).code == 0
    tamper = ("breaks:at", "stores.staging", "ObjectStaging", "record", signal.SIGKILL, 2)
    one = ("run-task", plan, "--index", 0, "--count", 1, "--workers", 1)
    assert children.run(*one, tamper=tamper).code == -signal.SIGKILL
    refused = children.run("finalize", plan)
    assert refused.code == 1
    assert "2 of 3 tasks are not done" in refused.err
    google.requests.clear()
    for index in (0, 1, 2, 0):
        ended = children.run("run-task", plan, "--index", index, "--count", 3)
        assert ended.code == 0, ended
    assert len(google.asked("begin")) == 2
    assert "manifest.json" not in cloud.files(DST)
    assert children.run("finalize", plan).code == 0
    assert same(cloud.files(DST), whole)


def test_an_object_that_another_writes_right_after(
    mini: Path, cloud: Bucket, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size. It is not recorded as one's own."""
    job, real = prepared(mini, cloud), Resumable.commit

    def commit(self: Resumable) -> str:
        found = real(self)
        name = job.plan.tasks[0].file
        cloud.put(f"{DST}/{name}", whole[name][:-1] + b"?")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Resumable, "commit", commit)
        with pytest.raises(ResumableError, match="was written by another just now"):
            execute(job, Settings(workers=1))
    assert [t.file for t in job.plan.tasks if job.stage.recorded(t)] == []
    execute(job)
    assert cloud.files(DST) == whole


# --- Changes of the source


def test_the_source_changes_midway(
    mini: Path, cloud: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes, even: it was written again, and could have been another meanwhile."""
    source, real = cloud.upload(mini, "src"), Resumable.finish

    def finish(self: Resumable) -> None:
        cloud.put(f"src/{SHARD}", (mini / SHARD).read_bytes())
        real(self)

    monkeypatch.setattr(Resumable, "finish", finish)
    with pytest.raises(FormatError, match=f"'{SHARD}' changed since it was planned"):
        to_bf16(source, cloud.at(DST), workers=1)
    assert "manifest.json" not in cloud.files(DST)
    assert cloud.uploads() == []


def test_a_source_that_is_labelled_midway_is_the_same(
    mini: Path, cloud: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of that, and no reason to refuse it."""
    source, real = cloud.upload(mini, "src"), Resumable.finish

    def finish(self: Resumable) -> None:
        cloud.objects[f"src/{SHARD}"].updated = "2099-01-01T00:00:00.000Z"
        real(self)

    monkeypatch.setattr(Resumable, "finish", finish)
    to_bf16(source, cloud.at(DST), workers=1)
    assert "manifest.json" in cloud.files(DST)


# --- Faults


KINDS = ("list", "look", "get", "put", "begin", "chunk", "remove")


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_fails_three_times(
    mini: Path, cloud: Bucket, google: Google, hasty: None, whole: dict[str, bytes], kind: str
) -> None:
    """In three ways, one after the other. An upload whose address was lost goes by itself."""
    source = cloud.upload(mini, "src")
    wrong = [at(kind, BUSY, 1, 1), at(kind, CUT_OFF, 2, 2), at(kind, LOST, 3, 3)]

    def before(request: Request) -> Answer | None:
        return next((a for a in [w(request) for w in wrong] if a), None)

    with google.answering(before):
        to_bf16(source, cloud.at(DST), max_shard_size=CUT, workers=2)
    assert same(cloud.files(DST), whole)
    assert len(google.asked(kind)) > 3
    assert len(cloud.uploads()) == (kind == "begin")


@pytest.mark.parametrize(
    ("kind", "first", "records"), [("list", 3, 0), ("get", 12, 1), ("put", 4, 2), ("chunk", 2, 1)]
)
def test_a_store_that_is_gone(
    mini: Path, cloud: Bucket, google: Google, hasty: None, whole: dict[str, bytes],
    kind: str, first: int, records: int,
) -> None:  # fmt: skip
    """From some request on: exit code 75, and the same command goes on where it was."""
    source = cloud.upload(mini, "src")
    with google.answering(at(kind, BUSY, first)), pytest.raises(
        ResumableError, match=r"does not answer as it should.*run the same again"
    ) as found:  # fmt: skip
        to_bf16(source, cloud.at(DST), max_shard_size=CUT, workers=1)
    assert found.value.exit_code == 75
    left, before = cloud.files(DST), cloud.marks(DST)
    assert "manifest.json" not in left
    kept = {json.loads(data)["file"] for name, data in left.items() if name.startswith(JOURNAL)}
    google.requests.clear()
    to_bf16(source, cloud.at(DST), max_shard_size=CUT, workers=1)
    assert same(cloud.files(DST), whole)
    again = {r.name.removeprefix(f"{DST}/") for r in google.asked("begin")}
    assert again == {name for name in whole if name.endswith(".safetensors")} - kept
    assert {name: cloud.marks(DST)[name] for name in kept} == {name: before[name] for name in kept}
    assert len(kept) == records


# --- Refusals


def refused(error: type[Fp8ConvertError], words: str, act: Any) -> None:
    """It is, with these words, in one line."""
    with pytest.raises(error, match=words) as found:
        act()
    assert "\n" not in str(found.value)


def denied(*kinds: str) -> Before:
    """Those are not permitted."""
    answer = Answer.error(403, "x does not have storage.objects access")
    return lambda request: answer if request.kind in kinds else None


@pytest.mark.parametrize("kinds", [("list",), ("put",), ("begin",), ("chunk",)], ids="".join)
def test_a_target_that_is_not_permitted(
    mini: Path, cloud: Bucket, google: Google, kinds: tuple[str, ...]
) -> None:
    with google.answering(denied(*kinds)):
        words = "access is refused .*Forbidden.*GOOGLE_APPLICATION_CREDENTIALS"
        refused(TargetError, words, lambda: to_bf16(mini, cloud.at(DST)))
    assert not [n for n in cloud.files(DST) if "job.json" not in n]
    assert cloud.uploads() == []
    assert not to_bf16(mini, cloud.at(DST)).already_done


@pytest.mark.parametrize("kinds", [("list",), ("get",), ("look", "list")], ids="".join)
def test_a_source_that_is_not_permitted(
    mini: Path, cloud: Bucket, google: Google, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    source = cloud.upload(mini, "src")
    with google.answering(denied(*kinds)):
        refused(FormatError, "access is refused", lambda: to_bf16(source, tmp_path / "dst"))
    assert not (tmp_path / "dst").exists()


def test_no_such_bucket(google: Google, mini: Path) -> None:
    words = "'gs://no-such-bucket/model' does not exist"
    refused(FormatError, words, lambda: origins.at("gs://no-such-bucket/model"))
    refused(TargetError, words, lambda: to_bf16(mini, "gs://no-such-bucket/model"))


def test_no_credentials(
    cloud: Bucket, google: Google, mini: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Google's tools find none, so it is asked as nobody, and refuses."""
    words = "Anonymous caller does not have storage.objects.list access"
    monkeypatch.delitem(fsspec.config.conf, "gs")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    with google.answering(lambda r: Answer.error(401, words)):
        found = f"access is refused .*{words}.*expected credentials, those that Google's tools use"
        refused(FormatError, found, lambda: origins.at(cloud.at("src")))
        refused(TargetError, found, lambda: to_bf16(mini, cloud.at(DST)))


@pytest.mark.parametrize("answer", [Answer.error(404), Answer.error(401), Answer.error(400)])
def test_one_line_and_no_more(
    cloud: Bucket, google: Google, children: Forker, answer: Answer
) -> None:
    """On stderr: gcsfs itself logs what it is not answered, each with a traceback."""
    with google.answering(lambda r: answer):
        ended = children.run("inspect", cloud.at("src"))
    assert ended.code == 1, ended
    assert len(ended.err.splitlines()) == 1, ended.err


def test_what_gcsfs_logs_goes_where_logs_go(
    cloud: Bucket, google: Google, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """The control of that: there is something, for those who ask for it."""
    with google.answering(lambda r: Answer.error(401)), pytest.raises(FormatError):
        origins.at(cloud.at("src"))
    assert [r.name for r in caplog.records] == ["gcsfs"]
    assert storing.QUIET in logging.getLogger("gcsfs").handlers
    assert capfd.readouterr().err == ""


def test_the_library_and_its_memory_are_accounted_for(mini: Path, cloud: Bucket) -> None:
    job = prepare(cloud.upload(mini, "src"), cloud.at(DST))
    assert job.fitted(Settings()).needs.downloads >= 2 * storing.LIBRARY["gs"]
