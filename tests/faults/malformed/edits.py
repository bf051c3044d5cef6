"""Ways to spoil a victim: its shard or its index, in one thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ...test_header import pack
from .victims import Entry, Head, Spoil, Victim, in_order, parsed, put

# The shard


def file(change: Callable[[bytes], bytes]) -> Spoil:
    """All of it."""
    return lambda v: put(v.path, change(v.path.read_bytes()))


def header(
    change: Callable[[Head, Entry, Entry], object], data: Callable[[bytes], bytes] = bytes
) -> Spoil:
    """Its header, and its data to go with that. The entries are its first tensors."""

    def spoil(v: Victim) -> None:
        head, body = parsed(v.path.read_bytes())
        change(head, v.a, v.b)
        put(v.path, pack(json.dumps(head), data(body)))

    return spoil


def entry(**fields: Any) -> Spoil:
    """Fields of its first tensor's entry."""
    return header(lambda head, a, b: head[a.name].update(fields))


def text(change: Callable[[str, str], str]) -> Spoil:
    """Its header as text; ``change`` is given that, and the entry of its first tensor."""

    def spoil(v: Victim) -> None:
        head, body = parsed(v.path.read_bytes())
        one = f"{json.dumps(v.a.name)}: {json.dumps(head[v.a.name])}"
        put(v.path, pack(change(json.dumps(head), one), body))

    return spoil


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    """Its header as bytes."""

    def spoil(v: Victim) -> None:
        head, body = parsed(v.path.read_bytes())
        put(v.path, pack(change(json.dumps(head).encode()), body))

    return spoil


def shift(head: Head, by: int, begin: int = 0) -> None:
    """Move the offsets of every tensor that begins there or behind."""
    for e in in_order(head):
        if e.begin >= begin:
            head[e.name]["data_offsets"] = [e.begin + by, e.end + by]


# The index


def index(change: Callable[[Any, str], object]) -> Spoil:
    """Its table, as :meth:`Victim.table` gives it; the name is of a tensor in it."""

    def spoil(v: Victim) -> None:
        found = v.read_index()
        change(v.table(found), v.listed)
        put(v.root / v.index, json.dumps(found).encode())

    return spoil


def index_text(change: Callable[[str], str]) -> Spoil:
    """All of it, as text."""
    return lambda v: put(v.root / v.index, change((v.root / v.index).read_text()).encode())
