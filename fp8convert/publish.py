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
import re
import stat
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import strictjson
from .calls import MOST, close, discard, let_go, naming, sync
from .errors import FormatError, ResumableError, TargetError, listed, shown
from .folder import Folder, check_name
from .plan import Plan, Task
from .seal import sealed, unsealed

MANIFEST = "manifest.json"
JOB = "job.json"
TEMPORARY = ".tmp"
TOKEN = "run"
SUM = re.compile("[0-9a-f]{64}")  # SHA-256
FAR = 1e100  # beyond every error: squares of float32, summed, are between 1e-91 and 1e90
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
        whole = whole and _is_sum(record.sha256)
        same = (record.file, record.size) == (task.file, task.size)
        return record if whole and same else None


def _is_error(found: Any) -> bool:
    three = isinstance(found, list) and [type(n) for n in found] == [float] * 3
    return three and all(n == 0 or 1 / FAR <= n <= FAR for n in found)


def _is_sum(found: Any) -> bool:
    return found is None or (type(found) is str and SUM.fullmatch(found) is not None)


class Staging:
    """The folder beside the target, locked. Use :func:`opened`."""

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.state = target.parent / f".{target.name}.fp8convert"
        self.way = self.state  # to what is in it; see take_over
        self._names = _folders(plan)

    @property
    def out(self) -> Path:
        """What becomes the target."""
        return self.way / "out"

    @property
    def journal(self) -> Path:
        """Where the records are."""
        return self.way / "journal"

    @property
    def folders(self) -> list[Path]:
        """Those in ``out``."""
        return [self.out / name for name in self._names]

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
        manifest, damage = _read_manifest(self.target)
        before = _dict(manifest, "identity")
        notes = differences(before, self.plan.identity) if before else []
        notes += differences(_dict(manifest, "source"), source) if before else []
        if before and not notes:
            _check_files(self.target, manifest, others=True)
            return manifest  # type: ignore[no-any-return]
        note = ": it was made by another plan\n" + "\n".join(notes) if notes else damage
        raise TargetError(f"{shown(self.target)} exists and is not empty{note}")

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse."""
        job = {"identity": self.plan.identity, "source": fingerprint}
        before = self._take_over(job)
        for left in [n for n in os.listdir(self.way) if n.endswith(TEMPORARY)]:
            _remove(self.way / left)
        if before is None:  # killed before the job was durable: nothing refers to what is there
            for folder in (self.journal, self.out):
                self._remove_aside(folder)
                folder.mkdir()
            self._make_folders()
            self._put(self.way / JOB, job)
            return
        for folder in (self.journal, self.out):  # gone if the target was made and moved away
            if folder.is_symlink() or not folder.is_dir():
                self._remove_aside(folder)
            folder.mkdir(exist_ok=True)
        self._sweep()
        self._make_folders()

    def _take_over(self, job: dict[str, Any]) -> Any:
        """Make this the only run that can write here; the job of the one before, or None.

        A lock does that, where locks work. Where they do not, this does: every run goes to what is
        in the state folder by a link of its own in it, that leads to the folder it is in. The link
        of a run that was killed, or is still at work, is removed, so that nothing it writes,
        renames or removes is found any more; it ends with exit code 75. The numbers in the names
        decide between runs that begin at once.
        """
        before = self._unfinished(job)
        number = max((_number(link) for link in self._tokens()), default=0) + 1
        mine = f"{TOKEN}.{number}.{uuid.uuid4().hex}"
        try:
            os.symlink(".", self.state / mine)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            return before  # a filesystem without links: the lock has to do
        try:
            self.way = self.state / mine
            before = self._unfinished(job)
            for link in self._tokens():
                if (_number(link), link) > (number, mine):
                    raise self.overtaken()
                if link != mine:
                    (self.state / link).unlink(missing_ok=True)
        except BaseException:
            self.let_go()
            raise
        return before

    def _tokens(self) -> list[str]:
        return [n for n in os.listdir(self.state) if n.startswith(f"{TOKEN}.")]

    def let_go(self) -> None:
        """The end of this run, finished or not."""
        if self.way != self.state:
            discard(self.way)
            self.way = self.state

    def overtaken(self) -> ResumableError:
        """What this run ends with."""
        return ResumableError(
            f"another run on {shown(self.target)} has taken over, or {shown(self.state)} was "
            "removed: let it end, and run the same again"
        )

    def is_overtaken(self) -> bool:
        """Whether nothing that this run does is found any more."""
        return self.way != self.state and not os.path.lexists(self.way)

    def _unfinished(self, job: dict[str, Any]) -> Any:
        """The job that was begun here, or None; refuses any but this one."""
        before = _read_json(self.way / JOB)
        if before is None:
            return None
        notes = differences(_dict(before, "identity"), job["identity"])
        notes += differences(_dict(before, "source"), job["source"])
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
            aside = self.temporary(self.way, folder.name)
            os.rename(folder, aside)
            _remove(aside)

    def _sweep(self) -> None:
        """Remove temporaries, and what was renamed but not journaled: its successor needs room."""
        kept = [t.file for t in self.plan.tasks if self.recorded(t)]
        vouched = {self.out / file for file in kept} | {self._record_path(file) for file in kept}
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
        self._put(self._record_path(record.file), record._asdict())

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one and a file of that size."""
        record = Record.from_dict(_read_json(self._record_path(task.file)), task)
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
        _check_files(self.out, manifest, others=False)
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
            if self.finished(_dict(manifest, "source")):
                _remove(self.out)
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
        self.way = self.state
        _remove(self.state)
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

    def _record_path(self, file: str) -> Path:
        """Records lie flat; in a folder's name and a file's there may be too much for one name."""
        if "/" in file:  # no plain file's record ends so
            return self.journal / f"{hashlib.sha256(file.encode()).hexdigest()}.record"
        return self.journal / f"{file}.json"

    def _put(self, path: Path, value: Any) -> None:
        self._write(path, (json.dumps(value, indent=1) + "\n").encode())

    def _write(self, path: Path, data: bytes) -> None:
        temporary = self.temporary(path.parent, path.name)
        try:  # begun before the file is: a signal may end this between its making and the next step
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            _write_durably(fd, data, path.name)
            self.install(temporary, path)
        except BaseException:
            discard(temporary)
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
            staging.let_go()
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
    made = name in ("lock", JOB, "journal", "out")
    return made or name.endswith(TEMPORARY) or name.startswith(f"{TOKEN}.")


def _same_file(path: Path, fd: int) -> bool:
    """Whether ``path`` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _remove(state: Path) -> None:
    """Remove a state folder, or what is in one, as far as that is possible.

    Not by shutil.rmtree: it closes a descriptor twice if the first time is interrupted.
    """
    if state.is_symlink() or not state.is_dir():
        discard(state)
        return
    for folder, folders, files in os.walk(state, topdown=False):
        for name in [*files, *(n for n in folders if os.path.islink(Path(folder, n)))]:
            discard(Path(folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _write_durably(fd: int, data: bytes, name: str) -> None:
    """Write, sync and close, however little one call takes; after an error it is closed as well.

    Nothing is tried twice: what is in a file whose sync has failed nobody knows.
    """
    view = memoryview(data)
    with naming(name):
        try:
            while view:
                view = view[os.write(fd, view[:MOST]) :]
            sync(fd)
        except BaseException:
            let_go(fd)
            raise
        close(fd)


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
        let_go(fd)


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


def _number(token: str) -> int:
    """Of a run's link; 0 of a stray name."""
    parts = token.split(".")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _read_manifest(folder: Path) -> tuple[Any, str]:
    """A target's manifest, or None; and what is wrong with it, to end a sentence with."""
    if not os.path.lexists(folder / MANIFEST):
        return None, ""
    try:
        data = Folder.at(folder).read(MANIFEST, MAX_RECORD, "manifest")
        return unsealed(data, MANIFEST)[0], ""
    except FormatError as e:
        return None, f": {e}"


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
