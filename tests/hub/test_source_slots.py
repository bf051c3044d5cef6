"""A folder of the scratch for each process, and what killed ones leave there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

import fp8convert
from fp8convert.hub import scratch
from fp8convert.origin import Scratch

from .models import contents
from .server import Hub
from .traffic import Request

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
BODY = "cdn/.*model-00003-of-00006.safetensors"


class TestSlots:
    NAME = "org--model@0123456789ab"

    def test_one_for_each_process(self, tmp_path: Path) -> None:
        first = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        second = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        assert [first.folder.name, second.folder.name] == [f"{self.NAME}.0", f"{self.NAME}.1"]
        first.close()
        third = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        assert third.folder == first.folder
        second.close()
        third.close()
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_one_has_left(self, tmp_path: Path) -> None:
        other = tmp_path / f"{self.NAME}.3"
        foreign = tmp_path / "org--other@0123456789ab.0"
        for folder in (other, foreign):
            folder.mkdir()
            (folder / "x").write_bytes(b"x")
            folder.with_name(folder.name + scratch.LOCK).touch()
        (tmp_path / "my-notes.txt").write_text("mine")
        slot = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        assert not other.exists()
        assert (foreign / "x").exists()
        slot.close()
        left = {"my-notes.txt", foreign.name, foreign.name + scratch.LOCK}
        assert {p.name for p in tmp_path.iterdir()} == left

    def test_what_is_in_use_stays(self, tmp_path: Path) -> None:
        used = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        (used.folder / "x").write_bytes(b"x")
        scratch.Slot(tmp_path, self.NAME, own=False, keep=False).close()
        assert (used.folder / "x").exists()
        used.close()
        assert (used.folder / "x").exists(), "complete, for the next one"

    def test_a_lock_that_is_removed_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever opened it before has a lock on nothing."""
        lock = tmp_path / f"{self.NAME}.0{scratch.LOCK}"
        lock.touch()
        real, times = fcntl.flock, iter((True, False))

        def flock(fd: int, how: int) -> None:
            real(fd, how)
            if next(times, False):
                lock.unlink()

        monkeypatch.setattr(scratch.fcntl, "flock", flock)
        slot = scratch.Slot(tmp_path, self.NAME, own=False, keep=False)
        assert os.path.samestat(os.fstat(slot._fd), lock.stat())
        slot.close()

    def test_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(fd: int, how: int) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(scratch.fcntl, "flock", flock)
        slots = [scratch.Slot(tmp_path, self.NAME, own=True, keep=False) for _ in range(2)]
        assert slots[0].folder != slots[1].folder
        for slot in slots:
            slot.close()
        assert not list(tmp_path.glob(f"{self.NAME}.*[!k]"))

    def test_two_runs_share_a_scratch(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        asked = Scratch(tmp_path / "scratch")
        inner: list[fp8convert.Manifest] = []

        def meanwhile(request: Request) -> None:
            inner.append(fp8convert.to_bf16(AT, tmp_path / "other", scratch=asked))

        hub.on(BODY, meanwhile, at=50_000)
        fp8convert.to_bf16(AT, tmp_path / "dst", scratch=asked)
        assert len(inner) == 1
        assert contents(tmp_path / "dst") == contents(tmp_path / "other") == expected
        assert list((tmp_path / "scratch").iterdir()) == []
