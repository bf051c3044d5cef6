"""A checkpoint in a store: its names, its bytes, and that it is the one that was planned."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert import origins
from fp8convert.convert import execute, prepare
from fp8convert.errors import FormatError, Fp8ConvertError, ResumableError, TargetError
from fp8convert.folder import Folder
from fp8convert.inspection import inspect
from fp8convert.origin import Origin, Scratch, Shard
from fp8convert.settings import Settings
from fp8convert.shards import read_shards
from fp8convert.stores import origin as reading
from fp8convert.stores.state import JOB

from .emulator import Answer, Emulator, Place, Request

SHARD = "model-00001-of-00002.safetensors"


def opened(place: Place) -> Origin:
    """The source ``src`` of a place."""
    return origins.at(place.at("src"))


def planned(origin: Origin, name: str = SHARD) -> Shard:
    """One of its shards."""
    (shard,), _ = read_shards(origin, [name])
    return shard


# --- Names


def test_names_as_a_folder_has_them(tmp_path: Path, place: Place) -> None:
    for name in ("config.json", "b.txt", "rank0/model.safetensors", "rank0/deep/x", "rank1/y"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(name)
    place.upload(tmp_path / "src", "src")
    place.put("src-other/z", b"z")  # begins as the name of the place does
    local, remote = Folder.at(tmp_path / "src"), opened(place)
    for sub in ("", "rank0", "rank1"):
        assert remote.names(sub) == local.names(sub)
    for name in (
        "config.json", "rank0/model.safetensors", "rank0", "rank0/none", "none", "none/x"
    ):  # fmt: skip
        assert remote.has(name) == local.has(name), name
        assert remote.is_folder(name) == local.is_folder(name), name
    for name in ("config.json", "rank0/model.safetensors"):
        assert remote.size(name) == local.size(name)
        assert remote.read(name, 100, "test") == local.read(name, 100, "test")
    assert remote.place == place.at("src")
    assert (remote.provenance, remote.asked, remote.remarks) == ({}, "", ())


def test_a_console_s_marker_of_a_folder_is_no_file(bucket: Place) -> None:
    bucket.fs.call_s3("put_object", Bucket=bucket.bucket, Key="src/", Body=b"")
    bucket.fs.call_s3("put_object", Bucket=bucket.bucket, Key="src/rank0/", Body=b"")
    bucket.put("src/x", b"x")
    assert opened(bucket).names() == ["rank0", "x"]


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", ".", "a//b", "a\\b", "a\0"])
def test_odd_names_are_refused(place: Place, name: str) -> None:
    place.put("src/x", b"x")
    origin = opened(place)
    for ask in (origin.has, origin.size, lambda n: origin.read(n, 1, "index")):
        with pytest.raises(FormatError, match="not a plain file name"):
            ask(name)


def test_what_is_not_there(place: Place) -> None:
    for address in (place.at("none"), place.at("none/deeper")):
        with pytest.raises(FormatError, match=r"none.* does not exist"):
            origins.at(address)
    place.put("src/x", b"x")
    with pytest.raises(FormatError, match=r"'y' \(companion file\) is missing from"):
        opened(place).size("y")
    with pytest.raises(FormatError, match="is an object, expected a folder"):
        origins.at(place.at("src/x"))


def test_a_folder_in_a_file_s_place(place: Place) -> None:
    place.put("src/config.json/x", b"x")
    with pytest.raises(FormatError, match=r"'config.json' \(config\) is a folder"):
        opened(place).read("config.json", 10, "config")


def test_small_files_are_bounded(place: Place) -> None:
    place.put("src/x", b"12345")
    place.put("src/empty", b"")
    origin = opened(place)
    assert origin.read("x", 5, "test") == b"12345"
    assert origin.read("empty", 5, "test") == b""
    with pytest.raises(FormatError, match="'x' has 5 bytes, expected at most 4"):
        origin.read("x", 4, "test")


def test_a_place_is_listed_once(mini: Path, bucket: Place, s3: Emulator) -> None:
    bucket.upload(mini, "src")
    s3.requests.clear()
    prepare(bucket.at("src"), "unwritten")
    assert len(s3.asked("GET", "list-type")) == 1


# --- An unfinished conversion is no checkpoint


def test_an_unfinished_target_is_no_source(mini: Path, place: Place) -> None:
    place.upload(mini, "src")
    place.put(f"src/{JOB}", b"{}")
    with pytest.raises(FormatError, match=r"unfinished conversion.*expected its manifest.json"):
        opened(place)
    place.put("src/manifest.json", b"{}")
    assert opened(place).has("manifest.json")


# --- Bytes


def test_headers_are_read_by_their_ranges_alone(mini: Path, bucket: Place, s3: Emulator) -> None:
    address = bucket.upload(mini, "src")
    s3.requests.clear()
    assert inspect(address).to_dict() | {"path": ""} == inspect(mini).to_dict() | {"path": ""}
    ranges = [r for r in s3.asked("GET") if r.key.endswith(".safetensors")]
    header = {n: 8 + int.from_bytes((mini / n).read_bytes()[:8], "little") for n in _shards(mini)}
    assert sum(r.asked for r in ranges) == sum(64 + n - 8 for n in header.values())
    assert all(r.range for r in ranges)


def _shards(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.safetensors"))


def test_a_peek_ends_where_the_object_does(place: Place) -> None:
    place.put("src/x.safetensors", b"0123456789")
    with opened(place).peek("x.safetensors") as found:
        assert (found.size, found.mtime_ns) == (10, 0)
        assert found.etag
        assert found.read(4, 0) == b"0123"
        assert found.read(64, 7) == b"789"
        assert found.read(64, 10) == b""


def test_read_fills_just_what_it_must(mini: Path, bucket: Place, s3: Emulator) -> None:
    bucket.upload(mini, "src")
    origin, data = opened(bucket), (mini / SHARD).read_bytes()
    file = origin.opened(planned(origin), "direct")
    view = memoryview(bytearray(b"\xaa" * 8192))
    s3.requests.clear()
    file.read(view, 4096, 4096 + 5000)
    assert bytes(view) == data[4096:9096] + b"\xaa" * 3192
    assert [r.range for r in s3.requests] == ["bytes=4096-9095"]


@pytest.mark.parametrize(("asked", "requests"), [(10_000, 5), (1 << 20, 1), (700, 50), (50, 100)])
def test_gather(
    mini: Path, bucket: Place, s3: Emulator, monkeypatch: pytest.MonkeyPatch, asked: int,
    requests: int,
) -> None:  # fmt: skip
    """Runs that are near each other come together, others alone, and none is asked for twice."""
    monkeypatch.setattr(reading, "ASKED", asked)
    bucket.upload(mini, "src")
    origin, data = opened(bucket), np.frombuffer((mini / SHARD).read_bytes(), np.uint8)
    count, length, stride, begin = 50, 70, 1000, 123
    expected = b"".join(data[begin + k * stride :][:length].tobytes() for k in range(count))
    file = origin.opened(planned(origin), "auto")
    view = memoryview(bytearray(count * length))
    s3.requests.clear()
    file.gather(view, begin, count, stride)
    assert bytes(view) == expected
    assert len(s3.requests) == requests
    assert max(r.asked for r in s3.requests) <= asked


def test_no_request_asks_for_more_than_it_may(
    bucket: Place, s3: Emulator, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything asked for twice, by a conversion that cuts nothing."""
    monkeypatch.setattr(reading, "ASKED", 8192)
    address = bucket.upload(mini, "src")
    s3.requests.clear()
    fp8convert.to_bf16(address, tmp_path / "dst", workers=3)
    ranges = [r for r in s3.asked("GET") if r.key.endswith(".safetensors")]
    assert max(r.asked for r in ranges) == 8192
    total = sum((mini / name).stat().st_size for name in _shards(mini))
    assert total <= sum(r.asked for r in ranges) < total + 4096 * len(ranges)


def test_the_memory_of_requests_is_accounted_for(mini: Path, place: Place) -> None:
    place.upload(mini, "src")
    origin = opened(place)
    most = origin.feed([], [], Scratch()).memory
    assert most >= 2 * reading.REQUESTS * reading.ASKED
    job = prepare(place.at("src"), "unwritten")
    local = prepare(mini, "unwritten")
    less = job.fitted(Settings()).tile
    assert less < local.fitted(Settings()).tile or less == 8 << 20
    assert job.fitted(Settings()).needs.downloads == most
    assert local.fitted(Settings()).needs.downloads == 0


def test_few_requests_are_on_their_way(
    mini: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads read: half of them are let in here, and wait for each other."""
    place.upload(mini, "src")
    origin = opened(place)
    file = origin.opened(planned(origin), "auto")
    together, now, most = threading.Barrier(reading.REQUESTS), set(), []

    def get(name: str, begin: int, end: int) -> bytes:
        now.add(begin)
        most.append(len(now))
        together.wait(30)
        now.discard(begin)
        return bytes(end - begin)

    monkeypatch.setattr(file._store, "get", get)
    with ThreadPoolExecutor(2 * reading.REQUESTS) as pool:
        for begin in range(2 * reading.REQUESTS):
            pool.submit(file.read, memoryview(bytearray(1)), begin, begin + 1)
    assert len(most) == 2 * reading.REQUESTS
    assert max(most) == reading.REQUESTS


# --- Changes


@pytest.fixture
def changing(mini: Path, place: Place) -> tuple[Place, Any]:
    """A shard of mini, open."""
    place.upload(mini, "src")
    origin = opened(place)
    return place, origin.opened(planned(origin), "auto")


def test_unchanged(changing: tuple[Place, Any]) -> None:
    """The control of what follows."""
    _, file = changing
    file.check_unchanged()
    file.close()
    file.close()


def test_a_changed_object(changing: tuple[Place, Any], mini: Path) -> None:
    """Of the same size, too."""
    place, file = changing
    data = bytearray((mini / SHARD).read_bytes())
    data[-1] ^= 1
    place.put(f"src/{SHARD}", bytes(data))
    with pytest.raises(FormatError, match="changed since it was planned"):
        file.check_unchanged()


def test_an_object_that_was_another_meanwhile(
    changing: tuple[Place, Any], mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same again, and so its ETag: when it was written tells."""
    _, file = changing
    looked = file._store.look
    monkeypatch.setattr(file._store, "look", lambda name: looked(name)._replace(modified="later"))
    with pytest.raises(FormatError, match="changed since it was planned"):
        file.check_unchanged()


def test_a_shorter_object(changing: tuple[Place, Any]) -> None:
    """Bytes that are not there any more, whether the store sends fewer or refuses the range."""
    place, file = changing
    place.put(f"src/{SHARD}", b"0123456789")
    view = memoryview(bytearray(4096))
    for begin in (0, 4096):
        with pytest.raises(FormatError, match=r"changed since it was planned: .* 10 now"):
            file.read(view, begin, begin + 4096)


def test_an_object_removed(changing: tuple[Place, Any]) -> None:
    place, file = changing
    place.remove(f"src/{SHARD}")
    for act in (file.check_unchanged, lambda: file.read(memoryview(bytearray(10)), 0, 10)):
        with pytest.raises(FormatError, match="does not exist"):
            act()


def test_a_change_between_plan_and_run(mini: Path, place: Place, tmp_path: Path) -> None:
    address = place.upload(mini, "src")
    job = prepare(address, tmp_path / "dst")
    data = bytearray((mini / SHARD).read_bytes())
    data[-1] ^= 1
    place.put(f"src/{SHARD}", bytes(data))
    with pytest.raises(FormatError, match="changed since it was planned"):
        execute(job)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(("before", "after"), [(b"12", b"123"), (b"123", b"12"), (b"", b"1")])
def test_a_companion_that_changes(
    mini: Path, place: Place, tmp_path: Path, before: bytes, after: bytes
) -> None:
    address = place.upload(mini, "src")
    place.put("src/merges.txt", before)
    job = prepare(address, tmp_path / "dst")
    place.put("src/merges.txt", after)
    with pytest.raises(FormatError, match=r"'merges\.txt' changed since it was listed"):
        execute(job)
    assert not (tmp_path / "dst").exists()


def test_a_short_answer_is_an_error(mini: Path, bucket: Place, s3: Emulator) -> None:
    """Of an object that has not changed."""
    bucket.upload(mini, "src")
    origin = opened(bucket)
    file = origin.opened(planned(origin), "auto")

    def short(request: Request) -> Answer | None:
        return Answer("206 Partial Content", b"123") if request.range else None

    with s3.answering(short), pytest.raises(ResumableError, match="sent 3 of 10 bytes from byte 7"):
        file.read(memoryview(bytearray(10)), 7, 17)


# --- Where it must not be written to


def test_source_and_target_do_not_contain_each_other(mini: Path, place: Place) -> None:
    address = place.upload(mini, "src/model")
    for target in ("src/model", "src/model/dst", "src", "src/model/"):
        with pytest.raises(TargetError, match="must not contain each other"):
            prepare(address, place.at(target))
    before = place.marks("src")
    fp8convert.to_bf16(address, place.at("src/model-bf16"))
    assert {n: m for n, m in place.marks("src").items() if n in before} == before


def test_companions_beyond_the_bound_stay(
    mini: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fp8convert import companions

    address = place.upload(mini, "src")
    place.put("src/merges.txt", b"x" * 101)
    place.put("src/vocab.txt", b"y" * 100)
    monkeypatch.setattr(companions, "MAX_COMPANION", 100)
    made = fp8convert.to_bf16(address, place.at("dst"))
    assert made.data["not_copied"] == ["merges.txt"]
    found = place.files("dst")
    assert found["vocab.txt"] == b"y" * 100
    assert "merges.txt" not in found
    assert json.loads(found["manifest.json"])["not_copied"] == ["merges.txt"]


def test_errors_are_of_this_library() -> None:
    with pytest.raises(Fp8ConvertError):
        origins.at("s3:///")
