"""A conversion of mini to a store, as far as some run has come with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp8convert import to_bf16
from fp8convert.convert import Job, prepare
from fp8convert.journal import Record
from fp8convert.options import ToBf16
from fp8convert.stores.staging import ObjectStaging
from fp8convert.target import MANIFEST

from ..mini import CUT
from .emulator import Place

DST = "a/dst"
OPTIONS = ToBf16(max_shard_size=CUT)  # three files
Files = Mapping[str, bytes]


def converted(mini: Path, folder: Path) -> dict[str, bytes]:
    """What is made of mini, on a disk."""
    to_bf16(mini, folder, max_shard_size=CUT)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def prepared(mini: Path, place: Place, options: ToBf16 = OPTIONS) -> Job:
    """The conversion."""
    return prepare(mini, place.at(DST), options)


def staging(job: Job) -> ObjectStaging:
    """A new view of its target, as another process has it."""
    found = job.stage
    assert isinstance(found, ObjectStaging)
    return found


def left(job: Job, whole: Files, count: int = 1) -> list[str]:
    """Leave what a run has that was killed after so many files; their names."""
    made = staging(job)
    with made.opened():
        made.begin(job.catalogue.fingerprint)
        for number in range(count):
            finish(made, job, number, whole)
    return [task.file for task in job.plan.tasks[:count]]


def finish(made: ObjectStaging, job: Job, number: int, whole: Files) -> None:
    """Write a task's file, and its record, as a run does."""
    task = job.plan.tasks[number]
    out = made.create(task, "auto")
    out.hash(memoryview(whole[task.file]), 0)
    digest = out.finish()
    assert digest == hashlib.sha256(whole[task.file]).hexdigest()
    out.install()
    made.record(Record(task.file, task.size, digest, {}, {}))


def job_of(whole: Files, **more: Any) -> bytes:
    """A job.json of what is finished."""
    manifest = json.loads(whole[MANIFEST])
    job = {"identity": manifest["identity"], "source": manifest["source"], "run": "run.x"}
    return json.dumps({**job, **more}).encode()
