"""How every kernel is compiled: without the GIL, and kept on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any], error_model: str = "python") -> Any:
    """``function``, compiled on its first call."""
    options: dict[str, Any] = {"nogil": True, "error_model": error_model}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(**options)(function)


def jit_dividing(function: Callable[..., Any]) -> Any:
    """As :func:`jit`; a division by zero raises nothing, so that the loop can be vectorized."""
    return jit(function, error_model="numpy")
