"""Objects written in order: in parts, not there before they are committed, and not left behind."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from fp8convert.convert import execute, prepare
from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError
from fp8convert.settings import Settings
from fp8convert.stores import uploads
from fp8convert.stores.address import ObjectPath
from fp8convert.stores.blocks import LANES, Block, Lanes
from fp8convert.stores.store import Store
from fp8convert.stores.uploads import KINDS, MOST_PARTS, PART, part_size

from ..mini import CONFIG, write_shards
from .emulator import Answer, Emulator, Place, Request
from .feeding import fed

MIB = 1 << 20
WAYS = ("s3", "memory")


def begun(way: str, size: int, lanes: Lanes | None = None) -> tuple[Place, Any]:
    """An upload of ``x/y`` of so many bytes, and where it goes."""
    place = Place(way)
    store = Store(ObjectPath.of(place.at("x")), TargetError)
    return place, KINDS[way](store, "y", size, lanes or Lanes())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """As small as S3 takes them."""
    monkeypatch.setattr(uploads, "PART", 5 * MIB)
    return 5 * MIB


# --- What is committed is there, and nothing before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [8, 5 * MIB - 1, 5 * MIB, 13 * MIB + 5])
def test_bytes(s3: Emulator, small_parts: int, way: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    place, upload = begun(way, size)
    fed(upload, data, 1_900_000)
    assert place.files("x") == {}
    upload.finish()
    assert place.files("x") == {}
    upload.commit()
    assert place.files("x") == {"y": data}
    if way != "memory":
        assert place.uploads() == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", [0, 100, 6 * MIB, 11 * MIB])
@pytest.mark.parametrize("finished", [False, True], ids=["midway", "finished"])
def test_discarded(s3: Emulator, small_parts: int, way: str, written: int, finished: bool) -> None:
    """Nothing of it is left, whether parts were sent or not; what was there before stays."""
    place, upload = begun(way, 20 * MIB)
    place.put("x/y", b"earlier")
    fed(upload, bytes(written), MIB)
    if finished and written:
        upload.finish()
    if way != "memory":
        assert bool(place.uploads()) == ((finished and written > 0) or written > 5 * MIB)
    upload.discard()
    upload.discard()
    del upload  # fsspec's files send what they have when they are collected
    assert place.files("x") == {"y": b"earlier"}
    if way != "memory":
        assert place.uploads() == []


def test_parts_are_of_one_size(bucket: Place, s3: Emulator, small_parts: int) -> None:
    _, upload = begun("s3", 12 * MIB)
    s3.requests.clear()
    fed(upload, bytes(12 * MIB), 7 * MIB)
    upload.finish()
    upload.commit()
    sent = s3.asked("PUT", "partNumber")
    assert sorted(r.query["partNumber"] for r in sent) == ["1", "2", "3"]
    assert len(s3.asked("POST", "uploads")) == len(s3.asked("POST", "uploadId")) == 1


def test_sizes_of_parts() -> None:
    """Never more than S3 takes, nor smaller than it does."""
    for size in (0, 1, PART, PART * MOST_PARTS, PART * MOST_PARTS + 1, 5 << 40):
        assert part_size(size) >= PART >= 5 * MIB
        assert -(-size // part_size(size)) <= MOST_PARTS < 10_000
    assert part_size(PART * MOST_PARTS) == PART < part_size(PART * MOST_PARTS + 1)


# --- What fails


def failing(part: str) -> Any:
    """An answer to one part: the store is overwhelmed, or the like."""

    def before(request: Request) -> Answer | None:
        if request.query.get("partNumber") == part and request.method == "PUT":
            return Answer.error("500 Internal Server Error", "InternalError")
        return None

    return before


def test_a_part_that_fails_is_told_and_aborted(s3: Emulator, small_parts: int) -> None:
    place, upload = begun("s3", 10 * MIB)
    with s3.answering(failing("2")):
        fed(upload, bytes(10 * MIB), 5 * MIB)
        with pytest.raises(ResumableError, match=r"does not answer as it should.*InternalError"):
            upload.finish()
        upload.discard()
    assert (place.uploads(), place.files("x")) == ([], {})


@pytest.mark.parametrize("part", ["1", "3"])
def test_a_part_that_is_tried_again_is_sent_whole(
    s3: Emulator, small_parts: int, part: str
) -> None:
    """By s3fs, which calls the client once more with the same body, read to its end by then."""
    data, failed = random.Random(0).randbytes(12 * MIB), 0

    def before(request: Request) -> Answer | None:
        nonlocal failed
        if request.query.get("partNumber") != part or request.method != "PUT" or failed == 2:
            return None
        failed += 1
        return Answer.error("503 Slow Down", "SlowDown")

    place, upload = begun("s3", len(data))
    with s3.answering(before):
        fed(upload, data, MIB)
        upload.finish()
    upload.commit()
    assert failed == 2
    assert place.files("x") == {"y": data}


def test_a_completion_whose_answer_is_lost(
    mini: Path, bucket: Place, s3: Emulator, tmp_path: Path
) -> None:
    """The store knows of no such upload any more when it is asked again: the file is redone."""

    def before(request: Request) -> Answer | None:
        lost = request.method == "POST" and "uploadId" in request.query
        return Answer.error("404 Not Found", "NoSuchUpload") if lost else None

    with s3.answering(before), pytest.raises(ResumableError, match="its upload is gone"):
        execute(prepare(mini, bucket.at("dst")))
    execute(prepare(mini, bucket.at("dst")))
    execute(prepare(mini, tmp_path / "dst"))
    assert bucket.files("dst") == {p.name: p.read_bytes() for p in (tmp_path / "dst").iterdir()}


def test_a_failing_part_ends_a_long_upload_early(s3: Emulator, small_parts: int) -> None:
    """It is not the last to be known: most is not sent any more."""
    lanes = Lanes(1)
    _, upload = begun("s3", 100 * MIB, lanes)
    s3.requests.clear()
    with s3.answering(failing("2")), pytest.raises(ResumableError):
        fed(upload, bytes(100 * MIB), 5 * MIB)
    assert len({r.query["partNumber"] for r in s3.asked("PUT", "partNumber")}) <= 4
    upload.discard()


def test_a_run_that_fails_leaves_no_upload(
    bucket: Place, s3: Emulator, small_parts: int, tmp_path: Path
) -> None:
    """Refused midway: the source has a code that is no number. Of the other file all is there."""
    folder = damaged(tmp_path / "src", last=0x7F)
    with pytest.raises(Fp8ConvertError, match=r"l1\.weight"):
        execute(prepare(folder, bucket.at("dst")), Settings(workers=2))
    assert s3.asked("PUT", "partNumber")
    assert s3.asked("DELETE", "uploadId")
    assert bucket.uploads() == []
    assert "model-00002-of-00002.safetensors" not in bucket.files("dst")
    damaged(tmp_path / "good", last=0)
    execute(prepare(tmp_path / "good", bucket.at("good")), Settings(workers=2))
    assert "model-00002-of-00002.safetensors" in bucket.files("good")


def damaged(folder: Path, last: int) -> Path:
    """Two shards, of 8 MiB in BF16 each, the second with that code as its last."""
    shards = []
    for n in range(2):
        codes = bytearray(4 * MIB)
        codes[-1] = last * n
        scales = ("F32", (16, 16), bytes.fromhex("0000803f") * 256)
        shards.append(
            {f"l{n}.weight": ("F8_E4M3", (2048, 2048), bytes(codes)),
             f"l{n}.weight_scale_inv": scales}
        )  # fmt: skip
    return write_shards(folder, shards, CONFIG)


# --- What a killed run has left


def test_left_uploads_are_aborted(bucket: Place, s3: Emulator) -> None:
    """Those of the target's files, in whatever number; nobody else's."""
    store = Store(ObjectPath.of(bucket.at("x")), TargetError)
    for key in ("x/a", "x/a", "x/rank0/b", "x/other", "xa", "elsewhere/a"):
        bucket.fs.call_s3("create_multipart_upload", Bucket=bucket.bucket, Key=key)
    uploads.abort_left(store, {"a", "rank0/b", "c"})
    assert sorted(bucket.uploads()) == ["elsewhere/a", "x/other", "xa"]


def test_they_may_come_in_pages(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(ObjectPath.of(bucket.at("x")), TargetError)
    pages = [
        {"Uploads": [{"Key": "x/a", "UploadId": "1"}], "IsTruncated": True,
         "NextKeyMarker": "x/a", "NextUploadIdMarker": "1"},
        {"Uploads": [{"Key": "x/b", "UploadId": "2"}]},
    ]  # fmt: skip
    asked: list[Any] = []
    aborted: list[Any] = []
    monkeypatch.setattr(store, "uploads", lambda marks: asked.append(marks) or pages.pop(0))
    monkeypatch.setattr(store, "called", lambda *words, **more: aborted.append((*words, more)))
    uploads.abort_left(store, {"a", "b"})
    assert asked == [{}, {"KeyMarker": "x/a", "UploadIdMarker": "1"}]
    assert [(n, m["UploadId"]) for n, _, m in aborted] == [("a", "1"), ("b", "2")]


def test_where_they_may_not_be_listed(bucket: Place, s3: Emulator) -> None:
    """A run goes on."""
    store = Store(ObjectPath.of(bucket.at("x")), TargetError)
    denied = Answer.error("403 Forbidden", "AccessDenied")
    with s3.answering(lambda r: denied if "uploads" in r.query else None):
        uploads.abort_left(store, {"a"})
    assert [r.method for r in s3.requests] == ["GET"]


@pytest.mark.parametrize("code", ["404 NoSuchUpload", "403 AccessDenied"])
def test_those_that_cannot_be_aborted(bucket: Place, s3: Emulator, code: str) -> None:
    """Its run has just ended it, or that is not permitted: the others are, and the run goes on."""
    store = Store(ObjectPath.of(bucket.at("x")), TargetError)
    for key in ("x/a", "x/b"):
        bucket.fs.call_s3("create_multipart_upload", Bucket=bucket.bucket, Key=key)

    def before(request: Request) -> Answer | None:
        barred = request.method == "DELETE" and request.key.endswith("/a")
        return Answer.error(code, code[4:]) if barred else None

    with s3.answering(before):
        uploads.abort_left(store, {"a", "b"})
    assert bucket.uploads() == ["x/a"]


# --- Blocks


def test_a_block_is_a_file() -> None:
    data = random.Random(0).randbytes(100)
    block, file = Block(64), io.BytesIO(data[:64])
    assert [block.add(memoryview(data[:40])), block.add(memoryview(data[40:]))] == [40, 24]
    for of in (block, file):
        assert of.seek(3) == of.tell() == 3
    assert block.read(5) == file.read(5)
    assert block.seek(2, io.SEEK_CUR) == file.seek(2, io.SEEK_CUR)
    assert block.seek(-10, io.SEEK_END) == file.seek(-10, io.SEEK_END)
    assert block.read() == file.read()
    assert block.read(5) == b""
    assert block.seek(1000) == 1000
    assert block.read(5) == b""
    block.empty()
    assert (block.filled, block.add(memoryview(b"12"))) == (0, 2)
    assert block.read() == b"12"


def test_blocks_are_used_again_and_few_are_on_their_way() -> None:
    lanes, gate = Lanes(2), threading.Event()
    first = lanes.block(10)
    sent = [
        lanes.send(first, lambda b: gate.wait()),
        lanes.send(lanes.block(10), lambda b: gate.wait()),
    ]
    waiting = threading.Thread(target=lambda: sent.append(lanes.send(lanes.block(10), lambda b: 3)))
    waiting.start()
    assert len(sent) == 2  # it cannot be three: both threads wait for the gate
    gate.set()
    waiting.join()
    assert sent[2].result() == 3
    lanes.close()
    assert lanes.block(11).size == 11
    again = lanes.block(10)
    assert lanes.send(again, lambda b: b.size).result() == 10
    assert lanes.block(10) is again
    lanes.close()


def test_the_memory_of_parts_is_accounted_for(mini: Path, bucket: Place) -> None:
    job = prepare(mini, bucket.at("dst"))
    assert job.stage.memory >= (LANES + 1) * part_size(max(t.size for t in job.plan.tasks))
    assert job.fitted(Settings()).needs.downloads == job.stage.memory
    assert prepare(mini, "unwritten").stage.memory == 0
