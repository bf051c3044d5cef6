"""What is read back from a disk: records of ranks, of finished files, of jobs; and JSON itself."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator

from fp8convert import ranksets, strictjson
from fp8convert.catalogue import open_ranks
from fp8convert.convert import Job, _manifest, prepare
from fp8convert.errors import FormatError
from fp8convert.folder import Folder
from fp8convert.options import Quantize, ToBf16, Unshard
from fp8convert.plan import Task
from fp8convert.publish import JOB, Staging
from fp8convert.ranksets import TP
from fp8convert.seal import sealed
from fp8convert.target import MANIFEST
from fp8convert.verify.index import check_index
from fp8convert.verify.manifest import check_manifest
from fp8convert.verify.survey import survey

from .benches import bench, rank_set, root
from .promises import printable, readable, refusing, sound


def tp(said: bytes) -> None:
    """``tp.json`` over rank folders."""
    _ranks("hf", TP, said)


def tp_deepseek(said: bytes) -> None:
    """``tp.json`` beside rank files."""
    _ranks("deepseek", TP, said)


def member(said: bytes) -> None:
    """``tp.json`` of one rank."""
    _ranks("hf", f"rank1/{TP}", said)


def _ranks(layout: str, name: str, said: bytes) -> None:
    """All that reads a rank set; each may refuse, and whatever is read is sound."""
    folder = rank_set(layout)
    with _other(folder / name, said):
        for options in (Unshard(), Unshard(tp=4, layout="hf")):
            with refusing():
                sound(prepare(folder, root() / "x", options).plan)
        with refusing():
            open_ranks(folder)
        with refusing():
            check, _ = check_index(survey(Folder.at(folder)))
            printable("\n".join((*check.problems, *check.warnings)))
    if name == TP:
        found = ranksets.parse(strictjson.loads(said, TP))
        assert ranksets.parse(readable(found.to_json())) == found, "written otherwise"


@contextlib.contextmanager
def _other(path: os.PathLike[str], data: bytes) -> Iterator[None]:
    """The file has other bytes meanwhile."""
    with open(path, "rb") as f:
        before = f.read()
    try:
        with open(path, "wb") as f:
            f.write(data)
        yield
    finally:
        with open(path, "wb") as f:
            f.write(before)


@functools.cache
def staged(scheme: str) -> tuple[Job, Staging]:
    """A job that was begun and left: its files are holes of their sizes, none is journaled."""
    options = Quantize(scheme=scheme) if scheme else ToBf16()
    job = prepare(bench("state", "-whole"), root() / f"job-{scheme}" / "dst", options)
    staging = Staging(job.target, job.plan)
    staging.state.mkdir(parents=True)
    staging.begin(job.catalogue.fingerprint)
    staging.fence.let_go()
    for task in job.plan.tasks:
        (staging.out / task.file).touch()
        os.truncate(staging.out / task.file, task.size)
    return job, staging


def journal(said: bytes) -> None:
    """A record of a finished file: if it is believed, the manifest that has it is sound."""
    for scheme in ("", "nvfp4"):
        job, staging = staged(scheme)
        task: Task = job.plan.tasks[0]
        (staging.journal / f"{task.file}.json").write_bytes(said)
        record = staging.recorded(task)
        if record is None:
            continue
        assert (record.file, record.size) == (task.file, task.size), "another file's"
        files = [{"name": record.file, "size": record.size, "sha256": record.sha256}]
        made = readable(json.dumps(_manifest(job, [record], files)))
        assert re.fullmatch("[0-9a-f]{64}", made["files"][0]["sha256"] or "0" * 64), "no sum"
        assert sum(made["overflowed"].values()) >= 0, "a sum of counts below 0"


def begun(said: bytes) -> None:
    """``job.json``: begun anew, gone on with, or refused."""
    made, staging = staged("")
    before = (staging.state / JOB).read_bytes()
    (staging.state / JOB).write_bytes(_true(said, made))
    try:
        run = staging.begin(made.catalogue.fingerprint)
        found = readable((staging.state / JOB).read_text())
        assert found["run"] == run == staging.fence.way.name, "another run's"
        assert found["identity"] == made.plan.identity, "another plan's"
        assert found["source"] == made.catalogue.fingerprint, "another source's"
    finally:
        staging.fence.let_go()
        (staging.state / JOB).write_bytes(before)
        for task in made.plan.tasks:
            (staging.out / task.file).touch()
            os.truncate(staging.out / task.file, task.size)


def _true(said: bytes, made: Job) -> bytes:
    """With the facts of this very plan where ``@identity``, ``@source`` or ``@plan`` stands: an
    input that is kept must not know the version, or the time of a file."""
    facts = {"identity": made.plan.identity, "source": made.catalogue.fingerprint,
             "plan": made.plan.id}  # fmt: skip
    for name, fact in facts.items():
        said = said.replace(f'"@{name}"'.encode(), json.dumps(fact).encode())
    return said


@functools.cache
def finished() -> tuple[Job, Staging]:
    """A target of three files, and a manifest that lists them."""
    made, _ = staged("")
    target = root() / "finished" / "dst"
    target.mkdir(parents=True)
    (target / "sub").mkdir()
    for name in ("a.safetensors", "sub/b.safetensors"):
        (target / name).write_bytes(b"12345")
    shutil.copyfile(bench("state", "-whole") / "config.json", target / "config.json")
    again = Job(made.catalogue, made.plan, target)
    return again, Staging(target, made.plan)


def manifest(said: bytes) -> None:
    """``manifest.json``: of another plan, of this one and whole, or damaged."""
    made, staging = finished()
    said = _true(said, made)
    for data in (said, _sealed(said)):
        (staging.target / MANIFEST).write_bytes(data)
        _read(made, staging)


def _sealed(said: bytes) -> bytes:
    """With a sum of itself, as ours have, if it is an object."""
    try:
        found = strictjson.loads(said, MANIFEST)
    except FormatError:
        return said
    return sealed(found) if isinstance(found, dict) else said


def _read(made: Job, staging: Staging) -> None:
    with refusing():
        found = staging.finished(made.catalogue.fingerprint)
        assert found, "taken for an empty folder"
        assert found["identity"] == made.plan.identity, "another plan's"
        readable(json.dumps(found))
    check = check_manifest(Folder.at(staging.target), 1, None)
    printable("\n".join((*check.problems, *check.warnings)))


def strict(said: bytes) -> None:
    """JSON: what we take Python's parser takes, finding the same; and so it is written again."""
    try:
        theirs = json.loads(said.decode("utf-8"))
    except (ValueError, RecursionError):
        theirs = ...
    found = strictjson.loads(said, "f", max_depth=None)
    assert theirs is not ..., "the json module refuses it"
    assert repr(theirs) == repr(found), "read in two ways"
    assert readable(json.dumps(found, ensure_ascii=False)) == found, "written otherwise"
    with contextlib.suppress(FormatError):
        strictjson.loads(said, "f")
        printable(strictjson.brief(found))


STATES: dict[str, Callable[[bytes], None]] = {
    "tp": tp, "tp-deepseek": tp_deepseek, "member": member, "journal": journal, "job": begun,
    "manifest": manifest, "json": strict,
}  # fmt: skip
