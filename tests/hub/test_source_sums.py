"""Sums of downloads, taken while they come in."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp8convert.errors import ResumableError
from fp8convert.hub import sums
from fp8convert.hub.held import Held
from fp8convert.hub.sums import Follower, sum_of

from .files import git_oid

DATA = random.Random(5).randbytes(3_000_000)
HELD = Held(len(DATA), git_oid(b""), hashlib.sha256(DATA).hexdigest())


def follow(folder: Path, pieces: list[tuple[int, bytes]], cut: int | None = None) -> str:
    """The sum of what is written as huggingface_hub does: ``pieces``, at their places."""
    follower = Follower(folder, HELD)
    hidden = folder / ".cache" / "deep"
    hidden.mkdir(parents=True)
    incomplete = hidden / "name.etag.1234.incomplete"
    with incomplete.open("wb") as file:
        assert follower.found.wait(30)
        for at, piece in pieces:
            file.seek(at)
            file.write(piece)
            file.flush()
        if cut is not None:
            file.truncate(cut)
    os.replace(incomplete, folder / "name")
    return follower.end()


def in_order(step: int) -> list[tuple[int, bytes]]:
    return [(at, DATA[at : at + step]) for at in range(0, len(DATA), step)]


@pytest.mark.parametrize("step", [70_001, 1 << 20, len(DATA)])
def test_in_order(step: int, tmp_path: Path) -> None:
    assert follow(tmp_path, in_order(step)) == HELD.sum


def test_a_wrong_byte(tmp_path: Path) -> None:
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    assert follow(tmp_path, [(0, wrong)]) == hashlib.sha256(wrong).hexdigest() != HELD.sum


def test_shorter(tmp_path: Path) -> None:
    assert follow(tmp_path, [(0, DATA[:1000])]) == hashlib.sha256(DATA[:1000]).hexdigest()


def test_nothing_came(tmp_path: Path) -> None:
    assert Follower(tmp_path, HELD).end() == ""


def test_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert sum_of(path, HELD, lambda: None) == HELD.sum
    small = Held(5, git_oid(b"small"), None)
    path.write_bytes(b"small")
    assert sum_of(path, small, lambda: None) == small.git == small.sum


def test_it_can_be_stopped(tmp_path: Path) -> None:
    def stopped() -> None:
        raise ResumableError("stopped")

    path = tmp_path / "file"
    path.write_bytes(DATA)
    with pytest.raises(ResumableError, match="stopped"):
        sum_of(path, HELD, stopped)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sums.os, "preadv", failing)
    assert follow(tmp_path, in_order(1 << 20)) != HELD.sum


class TestHeld:
    def entry(self, **changes: object) -> SimpleNamespace:
        lfs = SimpleNamespace(sha256="a" * 64, size=7)
        return SimpleNamespace(**{"size": 7, "blob_id": "b" * 40, "lfs": lfs, **changes})

    def test_of(self) -> None:
        assert Held.of(self.entry()) == Held(7, "b" * 40, "a" * 64)
        assert Held.of(self.entry(lfs=None)) == Held(7, "b" * 40, None)

    @pytest.mark.parametrize(
        "changes",
        [{"size": -1, "lfs": None}, {"size": "7", "lfs": None}, {"size": True, "lfs": None},
         {"blob_id": "x"}, {"blob_id": "B" * 40}, {"lfs": SimpleNamespace(sha256="a", size=7)},
         {"lfs": SimpleNamespace(sha256="a" * 64, size=-7)}],
    )  # fmt: skip
    def test_no_sense(self, changes: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="size "):
            Held.of(self.entry(**changes))

    def test_fits(self) -> None:
        assert Held(5, git_oid(b"small"), None).fits(b"small")
        assert not Held(5, git_oid(b"small"), None).fits(b"smalL")
        assert not Held(6, git_oid(b"small"), None).fits(b"small")
        assert HELD.fits(DATA)
        assert not HELD.fits(DATA[1:])
