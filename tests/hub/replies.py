"""What a route gives back: a reply, or an exception that is one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """A range of a file, as the body of a reply."""

    path: Path
    start: int  # bytes from the beginning of the file
    length: int  # bytes


@dataclass(frozen=True)
class Reply:
    """A status, headers, and a body of bytes or of a range of a file."""

    status: int = 200
    body: bytes | Span = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.body.length if isinstance(self.body, Span) else len(self.body)


class RefusedError(Exception):
    """A request that the hub turns down, in the hub's own words.

    Args:
        status: of HTTP.
        message: for ``X-Error-Message`` and the body.
        code: for ``X-Error-Code``: RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo.
        headers: more of them.
    """

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}

    def reply(self) -> Reply:
        """What goes over the wire."""
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return as_json({"error": self.message}, self.status, headers)


def as_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """A reply of JSON."""
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status, json.dumps(value).encode(), {**kind, **(headers or {})})
