"""Bytes that no sum of the hub speaks of, and those that come in place of summed ones."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants, file_download

import fp8convert
from fp8convert.convert import prepare
from fp8convert.engine import Engine
from fp8convert.errors import DataError, FormatError, ResumableError, TargetError
from fp8convert.hub import feed, scratch
from fp8convert.hub.sums import Follower
from fp8convert.settings import Settings

from . import resolving
from .faults import Fault
from .models import contents
from .replies import Reply
from .server import Hub
from .test_source_sums import DATA, HELD

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
SHARD = "model-00003-of-00006.safetensors"
BODY = f"cdn/.*{SHARD}"


class TestHeader:
    """It comes before the shard, by a request of its own."""

    @pytest.fixture
    def renaming(self, tiny_fp8: Path, hub: Hub, tmp_path: Path) -> Path:
        """One shard without an index, of which another name comes: ``...norm.weighu``."""
        fp8convert.shard_for_tp(tiny_fp8, tmp_path / "ranks", 1)
        one = tmp_path / "one"
        fp8convert.unshard(tmp_path / "ranks", one, max_shard_size=1 << 40)
        (one / "manifest.json").unlink()
        hub.add(REPO, one)
        at = (one / "model.safetensors").read_bytes().index(b"norm.weight") + len("norm.weigh")
        self.fault = hub.faults.add(Fault("cdn/.*model.safetensors", flip=at, times=1))
        return one

    def test_one_that_came_wrong(self, renaming: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has another header than came when it was planned"):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        assert self.fault.struck == 1
        assert not (tmp_path / "dst").exists()
        with pytest.raises(TargetError, match="remove that folder to start over"):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        fp8convert.to_bf16(AT, tmp_path / "elsewhere")
        fp8convert.to_bf16(renaming, tmp_path / "here")
        assert contents(tmp_path / "elsewhere") == contents(tmp_path / "here")

    def test_a_tool_that_does_not_look_is_found_out(
        self, renaming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feed, "check_header", lambda fd, shard: None)
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert b"norm.weighu" in (tmp_path / "dst" / "model.safetensors").read_bytes()


class TestBegunAgain:
    """A hub that was asked for the rest of a shard, and sends all of it."""

    def test_what_comes_in_place_of_summed_bytes(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        real, whole = resolving._content, threading.Event()

        def content(repo: object, file: object, request: object, headers: object) -> Reply:
            if (request.range or "").endswith("-"):  # type: ignore[attr-defined]
                request.range = ""  # type: ignore[attr-defined]
                whole.set()
            return real(repo, file, request, headers)  # type: ignore[arg-type]

        seen: list[bool] = []

        def until_it_is_summed(seconds: float) -> None:
            time.sleep(0.2)  # many looks of the follower
            seen.append(True)

        monkeypatch.setattr(resolving, "_content", content)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=until_it_is_summed))
        hub.add(REPO, chain)
        hub.faults.add(Fault(BODY, cut=50_000, times=1))
        flip = hub.faults.add(Fault(BODY, flip=20_000, skip=1, times=1))
        with caplog.at_level(logging.WARNING):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        assert whole.is_set()
        assert (flip.struck, seen) == (1, [True])
        assert contents(tmp_path / "dst") == expected
        said = [r.getMessage() for r in caplog.records if "Error while downloading" in r.msg]
        assert said, "by huggingface_hub, to whoever uses the library"
        assert not any("X-Amz" in text for text in said)

    def test_a_shorter_file(self, tmp_path: Path) -> None:
        follower = Follower(tmp_path, HELD)
        with (tmp_path / "x.incomplete").open("wb") as file:
            file.write(DATA)
            file.flush()
            assert follower.found.wait(30)
            while follower._hasher.hexdigest() != HELD.sum:
                time.sleep(0.001)
            file.truncate(5)
        assert follower.end() == ""

    def test_it_is_told(self, tmp_path: Path) -> None:
        follower = Follower(tmp_path, HELD)
        (tmp_path / "x.incomplete").write_bytes(DATA)
        assert follower.found.wait(30)
        follower.begun_again()
        assert follower.end() == ""


def test_a_commit_that_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would be a part of the names of folders."""
    odd = SimpleNamespace(sha="/../../x")
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: odd)
    with pytest.raises(FormatError, match=r"@main: the hub says that it is at '/\.\."):
        prepare(AT, tmp_path / "dst")
    assert not any("/tree/" in r.path for r in hub.log)


def test_the_commit_that_was_begun_with_is_gone(chain: Path, hub: Hub, tmp_path: Path) -> None:
    first = hub.add(REPO, chain)
    hub.faults.add(Fault(BODY, drop=True, skip=2))
    with pytest.raises(ResumableError):
        fp8convert.to_bf16(AT, tmp_path / "dst")
    hub.faults.clear()
    hub.put(REPO, {"LICENSE": b"another\n"})
    hub.faults.add(Fault(f"/tree/{first}", status=404, code="RevisionNotFound"))
    with pytest.raises(FormatError, match=r"or commit: the unfinished run .* anew"):
        fp8convert.to_bf16(AT, tmp_path / "dst")
    fp8convert.to_bf16(AT, tmp_path / "elsewhere")


class TestSlots:
    NAME = "org--model@0123456789ab"

    def test_what_another_run_has_kept_stays(self, tmp_path: Path) -> None:
        """It may be at work on it, and would find it changed."""
        slots = [scratch.Slot(tmp_path, self.NAME, own=False, keep=True) for _ in range(2)]
        found = []
        for slot in slots:
            (slot.folder / "x").write_bytes(b"12345")
            place = slot.put(slot.folder / "x", "x")
            found.append((place, place.stat().st_ino, place.stat().st_mtime_ns))
        assert found[0] == found[1]
        (slots[0].folder / "x").write_bytes(b"123456")
        assert slots[0].put(slots[0].folder / "x", "x").read_bytes() == b"123456"
        for slot in slots:
            slot.close()
        assert [p.name for p in tmp_path.iterdir()] == [self.NAME]

    def test_nothing_stays_where_nobody_finds_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(fd: int, how: int) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(scratch.fcntl, "flock", flock)
        slot = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        (slot.folder / "x").write_bytes(b"12345")
        slot.close()
        assert list(tmp_path.iterdir()) == []


def test_downloads_are_stopped_without_the_lock_that_they_wait_for(
    chain: Path, tmp_path: Path
) -> None:
    """One of them may be telling of bytes, and whoever stops them waits for it."""
    job = prepare(chain, tmp_path / "dst")
    engine, free = Engine(job.catalogue, job.stage, Settings()), []

    def stop() -> None:
        teller = threading.Thread(target=engine._advance, args=(0, 0, 1), daemon=True)
        teller.start()
        teller.join(30)
        free.append(not teller.is_alive())

    engine.feed = SimpleNamespace(stop=stop)  # type: ignore[assignment]
    engine._fail(ResumableError("interrupted"))
    assert free == [True]
