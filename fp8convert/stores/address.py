"""Addresses of places in an object store: ``s3://bucket/key``, ``gs://bucket/key``, ``memory://key``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError, shown

EXTRAS = {"s3": "s3", "gs": "gcs", "memory": ""}  # scheme -> what of fp8convert[...] it needs
HUB = "hf"
STATE = ".fp8convert"  # of a target that is not finished: the folder of its state
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def scheme_of(path: str) -> str | None:
    """``s3`` of ``s3://bucket/key``; None of a path. UsageError for what nothing here opens."""
    match = _SCHEME.fullmatch(path)
    if match is None:
        return None
    if match[1] != HUB and match[1] not in EXTRAS:
        known = ", ".join(f"{scheme}://" for scheme in (HUB, *EXTRAS))
        raise UsageError(f"{shown(path)}: expected a folder, or an address that begins {known}")
    return match[1]


@dataclass(frozen=True)
class ObjectPath:
    """A folder, so to speak, of an object store; ``key`` begins with the bucket."""

    scheme: str
    key: str

    @classmethod
    def of(cls, path: str) -> ObjectPath:
        """UsageError if ``path`` names none."""
        scheme, _, rest = path.partition("://")
        parts = [part for part in rest.split("/") if part]
        if not parts or any(part in (".", "..") for part in parts):
            raise UsageError(f"{shown(path)}: expected {scheme}://BUCKET/KEY")
        return cls(scheme, "/".join(parts))

    @property
    def name(self) -> str:
        """Its last part."""
        return self.key.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"
