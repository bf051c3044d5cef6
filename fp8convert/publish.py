"""Crash safety: a target is built beside its final place and appears there whole, or not at all.

``DST`` is built in ``.DST.fp8convert/``: ``out/`` becomes DST by one rename, ``job.json`` says
which plan and source it is, ``journal/`` has a record for every finished file, ``lock`` keeps a
second run out. Every file is written under a unique temporary name, checked, fsynced, renamed, and
its folder fsynced, before anything refers to it. Files may lie in folders of ``out/``, one deep
(``folder/name``). See docs/crash-safety.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import durable
from .calls import discard, let_go
from .durable import make_folder, remove, sync_folder
from .errors import TargetError, listed, shown
from .fence import Fence, is_link
from .folder import check_name
from .journal import Record, record_name
from .plan import Plan, Task
from .seal import sealed
from .target import MANIFEST, check_files, differences, field, finished, read_json

JOB = "job.json"
TEMPORARY = ".tmp"
REMOVED = (".nfs", ".fuse_hidden")  # what is removed while it is open, on such filesystems


class Staging:
    """The folder beside the target, locked. Use :func:`opened`."""

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.state = target.parent / f".{target.name}.fp8convert"
        self.fence = Fence(self.state, target)
        self._names = _folders(plan)

    @property
    def out(self) -> Path:
        """What becomes the target."""
        return self.fence.way / "out"

    @property
    def journal(self) -> Path:
        """Where the records are."""
        return self.fence.way / "journal"

    @property
    def folders(self) -> list[Path]:
        """Those in ``out``."""
        return [self.out / name for name in self._names]

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest if the target is already there; see :func:`target.finished`."""
        return finished(self.target, self.plan.identity, source)

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse."""
        job = {"identity": self.plan.identity, "source": fingerprint}
        before = self.fence.take_over(lambda: self._unfinished(job))
        for left in [n for n in os.listdir(self.fence.way) if n.endswith(TEMPORARY)]:
            remove(self.fence.way / left)
        if before is None:  # killed before the job was durable: nothing refers to what is there
            for folder in (self.journal, self.out):
                self._remove_aside(folder)
                folder.mkdir()
            self._make_folders()
            self._put(self.fence.way / JOB, job)
            return
        for folder in (self.journal, self.out):  # gone if the target was made and moved away
            if folder.is_symlink() or not folder.is_dir():
                self._remove_aside(folder)
            folder.mkdir(exist_ok=True)
        self._sweep()
        self._make_folders()

    def _unfinished(self, job: dict[str, Any]) -> Any:
        """The job that was begun here, or None; refuses any but this one."""
        before = read_json(self.fence.way / JOB)
        if before is None:
            return None
        notes = differences(field(before, "identity"), job["identity"])
        notes += differences(field(before, "source"), job["source"])
        if notes:
            raise TargetError(
                f"an unfinished run in {shown(self.state)} is not this one:\n"
                + "\n".join(notes)
                + "\nRun it with the same options, or remove that folder to start over"
            )
        return before

    def _remove_aside(self, folder: Path) -> None:
        """Remove ``folder`` if it is there, under a name that no other run uses."""
        if os.path.lexists(folder):
            aside = self.temporary(self.fence.way, folder.name)
            os.rename(folder, aside)
            remove(aside)

    def _sweep(self) -> None:
        """Remove temporaries, and what was renamed but not journaled: its successor needs room."""
        kept = [t.file for t in self.plan.tasks if self.recorded(t)]
        vouched = {self.out / file for file in kept} | {
            self.journal / record_name(file) for file in kept
        }
        # What stands in a folder's place goes, a link above all: it would lead out of here.
        folders = [f for f in self.folders if f.is_dir() and not f.is_symlink()]
        vouched |= set(folders)
        for left in [p for f in (self.out, self.journal, *folders) for p in f.iterdir()]:
            if left in vouched:
                continue
            if left.is_dir() and not left.is_symlink():
                left.rmdir()  # if it is empty: what is in it nobody here has made
            else:
                left.unlink()

    def _make_folders(self) -> None:
        for folder in self.folders:  # not make_folder: it would make the way there too
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(self.out)

    def temporary(self, folder: Path, name: str) -> Path:
        """A name in ``folder`` that no other run, past or present, uses."""
        return folder / f"{name}.{uuid.uuid4().hex}{TEMPORARY}"

    def install(self, temporary: Path, final: Path) -> None:
        """Give a durable temporary file its final name, durably."""
        os.replace(temporary, final)
        sync_folder(final.parent)

    def put_bytes(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a small file of the target whole; its manifest entry."""
        self._write(self.out / name, data)
        return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def record(self, record: Record) -> None:
        """Journal a finished file."""
        self._put(self.journal / record_name(record.file), record._asdict())

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one and a file of that size."""
        record = Record.from_dict(read_json(self.journal / record_name(task.file)), task)
        with contextlib.suppress(OSError):
            found = (self.out / task.file).lstat()  # a link is no file of ours
            if record and stat.S_ISREG(found.st_mode) and found.st_size == task.size:
                return record
        return None

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, last, and make the whole target appear under its name.

        The manifest as it is there, with its sum.
        """
        for folder in self.folders:  # where something was swept and nothing written since
            sync_folder(folder)
        data = sealed(manifest)
        self._write(self.out / MANIFEST, data)
        check_files(self.out, manifest, others=False)
        try:
            os.rename(self.out, self.target)  # replaces an empty folder, fails on any other
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            self._come_to_exist(manifest, e)
        sync_folder(self.target.parent)
        self.clear()
        found: dict[str, Any] = json.loads(data)
        return found

    def _come_to_exist(self, manifest: dict[str, Any], error: OSError) -> None:
        """Refuse a target that is in the way, unless it is what was to go there: another run,
        not kept out by a lock, has been faster."""
        with contextlib.suppress(TargetError):
            if self.finished(field(manifest, "source")):
                remove(self.out)
                return
        raise TargetError(
            f"{shown(self.target)} has come to exist meanwhile ({error.strerror}); "
            f"what was to go there is in {shown(self.state / 'out')}"
        ) from error

    def clear(self) -> None:
        """Remove the state folder if its ``out`` has become the target; the lock goes with it."""
        if not (self.state / "out").exists():
            self._remove_state()

    def _remove_state(self) -> None:
        self.fence.way = self.state
        remove(self.state)
        sync_folder(self.target.parent)

    def supersede(self, source: dict[str, Any]) -> None:
        """Remove the state folder if the target is finished and this job's: also where another run
        of the same job was at work, not kept out by a lock."""
        with contextlib.suppress(TargetError):
            if (self.state / "out").exists():
                self._unfinished({"identity": self.plan.identity, "source": source})
            self._remove_state()

    def tidy(self, source: dict[str, Any]) -> None:
        """Remove what a run killed right after the last rename has left, if that is possible."""
        if self.state.exists():
            sync_folder(self.target.parent)  # that run may not have come to it, or it failed
            with contextlib.suppress(TargetError, OSError), opened(self):
                self.supersede(source)

    def _put(self, path: Path, value: Any) -> None:
        self._write(path, (json.dumps(value, indent=1) + "\n").encode())

    def _write(self, path: Path, data: bytes) -> None:
        temporary = self.temporary(path.parent, path.name)
        try:  # begun before the file is: a signal may end this between its making and the next step
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            durable.write(fd, data, path.name)
            self.install(temporary, path)
        except BaseException:
            discard(temporary)
            raise


@contextlib.contextmanager
def opened(staging: Staging) -> Iterator[None]:
    """Create and lock the state folder; a second run on the same target is refused."""
    _check_own(staging.state)
    make_folder(staging.state)
    lock = staging.state / "lock"
    finished = TargetError(f"another run has just finished {shown(staging.target)}; run again")
    try:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # it has removed the folder
        raise finished from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetError(f"another run is writing {shown(staging.target)}") from None
        except OSError:  # a filesystem without locks: unique names keep the bytes right
            pass
        if not _same_file(lock, fd):
            raise finished
        try:
            yield
        finally:
            staging.fence.let_go()
    finally:
        let_go(fd)


def _check_own(state: Path) -> None:
    """Refuse what has the state folder's name and was not made by a run: it would be emptied."""
    if not os.path.lexists(state):
        return
    if state.is_symlink() or not state.is_dir():
        raise TargetError(f"{shown(state)} is where unfinished work goes, and no folder: move it")
    if odd := [name for name in sorted(os.listdir(state)) if not _is_own(name)]:
        raise TargetError(
            f"{shown(state)} is where unfinished work goes, and holds {listed(odd)}, "
            "which no run has made: move it"
        )


def _is_own(name: str) -> bool:
    made = name in ("lock", JOB, "journal", "out") or name.endswith(TEMPORARY) or is_link(name)
    return made or name.startswith(REMOVED)


def _same_file(path: Path, fd: int) -> bool:
    """Whether ``path`` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _folders(plan: Plan) -> list[str]:
    """The folders of a plan's files; refuses names that are deeper, odd, or not different."""
    names = [MANIFEST, *(t.file for t in plan.tasks), *plan.texts, *(c.file for c in plan.copies)]
    for name in names:
        check_name(name, "file of the target")
    folders = list(dict.fromkeys(name.split("/")[0] for name in names if "/" in name))
    if doubled := [name for name, n in Counter([*names, *folders]).items() if n > 1]:
        raise TargetError(f"{listed(doubled)}: expected one file, or one folder, of that name")
    return folders
