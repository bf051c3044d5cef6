"""Sizes on the command line and in messages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from fp8convert.errors import shown

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
         "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
MOST = 2**63  # a file's largest size


if TYPE_CHECKING:  # generic since click 8.3 only
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType


class Size(_IntType):
    """Bytes: ``5GB``, ``512MiB``, ``1000000``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes as an int; anything else is a usage error."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not a size such as 5GB or 512MiB", param, ctx)
        found = float(match[1]) * UNITS[match[2] or ""]
        if found >= MOST:
            self.fail(f"{shown(value)} is more than any disk has", param, ctx)
        return int(found)


class KeepOrSize(Size):
    """A size, or ``keep`` (None)."""

    name = "keep|SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """None for keep."""
        return None if value == "keep" else super().convert(value, param, ctx)


def human(nbytes: float) -> str:
    """``1.50 GB``: decimal units, as disks and hubs count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"
