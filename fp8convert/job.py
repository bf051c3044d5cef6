"""A planned conversion, and what became of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import stages
from .catalogue import Catalogue
from .errors import UsageError, shown
from .origin import Feed, Scratch
from .plan import Plan
from .settings import Settings
from .stage import Stage
from .stages import Target
from .teams import wanted

if TYPE_CHECKING:
    from .hub.push import Pushed


@dataclass(frozen=True)
class Manifest:
    """What was written, from what, by which rule. ``data`` is manifest.json; no clock in it."""

    path: Target
    data: dict[str, Any]
    already_done: bool = False
    pushed: Pushed | None = None  # what became of its upload

    @property
    def files(self) -> list[dict[str, Any]]:
        """``{"name", "size", "sha256"}`` of every file but the manifest itself."""
        found: list[dict[str, Any]] = self.data["files"]
        return found


@dataclass(frozen=True)
class Job:
    """A planned conversion, nothing written yet."""

    catalogue: Catalogue
    plan: Plan
    target: Target

    @property
    def stage(self) -> Stage:
        """Where it is built; a new one each time."""
        return stages.stage(self.target, self.plan)

    @property
    def disk_free(self) -> int | None:
        """Bytes free for this user where the target goes; None if nobody knows."""
        return self.stage.free()

    @property
    def downloads(self) -> Path | None:
        """Where downloads wait if nothing else is said; None if the target is not on this disk."""
        return stages.downloads(self.target)

    def feed(self, scratch: Scratch) -> Feed:
        """What would bring the shards, not begun; UsageError if ``scratch`` is too small for it."""
        tasks = wanted(self.plan.tasks)
        return self.catalogue.folder.feed(self.catalogue.shards, tasks, scratch)

    def fitted(self, settings: Settings) -> Settings:
        """``settings`` as this job needs them; UsageError if it cannot be done within them."""
        scratch = settings.scratch
        if scratch.folder is None:
            scratch = replace(scratch, folder=self.downloads, own=True)
        self._check_place(scratch)
        taken = self.feed(scratch).memory + self.stage.memory
        needs = self.plan.needs._replace(downloads=taken)
        return replace(settings, scratch=scratch).fitted(needs)

    def _check_place(self, scratch: Scratch) -> None:
        """UsageError if downloads would lie where the target appears, or in what is no folder."""
        if scratch.folder is None:
            return
        if scratch.folder.exists() and not scratch.folder.is_dir():
            raise UsageError(f"scratch {shown(scratch.folder)}: not a folder")
        if not isinstance(self.target, Path):
            return
        real = Path(os.path.realpath(scratch.folder))
        if real.is_relative_to(self.target):
            raise UsageError(
                f"scratch {shown(scratch.folder)}: not in the target, {shown(self.target)}"
            )
