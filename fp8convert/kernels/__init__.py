"""CPU kernels: numba when it is there, plain NumPy twins otherwise, bit-identical.

``FP8CONVERT_KERNELS=numpy`` forces the plain twins, which are also the oracle of the tests.
"""

from __future__ import annotations

import os
from types import ModuleType

from .. import numbaoptions


def check() -> None:
    """Fp8ConvertError if the kernels cannot be loaded safely where this process is."""
    if os.environ.get("FP8CONVERT_KERNELS") != "numpy":
        numbaoptions.check(", or with FP8CONVERT_KERNELS=numpy")


def load() -> ModuleType:
    """The kernel module to use: ``compiled`` or ``plain``; both export the same functions."""
    check()
    choice = os.environ.get("FP8CONVERT_KERNELS", "numba")
    if choice not in ("numba", "numpy"):
        from ..errors import UsageError, shown

        raise UsageError(f"FP8CONVERT_KERNELS is {shown(choice)}, expected numba or numpy")
    if choice == "numba":
        try:
            from . import compiled

            return compiled
        except ImportError:  # numba has no wheel for this Python or platform
            pass
    from . import plain

    return plain
