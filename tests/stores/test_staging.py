"""A target that is not finished: what is kept of it, and what must not be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp8convert import to_bf16
from fp8convert.convert import execute
from fp8convert.errors import TargetError
from fp8convert.journal import record_name
from fp8convert.options import ToBf16
from fp8convert.seal import sealed, unsealed
from fp8convert.settings import Settings
from fp8convert.stores.state import JOB, JOURNAL
from fp8convert.target import MANIFEST

from ..mini import CUT
from .emulator import Place
from .unfinished import DST, converted, job_of, left, prepared


@pytest.fixture(scope="module")
def whole(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What it must end with."""
    return converted(mini, tmp_path_factory.mktemp("whole") / "dst")


# --- Resumption


def test_what_is_recorded_is_kept(
    mini: Path, place: Place, whole: dict[str, bytes], written: list[str]
) -> None:
    job = prepared(mini, place)
    kept = left(job, whole, 2)
    before = {n: m for n, m in place.marks(DST).items() if n in kept}
    assert len(before) == 2
    written.clear()
    execute(job, Settings(workers=2))
    assert written == [t.file for t in job.plan.tasks if t.file not in kept]
    assert {n: m for n, m in place.marks(DST).items() if n in kept} == before
    assert place.files(DST) == whole


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'{"file": 3}', "etag", "size", "gone"]
)
def test_a_damaged_record_is_redone(
    mini: Path, memory: Place, whole: dict[str, bytes], written: list[str], damage: Any
) -> None:
    job = prepared(mini, memory)
    first, second = left(job, whole, 2)
    name = f"{DST}/{JOURNAL}{record_name(first)}"
    record = json.loads(memory.files(DST)[JOURNAL + record_name(first)])
    if damage == "gone":
        memory.remove(name)
    elif isinstance(damage, str):
        memory.put(
            name, json.dumps({**record, damage: record[damage] + type(record[damage])(1)}).encode()
        )
    else:
        memory.put(name, damage)
    written.clear()
    execute(job, Settings(workers=2))
    assert first in written
    assert second not in written
    assert memory.files(DST) == whole


@pytest.mark.parametrize("how", ["gone", "shorter", "another"])
def test_a_changed_object_is_redone(
    mini: Path, place: Place, whole: dict[str, bytes], written: list[str], how: str
) -> None:
    """Also one of the same size: its tag tells."""
    job = prepared(mini, place)
    first, second = left(job, whole, 2)
    data = place.files(DST)[first]
    if how == "gone":
        place.remove(f"{DST}/{first}")
    else:
        place.put(f"{DST}/{first}", data[:-1] if how == "shorter" else data[:-1] + b"?")
    written.clear()
    execute(job, Settings(workers=2))
    assert first in written
    assert second not in written
    assert place.files(DST) == whole


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_job_is_refused(
    mini: Path, memory: Place, whole: dict[str, bytes], data: bytes
) -> None:
    job = prepared(mini, memory)
    left(job, whole)
    memory.put(f"{DST}/{JOB}", data)
    before = memory.marks(DST)
    with pytest.raises(TargetError, match=r"job\.json' is damaged.*remove all of it to start over"):
        execute(job)
    assert memory.marks(DST) == before


def test_another_plan_or_source_is_refused(
    mini: Path, place: Place, whole: dict[str, bytes]
) -> None:
    """Each difference is named; nothing is touched."""
    left(prepared(mini, place), whole)
    before = place.marks(DST)
    with pytest.raises(
        TargetError, match=r"is not this one:\n  options.dtype: 'bfloat16' then, 'float16' now"
    ):
        execute(prepared(mini, place, ToBf16(max_shard_size=CUT, dtype="float16")))
    job = prepared(mini, place)
    shard = job.catalogue.shards[0]._replace(mtime_ns=1)
    catalogue = job.catalogue
    object.__setattr__(catalogue, "shards", (shard, *catalogue.shards[1:]))
    with pytest.raises(TargetError, match=r"mtime_ns: .* then, '1' now"):
        execute(job)
    assert place.marks(DST) == before


def test_a_journal_of_nobody_s_goes(
    mini: Path, place: Place, whole: dict[str, bytes], written: list[str]
) -> None:
    """Left by a run that was killed while it removed its state, and the manifest removed since."""
    job = prepared(mini, place)
    (first,) = left(job, whole)
    for name in place.files(DST):
        if name == JOB or not name.startswith(JOURNAL):
            place.remove(f"{DST}/{name}")
    written.clear()
    execute(job)
    assert first in written
    assert place.files(DST) == whole


# --- What is there already


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "rank0/x", ".fp8convert/else"])
def test_foreign_objects_are_refused_and_untouched(mini: Path, place: Place, name: str) -> None:
    place.put(f"{DST}/{name}", b"mine")
    before = place.marks(DST)
    with pytest.raises(TargetError, match="exists and is not empty"):
        to_bf16(mini, place.at(DST))
    assert place.marks(DST) == before


@pytest.mark.parametrize("name", ["notes.txt", "rank0/x", ".fp8convert/else"])
def test_foreign_objects_beside_unfinished_work(
    mini: Path, memory: Place, whole: dict[str, bytes], name: str
) -> None:
    job = prepared(mini, memory)
    left(job, whole)
    memory.put(f"{DST}/{name}", b"mine")
    before = memory.marks(DST)
    with pytest.raises(TargetError, match=f"holds '{name}', which no run of this plan has made"):
        execute(job)
    assert memory.marks(DST) == before


def test_objects_beside_the_target_are_nobody_s_business(mini: Path, place: Place) -> None:
    place.put(f"{DST}-other/x", b"mine")
    place.put("a/y", b"mine")
    to_bf16(mini, place.at(DST))
    assert place.files(f"{DST}-other") == {"x": b"mine"}
    assert place.files("a")["y"] == b"mine"


def test_an_object_of_the_target_s_name(mini: Path, place: Place) -> None:
    place.put(DST, b"mine")
    with pytest.raises(TargetError, match="is an object, expected a folder"):
        to_bf16(mini, place.at(DST))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "plan": (
        lambda m: m["identity"]["options"].update(dtype="float16"),
        "options.dtype: 'float16' then",
    ),
    "source": (lambda m: m["source"].clear(), "'None' then"),
    "files": (lambda m: m["files"][0].update(size=3), "does not hold what its manifest says"),
    "no files": (lambda m: m.pop("files"), "without its list of files"),
    "no identity": (lambda m: m.pop("identity"), "exists and is not empty$"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_target_of_something_else(mini: Path, memory: Place, change: str) -> None:
    to_bf16(mini, memory.at(DST))
    manifest, _ = unsealed(memory.files(DST)[MANIFEST], MANIFEST)
    edit, words = CHANGES[change]
    edit(manifest)
    memory.put(f"{DST}/{MANIFEST}", sealed(manifest))
    before = memory.marks(DST)
    with pytest.raises(TargetError, match=words):
        to_bf16(mini, memory.at(DST))
    assert memory.marks(DST) == before


def test_a_manifest_that_was_changed(mini: Path, memory: Place) -> None:
    to_bf16(mini, memory.at(DST))
    data = memory.files(DST)[MANIFEST]
    for changed, words in (
        (data.replace(b'"weights_decoded": ', b'"weights_decoded": 1'), "was changed after"),
        (b"", "exists and is not empty: "),
    ):
        assert changed != data
        memory.put(f"{DST}/{MANIFEST}", changed)
        with pytest.raises(TargetError, match=words):
            to_bf16(mini, memory.at(DST))


def test_a_finished_target_with_a_file_missing(mini: Path, memory: Place) -> None:
    made = to_bf16(mini, memory.at(DST))
    memory.remove(f"{DST}/{made.files[0]['name']}")
    with pytest.raises(TargetError, match="does not hold what its manifest says"):
        to_bf16(mini, memory.at(DST))


def test_what_a_run_killed_at_its_end_has_left_goes(mini: Path, place: Place) -> None:
    """Its state; and not that of another job, which nobody could have left there."""
    to_bf16(mini, place.at(DST))
    whole = place.files(DST)
    place.put(f"{DST}/{JOURNAL}x.json", b"{}")
    place.put(f"{DST}/{JOB}", job_of(whole, source={}))
    assert to_bf16(mini, place.at(DST)).already_done
    assert {JOB, f"{JOURNAL}x.json"} <= set(place.files(DST))
    place.put(f"{DST}/{JOB}", job_of(whole))
    assert to_bf16(mini, place.at(DST)).already_done
    assert place.files(DST) == whole
