"""JSON as untrusted input: one meaning per text, or an error.

The standard parser takes duplicate keys, NaN, lone surrogates and any nesting; readers in other
languages do not, and two readers that disagree are how a checkpoint comes to mean two things.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any, NoReturn

from .errors import FormatError, shown

# Counted before the parser runs, so that its memory is bounded (under 0.5 GB at the worst).
MAX_CONTAINERS = 1_600_000  # '{' and '['
MAX_ITEMS = 4_000_000  # ',' and ':'
MAX_DEPTH = 64
# Of an integer: real files have up to 31 (the float 1e30 as an int), and products of a few longer
# ones neither print nor divide.
MAX_DIGITS = 40
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxstring = 3, 8, 60


def loads(raw: bytes, where: str, base: int = 0, max_depth: int | None = MAX_DEPTH) -> Any:
    """Parse ``raw`` (UTF-8), found at byte ``base`` of the file ``where``, strictly.

    Raises FormatError on bad UTF-8, a byte order mark, duplicate keys, NaN/Infinity and what would
    become it, ``-0``, lone surrogates, trailing text, and on nesting, size or integers beyond what
    any real file needs. So what is read can be written again, and means the same.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError(f"{where}: not UTF-8 at byte {base + e.start:,} ({e.reason})") from None
    if text.startswith("\ufeff"):
        raise FormatError(f"{where}: a byte order mark at byte {base:,}, expected JSON")
    if text.count("{") + text.count("[") > MAX_CONTAINERS:
        raise FormatError(f"{where}: more than {MAX_CONTAINERS:,} JSON objects and lists")
    if text.count(",") + text.count(":") > MAX_ITEMS:
        raise FormatError(f"{where}: more than {MAX_ITEMS:,} JSON items")
    doubled: list[tuple[str, Any]] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and not doubled:
            doubled.append((_first_repeat(pairs), found))
        return found

    hooks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _strict_float}
    # "-0" is an integer to Python and a float to others. A hook costs time.
    if "-" in text or b"0" * (MAX_DIGITS + 1) in raw.translate(_ZEROS):
        hooks["parse_int"] = _strict_int
    try:
        value = json.loads(text, object_pairs_hook=unique, **hooks)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates do not encode
    except FormatError as e:
        raise FormatError(f"{where}: {e}") from None
    except UnicodeEncodeError as e:
        near = shown(e.object[max(0, e.start - 40) : e.start + 20])
        raise FormatError(f"{where}: a string holds a lone surrogate, in {near}") from None
    except RecursionError:
        raise FormatError(f"{where}: JSON nested too deeply") from None
    except json.JSONDecodeError as e:
        at = base + len(text[: e.pos].encode("utf-8"))
        raise FormatError(f"{where}: not valid JSON at byte {at:,}: {e.msg}") from None
    if doubled:
        key, holder = doubled[0]
        above = value.items() if isinstance(value, dict) else ()
        place = next((f" in {shown(name)}" for name, v in above if v is holder), "")
        raise FormatError(f"{where}: duplicate key {shown(key)}{place}")
    if max_depth is not None:
        _check_depth(value, max_depth, where)
    return value


def brief(value: Any) -> str:
    """A parsed value for a message: :func:`shown`, at a cost that the value cannot inflate."""
    return shown(value if isinstance(value, str) else _BRIEF.repr(value))


def _first_repeat(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return key


def _check_depth(value: Any, limit: int, where: str) -> None:
    """Bound the nesting: what parses just under the recursion limit may still fail to print."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        below = (v.values() if isinstance(v, dict) else v for v in level)
        level = [c for children in below for c in children if isinstance(c, (dict, list))]
    if level:
        raise FormatError(f"{where}: JSON nested more than {limit} deep")


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"{name} is not JSON")


def _strict_int(digits: str) -> int:
    if digits == "-0":
        raise FormatError("-0 is not an integer")
    if len(digits) - digits.startswith("-") > MAX_DIGITS:
        raise FormatError("an integer has too many digits")
    return int(digits)


def _strict_float(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):  # written again, it would be Infinity
        raise FormatError(f"{shown(text)} is beyond what a float64 holds")
    return value
