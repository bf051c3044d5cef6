"""What ``fp8convert parity --json`` has found, for a model card."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError, shown
from ..folder import Folder
from ..parity.words import measured, passed, runs
from ..strictjson import loads

MOST = 100_000_000  # bytes


class Parity(NamedTuple):
    """A verdict, what was computed, and each measure with its limit; without any path."""

    passed: bool
    profile: str
    computed: str
    rows: tuple[tuple[str, ...], ...]


def parity(file: Path, target: Path) -> Parity:
    """The result in ``file``; FormatError if it is none, or not of ``target``."""
    raw = Folder.at(file.absolute().parent).read(file.name, MOST, "--parity-report")
    found = loads(raw, file.name)
    try:
        candidate = found["candidate"]["path"]
        result = _parity(found)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as e:
        said = f"no {shown(e.args[0])}" if isinstance(e, KeyError) else shown(e)
        raise FormatError(
            f"{shown(file)} is not what fp8convert parity --json prints: {said}"
        ) from None
    if os.path.realpath(candidate) != str(target):
        raise FormatError(
            f"{shown(file)} is the parity of {shown(candidate)}, expected of {shown(target)}"
        )
    return result


def _parity(found: Any) -> Parity:
    if found["verdict"] not in ("pass", "fail"):
        raise ValueError(f"verdict {found['verdict']}")
    rows = []
    for m in measured(found):
        judged = "" if m.limit is None else "FAILS" if m.failed else "ok"
        rows.append((m.head, m.label, *m.words(), judged))
    t = found["tokens"]
    seed = re.fullmatch(r"seed \d+", str(t["source"]))  # other sources are files, texts
    tokens = f"{int(t['batch'])} x {int(t['length'])} tokens" + (f", {seed[0]}" if seed else "")
    layers = runs([int(n) for n in found["layers"]])
    computed = f"{found['compute']} on {found['device']}, {tokens}, layers {layers}"
    return Parity(passed(found), str(found["profile"]), computed, tuple(rows))
