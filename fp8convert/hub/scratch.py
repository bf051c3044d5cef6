"""The folder where downloads wait: one for each process, told apart by locks.

``ROOT/org--name@COMMIT.N/`` is held by a lock on the file beside it, ``....N.lock``. Whoever comes
takes the first that is free: a run that is started again finds what it had, and uses it, after its
sums are checked. What is to be kept goes to ``ROOT/org--name@COMMIT/``, durably and after its sum
was checked; there all runs look, and nobody removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..calls import discard, let_go, sync
from ..durable import make_folder, remove, sync_folder
from .address import Address

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
TEMPORARY = "incoming-"


def slot_name(pinned: Address) -> str:
    """What the folders of a commit begin with."""
    return f"{pinned.repo.replace('/', '--')}@{pinned.revision[:12]}"


class Slot:
    """A folder that this process alone uses, of the commit ``name``; see :class:`Scratch`."""

    def __init__(self, root: Path, name: str, own: bool, keep: bool) -> None:
        self._root, self._name, self._own, self._keep = root, name, own, keep
        make_folder(root)
        self.folder, self._fd = _first_free(root, name)
        self.folder.mkdir(exist_ok=True)
        if self._fd >= 0:
            self._sweep("" if own else f"{name}.")

    def left(self, sizes: Mapping[str, int], room: int) -> list[str]:
        """Which of the files ``sizes`` (bytes by name, in the order in which they are wanted) are
        there from an earlier run, as far as they fit in ``room``; all else there is removed."""
        found, held = [], 0
        for name, size in sizes.items():
            if _size(self.folder / name) == size and held + size <= room:
                found.append(name)
                held += size
        kept = {self.folder / name for name in found}
        for path in list(self.folder.rglob("*")):
            if path not in kept and not any(path in one.parents for one in kept):
                remove(path)
        return found

    def place(self, name: str) -> Path:
        """Of a file that has been checked."""
        return self.folder / name

    def put(self, path: Path, name: str) -> Path:
        """Give a file that has been checked its place; where that is."""
        if not self._keep:
            place = self.place(name)
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)
            return place
        place = kept(self._root, self._name) / name
        make_folder(place.parent)
        with path.open("rb") as file:
            sync(file.fileno())
        _put_once(path, place)
        sync_folder(place.parent)
        return place

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """A new folder, for one download."""
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
        try:
            yield folder
        finally:
            remove(folder)

    def close(self) -> None:
        """Let go of it; what was not completed is removed, and so are folders that are empty."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            remove(path)
        if self._fd < 0:  # nobody would find it again
            remove(self.folder)
        for path in self.folder.glob("*/"):
            _remove_empty(path)
        if _remove_empty(self.folder):
            discard(_lock_of(self.folder))
        let_go(self._fd)
        if self._own:
            _remove_empty(self._root)

    def _sweep(self, prefix: str) -> None:
        """Remove folders that processes which were killed have left, and nobody will take."""
        for lock in self._root.glob(f"{prefix}*{LOCK}"):
            fd = _locked(lock) if lock != _lock_of(self.folder) else -1
            if fd >= 0:
                remove(lock.with_name(lock.name.removesuffix(LOCK)))
                discard(lock)
                let_go(fd)


def kept(root: Path, name: str) -> Path:
    """Where a commit's files are kept."""
    return root / name


def is_there(path: Path, size: int) -> bool:
    """Whether there is a file of that size, and no link."""
    return _size(path) == size


def waiting(root: Path, name: str) -> int:
    """Bytes of what a run will find there, if nobody else comes first: it uses or removes all."""
    return sum(
        max(_size(Path(folder, file)), 0)
        for folder, _, files in os.walk(root / f"{name}.0")
        for file in files
    )


def _first_free(root: Path, name: str) -> tuple[Path, int]:
    number = 0
    while True:
        folder = root / f"{name}.{number}"
        try:
            fd = _locked(_lock_of(folder))
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise
            discard(_lock_of(folder))
            return root / f"{name}.{uuid.uuid4().hex}", -1  # no locks: nobody else has this one
        if fd >= 0:
            return folder, fd
        number += 1


def _locked(lock: Path) -> int:
    """A descriptor that holds the lock; -1 if another process does."""
    while True:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            let_go(fd)
            return -1
        except BaseException:
            let_go(fd)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(lock), os.fstat(fd)):
                return fd
        let_go(fd)  # whoever had it has removed it meanwhile


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + LOCK)


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _put_once(path: Path, place: Path) -> None:
    """Another run may have put it there meanwhile, and read it: one of the right size stays."""
    if _size(place) == _size(path):
        path.unlink()
    else:
        os.replace(path, place)


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
