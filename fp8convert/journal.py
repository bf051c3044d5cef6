"""Records of finished files: what a resumption believes, if their bytes agree."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from .plan import Task

SUM = re.compile("[0-9a-f]{64}")  # SHA-256
FAR = 1e100  # beyond every error: squares of float32, summed, are between 1e-91 and 1e90


class Record(NamedTuple):
    """The journal's word on one finished file."""

    file: str
    size: int
    sha256: str | None
    overflowed: dict[str, int]  # weight -> elements beyond the target dtype
    errors: dict[str, list[float]]  # weight encoded -> largest, squared, and what it is of

    @classmethod
    def from_dict(cls, found: Any, task: Task) -> Record | None:
        """The record if it is whole and about ``task``, else None: the task is done again."""
        if not isinstance(found, dict) or set(found) != set(cls._fields):
            return None
        record = cls(**found)
        counts, errors = record.overflowed, record.errors
        whole = isinstance(counts, dict) and all(type(n) is int for n in counts.values())
        whole = whole and isinstance(errors, dict) and all(map(_is_error, errors.values()))
        whole = whole and errors.keys() >= {i.weight.name for i in task.items if i.encoding}
        whole = whole and _is_sum(record.sha256)
        same = (record.file, record.size) == (task.file, task.size)
        return record if whole and same else None


def _is_error(found: Any) -> bool:
    three = isinstance(found, list) and [type(n) for n in found] == [float] * 3
    return three and all(n == 0 or 1 / FAR <= n <= FAR for n in found)


def _is_sum(found: Any) -> bool:
    return found is None or (type(found) is str and SUM.fullmatch(found) is not None)


def record_name(file: str) -> str:
    """The record's file. Records lie flat; a folder's name and a file's may be too much for one."""
    if "/" in file:  # no plain file's record ends so
        return f"{hashlib.sha256(file.encode()).hexdigest()}.record"
    return f"{file}.json"
