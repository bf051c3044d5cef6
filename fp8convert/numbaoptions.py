"""numba takes options from a file in the working directory: not where that is somebody else's.

One of the options is the folder of compiled kernels, and numba loads these by unpickling them: in
a downloaded checkpoint that one has stepped into, the file could have anything run.
"""

from __future__ import annotations

import os
import sys

from .errors import Fp8ConvertError, shown

FILE = ".numba_config.yaml"


def check(otherwise: str = "") -> None:
    """To be called before numba is imported; Fp8ConvertError if it would find such a file.

    ``otherwise`` is what else can be done about it than to be elsewhere.
    """
    if "numba" not in sys.modules and os.path.lexists(FILE):
        raise Fp8ConvertError(
            f"{shown(os.path.abspath(FILE))} would be read by numba as its options, and these can "
            f"have code run: run this in another folder{otherwise}"
        )
