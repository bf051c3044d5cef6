"""A target in an object store: files under their final names, and the manifest when all are there.

A store cannot rename, and shows an object whole or not at all. So what makes a target valid is
``manifest.json``, written last: without it, what is there is unfinished, and has a :mod:`.state`
beside it. See docs/distributed.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import FormatError, Fp8ConvertError, ResumableError, TargetError, shown
from ..journal import Record
from ..plan import MOST_FILES, MOST_TOGETHER, Plan, Task
from ..seal import sealed, unsealed
from ..staged import folders_of
from ..target import MANIFEST, MAX_RECORD, check_sizes, listed_sizes, refuse_other
from . import uploads
from .address import STATE, ObjectPath
from .blocks import LANES, Lanes
from .output import ObjectOutput
from .state import JOB, State, is_state, parsed, sizes
from .store import LIBRARY, Store
from .uploads import KINDS, Upload


class ObjectStaging:
    """The place of one target, built by one plan. Nothing is asked of the store before it must."""

    def __init__(self, target: ObjectPath, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self._store, self._lanes = Store(target, TargetError), Lanes()
        self._state = State(self._store, plan)
        if STATE in folders_of(plan):
            raise TargetError(f"{shown(STATE)} is where unfinished work goes, and no file's folder")

    def left(self) -> str | None:
        """Where unfinished work is, if there is any, and if that can be told."""
        with contextlib.suppress(Fp8ConvertError):
            return f"{self.target}/" if JOB in self._state.listed() else None
        return None

    def free(self) -> None:
        """Nobody knows."""

    @property
    def memory(self) -> int:
        """Bytes of parts, those on their way and one of each file; and what the library takes."""
        tasks = self.plan.tasks
        together = any(t.team >= 0 for t in tasks)
        files = MOST_TOGETHER if together else min(os.cpu_count() or 1, MOST_FILES)
        part = uploads.part_size(max((t.size for t in tasks), default=0))
        return LIBRARY[self.target.scheme] + (LANES + min(files, len(tasks))) * part

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest if the target is already there; refuses one of another plan or source, and
        whatever else is there that no unfinished run has made."""
        seen = self._state.listed()
        if MANIFEST not in seen:
            if JOB not in seen and not all(map(is_state, seen)):
                raise TargetError(f"{shown(self.target)} exists and is not empty")
            return None
        manifest, damage = self._read_manifest()
        refuse_other(self.target, manifest, damage, self.plan.identity, source)
        check_sizes(self.target, listed_sizes(self.target, manifest), sizes(seen), others=True)
        found: dict[str, Any] = manifest
        return found

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A store has no locks: whoever begins puts the others out."""
        try:
            yield
        finally:
            self._lanes.close()

    def begin(self, fingerprint: dict[str, Any]) -> str:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse.

        Returns the name of this run. Earlier ones on this target end with 75 when they notice.
        """
        self._state.begin(fingerprint)
        uploads.abort_left(self._store, {t.file for t in self.plan.tasks})
        return self._state.run

    @contextlib.contextmanager
    def joined(self, fingerprint: dict[str, Any], run: str) -> Iterator[None]:
        """Work on the run of that name, begun elsewhere, with others; refuses any but that one."""
        self._state.join(fingerprint, run)
        with self.opened():
            yield

    def create(self, task: Task, io: str) -> ObjectOutput:
        """A new file for ``task``."""
        upload = KINDS[self.target.scheme](self._store, task.file, task.size, self._lanes)
        checksum = self.plan.options.checksum == "sha256"
        return ObjectOutput(
            task.file, task.size, upload, checksum, lambda done: self._install(task, done)
        )

    def spool(self, task: Task) -> Path:
        """A name, used by no one else, on this machine's disk for temporary files."""
        return Path(tempfile.gettempdir(), f"fp8convert.{uuid.uuid4().hex}.spool")

    def record(self, record: Record) -> None:
        """Journal a finished file."""
        self._state.check()
        self._state.record(record)

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one, and the very object that it
        was written of."""
        return self._state.recorded(task)

    def is_sound(self, record: Record, stopped: Callable[[], bool]) -> bool:
        """Objects do not rot or change in part: it is the one that was written, see
        :meth:`recorded`, and to read it back would take as long as to write it."""
        return True

    def put_bytes(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a small file of the target whole; its manifest entry."""
        self._state.check()  # a finished target of another plan may be there
        self._store.put(name, data)
        return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, last: from then on the target is valid. The manifest with its sum."""
        self._state.check()
        expected, seen = listed_sizes(self.target, manifest), self._state.listed()
        check_sizes(self.target, expected, sizes(seen), others=False)
        self._state.check_objects(seen)
        data = sealed(manifest)
        self._store.put(MANIFEST, data)
        self._state.clear()
        found: dict[str, Any] = json.loads(data)
        return found

    def supersede(self, source: dict[str, Any]) -> None:
        """Remove the state of a target that is finished, if it is this job's."""
        with contextlib.suppress(TargetError):
            self._state.unfinished(source)
            self._state.clear()

    def tidy(self, source: dict[str, Any]) -> None:
        """Remove the state that a run killed right at its end has left, if that is possible."""
        with contextlib.suppress(Fp8ConvertError):
            if any(map(is_state, self._state.listed(anew=False))):
                self.supersede(source)

    def overtaken(self) -> ResumableError | None:
        """What to end with if another run has taken over; None if none has, or nobody can tell."""
        with contextlib.suppress(Fp8ConvertError):
            return self._state.overtaken()
        return None

    def _install(self, task: Task, upload: Upload) -> None:
        self._state.check()
        try:
            mark = upload.commit()
        except Fp8ConvertError:
            self._state.check()  # or that is why
            raise
        found = self._store.look(task.file)
        if found.size != task.size:
            raise Fp8ConvertError(
                f"{task.file}: {found.size:,} bytes in the store, expected {task.size:,}"
            )
        if mark not in ("", found.etag):
            raise ResumableError(
                f"{shown(self._store.address(task.file))} was written by another just now: run the "
                "same again"
            )
        self._state.etags[task.file] = found.etag

    def _read_manifest(self) -> tuple[Any, str]:
        """The manifest, or None; and what is wrong with it, to end a sentence with."""
        try:
            return unsealed(self._store.find(MANIFEST, MAX_RECORD) or b"", MANIFEST)[0], ""
        except FormatError as e:
            return None, f": {e}"


def begun(target: ObjectPath) -> Any:
    """The job of an unfinished run at ``target``, or None."""
    return parsed(Store(target, TargetError).find(JOB, MAX_RECORD), JOB)
