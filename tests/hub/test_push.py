"""Uploads of targets: what the hub has afterwards, at once, whichever way it came there."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, snapshot_download

from fp8convert import taskrun
from fp8convert.convert import prepare, quantize, shard_for_tp, to_bf16, unshard
from fp8convert.errors import TargetError, UsageError
from fp8convert.hub import delivery, shipper, uploads
from fp8convert.hub.push import Push
from fp8convert.options import ToBf16
from fp8convert.verify import verify

from ..crash import state_of
from ..mini import CUT
from . import Hub
from .pushing import (
    CARD,
    MOST_SECONDS,
    REPO,
    SENDING,
    TOKEN,
    check_visible,
    commits,
    files_of,
    on_hub,
    push,
    sent,
    weights,
)

pytestmark = [SENDING, pytest.mark.usefixtures("calmed")]


def test_one_commit_has_the_whole_target(hub: Hub, mini: Path, fast_path: Path) -> None:
    made = push(mini, fast_path / "dst")
    held = files_of(fast_path / "dst")
    assert on_hub(hub) == held
    assert len(weights(held)) == 3
    assert set(hub.tree(REPO)) == {*held, ".gitattributes", CARD}
    check_visible(hub)
    assert [c.message for c in hub.commits(REPO)] == [
        "to-bf16 by fp8convert " + made.data["identity"]["fp8convert"],
        "initial commit",
    ]
    assert made.pushed
    assert made.pushed.to_dict() == {
        "repo": REPO,
        "branch": "main",
        "commit": hub.commits(REPO)[0].sha,
        "url": f"{hub.endpoint}/{REPO}/tree/main",
        "already": False,
        "dropped": 0,
    }
    assert sorted(sent(hub)) == sorted(len(held[name]) for name in weights(held))
    assert not state_of(fast_path / "dst").exists()
    asked = [r for r in hub.log if r.host == "hub"]
    assert {r.authorization for r in asked} == {f"Bearer {TOKEN}"}
    assert hub.is_private(REPO) is False


def test_a_commit_for_each_file_is_seen_by_the_check(hub: Hub, mini: Path, fast_path: Path) -> None:
    """The control: what uploads one file after the other."""
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    api = HfApi()
    api.create_repo(REPO)
    for path in sorted((fast_path / "dst").iterdir()):
        api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=REPO)
    assert on_hub(hub) == files_of(fast_path / "dst")
    with pytest.raises(AssertionError):
        check_visible(hub)


def test_what_is_downloaded_is_sound(hub: Hub, tiny_fp8: Path, fast_path: Path) -> None:
    push(tiny_fp8, fast_path / "dst", {"max_shard_size": None})
    got = Path(snapshot_download(REPO, local_dir=fast_path / "got"))
    shutil.rmtree(got / ".cache")
    assert {n: b for n, b in files_of(got).items() if n not in (".gitattributes", CARD)} == (
        files_of(fast_path / "dst")
    )
    assert verify(got, against=tiny_fp8).passed
    (got / sorted(weights(files_of(got)))[0]).write_bytes(b"")
    assert not verify(got).passed


def test_again_there_is_nothing_to_do(hub: Hub, mini: Path, fast_path: Path) -> None:
    first = push(mini, fast_path / "dst").pushed
    before = files_of(fast_path / "dst")
    hub.traffic.clear()
    again = push(mini, fast_path / "dst")
    assert first
    assert again.already_done
    assert again.pushed
    assert (again.pushed.commit, again.pushed.already) == (first.commit, True)
    assert (sent(hub), commits(hub)) == ([], 0)
    shutil.rmtree(fast_path / "dst")
    anew = push(mini, fast_path / "dst")  # converted anew; the hub has every byte of it
    assert anew.pushed
    assert anew.pushed.already
    assert (sent(hub), commits(hub)) == ([], 0)
    assert files_of(fast_path / "dst") == before


def test_a_finished_target_is_uploaded_without_reading_it_twice(
    hub: Hub, mini: Path, fast_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    written.clear()
    hashed: list[str] = []

    def hash_file(path: Path, *args: Any) -> str:
        hashed.append(path.name)
        return real(path, *args)

    real = delivery.hash_file
    for module in (delivery, uploads):
        monkeypatch.setattr(module, "hash_file", hash_file)
    made = push(mini, fast_path / "dst")
    assert made.already_done
    assert made.pushed
    assert not made.pushed.already
    assert on_hub(hub) == files_of(fast_path / "dst")
    assert (written, set(hashed)) == ([], {"manifest.json"})
    check_visible(hub)


def test_files_are_sent_while_others_are_written(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    hub.on("/s3/", lambda request: begun.set(), method="PUT")
    real, count = taskrun.TaskRun.__init__, 0

    def init(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            assert begun.wait(MOST_SECONDS), "nothing is sent before the last file is begun"
        real(self, *args)

    monkeypatch.setattr(taskrun.TaskRun, "__init__", init)
    push(mini, fast_path / "dst", {"workers": 1})
    assert count == 3
    assert on_hub(hub) == files_of(fast_path / "dst")


@pytest.mark.parametrize("command", ["quantize", "shard-hf", "shard-deepseek", "unshard"])
def test_every_command_uploads(hub: Hub, tiny_bf16: Path, fast_path: Path, command: str) -> None:
    to, dst = Push(REPO), fast_path / "dst"
    if command == "quantize":
        quantize(tiny_bf16, dst, "fp8-block", push=to)
    elif command == "shard-hf":
        shard_for_tp(tiny_bf16, dst, 2, layout="hf", push=to)
    else:
        shard_for_tp(tiny_bf16, dst, 2, push=None if command == "unshard" else to)
    if command == "unshard":
        dst = fast_path / "whole"
        unshard(fast_path / "dst", dst, push=to)
    assert on_hub(hub) == files_of(dst)
    assert any("/" in name for name in on_hub(hub)) == (command == "shard-hf")
    check_visible(hub)
    card = hub.read(REPO, CARD).decode()
    assert ("library_name: transformers" in card) == (command in ("quantize", "unshard"))


def test_large_objects_go_in_parts(hub: Hub, mini: Path, fast_path: Path) -> None:
    hub.part_size = 10_000
    push(mini, fast_path / "dst")
    held = files_of(fast_path / "dst")
    assert on_hub(hub) == held
    assert len(sent(hub)) > len(weights(held))
    assert sum(sent(hub)) == sum(len(held[name]) for name in weights(held))


def test_without_checksums_the_sums_are_taken_for_the_hub(
    hub: Hub, mini: Path, fast_path: Path
) -> None:
    with pytest.raises(UsageError, match="needs checksums"):
        push(mini, fast_path / "dst", {"checksum": "none"}, drop=True)
    assert not hub.has(REPO)
    for already in (False, True):
        made = push(mini, fast_path / "dst", {"checksum": "none"})
        assert made.pushed
        assert made.pushed.already == already
    assert on_hub(hub) == files_of(fast_path / "dst")


@pytest.mark.parametrize("drop", [False, True])
def test_a_hub_that_keeps_weights_as_plain_files(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    monkeypatch.setattr("tests.hub.changing.is_lfs", lambda path, size: False)
    made = push(mini, fast_path / "dst", drop=drop)
    assert made.pushed
    assert made.pushed.dropped == (3 if drop else 0)
    assert sent(hub) == []
    assert not any(f.lfs for f in hub.tree(REPO).values())
    check_visible(hub)
    listed = {f["name"]: f["size"] for f in made.files}
    assert {n: f.size for n, f in hub.tree(REPO).items() if n in listed} == listed


def test_what_gitignore_leaves_out_is_refused(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fp8convert.hub.known.is_ignored", lambda operation: True)
    with pytest.raises(TargetError, match=r"gitignore .* leaves"):
        push(mini, fast_path / "dst")
    assert commits(hub) == 0


def test_progress_is_told_of_what_is_left_to_send(hub: Hub, mini: Path, fast_path: Path) -> None:
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    total = sum(p.stat().st_size for p in (fast_path / "dst").iterdir())
    told: list[tuple[int, int]] = []
    reached = threading.Event()

    def progress(done: int, of: int) -> None:
        told.append((done, of))
        reached.set()

    hub.on("/s3/", lambda request: reached.wait(MOST_SECONDS), method="PUT")
    push(mini, fast_path / "dst", progress=progress)
    assert told
    assert told == sorted(told)
    assert all(0 <= done <= of == total for done, of in told)


def test_other_programs_deliver_what_they_have_made(hub: Hub, mini: Path, fast_path: Path) -> None:
    to = Push(REPO, drop=True)
    job = prepare(mini, fast_path / "dst", ToBf16(max_shard_size=CUT))
    assert shipper.check(job, to) is None
    assert hub.has(REPO)
    assert not (fast_path / "dst").exists()
    made = to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    before = files_of(fast_path / "dst")
    found = shipper.deliver(job, made, to).pushed
    assert found
    assert found.dropped == 3
    assert on_hub(hub) == before
    assert files_of(fast_path / "dst").keys() == before.keys() - weights(before)
    finished = shipper.check(job, to)  # though its weights are not here any more
    assert finished
    assert (finished.data, finished.already_done) == (made.data, True)
    again = shipper.deliver(job, finished, to).pushed
    assert again
    assert again.already


def test_a_place_in_an_object_store_is_not_uploaded(hub: Hub, mini: Path) -> None:
    with pytest.raises(UsageError, match="needs a folder here"):
        push(mini, "memory://bucket/made")  # type: ignore[arg-type]
    assert not hub.has(REPO)


def test_a_stopped_upload_leaves_no_thread_at_work(
    hub: Hub, tiny_fp8: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on its way ends with the run: at once, not when it is all sent."""
    begun, stopped = threading.Event(), threading.Event()
    real = uploads.Uploads.stop

    def hold(request: object) -> None:
        begun.set()
        assert stopped.wait(MOST_SECONDS)

    def settle(self: uploads.Uploads, progress: object = None) -> None:
        assert begun.wait(MOST_SECONDS)
        raise KeyboardInterrupt

    def stop(self: uploads.Uploads) -> None:
        real(self)
        stopped.set()

    aborted: list[bool] = []
    monkeypatch.setattr(uploads.xet, "abort", lambda: aborted.append(True))
    hub.on("/s3/", hold, method="PUT", at=1000, times=None)
    monkeypatch.setattr(uploads.Uploads, "settle", settle)
    monkeypatch.setattr(uploads.Uploads, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        push(tiny_fp8, fast_path / "dst", {"max_shard_size": None})
    for thread in threading.enumerate():
        if thread.name == "fp8convert-upload":
            thread.join(MOST_SECONDS)
            assert not thread.is_alive()
    out = (state_of(fast_path / "dst") / "out").glob("*.safetensors")
    sizes = sorted((p.stat().st_size for p in out), reverse=True)
    assert sent(hub)
    assert max(sent(hub)) < min(sizes[: len(sent(hub))])
    assert commits(hub) == 0
    assert aborted


def test_manifest_and_job_say_nothing_of_the_upload(hub: Hub, mini: Path, fast_path: Path) -> None:
    """With or without, a target is the same, and goes on in either way."""
    push(mini, fast_path / "dst")
    to_bf16(mini, fast_path / "plain", max_shard_size=CUT)
    assert files_of(fast_path / "dst") == files_of(fast_path / "plain")
    assert REPO not in json.dumps(json.loads((fast_path / "dst/manifest.json").read_bytes()))
