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
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import strictjson
from .errors import FormatError, TargetError, listed, shown
from .fileio import naming, sync
from .folder import Folder, check_name
from .plan import Plan, Task

MANIFEST = "manifest.json"
JOB = "job.json"
TEMPORARY = ".tmp"
MAX_RECORD = 100_000_000
MAX_DIFFERENCES = 6


class Record(NamedTuple):
    """The journal's word on one finished file."""

    file: str
    size: int
    sha256: str | None
    overflowed: dict[str, int]  # weight -> elements beyond the target dtype
    errors: dict[str, list[float]]  # weight encoded -> largest, squared, and what it is of

    @classmethod
    def from_dict(cls, found: Any, task: Task) -> Record | None:
        """The record if it is whole and about ``task``, else None: the task is done again."""
        if not isinstance(found, dict) or set(found) != set(cls._fields):
            return None
        record = cls(**found)
        counts, errors = record.overflowed, record.errors
        whole = isinstance(counts, dict) and all(type(n) is int for n in counts.values())
        whole = whole and isinstance(errors, dict) and all(map(_is_error, errors.values()))
        whole = whole and errors.keys() >= {i.weight.name for i in task.items if i.encoding}
        same = (record.file, record.size) == (task.file, task.size)
        return record if whole and same else None


def _is_error(found: Any) -> bool:
    return isinstance(found, list) and [type(n) for n in found] == [float] * 3


class Staging:
    """The folder beside the target, locked. Use :func:`opened`."""

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.state = target.parent / f".{target.name}.fp8convert"
        self.out = self.state / "out"
        self.journal = self.state / "journal"
        self.folders = [self.out / name for name in _folders(plan)]

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest if the target is already there; refuses any but of this plan and source.

        ``source`` has size and time of every shard: equal headers do not make equal weights.
        """
        if not os.path.lexists(self.target):
            return None
        if not self.target.is_dir():
            raise TargetError(f"{shown(self.target)} exists and is not a folder")
        if not any(self.target.iterdir()):
            return None
        manifest = _read_json(self.target / MANIFEST)
        before = _dict(manifest, "identity")
        notes = differences(before, self.plan.identity) if before else []
        notes += differences(_dict(manifest, "source"), source) if before else []
        if before and not notes:
            _check_files(self.target, manifest, others=True)
            return manifest  # type: ignore[no-any-return]
        note = ": it was made by another plan\n" + "\n".join(notes) if notes else ""
        raise TargetError(f"{shown(self.target)} exists and is not empty{note}")

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse."""
        job = {"identity": self.plan.identity, "source": fingerprint}
        before = _read_json(self.state / JOB)
        if before is None:  # killed before the job was durable: nothing refers to what is there
            for folder in (self.journal, self.out):
                if folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir()
            self._make_folders()
            self._put(self.state / JOB, job)
            return
        notes = differences(_dict(before, "identity"), self.plan.identity)
        notes += differences(_dict(before, "source"), fingerprint)
        if notes:
            raise TargetError(
                f"an unfinished run in {shown(self.state)} is not this one:\n"
                + "\n".join(notes)
                + "\nRun it with the same options, or remove that folder to start over"
            )
        for folder in (self.journal, self.out):  # gone if the target was made and moved away
            folder.mkdir(exist_ok=True)
        self._sweep()
        self._make_folders()

    def _sweep(self) -> None:
        """Remove temporaries, and what was renamed but not journaled: its successor needs room."""
        kept = [t.file for t in self.plan.tasks if self.recorded(t)]
        vouched = {self.out / file for file in kept} | {self._record_path(file) for file in kept}
        # What stands in a folder's place goes, a link above all: it would lead out of here.
        folders = [f for f in self.folders if f.is_dir() and not f.is_symlink()]
        vouched |= set(folders)
        for left in [p for f in (self.out, self.journal, *folders) for p in f.iterdir()]:
            if left not in vouched:
                left.unlink()

    def _make_folders(self) -> None:
        for folder in self.folders:
            make_folder(folder)

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
        self._put(self._record_path(record.file), record._asdict())

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one and a file of that size."""
        record = Record.from_dict(_read_json(self._record_path(task.file)), task)
        with contextlib.suppress(OSError):
            if record and (self.out / task.file).stat().st_size == task.size:
                return record
        return None

    def commit(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, last, and make the whole target appear under its name."""
        for folder in self.folders:  # where something was swept and nothing written since
            sync_folder(folder)
        self._put(self.out / MANIFEST, manifest)
        _check_files(self.out, manifest, others=False)
        try:
            os.rename(self.out, self.target)  # replaces an empty folder, fails on any other
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise TargetError(
                f"{shown(self.target)} has come to exist meanwhile ({e.strerror}); "
                f"what was to go there is in {shown(self.out)}"
            ) from e
        sync_folder(self.target.parent)
        self.clear()

    def clear(self) -> None:
        """Remove the state folder if its ``out`` has become the target; the lock goes with it."""
        if not self.out.exists():
            shutil.rmtree(self.state, ignore_errors=True)
            sync_folder(self.target.parent)

    def tidy(self) -> None:
        """Clear what a run killed right after the last rename has left, if that is possible."""
        if self.state.exists():
            with contextlib.suppress(TargetError, OSError), opened(self):
                self.clear()

    def _record_path(self, file: str) -> Path:
        """Records lie flat; in a folder's name and a file's there may be too much for one name."""
        if "/" in file:  # no plain file's record ends so
            return self.journal / f"{hashlib.sha256(file.encode()).hexdigest()}.record"
        return self.journal / f"{file}.json"

    def _put(self, path: Path, value: Any) -> None:
        self._write(path, (json.dumps(value, indent=1) + "\n").encode())

    def _write(self, path: Path, data: bytes) -> None:
        temporary = self.temporary(path.parent, path.name)
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(fd, "wb") as f, naming(path.name):
                f.write(data)
                f.flush()
                sync(f.fileno())
            self.install(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def resolve_target(dst: str | os.PathLike[str], source: Path) -> Path:
    """The real path of the target; refuses one that is the source, inside it, or around it."""
    target = Path(os.path.realpath(dst))  # Path.resolve raises on a loop of links
    if target == source or source in target.parents or target in source.parents:
        raise TargetError(
            f"target {shown(target)} and source {shown(source)} must not contain each other"
        )
    if os.path.ismount(target):
        raise TargetError(
            f"{shown(target)} is a mount point, and a target is renamed into place: "
            "name a folder inside it"
        )
    return target


@contextlib.contextmanager
def opened(staging: Staging) -> Iterator[None]:
    """Create and lock the state folder; a second run on the same target is refused."""
    make_folder(staging.state)
    lock = staging.state / "lock"
    fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetError(f"another run is writing {shown(staging.target)}") from None
        except OSError:  # a filesystem without locks: unique names keep the bytes right
            pass
        if not lock.exists() or lock.stat().st_ino != os.fstat(fd).st_ino:
            raise TargetError(f"another run has just finished {shown(staging.target)}; run again")
        yield
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """``mkdir -p``, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the filesystem can be asked to (EINVAL)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(str(folder)):
            os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Lines that name each field that differs, with both values; long lists are cut."""
    lines: list[str] = []
    for key in [*before, *(k for k in now if k not in before)]:
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{path}{key}.")
        elif json.dumps(a) != json.dumps(b):
            lines.append(f"  {path}{shown(key)[1:-1]}: {shown(a)} then, {shown(b)} now")
    return lines[:MAX_DIFFERENCES]


def _folders(plan: Plan) -> list[str]:
    """The folders of a plan's files; refuses names that are deeper, odd, or not different."""
    names = [MANIFEST, *(t.file for t in plan.tasks), *plan.texts, *(c.file for c in plan.copies)]
    for name in names:
        check_name(name, "file of the target")
    folders = list(dict.fromkeys(name.split("/")[0] for name in names if "/" in name))
    if doubled := [name for name, n in Counter([*names, *folders]).items() if n > 1]:
        raise TargetError(f"{listed(doubled)}: expected one file, or one folder, of that name")
    return folders


def _dict(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> Any:
    """The JSON in ``path``, or None if it is absent, empty or damaged; OSError if unreadable."""
    try:
        data = Folder.at(path.parent).read(path.name, MAX_RECORD, "state")
        return strictjson.loads(data, path.name)
    except FormatError:
        return None


def _check_files(folder: Path, manifest: dict[str, Any], others: bool) -> None:
    """Refuse a folder without the manifest's files, each of its size; ``others`` may be there."""
    try:
        expected = {str(f["name"]): f["size"] for f in manifest["files"]}
    except (KeyError, TypeError):
        raise TargetError(f"{shown(folder)} has a {MANIFEST} without its list of files") from None
    actual = _sizes(folder, {name.split("/")[0] for name in expected if "/" in name})
    if others:
        actual = {name: size for name, size in actual.items() if name in expected}
    notes = differences(expected, actual)
    if notes:
        raise TargetError(
            f"{shown(folder)} does not hold what its manifest says, in bytes by file:\n"
            + "\n".join(notes)
        )


def _sizes(folder: Path, folders: set[str]) -> dict[str, int]:
    """Bytes of everything but the manifest, by name; of what is in ``folders`` as well."""
    found = [p for p in folder.iterdir() if p.name != MANIFEST]
    inner = {p for p in found if p.name in folders and p.is_dir()}
    found = [p for p in found if p not in inner] + [p for f in inner for p in f.iterdir()]
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
