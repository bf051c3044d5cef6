"""One file of a target in a store: tiles come in any order, and are sent and hashed in theirs."""

from __future__ import annotations

import hashlib
import threading

import pytest

from fp8convert.errors import Fp8ConvertError, ResumableError
from fp8convert.fileio import Turns
from fp8convert.stores.output import ObjectOutput


class Noted:
    """An upload that notes what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended: list[str] = []

    def write(self, view: memoryview) -> None:
        self.data += view

    def finish(self) -> None:
        self.ended.append("finish")

    def commit(self) -> None:
        self.ended.append("commit")

    def discard(self) -> None:
        self.ended.append("discard")
        raise ResumableError("the network is gone")


def output(size: int, checksum: bool = True) -> tuple[Noted, ObjectOutput]:
    upload = Noted()
    return upload, ObjectOutput("x", size, upload, checksum, lambda done: done.commit())


@pytest.mark.parametrize("checksum", [True, False])
def test_an_output_sends_in_order(checksum: bool) -> None:
    upload, made = output(8, checksum)
    views = {6: b"gh", 0: b"abc", 3: b"def"}
    threads = [
        threading.Thread(target=made.hash, args=(memoryview(v), b)) for b, v in views.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes(upload.data) == b"abcdefgh"
    assert made.finish() == (hashlib.sha256(b"abcdefgh").hexdigest() if checksum else None)
    made.install()
    assert upload.ended == ["finish", "commit"]


def test_an_output_that_is_not_whole() -> None:
    upload, made = output(9)
    made.hash(memoryview(b"abc"), 0)
    with pytest.raises(Fp8ConvertError, match="x: sent 3 of 9 bytes"):
        made.finish()
    made.abandon()
    assert upload.ended == ["discard"]


def test_waiting_ends_when_stopped() -> None:
    _, made = output(9)
    found: list[BaseException] = []

    def late() -> None:
        try:
            made.hash(memoryview(b"def"), 3)
        except ResumableError as e:
            found.append(e)

    thread = threading.Thread(target=late)
    thread.start()
    made.stop()
    thread.join()
    assert len(found) == 1


def test_turns_are_not_passed_on_by_what_fails() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="no"), turns.turn(0, 3):
        raise ValueError("no")
    with turns.turn(0, 3):
        pass
    with turns.turn(3, 1):
        pass
