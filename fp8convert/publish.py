"""Crash safety: a target is built beside its final place and appears there whole, or not at all.

``DST`` is built in ``.DST.fp8convert/``: ``out/`` becomes DST by one rename, ``job.json`` says
which plan and source it is, ``journal/`` has a record for every finished file, ``lock`` keeps a
second run out. Every file is written under a unique temporary name, checked, fsynced, renamed, and
its folder fsynced, before anything refers to it: see :mod:`.staged`. Files may lie in folders of
``out/``, one deep (``folder/name``). See docs/crash-safety.md.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from .durable import make_folder, remove, sync_folder
from .errors import ResumableError, TargetError, listed, shown
from .journal import record_name
from .lock import TEMPORARY, check_own, locked
from .seal import sealed
from .staged import StagedFiles
from .target import MANIFEST, check_files, differences, field, finished, read_json

JOB = "job.json"
ASKED = "asked"  # in the job: see Plan
RUN = "run"  # in the job: the run that was the last to begin


class Staging(StagedFiles):
    """The folder beside the target, locked. Use :func:`opened`."""

    def left(self) -> str | None:
        """Where unfinished work is, if there is any."""
        return str(self.state) if self.state.exists() else None

    def finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest if the target is already there; see :func:`target.finished`."""
        return finished(self.target, self.plan.identity, source)

    def begin(self, fingerprint: dict[str, Any]) -> str:
        """Start, or go on with the same plan and an unchanged source; otherwise refuse.

        Returns the name of this run, which the job is from now on to be found under.
        """
        job: dict[str, Any] = {"identity": self.plan.identity, "source": fingerprint}
        before, run = self.fence.take_over(lambda: self._unfinished(job))
        job[RUN] = run
        if asked := self.plan.asked or (before or {}).get(ASKED):  # a worker asks for the commit
            job[ASKED] = asked
        for left in [n for n in os.listdir(self.fence.way) if n.endswith(TEMPORARY)]:
            remove(self.fence.way / left)
        if before is None:  # killed before the job was durable: nothing refers to what is there
            for folder in (self.journal, self.out):
                self._remove_aside(folder)
                folder.mkdir()
        else:
            self._keep_what_is_recorded()
        self._make_folders()
        self._put(self.fence.way / JOB, job)  # last: there may be no room before the sweep
        return run

    def _keep_what_is_recorded(self) -> None:
        for folder in (self.journal, self.out):  # gone if the target was made and moved away
            if folder.is_symlink() or not folder.is_dir():
                self._remove_aside(folder)
            folder.mkdir(exist_ok=True)
        self._sweep()

    @contextlib.contextmanager
    def joined(self, fingerprint: dict[str, Any], run: str) -> Iterator[None]:
        """Work on the run of that name, begun elsewhere, with others; refuses any but that one."""
        job = {"identity": self.plan.identity, "source": fingerprint}
        check_own(self.state)
        with locked(self.state, self.target, shared=True):
            self.fence.join(run, lambda: self._same_run(job, run))
            try:
                yield
            finally:
                self.fence.let_go()

    def _same_run(self, job: dict[str, Any], run: str) -> None:
        before = self._unfinished(job)
        found = before.get(RUN) if isinstance(before, dict) else None
        if found != run:
            raise TargetError(
                f"{shown(self.state)} is not of the run that was planned: expected {shown(run)} "
                f"in its {JOB}, found {shown(found)}: plan again"
            )
        if gone := [f.name for f in (self.journal, self.out, *self.folders) if not f.is_dir()]:
            raise TargetError(f"{shown(self.state)} has no folder {listed(gone)} now: plan again")

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

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, last, and make the whole target appear under its name.

        The manifest as it is there, with its sum.
        """
        found = self.complete(manifest)
        self.appear(found)
        return found

    def complete(self, manifest: dict[str, Any], apart: Container[str] = ()) -> dict[str, Any]:
        """Write the manifest, last, and see that all its files are there but those ``apart``."""
        for folder in self.folders:  # where something was swept and nothing written since
            sync_folder(folder)
        data = sealed(manifest)
        self._write(self.out / MANIFEST, data)
        check_files(self.out, manifest, others=False, apart=apart)
        found: dict[str, Any] = json.loads(data)
        return found

    def appear(self, manifest: dict[str, Any]) -> None:
        """Make what is complete the target."""
        try:
            os.rename(self.out, self.target)  # replaces an empty folder, fails on any other
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            self._come_to_exist(manifest, e)
        sync_folder(self.target.parent)
        self.clear()

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

    def overtaken(self) -> ResumableError | None:
        """What to end with if another run has taken over; None if none has."""
        return self.fence.overtaken() if self.fence.is_overtaken() else None

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """See :func:`opened`."""
        return opened(self)


@contextlib.contextmanager
def opened(staging: Staging) -> Iterator[None]:
    """Create and lock the state folder; a second run on the same target is refused."""
    check_own(staging.state)
    make_folder(staging.state)
    with locked(staging.state, staging.target):
        try:
            yield
        finally:
            staging.fence.let_go()
