"""Bugs to plant: the library without one of its checks, as it once was or might have been.

Each is a function that takes a ``setattr``. Fuzzing must find the first, and replaying an input of
``crashes/`` the bug of its name.
"""

from __future__ import annotations

from collections.abc import Callable

from fp8convert import header, inspection, journal, strictjson
from fp8convert.cli import sizes
from fp8convert.cli.running import Layers
from fp8convert.verify import config

Set = Callable[[object, str, object], None]


def overlap(put: Set) -> None:
    """Headers whose tensors overlap, or leave holes, are taken."""
    put(header, "_check_tiling", lambda *_: None)


def digits(put: Set) -> None:
    """Integers may have thousands of digits: the product of two does not print."""
    put(strictjson, "MAX_DIGITS", 4300)


def infinity(put: Set) -> None:
    """1e999 is read as a number, and written as Infinity."""
    put(strictjson, "_strict_float", float)


def error(put: Set) -> None:
    """A journaled error may be below 0, or beyond what errors are."""
    put(journal, "_is_error", lambda found: isinstance(found, list) and len(found) == 3)


def sum_(put: Set) -> None:
    """A journaled sum may be anything."""
    put(journal, "_is_sum", lambda found: True)


def size(put: Set) -> None:
    """A size may be more than a float holds."""
    put(sizes, "MOST", float("nan"))


def layers(put: Set) -> None:
    """Numbers of layers are looked at without what is around them, and taken with it."""
    put(Layers, "convert", lambda self, value, param, ctx: tuple(map(int, value.split(","))))


def escape(put: Set) -> None:
    """What a config says is printed as it stands, escapes of a terminal among it."""
    put(config, "brief", str)


def name(put: Set) -> None:
    """``inspect`` prints what a part's name adds to its weight's as it stands."""
    put(inspection, "_last", lambda part, weight: part.rpartition(".")[2])


BUGS: dict[str, Callable[[Set], None]] = {
    "overlap": overlap,
    "digits": digits,
    "infinity": infinity,
    "error": error,
    "sum": sum_,
    "size": size,
    "layers": layers,
    "escape": escape,
    "name": name,
}
