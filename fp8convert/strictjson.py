"""JSON as untrusted input: one meaning per text, or an error.

The standard parser takes duplicate keys, NaN, lone surrogates and any nesting; readers in other
languages do not, and two readers that disagree are how a checkpoint comes to mean two things.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from .errors import FormatError, shown

MAX_CONTAINERS = 1_600_000  # '{' and '[' together: bounds the parser's memory before it runs


def loads(raw: bytes, where: str) -> Any:
    """Parse ``raw`` (UTF-8) strictly; ``where`` names the file for messages.

    Raises FormatError on bad UTF-8, a byte order mark, duplicate keys, NaN/Infinity, ``-0``, lone
    surrogates, trailing text, and on nesting or size beyond what any real file needs.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError(f"{where}: not UTF-8 at byte {e.start} ({e.reason})") from None
    if text.count("{") + text.count("[") > MAX_CONTAINERS:
        raise FormatError(f"{where}: more than {MAX_CONTAINERS:,} JSON objects and lists")
    hooks: dict[str, Any] = {"parse_constant": _no_constant}
    if "-" in text:  # "-0" is an integer to Python and a float to others; a hook costs time
        hooks["parse_int"] = _strict_int
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, **hooks)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates do not encode
    except FormatError as e:
        raise FormatError(f"{where}: {e}") from None
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a string holds a lone surrogate") from None
    except RecursionError:
        raise FormatError(f"{where}: JSON nested too deeply") from None
    except ValueError as e:  # JSONDecodeError, and integers of thousands of digits
        raise FormatError(f"{where}: not valid JSON: {e}") from None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FormatError(f"duplicate key {shown(key)}")
            seen.add(key)
    return found


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"{name} is not JSON")


def _strict_int(digits: str) -> int:
    if digits == "-0":
        raise FormatError("-0 is not an integer")
    return int(digits)
