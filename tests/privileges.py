"""Root without its privilege to read and write anywhere, so that modes bind it too."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_Sets = (ctypes.c_uint32 * 3) * 2  # effective, permitted, inheritable; of 64 bits in two words


@contextlib.contextmanager
def bound_by_modes() -> Iterator[None]:
    """For this thread and those it starts; nothing to do for other users than root (Linux)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), _Sets()
    _done(libc.capget(header, sets))
    before = sets[0][0]
    sets[0][0] &= ~_OVERRIDES
    _done(libc.capset(header, sets))
    try:
        yield
    finally:
        sets[0][0] = before
        _done(libc.capset(header, sets))


def _done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
