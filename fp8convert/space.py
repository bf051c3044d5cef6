"""Room on disks, before there is anything to clean up: for the target, and for downloads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ResumableError, shown
from .origin import Scratch
from .stage import Stage

if TYPE_CHECKING:
    from .job import Job


def check_space(
    job: Job, stage: Stage, scratch: Scratch | None = None, most: int | None = None
) -> None:
    """ResumableError unless there is room for what is not written yet, of which ``most`` bytes are
    there at once, and, if a ``scratch`` is given, for what is to wait there."""
    needed = job.plan.disk_needed - sum(t.size for t in job.plan.tasks if stage.recorded(t))
    needed = needed if most is None else min(needed, most)
    waiting, free, shared = room_for(job, scratch) if scratch else (0, 0, False)
    if shared:
        needed += waiting
    elif scratch and waiting:
        _check(shown(scratch.folder), waiting, free)
    _check(shown(job.target), needed, stage.free())


def room_for(job: Job, scratch: Scratch) -> tuple[int, int, bool]:
    """Bytes that downloads may take; bytes free there; whether the target takes of these, too."""
    if not scratch.folder or not (waiting := job.feed(scratch).room):
        return 0, 0, False
    place = _there(scratch.folder)
    shared = isinstance(job.target, Path) and _disk(place) == _disk(_there(job.target))
    return waiting, shutil.disk_usage(place).free, shared


def _check(what: str, needed: int, free: int | None) -> None:
    if free is not None and needed > free:
        raise ResumableError(f"not enough disk for {what}: {needed:,} bytes needed, {free:,} free")


def _there(place: Path) -> Path:
    """What there is of the way to it."""
    while not place.exists():
        place = place.parent
    return place


def _disk(place: Path) -> int:
    return os.stat(place).st_dev
