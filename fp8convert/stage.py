"""Where a target is built: what the engine and a run ask of it, whatever kind of place it is.

:class:`~fp8convert.publish.Staging` builds a folder beside its final place, an object store
(:mod:`.stores`) what its last object makes valid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from .errors import ResumableError
from .journal import Record
from .plan import Plan, Task


class Output(Protocol):
    """One file being written, out of order, and hashed in order."""

    def write(self, view: memoryview, begin: int) -> None:
        """Write ``view`` at ``begin``; its address and ``begin`` agree modulo a page."""

    def hash(self, view: memoryview, begin: int) -> None:
        """Feed the same to the checksum, when everything before ``begin`` has been fed."""

    def stop(self) -> None:
        """Wake every thread that waits for its turn to hash, with an error."""

    def finish(self) -> str | None:
        """Make it durable; its SHA-256, if one was asked for. It has no final name yet."""

    def install(self) -> None:
        """Give it its final name, durably."""

    def abandon(self) -> None:
        """Leave nothing of it behind, as far as that is possible; never raises OSError."""


class Stage(Protocol):
    """Where one target is built, by one plan."""

    @property
    def plan(self) -> Plan: ...

    def left(self) -> str | None:
        """Where unfinished work is, if there is any."""

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest if the target is already there; refuses one of another plan or source."""

    def opened(self) -> AbstractContextManager[None]:
        """Keep other runs out, as far as that is possible."""

    def begin(self, fingerprint: dict[str, Any]) -> str:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse.

        Returns the name of this run, for those that are to join it.
        """

    def joined(self, fingerprint: dict[str, Any], run: str) -> AbstractContextManager[None]:
        """Work on a run that was begun elsewhere, with others; refuses any but that one."""

    def free(self) -> int | None:
        """Bytes free where files go; None if nobody knows."""

    @property
    def memory(self) -> int:
        """Bytes that files being written take, besides the engine's."""

    def create(self, task: Task, io: str) -> Output:
        """A new file for ``task``."""

    def spool(self, task: Task) -> Path:
        """A name, used by no one else, for what waits on a disk while ``task`` is written."""

    def record(self, record: Record) -> None:
        """Journal a finished file."""

    def recorded(self, task: Task) -> Record | None:
        """The journal's record of ``task``, if there is a sound one and a file of that size."""

    def is_sound(self, record: Record, stopped: Callable[[], bool]) -> bool:
        """Whether the file that is recorded is still what was written; else it goes."""

    def put_bytes(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a small file of the target whole; its manifest entry."""

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, last, and make the whole target appear; the manifest with its sum."""

    def tidy(self, source: dict[str, Any]) -> None:
        """Remove what a run killed right at its end has left, if that is possible."""

    def supersede(self, source: dict[str, Any]) -> None:
        """Remove what is left beside a target that this plan has finished."""

    def overtaken(self) -> ResumableError | None:
        """What to end with if another run has taken over; None if none has."""
