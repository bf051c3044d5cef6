"""Bad indexes and paths, a table row for every item of section B of FAULTS.

    weight_map with ../x, /abs, C:\\x, \\\\host\\s, a/../../x, a folder, a FIFO, a device, a symlink
    out of the tree (links inside a hub cache's own repo folder are fine); .bin/.pt/.pth named or
    alone; not a dict, non-string values, duplicate keys, oversize; tensor in index but not in
    shard, in shard but not in index, in two shards; missing shard; wrong total_size (warning).
    Repository .py files are never imported, and copied only on request.

Where ranks are put together, each rank's index is such an index, and ``tp.json`` is the index of
rank files; both are as little trusted. Paths are in ``paths.py``, and what is accepted in
``accepted.py``.
"""

from __future__ import annotations

import json
from typing import Any

from fp8convert.errors import shown

from . import paths
from .edits import index, index_text
from .victims import (
    INDEX,
    INDEXED,
    RANK_FILES,
    RANK_FOLDERS,
    TP,
    Case,
    Spoil,
    Victim,
    put,
    read_shard,
    sparse,
    write_shard,
)

ITEMS = (
    *paths.PATHS, "a folder", "a FIFO", "a device", "a symlink out of the tree",
    *(f"{end} {how}" for how in ("named", "alone") for end in (".bin", ".pt", ".pth")),
    "not a dict", "non-string values", "duplicate keys", "oversize",
    "tensor in index but not in shard", "tensor in shard but not in index", "tensor in two shards",
    "missing shard", "wrong total_size", "links inside a hub cache", ".py never imported",
    ".py copied on request",
)  # fmt: skip
ACCEPTED = ITEMS[-4:]  # in accepted.py

NOT_A_MAP = "tp.json has no files of its own: its word for each tensor is where the source had it"
EVERY_RANK = "of rank files, each has most of the tensors"


# What the index says


def _whole(value: object) -> Spoil:
    """Its table is something else."""

    def spoil(v: Victim) -> None:
        put(v.root / v.index, json.dumps({**v.read_index(), v.field: value}).encode())

    return spoil


def _value(value: object, says: str) -> Case:
    return Case("non-string values", str(value), paths.named(value),
                lambda f: [shown(f.listed), f"is {shown(says)}, expected"], "index")  # fmt: skip


def _again(v: Victim) -> None:
    """The same key twice, with equal values."""
    found = v.read_index()
    one = f"{json.dumps(v.listed)}: {json.dumps(v.table(found)[v.listed])}"
    put(v.root / v.index, json.dumps(found).replace(one, f"{one}, {one}").encode())


def _table_again(v: Victim) -> None:
    found = v.read_index()
    more = f', "{v.field}": {json.dumps(v.table(found))}}}'
    put(v.root / v.index, (json.dumps(found)[:-1] + more).encode())


TEXTS = (
    Case("not a dict", "a list", index_text(lambda t: "[]"),
         lambda f: ["is '[]', expected an object"], "index"),
    Case("not a dict", "empty", index_text(lambda t: ""), lambda f: ["not valid JSON at byte 0"],
         "index"),
    Case("not a dict", "cut short", index_text(lambda t: t[: len(t) // 2]),
         lambda f: ["not valid JSON at byte"], "index"),
    Case("not a dict", "the table a list", _whole([]), lambda f: [f"{f.field} is '[]', expected"],
         "index"),
    Case("not a dict", "the table null", _whole(None),
         lambda f: [f"{f.field} is 'None', expected"], "index"),
    Case("not a dict", "the table empty", _whole({}),
         lambda f: ["does not list"] if f.field == "tensors" else ["weight_map is empty"],
         "index"),
    Case("not a dict", "deep", index_text(lambda t: '{"weight_map": ' + "[" * 70 + "]" * 70 + "}"),
         lambda f: ["nested more than 64 deep"], "index"),
    _value(1, "1"), _value(None, "None"), _value(["x.safetensors"], "['x.safetensors']"),
    Case("duplicate keys", "of a tensor", _again, lambda f: [f"duplicate key {shown(f.listed)}"],
         "index"),
    Case("duplicate keys", "of the table", _table_again, lambda f: [f"duplicate key '{f.field}'"],
         "index"),
    Case("oversize", "a terabyte of nothing", lambda v: sparse(v.root / v.index, b"{", 2**40),
         lambda f: ["has 1,099,511,627,776 bytes, expected at most 100,000,000"], "index"),
)  # fmt: skip


def _listed_only(v: Victim) -> None:
    found = v.read_index()
    table = v.table(found)
    table["nothing.weight"] = table[v.listed]
    put(v.root / v.index, json.dumps(found).encode())


def _unlisted(table: dict[str, Any], name: str) -> None:
    del table[name]


def _another(table: dict[str, str], name: str) -> None:
    table[name] = next(file for file in table.values() if file != table[name])


def _in_two(v: Victim) -> None:
    """A tensor's copy in another shard of the same rank."""
    other = next(p for p in v.of_rank if p != v.path)
    write_shard(other, {**read_shard(other), v.a.name: read_shard(v.path)[v.a.name]})


def _rank_alone(v: Victim) -> None:
    """Of published rank files, an index that names one: half of the model."""
    (v.root / TP).unlink()
    one = v.root / "model0-mp2.safetensors"
    table = dict.fromkeys(read_shard(one), one.name)
    put(v.root / INDEX, json.dumps({"weight_map": table}).encode())


def _rank_and_another(v: Victim) -> None:
    """An index of all ranks' files and of another."""
    (v.root / TP).unlink()
    table = {n: p.name for p in reversed(v.shards) for n in read_shard(p)}
    write_shard(v.root / "more.safetensors", {"more": ("U8", (1,), b"x")})
    put(v.root / INDEX, json.dumps({"weight_map": {**table, "more": "more.safetensors"}}).encode())


ONLY_RANKS = "others have no ranks"
CONTENT = (
    Case("tensor in index but not in shard", "", _listed_only,
         lambda f: ["'nothing.weight'"], "index"),
    Case("tensor in shard but not in index", "", index(_unlisted),
         lambda f: ["does not list"], "index"),
    Case("tensor in shard but not in index", "but in another", index(_another),
         lambda f: [f"tensor {shown(f.listed)} is in ", "says"], "index", INDEXED, NOT_A_MAP),
    Case("tensor in two shards", "", _in_two,
         lambda f: [f"tensor {shown(f.a.name)} is in both"], "shard", INDEXED, EVERY_RANK),
    Case("missing shard", "", lambda v: v.path.unlink(), lambda f: ["missing"]),
    Case("missing shard", "a rank's that the index leaves out", _rank_alone,
         lambda f: ["rank files of 2 ranks", INDEX], "shard", (RANK_FILES,), ONLY_RANKS),
    Case("tensor in two shards", "of ranks and of no rank", _rank_and_another,
         lambda f: ["'more.safetensors'", INDEX], "", (RANK_FILES,), ONLY_RANKS),
)  # fmt: skip

RECORDED = "others have no tp.json"


def _recorded(name: str, *says: str, **fields: Any) -> Case:
    """``tp.json`` of all ranks says something odd of its first tensor."""

    def spoil(v: Victim) -> None:
        found = json.loads((v.root / TP).read_text())
        next(iter(found["tensors"].values())).update(fields)
        put(v.root / TP, json.dumps(found).encode())

    return Case(TP, name, spoil, lambda f: ["tp.json: tensor '", *says], "",
                (RANK_FILES, RANK_FOLDERS), RECORDED)  # fmt: skip


TITLE = "\x1b]0;title\x07"
RECORDS = [
    _recorded("a dtype", f"unknown dtype {shown(TITLE)}", dtype=TITLE),
    _recorded("another dtype", f"unknown dtype {shown(TITLE)}", stored=TITLE),
    _recorded("a dtype of a value", f"unknown dtype {shown(TITLE)}", dtype=TITLE, shape=[1],
              whole_value=[1], axis=None),
    _recorded("a shape of many axes", "shape is '[1, 1, ", shape=[1] * 65),
    _recorded("a shape of too many digits", "shape is '[46116",
              shape=[2**62] * 400, whole_value=[1]),
    _recorded("a huge shape", f"shape is '[{2**63}]'", shape=[2**63]),
    _recorded("padding that is negative", "padded_to is '-4', expected", padded_to=-4),
    _recorded("padding that is huge", f"padded_to is '{2**80}', expected", padded_to=2**80),
    _recorded("padding that does not divide", "padded_to is '3', expected", padded_to=3),
]  # fmt: skip

CASES = (*paths.CASES, *TEXTS, *CONTENT)
MORE = (*paths.MORE, *RECORDS)  # for one command each
