"""Mutations of JSON as text: a value that is odd, missing, doubled or moved, the rest sound.

Objects are lists of pairs, so that a key can repeat, and numbers their source, so that any can be
written: both are lost in Python's values.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Bytes = Callable[[bytes], bytes]  # a mutation of bytes

ODD = (
    *("0", "-1", "1", "2", "3", "128", "-0", "1.5", "4.0", "1e999", "-1e999", "1e-999", "1e308"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 38),
    *("9" * 400, "9" * 4300, "9" * 5000, "00", "+1", "0x1", "1_0", "NaN", "Infinity", "-"),
    *("null", "true", "false", "[]", "{}", "[[]]", "[{}]", "[null]", "[0,0]", "[128,128]", "[128]"),
    *("[1,-1]", "[1.5,2]", '["a",1]', '{"a":{}}', '{"":0}', '""', '"a"', '"' + "a" * 300 + '"'),
    *(r'"\ud800"', r'"\u0000"', r'"\u001b[2J"', r'"\ud83d\ude00"', '"\u2028"', '"\\n"', '"1x1"'),
    *('"re:(a+)+$"', '"re:.*.*.*x"', '"re:["', '"re:(?i)a|b"', '"*"', '"' + "*a" * 30 + '"'),
    *('"../x"', '"/etc/passwd"', '"a/b"', '"."', '"a:b"', '"٣"', '"1_0"', "[" * 70 + "]" * 70),
)


class Text(str):
    """JSON source, written as it stands."""


class Object(list[list[Any]]):
    """Pairs of key and value."""


def parsed(text: str) -> Any:
    """A tree of Object, list, Text, str, bool and None; ValueError if it is no JSON."""
    return json.loads(
        text, object_pairs_hook=lambda pairs: Object([k, v] for k, v in pairs),
        parse_int=Text, parse_float=Text, parse_constant=Text,
    )  # fmt: skip


def written(value: Any) -> str:
    """The source of such a tree."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, Object):
        return "{" + ",".join(f"{written(k)}:{written(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def slots(value: Any) -> list[list[Any]]:
    """Every list that holds something: pairs of objects, and lists. Element 0 of a pair is a key,
    the last one a value."""
    found: list[list[Any]] = []
    level = [value]
    while level:
        lists = [v for v in level if isinstance(v, list)]
        holders = [h for v in lists for h in (v if isinstance(v, Object) else [v]) if h]
        found += holders
        level = [inner for h in holders for inner in h]
    return found


class Mutator:
    """Edits texts; ``words`` are keys and strings that mean something to what is fuzzed."""

    def __init__(self, words: list[str], raw: Bytes) -> None:
        self.words, self.raw = words, raw

    def __call__(self, text: bytes, rng: random.Random) -> bytes:
        """Another text: one or a few edits; of bytes where it is no JSON, and now and then."""
        try:
            tree = [parsed(text.decode("utf-8", "surrogatepass"))]
            if rng.random() < 0.15:
                raise ValueError("for a change")
            for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
                self._edit(tree, rng)
            return written(tree[0]).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):  # nested too deep for what is copied or written here
            return self.raw(text)

    def _edit(self, tree: list[Any], rng: random.Random) -> None:
        holder = rng.choice([tree, *slots(tree[0])])
        at = rng.randrange(len(holder))
        match rng.randrange(8):
            case 0 | 1:
                holder[at] = Text(rng.choice(ODD))
            case 2:
                holder[at] = self._word(rng)
            case 3:
                holder[at] = self._nudged(holder[at], rng)
            case 4:
                holder[at] = copy.deepcopy(rng.choice(slots(tree[0]) or [[Text("0")]])[-1])
            case 5:
                self._grow(holder[at], rng)
            case 6:
                self._shrink(holder[at], rng)
            case _:
                holder[at] = [holder[at]] if rng.random() < 0.5 else Object([["x", holder[at]]])

    def _word(self, rng: random.Random) -> str:
        return rng.choice(self.words)

    def _nudged(self, value: Any, rng: random.Random) -> Any:
        if isinstance(value, Text) and value.lstrip("-").isdecimal() and len(value) < 30:
            n = int(value)
            return Text(str(rng.choice((n + 1, n - 1, 2 * n, n // 2, -n, n + 128, n << 40))))
        if isinstance(value, Text):
            return Text(f"{value}{rng.choice('0e.-')}")
        if isinstance(value, str):
            return self.raw(value.encode("utf-8", "replace")).decode("utf-8", "replace")
        return not value

    def _grow(self, value: Any, rng: random.Random) -> None:
        new = rng.choice((Text(rng.choice(ODD)), self._word(rng)))
        if isinstance(value, Object):
            doubled = value and rng.random() < 0.2
            key = rng.choice(value)[0] if doubled else self._word(rng)
            value.insert(rng.randrange(len(value) + 1), [key, new])
        elif isinstance(value, list):
            value.insert(rng.randrange(len(value) + 1), new)

    def _shrink(self, value: Any, rng: random.Random) -> None:
        if isinstance(value, list) and value:
            del value[rng.randrange(len(value))]


def words_of(texts: list[bytes]) -> list[str]:
    """Keys and strings of all ``texts`` that are JSON."""
    found: dict[str, None] = {"x": None}
    for text in texts:
        try:
            holders = slots([parsed(text.decode())])
        except (ValueError, RecursionError):
            continue
        found.update((v, None) for h in holders for v in h if type(v) is str and len(v) < 100)
    return list(found)
