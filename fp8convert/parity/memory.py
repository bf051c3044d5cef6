"""How much memory the process has held at most, and what is said where there is no more."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Fp8ConvertError

STATUS = Path("/proc/self/status")


def peak_rss() -> int:
    """Bytes. By Linux's VmHWM: ``ru_maxrss`` there counts what the process was before its exec."""
    if STATUS.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())):
        return int(found[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def lacking(error: BaseException) -> bool:
    """Whether it says that there is no memory left; torch has a class for this on GPUs only."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


@contextmanager
def enough() -> Iterator[None]:
    """Fp8ConvertError where memory does not suffice: only the tokens decide how much it takes."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not lacking(e):
            raise
        raise Fp8ConvertError("not enough memory for so many tokens: give fewer at a time") from e
