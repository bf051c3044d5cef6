"""Addresses of the hub: ``hf://org/name[@revision]``; also without ``hf://`` where no folder is."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..errors import UsageError, shown

SCHEME = "hf://"
MAIN = "main"
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"  # \w is ASCII's here
_ADDRESS = re.compile(rf"({_NAME}/{_NAME})(?:@([^\s@]{{1,200}}))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


class Address(NamedTuple):
    """A repository of models, and a branch, a tag or a commit of it; a branch may have a ``/``."""

    repo: str
    revision: str = MAIN

    @classmethod
    def of(cls, path: str) -> Address:
        """Of ``hf://org/name[@revision]``; UsageError if it is something else."""
        found = _parsed(path.removeprefix(SCHEME).rstrip("/"))
        if found is None:
            raise UsageError(f"{shown(path)}: expected hf://org/name or hf://org/name@revision")
        return found

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return _COMMIT.fullmatch(self.revision) is not None


def bare(path: str) -> Address | None:
    """``org/name[@revision]`` if it could be one of the hub, and nothing of that name is here."""
    return None if os.path.lexists(path) else _parsed(path)


def is_repo(text: str) -> bool:
    """Whether it is ``org/name``, and no more."""
    found = _parsed(text)
    return found is not None and found.repo == text


def _parsed(text: str) -> Address | None:
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in match[1] or "--" in match[1] or match[1].endswith(".git"):
        return None
    return Address(match[1], match[2] or MAIN)
