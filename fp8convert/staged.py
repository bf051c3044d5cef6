"""The files of a target that is being built: each is whole and durable before it gets its name.

They are written in the state folder of a target, and so are the records of them. Every way there
goes by the run's own link; see :mod:`.fence`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import durable
from .calls import discard
from .durable import sync_folder
from .errors import TargetError, listed
from .fence import Fence
from .fileio import TargetFile, hash_file
from .folder import check_name
from .journal import Record, record_name
from .lock import TEMPORARY
from .plan import Plan, Task
from .target import MANIFEST, read_json


def state_of(target: Path) -> Path:
    """The folder in which ``target`` is built."""
    return target.parent / f".{target.name}.fp8convert"


class StagedFiles:
    """Those of one target, made by one plan, as one run sees them."""

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.state = state_of(target)
        self.fence = Fence(self.state, target)
        self._names = folders_of(plan)

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

    def temporary(self, folder: Path, name: str) -> Path:
        """A name in ``folder`` that no other run, past or present, uses."""
        return folder / f"{name}.{uuid.uuid4().hex}{TEMPORARY}"

    def install(self, temporary: Path, final: Path) -> None:
        """Give a durable temporary file its final name, durably."""
        os.replace(temporary, final)
        sync_folder(final.parent)

    def free(self) -> int:
        """Bytes free for this user where the target goes."""
        place = self.target
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    @property
    def memory(self) -> int:
        """None to speak of."""
        return 0

    def create(self, task: Task, io: str) -> StagedFile:
        """A new file for ``task``."""
        return StagedFile(self, task, io)

    def spool(self, task: Task) -> Path:
        """A name, used by no one else, for what waits on a disk while ``task`` is written."""
        return self.temporary(self.out, f"{task.file}.spool")

    def is_sound(self, record: Record, stopped: Callable[[], bool]) -> bool:
        """Whether the file that is recorded is still what was written; else it goes."""
        path = self.out / record.file
        with contextlib.suppress(FileNotFoundError):  # others that have joined remove it as well
            if self.plan.options.checksum != "sha256" or hash_file(path, stopped) == record.sha256:
                return True
            path.unlink()  # its successor may need the room
        return False

    def put_bytes(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a small file of the target whole; its manifest entry."""
        self._write(self.out / name, data)
        return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def record(self, record: Record) -> None:
        """Journal a finished file."""
        self._put(self.journal / record_name(record.file), record._asdict())

    def journaled(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one, whatever its file is."""
        return Record.from_dict(read_json(self.journal / record_name(task.file)), task)

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one and a file of that size."""
        record = self.journaled(task)
        with contextlib.suppress(OSError):
            found = (self.out / task.file).lstat()  # a link is no file of ours
            if record and stat.S_ISREG(found.st_mode) and found.st_size == task.size:
                return record
        return None

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


class StagedFile(TargetFile):
    """A file of the target under a temporary name, until it is installed."""

    def __init__(self, staging: StagedFiles, task: Task, io: str) -> None:
        self._staging, self._final = staging, staging.out / task.file
        checksum = staging.plan.options.checksum == "sha256"
        super().__init__(staging.temporary(staging.out, task.file), task.size, io, checksum)

    def install(self) -> None:
        """Give it its final name, durably."""
        self._staging.install(self.path, self._final)

    def abandon(self) -> None:
        """Leave nothing of it behind, as far as that is possible."""
        with contextlib.suppress(OSError):
            self.close()
        discard(self.path)


def folders_of(plan: Plan) -> list[str]:
    """The folders of a plan's files; refuses names that are deeper, odd, or not different."""
    names = [MANIFEST, *(t.file for t in plan.tasks), *plan.texts, *(c.file for c in plan.copies)]
    for name in names:
        check_name(name, "file of the target")
    folders = list(dict.fromkeys(name.split("/")[0] for name in names if "/" in name))
    if doubled := [name for name, n in Counter([*names, *folders]).items() if n > 1]:
        raise TargetError(f"{listed(doubled)}: expected one file, or one folder, of that name")
    return folders
