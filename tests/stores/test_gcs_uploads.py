"""Resumable uploads to Google's store: what arrives, what is seen, what is left, what is told."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from fp8convert.errors import ResumableError, TargetError
from fp8convert.stores import blocks, google
from fp8convert.stores.address import ObjectPath
from fp8convert.stores.blocks import Block, Lanes
from fp8convert.stores.google import BLOCK, PATIENCE, Resumable
from fp8convert.stores.store import Store
from fp8convert.stores.uploads import KINDS

from .feeding import fed
from .gcs import CUT, LOST, UNIT, Answer, Before, Bucket, Google, Stored, at

BUSY = Answer.error(503)
SIZES = (1, 8, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT, 3 * UNIT + 5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as small as Google takes them."""
    monkeypatch.setattr(google, "BLOCK", UNIT)


def begun(cloud: Bucket, lanes: Lanes | None = None) -> Resumable:
    """An upload of ``x/y``."""
    store = Store(ObjectPath.of(cloud.at("x")), TargetError)
    return Resumable(store, "y", 0, lanes or Lanes())


def bytes_of(size: int) -> bytes:
    """Some that are at no two places the same."""
    return random.Random(size).randbytes(size)


def written(upload: Resumable, data: bytes) -> str:
    """The whole of it; the generation."""
    fed(upload, data)
    upload.finish()
    return upload.commit()


# --- What is committed is there, and nothing before


@pytest.mark.parametrize("size", [0, *SIZES])
def test_bytes(cloud: Bucket, google: Google, size: int) -> None:
    data, upload = bytes_of(size), begun(cloud)
    fed(upload, data)
    upload.finish()
    assert cloud.files("x") == {}
    assert upload.commit() == str(cloud.objects["x/y"].generation)
    assert cloud.files("x") == {"y": data}
    assert cloud.uploads() == []
    assert len(google.asked("begin")) == 1
    assert len(google.asked("chunk")) == max(-(-size // UNIT), 1)


def test_the_block_is_what_google_takes() -> None:
    assert BLOCK % UNIT == 0
    assert KINDS["gs"] is Resumable


@pytest.mark.parametrize("size", [0, 100, UNIT, 2 * UNIT + 5])
@pytest.mark.parametrize("finished", [False, True], ids=["midway", "finished"])
def test_discarded(cloud: Bucket, size: int, finished: bool) -> None:
    """Nothing of it is left, whether anything was sent or not; what was there before stays."""
    cloud.put("x/y", b"earlier")
    upload = begun(cloud)
    fed(upload, bytes_of(size))
    if finished:
        upload.finish()
    assert bool(cloud.uploads()) == (size > UNIT)
    upload.discard()
    upload.discard()
    assert cloud.files("x") == {"y": b"earlier"}
    assert cloud.uploads() == []


def test_few_blocks_are_held(cloud: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one upload: the one on its way, and the one that is filled, whatever comes at once."""
    made: list[int] = []
    real = Block.__init__

    def init(self: Block, size: int) -> None:
        made.append(size)
        real(self, size)

    monkeypatch.setattr(blocks.Block, "__init__", init)
    upload = begun(cloud)
    upload.write(memoryview(bytes_of(20 * UNIT)))
    upload.finish()
    upload.commit()
    assert cloud.files("x") == {"y": bytes_of(20 * UNIT)}
    assert made in ([UNIT], [UNIT] * 2, [UNIT] * 3)  # a lane is free a moment before its block is


def test_what_is_left_of_a_block() -> None:
    """Bytes move over themselves."""
    data, block = bytes_of(100), Block(100)
    block.add(memoryview(data))
    assert block.read(30) == data[:30]
    block.drop(7)
    assert (block.filled, block.tell()) == (93, 0)
    block.close()
    assert block.read() == data[7:]
    block.drop(93)
    assert (block.filled, block.read()) == (0, b"")


# --- What fails once


@pytest.mark.parametrize("answer", [BUSY, LOST, CUT], ids=["busy", "lost", "cut"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_chunk_that_fails_once(
    cloud: Bucket, google: Google, hasty: None, answer: Answer, number: int
) -> None:
    """Also where it was taken, and the answer was lost: nothing is there twice."""
    data = bytes_of(3 * UNIT + 5)
    with google.answering(at("chunk", answer, number, number)):
        mark = written(begun(cloud), data)
    assert cloud.files("x") == {"y": data}
    assert mark == str(cloud.objects["x/y"].generation)
    assert len(google.asked("chunk")) == 5


@pytest.mark.parametrize("answer", [BUSY, LOST, CUT], ids=["busy", "lost", "cut"])
def test_a_beginning_that_fails_once(
    cloud: Bucket, google: Google, hasty: None, answer: Answer
) -> None:
    with google.answering(at("begin", answer, 1, 1)):
        written(begun(cloud), b"123")
    assert cloud.files("x") == {"y": b"123"}


@pytest.mark.parametrize("size", [2 * UNIT, 4 * UNIT, 8 * UNIT + 5])
def test_a_store_that_takes_less_than_it_was_sent(
    cloud: Bucket, google: Google, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The rest is sent again."""
    monkeypatch.setattr("fp8convert.stores.google.BLOCK", 4 * UNIT)
    monkeypatch.setattr(google, "takes", lambda body: body[: UNIT if len(body) > UNIT else None])
    written(begun(cloud), bytes_of(size))
    assert cloud.files("x") == {"y": bytes_of(size)}
    assert len(google.asked("chunk")) == -(-size // UNIT)


# --- What fails for good


def failing(
    cloud: Bucket, google: Google, before: Before, words: str, error: type = ResumableError
) -> None:
    """It is told, without the upload's address; nothing is seen, nor left."""
    upload = begun(cloud)
    with google.answering(before), pytest.raises(error, match=words) as found:
        written(upload, bytes_of(3 * UNIT + 5))
    assert not [key for key in google.uploads if key in str(found.value)]
    assert "'gs://bucket-" in str(found.value)
    assert "\n" not in str(found.value)
    upload.discard()
    assert cloud.files("x") == {}
    assert cloud.uploads() == []


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("answer", [BUSY, CUT], ids=["busy", "cut"])
def test_a_store_that_is_gone(
    cloud: Bucket, google: Google, hasty: None, answer: Answer, first: int
) -> None:
    before = at("chunk", answer, first)
    failing(cloud, google, before, "does not answer as it should.*run the same again")
    assert len(google.asked("chunk")) >= first - 1 + 6  # as often as gcsfs tries


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_is_gone(
    cloud: Bucket, google: Google, hasty: None, status: int, first: int
) -> None:
    """Not the bucket: the same again begins another."""
    failing(cloud, google, at("chunk", Answer.error(status), first), "its upload is gone")


@pytest.mark.parametrize("answer", [Answer(308), Answer.error(499), Answer(200, b"<html>")])
def test_a_store_that_takes_nothing(cloud: Bucket, google: Google, answer: Answer) -> None:
    """It is asked a few times; 499 is what it says of an upload that was cancelled."""
    failing(cloud, google, at("chunk", answer, 2), f"takes nothing from byte {UNIT:,} on")
    assert len(google.asked("chunk")) == 1 + PATIENCE


@pytest.mark.parametrize("taken", ["bytes=0-9", "bytes=0-9999999"])
def test_a_store_that_has_what_was_not_sent(cloud: Bucket, google: Google, taken: str) -> None:
    """Or has lost what it had."""
    odd = Answer(308, b"", (("Range", taken),))
    failing(cloud, google, at("chunk", odd, 2), r"bytes taken, expected 262,144 to 524,288")


@pytest.mark.parametrize("kind", ["begin", "chunk"])
def test_not_permitted(cloud: Bucket, google: Google, kind: str) -> None:
    failing(cloud, google, at(kind, Answer.error(403)), "access is refused", TargetError)


@pytest.mark.parametrize("size", SIZES)
def test_what_arrives_damaged_is_noticed(
    cloud: Bucket, google: Google, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """One bit of the last block: the store has it, and says another CRC of it."""
    damage: Callable[[bytes], bytes] = lambda body: body[:-1] + bytes([body[-1] ^ 1])  # noqa: E731
    monkeypatch.setattr(google, "takes", damage)
    with pytest.raises(ResumableError, match=r"with CRC-32C .* came, expected .*: run the same"):
        written(begun(cloud), bytes_of(size))
    assert len(cloud.files("x")["y"]) == size


def test_the_crc_is_castagnoli_s(cloud: Bucket) -> None:
    """By its known check value, of which both ends of these tests would otherwise be the same."""
    found = Stored(b"123456789", 1, "").resource("b", "n")
    assert found["crc32c"] == "4waSgw=="  # E3069283
    assert written(begun(cloud), b"123456789")


def test_an_object_of_another_size(cloud: Bucket, google: Google) -> None:
    """As told by the store when it is whole."""
    told: dict[str, Any] = {**Stored(b"1234", 7, "").resource("b", "n"), "size": "3"}
    with google.answering(at("chunk", Answer.of(told))), pytest.raises(
        ResumableError, match=r"'3' bytes .* came, expected 4 with"
    ):  # fmt: skip
        written(begun(cloud), b"1234")
