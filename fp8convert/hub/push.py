"""Uploading a target to the hub: what is asked for, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError, shown
from .address import MAIN, Address, is_repo

_BRANCH = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class Push:
    """Where to: ``repo`` is org/name; ``revision`` a branch, made if it is not there.

    ``private``: the repository must be, and is made so; ``drop``: weights are removed here once the
    hub has them; ``parity``: a file of what ``fp8convert parity --json`` printed, for the model
    card; ``progress`` is told of bytes sent, and of how many, once there is nothing but to send.
    """

    repo: str
    private: bool = False
    revision: str | None = None
    drop: bool = False
    parity: Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not is_repo(self.repo):
            raise UsageError(f"--push-to-hub {shown(self.repo)}, expected ORG/NAME")
        odd = any(two in self.branch for two in ("..", ".lock"))
        if odd or not _BRANCH.fullmatch(self.branch) or Address("", self.branch).pinned:
            raise UsageError(f"--revision {shown(self.revision)}, expected the name of a branch")

    @property
    def branch(self) -> str:
        """Its name."""
        return MAIN if self.revision is None else self.revision

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.repo}@{self.branch}"


@dataclass(frozen=True)
class Pushed:
    """What became of it: ``commit`` holds the target; ``already``: it did so before."""

    repo: str
    branch: str
    commit: str
    url: str
    already: bool
    dropped: int  # files of the target that are on the hub only

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))
