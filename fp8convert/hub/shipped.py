"""A target whose files are uploaded as they are finished, and dropped here if that is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..journal import Record
from ..plan import Plan, Task
from ..publish import Staging
from ..target import finished
from .uploads import File, Uploads, sizes_of


class Shipped(Staging):
    """As a staging folder of which finished files go to ``uploads``.

    ``check`` is called before anything is written; ``deliver``, with the folder and the manifest in
    it, when all else is done and the target has yet to appear: until then the journal knows what
    was dropped, and what the hub has lost can be made again.
    """

    def __init__(
        self, target: Path, plan: Plan, uploads: Uploads, drop: bool,
        check: Callable[[], None], settle: Callable[[], None],
        deliver: Callable[[Path, dict[str, Any]], None],
    ) -> None:  # fmt: skip
        super().__init__(target, plan)
        self.uploads, self.drop = uploads, drop
        self._check, self._settle, self._deliver = check, settle, deliver

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """As without uploads, but for weights that may be on the hub only."""
        weights = {task.file for task in self.plan.tasks}
        return finished(self.target, self.plan.identity, source, weights)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """As without uploads, once it is sure that they can be made."""
        self._check()
        with super().opened():
            yield

    def begin(self, fingerprint: dict[str, Any]) -> str:
        """As without uploads, having asked what the hub has of what an earlier run has finished."""
        found = [r for r in map(self.journaled, self.plan.tasks) if r]
        self.uploads.look(sizes_of(found))
        return super().begin(fingerprint)

    def record(self, record: Record) -> None:
        """Journal a finished file, and send it."""
        super().record(record)
        self._ship(record)

    def recorded(self, task: Task) -> Record | None:
        """As without uploads; or of a file that the hub has, and that was dropped here."""
        found = super().recorded(task)
        if found or not self.drop or os.path.lexists(self.out / task.file):
            return found
        found = self.journaled(task)
        if found is None or found.sha256 not in self.uploads.there:
            return None
        self.uploads.gone[found.file] = found
        return found

    def is_sound(self, record: Record, stopped: Callable[[], bool]) -> bool:
        """As without uploads; what is sound is sent, if the hub has not got it."""
        if record.file in self.uploads.gone:
            return True
        sound = super().is_sound(record, stopped)
        if sound:
            self._ship(record)
        return sound

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """As without uploads, when all is there; where weights are dropped, the hub's commit comes
        first."""
        self._settle()
        data = self.complete(manifest, self.uploads.gone)
        if self.drop:
            self._deliver(self.out, data)
        self.appear(data)
        return data

    def _ship(self, record: Record) -> None:
        path = self.out / record.file
        self.uploads.add(File(record.file, path, record.size, record.sha256, self.drop))
