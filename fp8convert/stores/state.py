"""What a target in an object store has beside its files until it is finished.

``.fp8convert/job.json`` says which plan and source it is, and which run was the last to begin;
``.fp8convert/journal/`` has a record of every finished file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import FormatError, ResumableError, TargetError, listed, shown
from ..journal import Record, record_name
from ..plan import Plan, Task
from ..strictjson import loads
from ..target import MANIFEST, MAX_RECORD, differences, field
from .address import STATE
from .store import Entry, Store

JOB = f"{STATE}/job.json"
JOURNAL = f"{STATE}/journal/"
RUN = "run"  # in the job: the run that was the last to begin
ASKED = "asked"  # in the job: see Plan
ETAG = "etag"  # in a record: the object's, when it was finished
OF = "of"  # in a record: the SHA-256 of which plan and source it is of
LANES = 8  # small objects removed at once


class State:
    """That of one plan's target, as one run sees it. ``run`` is its name, once it has begun;
    ``etags`` are those of the finished objects it knows."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan, self.run = store, plan, ""
        self.etags: dict[str, str] = {}
        self._of = ""  # once it has begun
        self._listed: dict[str, Entry] | None = None
        self._read: dict[tuple[str, str], Any] = {}  # records, by name and ETag

    def listed(self, anew: bool = True) -> dict[str, Entry]:
        """Everything in the target by name, now, or when it was listed last."""
        if anew or self._listed is None:
            self._listed = self.store.below()
        return self._listed

    def job(self) -> Any:
        """The job that was begun there; None if there is none, or it is damaged."""
        return parsed(self.store.find(JOB, MAX_RECORD), JOB)

    def begin(self, source: dict[str, Any]) -> None:
        """Make this the run that works there; refuses if another plan's is unfinished, or if there
        is what no run of this plan has made."""
        seen = self.listed()
        before = self.unfinished(source)
        self._check_own(seen)
        if before is None:  # what is there of a journal is no one's
            self._remove([name for name in seen if name.startswith(JOURNAL)])
        run = f"{RUN}.{uuid.uuid4().hex}"
        asked = self.plan.asked or (before or {}).get(ASKED)  # a worker asks for the commit
        kept = {ASKED: asked} if asked else {}
        self._put(JOB, {**self._identified(source), RUN: run, **kept})
        self.run, self._of, self._listed = run, self._mark(source), None

    def join(self, source: dict[str, Any], run: str) -> None:
        """Work on a run that was begun elsewhere; refuses any but that one."""
        self.listed()
        found = (self.unfinished(source) or {}).get(RUN)
        if found != run:
            raise TargetError(
                f"{shown(self.store.path)} is not of the run that was planned: expected "
                f"{shown(run)} in its {JOB}, found {shown(found)}: plan again"
            )
        self.run, self._of = run, self._mark(source)

    def unfinished(self, source: dict[str, Any]) -> Any:
        """The job that was begun there, or None; refuses any but this one."""
        if JOB not in self.listed(anew=False):
            return None
        before, job = self.job(), self._identified(source)
        if not isinstance(before, dict):
            raise TargetError(
                f"{shown(self.store.address(JOB))} is damaged, so what is there beside it is no "
                "one's: remove all of it to start over"
            )
        notes = differences(field(before, "identity"), job["identity"])
        notes += differences(field(before, "source"), job["source"])
        if notes:
            raise TargetError(
                f"an unfinished run in {shown(self.store.path)} is not this one:\n"
                + "\n".join(notes)
                + "\nRun it with the same options, or remove what is there to start over"
            )
        return before

    def overtaken(self) -> ResumableError | None:
        """What to end with if another run has taken over; None if none has."""
        found = self.job() if self.run else {RUN: ""}
        if isinstance(found, dict) and found.get(RUN) == self.run:
            return None
        return ResumableError(
            f"another run on {shown(self.store.path)} has taken over, or its {JOB} was removed: "
            "let it end, and run the same again"
        )

    def check(self) -> None:
        """ResumableError if another run has taken over. It would write the same bytes: nothing is
        lost if that happens just afterwards."""
        if error := self.overtaken():
            raise error

    def record(self, record: Record) -> None:
        """Journal a finished file, of whose object the ETag is known."""
        marks = {ETAG: self.etags[record.file], OF: self._of}
        self._put(JOURNAL + record_name(record.file), {**record._asdict(), **marks})
        self._listed = None

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if it is sound and of the very object that is there.

        Also if it is of this plan and source: of two runs that begin at the same moment on an empty
        target, either may have written it.
        """
        seen, name = self.listed(anew=False), JOURNAL + record_name(task.file)
        entry, known = seen.get(task.file), seen.get(name)
        if entry is None or known is None:
            return None
        key = name, known.etag
        if key not in self._read:
            self._read[key] = parsed(self.store.find(name, MAX_RECORD), name)
        found = self._read[key]
        if not isinstance(found, dict):
            return None
        etag, of = found.get(ETAG), found.get(OF)
        record = Record.from_dict({k: v for k, v in found.items() if k not in (ETAG, OF)}, task)
        if (entry.size, entry.etag) != (task.size, etag) or of != (self._of or of):
            return None
        self.etags[task.file] = entry.etag
        return record

    def check_objects(self, seen: dict[str, Entry]) -> None:
        """ResumableError unless the tasks' objects are those that were finished: a run that was
        overtaken at its last step may have written one since."""
        if odd := [t.file for t in self.plan.tasks if seen[t.file].etag != self.etags[t.file]]:
            raise ResumableError(
                f"{listed(odd)} of {shown(self.store.path)} changed since it was finished: run the "
                "same again"
            )

    def clear(self) -> None:
        """Remove it all, the job last: what is left without one is no one's."""
        self._remove([name for name in self.listed() if name.startswith(JOURNAL)])
        self._remove([JOB])

    def _identified(self, source: dict[str, Any]) -> dict[str, Any]:
        return {"identity": self.plan.identity, "source": source}

    def _mark(self, source: dict[str, Any]) -> str:
        text = json.dumps(self._identified(source), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _put(self, name: str, value: Any) -> None:
        self.store.put(name, (json.dumps(value, indent=1) + "\n").encode())

    def _check_own(self, seen: dict[str, Entry]) -> None:
        plan = self.plan
        own = {JOB, *(t.file for t in plan.tasks), *plan.texts, *(c.file for c in plan.copies)}
        if odd := sorted(n for n in seen if n not in own and not n.startswith(JOURNAL)):
            raise TargetError(
                f"{shown(self.store.path)} is where an unfinished run has written, and holds "
                f"{listed(odd)}, which no run of this plan has made: move it"
            )

    def _remove(self, names: list[str]) -> None:
        with ThreadPoolExecutor(LANES, "removing") as pool:
            list(pool.map(self.store.remove, names))


def parsed(data: bytes | None, name: str) -> Any:
    """The JSON in an object, or None if it is damaged or not there."""
    with contextlib.suppress(FormatError):
        return None if data is None else loads(data, name)
    return None


def is_state(name: str) -> bool:
    """Whether an object is part of it."""
    return name == JOB or name.startswith(JOURNAL)


def sizes(seen: dict[str, Entry]) -> dict[str, int]:
    """Bytes of the target's files, by name: of all but its manifest and its state."""
    return {n: e.size for n, e in seen.items() if n != MANIFEST and not is_state(n)}
