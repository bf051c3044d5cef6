"""Real processes: killed, interrupted, disturbed. The next one ends with the right bytes."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path

import pytest

from fp8convert.stores.state import JOB

from ..crash import Forker
from ..mini import CUT
from .emulator import Answer, Emulator, Place, Request
from .unfinished import DST, converted

SHARDS = re.compile(r"model-.*\.safetensors")


@pytest.fixture(scope="module")
def whole(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What it must end with."""
    return converted(mini, tmp_path_factory.mktemp("whole") / "dst")


def argv(source: object, bucket: Place, *more: object) -> list[object]:
    """The command."""
    return ["to-bf16", source, bucket.at(DST), "--max-shard-size", CUT, "--workers", 1, *more]


KILLED = [
    ("begin", "state", "State", "begin", 0),
    ("the first part", "uploads", "Parts", "finish", 0),
    ("the first commit", "uploads", "Parts", "commit", 0),
    ("the first record", "staging", "ObjectStaging", "record", 0),
    ("the second file", "uploads", "Parts", "finish", 1),
    ("the manifest", "staging", "ObjectStaging", "commit", 3),
    ("its state's removal", "state", "State", "clear", 3),
]


@pytest.mark.parametrize(
    ("_", "module", "owner", "method", "kept"), KILLED, ids=[k[0] for k in KILLED]
)
def test_killed_and_run_again(
    mini: Path, bucket: Place, s3: Emulator, forker: Forker, whole: dict[str, bytes],
    _: str, module: str, owner: str, method: str, kept: int,
) -> None:  # fmt: skip
    """What is recorded is not sent again; no upload is left; what was killed is no checkpoint."""
    number = 2 if _ == "the second file" else 1
    at = ("breaks:at", f"stores.{module}", owner, method, signal.SIGKILL, number)
    assert forker.run(*argv(mini, bucket), tamper=at).code == -signal.SIGKILL
    finished = method == "clear"
    assert ("manifest.json" in bucket.files(DST)) == finished
    before = bucket.marks(DST)
    s3.requests.clear()
    ended = forker.run(*argv(mini, bucket))
    assert ended.code == 0, ended
    assert ("already done" in ended.out) == finished
    assert bucket.files(DST) == whole
    assert bucket.uploads() == []
    sent = {r.key.rpartition("/")[2] for r in s3.asked("POST", "uploads")}
    assert len(sent) == (0 if finished else 3 - kept)
    after = bucket.marks(DST)
    names = [n for n in after if SHARDS.fullmatch(n)]
    assert [after[n] == before.get(n) for n in names].count(True) >= kept
    assert all(after[n] == before[n] for n in names if n not in sent)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    mini: Path, bucket: Place, s3: Emulator, forker: Forker, whole: dict[str, bytes],
    signum: signal.Signals,
) -> None:  # fmt: skip
    """75, says where the work is; nothing of the file that it was at is left."""
    at = ("breaks:at", "stores.uploads", "Parts", "finish", signum, 2)
    ended = forker.run(*argv(mini, bucket), tamper=at)
    assert ended.code == 75, ended
    assert "interrupted" in ended.err
    assert f"Unfinished work is in {bucket.at(DST)}/ (remove it to give up)" in ended.err
    assert bucket.uploads() == []
    assert "manifest.json" not in bucket.files(DST)
    assert forker.run(*argv(mini, bucket)).code == 0
    assert bucket.files(DST) == whole


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_the_source_is_disturbed(mini: Path, bucket: Place, forker: Forker, how: str) -> None:
    """While a file is made of it."""
    address = bucket.upload(mini, "src")
    at = ("breaks:at", "stores.uploads", "Parts", "finish", signal.SIGSTOP)
    forker.start(*argv(address, bucket), tamper=at)
    assert forker.wait() is None
    for path in mini.glob("*.safetensors"):
        if how == "removed":
            bucket.remove(f"src/{path.name}")
        else:
            bucket.put(f"src/{path.name}", path.read_bytes()[:-1] + b"?")
    forker.go()
    ended = forker.end()
    assert ended.code == 1, ended
    words = {"removed": "does not exist", "changed": "changed since it was planned"}
    assert words[how] in ended.err
    assert "manifest.json" not in bucket.files(DST)
    assert bucket.uploads() == []


def test_another_run_takes_over(
    mini: Path, bucket: Place, s3: Emulator, forker: Forker, whole: dict[str, bytes]
) -> None:
    """The second ends while the first stands still, which then ends by itself."""
    at = ("breaks:at", "stores.uploads", "Parts", "commit", signal.SIGSTOP)
    forker.start(*argv(mini, bucket), tamper=at)
    assert forker.wait() is None
    other = Forker(modules=["s3fs"])
    assert other.run(*argv(mini, bucket)).code == 0
    other.close()
    forker.go()
    ended = forker.end()
    assert ended.code == 75, ended
    assert "has taken over" in ended.err
    assert bucket.files(DST) == whole
    assert bucket.uploads() == []


def test_the_network_goes_down(
    mini: Path, bucket: Place, s3: Emulator, forker: Forker, whole: dict[str, bytes]
) -> None:
    """Exit code 75, and the same command ends it."""
    down = threading.Event()

    def before(request: Request) -> Answer | None:
        if "partNumber" in request.query:
            down.set()
        broken = Answer.error("500 Internal Server Error", "InternalError")
        return broken if down.is_set() else None

    with s3.answering(before):
        ended = forker.run(*argv(mini, bucket))
    assert ended.code == 75, ended
    assert "run the same again" in ended.err
    assert forker.run(*argv(mini, bucket)).code == 0
    assert bucket.files(DST) == whole


# --- Many machines


def test_workers_that_share_nothing_but_the_store(
    mini: Path, bucket: Place, s3: Emulator, forker: Forker, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """One of them is killed, one task is run twice; nothing is made twice that was recorded."""
    plan = tmp_path / "plan.json"
    words = ["plan", *argv(mini, bucket)[:-2], "--out", plan]
    assert forker.run(*words).code == 0
    assert forker.run("finalize", plan).code == 1
    at = ("breaks:at", "stores.staging", "ObjectStaging", "record", signal.SIGKILL, 2)
    one = ("run-task", plan, "--index", 0, "--count", 1, "--workers", 1)
    assert forker.run(*one, tamper=at).code == -signal.SIGKILL
    refused = forker.run("finalize", plan)
    assert refused.code == 1
    assert "2 of 3 tasks are not done" in refused.err
    s3.requests.clear()
    for index in (0, 1, 2, 0):
        ended = forker.run("run-task", plan, "--index", index, "--count", 3)
        assert ended.code == 0, ended
    assert len(s3.asked("POST", "uploads")) == 2
    assert "manifest.json" not in bucket.files(DST)
    assert forker.run("finalize", plan).code == 0
    assert bucket.files(DST) == whole
    again = forker.run("run-task", plan, "--index", 0, "--count", 1)
    assert (again.code, "already done" in again.out) == (0, True)


# --- Commands


def test_a_dry_run_writes_nothing(mini: Path, bucket: Place, s3: Emulator, forker: Forker) -> None:
    ended = forker.run(*argv(mini, bucket, "--dry-run", "--json"))
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    assert (found["target"], found["disk_free"]) == (bucket.at(DST), None)
    assert {r.method for r in s3.requests} <= {"GET", "HEAD"}
    assert bucket.files(DST) == {}


def test_inspect(mini: Path, bucket: Place, forker: Forker) -> None:
    address = bucket.upload(mini, "src")
    ended = forker.run("inspect", address)
    assert ended.code == 0, ended
    assert ended.out.splitlines()[0].split() == ["checkpoint", address]
    local = forker.run("inspect", mini)
    assert ended.out.splitlines()[1:] == local.out.splitlines()[1:]


def test_verify_says_what_it_cannot(bucket: Place, forker: Forker) -> None:
    ended = forker.run("verify", bucket.at("src"))
    assert ended.code in (1, 2)
    assert "is an address" in ended.err
    assert "Traceback" not in ended.err


def test_what_unfinished_work_is_given_up(
    mini: Path, bucket: Place, forker: Forker, whole: dict[str, bytes]
) -> None:
    """By removing what is at its place, as the message says."""
    at = ("breaks:at", "stores.staging", "ObjectStaging", "record", signal.SIGINT, 2)
    assert forker.run(*argv(mini, bucket), tamper=at).code == 75
    refused = forker.run(*argv(mini, bucket, "--dtype", "float16"))
    assert refused.code == 1
    assert "is not this one" in refused.err
    assert "remove what is there to start over" in refused.err
    assert JOB in bucket.files(DST)
    bucket.fs.rm(f"{bucket.bucket}/a", recursive=True)
    assert forker.run(*argv(mini, bucket)).code == 0
    assert bucket.files(DST) == whole
