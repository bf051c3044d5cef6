"""The manifest's sum of itself: its last line holds the SHA-256 of all bytes before that line.

Every file of a target has its sum in the manifest, so one bit of the manifest would be all that may
change unseen. See docs/verify.md for how to take the sum without this package.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from . import strictjson
from .errors import FormatError

FORMAT = 2  # 1 had no sum
FIELD = "sha256"
_END = b',\n "%b": "%b"\n}\n'
_LAST = re.compile(_END % (FIELD.encode(), b"([0-9a-f]{64})") + rb"\Z")
LENGTH = len(_END % (FIELD.encode(), b"0" * 64))  # of the end, from the comma before it


def sealed(manifest: dict[str, Any]) -> bytes:
    """The file: ``manifest`` as JSON, its format and, last, its sum; what it had of them goes."""
    rest = {key: value for key, value in manifest.items() if key not in ("format", FIELD)}
    body = json.dumps({"format": FORMAT, **rest}, indent=1)[: -len("\n}")].encode()
    return body + _END % (FIELD.encode(), hashlib.sha256(body).hexdigest().encode())


def unsealed(raw: bytes, where: str) -> tuple[Any, bool]:
    """What the file holds, and whether it has its sum: older ones and other tools' have none.

    FormatError if the sum is wrong, if a manifest that must have one has not, or if it is no JSON.
    """
    if is_sealed(raw):
        return strictjson.loads(raw, where), True
    if last := _LAST.search(raw[-LENGTH:]):
        found = hashlib.sha256(raw[:-LENGTH]).hexdigest()
        raise FormatError(
            f"{where}: SHA-256 of what precedes its last line is {found}, expected "
            f"{last[1].decode()} as that line has it: it was changed after it was written"
        )
    manifest = strictjson.loads(raw, where)
    if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
        raise FormatError(
            f"{where}: expected the sum of itself as its last line: it was changed after it was "
            "written"
        )
    return manifest, False


def ends_sealed(raw: bytes) -> bool:
    """Whether the last ``LENGTH`` bytes have the form of a sum."""
    return _LAST.search(raw[-LENGTH:]) is not None


def is_sealed(raw: bytes) -> bool:
    """Whether the last bytes of a file are the sum of those before them."""
    last = _LAST.search(raw[-LENGTH:])
    return last is not None and hashlib.sha256(raw[:-LENGTH]).hexdigest() == last[1].decode()
