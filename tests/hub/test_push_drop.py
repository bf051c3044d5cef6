"""Weights that are dropped here once the hub has them: the disk, and what is made anew."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp8convert import taskrun
from fp8convert.convert import prepare, to_bf16
from fp8convert.errors import FormatError, ResumableError, TargetError
from fp8convert.hub import paced, uploads
from fp8convert.options import ToBf16
from fp8convert.plan import MOST_FILES

from ..crash import state_of
from ..mini import CUT
from . import Fault, Hub
from .pushing import (
    REPO,
    SENDING,
    check_visible,
    commits,
    files_of,
    on_hub,
    push,
    sent,
    weights,
)

pytestmark = [SENDING, pytest.mark.usefixtures("calmed")]
MANY = 1_500_000  # max_shard_size that makes many files of tiny


@pytest.fixture
def whole(mini: Path, fast_path: Path) -> dict[str, bytes]:
    """What mini becomes, converted here alone."""
    to_bf16(mini, fast_path / "whole", max_shard_size=CUT)
    return files_of(fast_path / "whole")


@pytest.fixture
def stopped(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """A run that was interrupted after two files were dropped; what the hub has of them."""
    with monkeypatch.context() as patch:
        begun = iter((True, True))  # each time there is room a file is begun

        def has_room(self: uploads.Uploads) -> bool:
            if len(self.gone) == 2:
                raise ResumableError("interrupted")
            return next(begun, False)

        patch.setattr(uploads.Uploads, "has_room", has_room)
        with pytest.raises(ResumableError, match="interrupted"):
            push(mini, fast_path / "dst", {"workers": 1}, drop=True)
    out = files_of(state_of(fast_path / "dst"))
    assert not [name for name in out if name.endswith(".safetensors")]
    assert len(sent(hub)) == 2
    check_visible(hub)
    hub.traffic.clear()
    return out


def blobs(hub: Hub) -> list[Path]:
    """Of the hub's store, what weights are in."""
    found = (hub.root / "repos" / REPO / "blobs").iterdir()
    return sorted(p for p in found if len(p.name) == 64)


def test_weights_are_on_the_hub_only(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes]
) -> None:
    made = push(mini, fast_path / "dst", drop=True)
    assert on_hub(hub) == whole
    assert files_of(fast_path / "dst").keys() == whole.keys() - weights(whole)
    check_visible(hub)
    assert made.pushed
    assert made.pushed.dropped == 3
    for drop in (True, False):  # the hub has what is missing here
        again = push(mini, fast_path / "dst", drop=drop)
        assert again.already_done
        assert again.pushed
        assert again.pushed.already
        assert again.pushed.dropped == 3
    with pytest.raises(TargetError, match=r"(?s)does not hold .*model-00001"):
        to_bf16(mini, fast_path / "dst", max_shard_size=CUT)


def test_a_finished_target_is_dropped_once_the_commit_is_made(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes]
) -> None:
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    hub.on("/commit/", lambda request: seen.append(files_of(fast_path / "dst")))
    seen: list[dict[str, bytes]] = []
    push(mini, fast_path / "dst", drop=True)
    assert seen == [whole]
    assert files_of(fast_path / "dst").keys() == whole.keys() - weights(whole)
    assert on_hub(hub) == whole


def test_the_target_appears_when_the_hub_has_it(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes]
) -> None:
    """Until then the journal knows what is gone."""
    hub.on("/commit/", lambda request: seen.append((fast_path / "dst").exists()))
    seen: list[bool] = []
    push(mini, fast_path / "dst", drop=True)
    assert seen == [False]


def most_files(hub: Hub, tiny_fp8: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most weights that were on the disk at once, while nothing was sent unless the run waits
    for it; files at work among them."""
    planned = prepare(tiny_fp8, fast_path / "dst", ToBf16(max_shard_size=MANY)).plan.tasks
    assert len(planned) > 2 * MOST_FILES
    waits, counts, begun = threading.Event(), [0], [0]
    real_room, real_init = uploads.Uploads.has_room, taskrun.TaskRun.__init__

    def has_room(self: uploads.Uploads) -> bool:
        room = real_room(self)
        if not room:
            waits.set()
        return room

    def init(self: Any, task: Any, *args: Any) -> None:
        begun[0] += 1
        if begun[0] == len(planned):
            waits.set()
        out = (state_of(fast_path / "dst") / "out").iterdir()
        counts.append(1 + sum(".safetensors" in p.name for p in out))
        real_init(self, task, *args)

    hub.on("/s3/", lambda request: waits.wait(20), method="PUT", times=None)
    monkeypatch.setattr(uploads.Uploads, "has_room", has_room)
    monkeypatch.setattr(taskrun.TaskRun, "__init__", init)
    push(tiny_fp8, fast_path / "dst", {"max_shard_size": MANY}, drop=True)
    assert begun[0] == len(planned)
    return max(counts)


def test_few_files_wait_for_a_slow_hub(
    hub: Hub, tiny_fp8: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = most_files(hub, tiny_fp8, fast_path, monkeypatch)
    assert 2 <= most <= MOST_FILES + uploads.MOST_WAITING


def test_without_the_bound_they_all_would(
    hub: Hub, tiny_fp8: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(uploads, "MOST_WAITING", 1000)
    assert most_files(hub, tiny_fp8, fast_path, monkeypatch) > MOST_FILES + 2


def test_the_disk_may_be_smaller_than_the_target(
    hub: Hub, tiny_fp8: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_shard_size": MANY}
    plan = prepare(tiny_fp8, fast_path / "dst", ToBf16(**options)).plan  # type: ignore[arg-type]
    most = paced.most_at_once(plan)
    largest = sorted(t.size for t in plan.tasks)[-MOST_FILES - uploads.MOST_WAITING :]
    small = plan.bytes_out - sum(t.size for t in plan.tasks)
    assert most == sum(largest) + small
    assert most < plan.disk_needed
    monkeypatch.setattr("fp8convert.staged.StagedFiles.free", lambda self: most)
    with pytest.raises(ResumableError, match="not enough disk"):
        push(tiny_fp8, fast_path / "dst", options)
    push(tiny_fp8, fast_path / "dst", options, drop=True)
    monkeypatch.setattr("fp8convert.staged.StagedFiles.free", lambda self: most - 1)
    with pytest.raises(ResumableError, match=f"{most:,} bytes needed"):
        push(tiny_fp8, fast_path / "other", options, drop=True)


def test_what_was_dropped_is_neither_made_nor_sent_again(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], stopped: Any,
    written: list[str],
) -> None:  # fmt: skip
    written.clear()
    push(mini, fast_path / "dst", drop=True)
    assert len(written) == 1
    assert sent(hub) == [len(whole[written[0]])]
    assert on_hub(hub) == whole
    check_visible(hub)


def test_without_drop_it_is_made_again_and_not_sent(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], stopped: Any,
    written: list[str],
) -> None:  # fmt: skip
    written.clear()
    push(mini, fast_path / "dst")
    assert len(written) == 3
    assert len(sent(hub)) == 1
    assert files_of(fast_path / "dst") == on_hub(hub) == whole


def test_without_an_upload_it_is_made_again(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], stopped: Any
) -> None:
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    assert files_of(fast_path / "dst") == whole


def test_what_the_hub_has_lost_is_made_again(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], stopped: Any,
    written: list[str],
) -> None:  # fmt: skip
    blobs(hub)[0].unlink()
    written.clear()
    push(mini, fast_path / "dst", drop=True)
    assert len(written) == 2
    assert on_hub(hub) == whole


@pytest.mark.parametrize("drop", [False, True])
def test_what_is_lost_before_the_commit_is_found_out(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, drop: bool,
) -> None:  # fmt: skip
    """The next run makes it again; files that are still here are just sent again."""
    lost: list[Path] = []

    def losing(real: Callable[..., Any]) -> Callable[..., Any]:
        def settle(self: uploads.Uploads, *args: Any) -> Any:
            while self._left():
                self._pause()
            if not lost:
                lost.append(blobs(hub)[0])
                lost[0].unlink()
            return real(self, *args)

        return settle

    monkeypatch.setattr(uploads.Uploads, "settle", losing(uploads.Uploads.settle))
    error = ResumableError if drop else FormatError
    words = r"has lost 'model-.*made again" if drop else "committing: the hub answers 400"
    with pytest.raises(error, match=words):
        push(mini, fast_path / "dst", drop=drop)
    assert (fast_path / "dst").exists() == (not drop)
    assert commits(hub) == (not drop)
    push(mini, fast_path / "dst", drop=drop)
    assert on_hub(hub) == whole
    assert len(sent(hub)) == 4
    check_visible(hub)


# --- Xet, where a hub may not say what it has that no commit names


def with_xet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if Xet were there; the names of files that went by it. The LFS part knows nothing of
    them."""
    from huggingface_hub import _commit_api, lfs

    went: list[str] = []
    sums: set[str] = set()
    real = lfs.post_lfs_batch_info

    def upload(*, additions: list[Any], **_: Any) -> None:
        for operation in additions:
            assert not operation.upload_info.is_hashed  # or Xet would believe it
            data = Path(operation.path_or_fileobj).read_bytes()
            operation.upload_info.sha256 = hashlib.sha256(data).digest()
            found = hub.found(REPO)
            assert found
            found.keep(operation.path_in_repo, data)
            went.append(operation.path_in_repo)
            sums.add(operation.upload_info.sha256.hex())

    def batch(*args: Any, **options: Any) -> Any:
        found, *rest = real(*args, **options)
        blind = [
            {**f, "actions": {"upload": {"href": "x"}}} if f["oid"] in sums else f for f in found
        ]
        return (blind, *rest)

    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: True)
    monkeypatch.setattr(_commit_api, "_upload_xet_files", upload)
    monkeypatch.setattr(lfs, "post_lfs_batch_info", batch)
    return went


def test_what_stays_here_goes_by_xet_and_once(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    went = with_xet(hub, monkeypatch)
    push(mini, fast_path / "dst")
    assert sorted(went) == sorted(weights(whole))
    assert sent(hub) == []
    assert on_hub(hub) == whole


def test_what_was_changed_since_is_in_no_commit_by_xet_either(
    hub: Hub, mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Xet keeps whatever it reads, by its own sum."""
    with_xet(hub, monkeypatch)
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT)
    path = fast_path / "dst" / "model-00002-of-000003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(FormatError, match=r"model-00002.*was changed after it was written"):
        push(mini, fast_path / "dst")
    assert commits(hub) == 0


def test_what_is_dropped_goes_where_the_hub_can_be_asked_for_it(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    went = with_xet(hub, monkeypatch)
    push(mini, fast_path / "dst", drop=True)
    assert went == []
    assert len(sent(hub)) == 3
    assert on_hub(hub) == whole
    assert "Xet" not in caplog.text


def test_weights_that_nobody_has_any_more(hub: Hub, mini: Path, fast_path: Path) -> None:
    push(mini, fast_path / "dst", drop=True)
    hub.delete(REPO)
    with pytest.raises(TargetError, match=r"neither here nor on the hub.*remove that folder"):
        push(mini, fast_path / "dst", drop=True)
    shutil.rmtree(fast_path / "dst")
    push(mini, fast_path / "dst", drop=True)
    check_visible(hub)


def test_a_commit_that_fails_leaves_the_journal(
    hub: Hub, mini: Path, fast_path: Path, whole: dict[str, bytes], written: list[str]
) -> None:
    fault = hub.faults.add(Fault("/commit/", status=503))
    with pytest.raises(ResumableError, match="committing: the hub answers 503"):
        push(mini, fast_path / "dst", drop=True)
    assert fault.struck
    assert not (fast_path / "dst").exists()
    hub.faults.clear()
    written.clear()
    made = push(mini, fast_path / "dst", drop=True)
    assert not made.already_done
    assert written == []
    assert on_hub(hub) == whole
    assert len(sent(hub)) == 3
