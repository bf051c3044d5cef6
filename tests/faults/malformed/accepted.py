"""Sources that are odd but sound: what is accepted, and what must come of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from fp8convert.errors import shown

from ...quantized.oracle import Part
from ...test_header import pack
from .edits import entry, header
from .victims import (
    INDEX,
    INDEXED,
    TP,
    WORKS,
    Case,
    Spoil,
    Victim,
    parsed,
    put,
    read_shard,
    write_shard,
)

ITEMS = ("any tensor order", "unaligned header", "0-d tensors", "zero-size tensors",
         "names with NUL, ESC, newline, ../")  # fmt: skip

Tensors = dict[tuple[str, str], tuple[object, ...]]
UNKNOWN = "tensor-parallel layouts refuse names that they do not know: see test_a_name_is_escaped"


class Good(NamedTuple):
    """A source that is accepted. ``expect`` makes what must come out of what usually does.

    ``says``: what is in a warning, if there has to be one.
    """

    item: str
    name: str
    change: Spoil
    expect: Callable[[Tensors], Tensors] = lambda usual: usual
    says: str = ""
    only: Collection[str] = WORKS
    why: str = ""


# Headers


def _fields_reversed(v: Victim) -> None:
    for path in v.shards:
        head, data = parsed(path.read_bytes())
        put(path, pack(json.dumps(dict(reversed(head.items()))), data))


def _data_reversed(v: Victim) -> None:
    for path in v.shards:
        write_shard(path, dict(reversed(read_shard(path).items())))


def _unaligned(spaces: int) -> Spoil:
    def change(v: Victim) -> None:
        for path in v.shards:
            head, data = parsed(path.read_bytes())
            found = json.dumps(head)
            put(path, pack(found + " " * (-len(found) % 8 + spaces), data))

    return change


# Tensors that no layout cuts, by their ends: in a checkpoint, and as rank files have them.
SCALAR = ("layers.1.mlp.gate.e_score_correction_bias", "layers.1.ffn.gate.bias")
NOTHING = ("layers.0.self_attn.kv_a_layernorm.weight", "layers.0.attn.kv_norm.weight")


def _resized(ends: tuple[str, str], *shape: int) -> tuple[Spoil, Callable[[Tensors], Tensors]]:
    """A tensor of one element, or of none, wherever it is."""

    def small(name: str, part: tuple[Any, ...]) -> tuple[Any, ...]:
        if not name.endswith(ends):
            return part
        tag, _, data = part
        width = 4 if tag == "F32" else 2
        return tag, shape, data[: 0 if shape else width]

    def change(v: Victim) -> None:
        for path in v.shards:
            write_shard(path, {n: small(n, part) for n, part in read_shard(path).items()})
        if v.ranks:
            record = json.loads((v.root / TP).read_text())
            for name, facts in record["tensors"].items():
                if name.endswith(ends):
                    facts["shape"] = list(shape)
            put(v.root / TP, json.dumps(record).encode())

    return change, lambda usual: {(at, n): small(n, part) for (at, n), part in usual.items()}


# Names: legal data. Some are of tensors without axes, or without bytes.
ODD: dict[str, Part] = {
    "\0": ("U8", (2,), b"\0\1"),
    "\x1b[2J\x1b]0;title\x07": ("F32", (), b"abcd"),
    "two\nlines\r\x85\u2028": ("BF16", (3, 0, 5), b""),
    "../../../etc/passwd": ("I64", (1,), b"01234567"),
    "/dev/null": ("BOOL", (1, 3), b"\0\1\1"),
    "C:\\x": ("F16", (0,), b""),
    "\u202egnp.\x9b31m": ("U16", (2, 1), b"\x12\x34\x56\x78"),
    "": ("I32", (), b"\xff\xff\xff\xff"),
    "a" * 5000: ("U8", (1,), b"a"),
}


def _named(v: Victim) -> None:
    """More tensors, on one rank if there are ranks."""
    write_shard(v.path, {**read_shard(v.path), **ODD})
    if v.ranks:
        _record(v, "tensors", {n: _spread(part) for n, part in ODD.items()})
    if v.index != TP:
        _record(v, "weight_map", dict.fromkeys(ODD, v.path.name))


def _spread(part: Part) -> dict[str, Any]:
    dtype, shape, _ = part
    return {"dtype": dtype, "shape": list(shape), "file": "model-00001-of-000003.safetensors",
            "rank": 1}  # fmt: skip


def _record(v: Victim, field: str, more: dict[str, Any]) -> None:
    """More of it in ``tp.json``, or in an index, whose total grows."""
    path = v.root / (TP if field == "tensors" else v.index)
    found = json.loads(path.read_text())
    found[field] |= more
    if field == "weight_map":
        found["metadata"]["total_size"] += sum(len(data) for _, _, data in ODD.values())
    put(path, json.dumps(found).encode())


def _with_odd(usual: Tensors) -> Tensors:
    return {**usual, **{("", name): part for name, part in ODD.items()}}


ESCAPED = [
    Case(ITEMS[-1], shown(name)[:20], spoil, lambda f, name=name, says=says: [shown(name), says])
    for name in ODD
    for spoil, says in (
        (header(lambda head, a, b, name=name: head.update({name: head.pop(a.name) | {"dtype": 1}})),
         "unknown dtype"),
        (header(lambda head, a, b, name=name: head.update(
            {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})), "an overlap"),
        (entry(dtype=name), "unknown dtype"),
    )
]  # fmt: skip


# Index, links, code


def _total(v: Victim) -> None:
    found = v.read_index()
    found["metadata"]["total_size"] = 1
    put(v.root / v.index, json.dumps(found).encode())


def _link_inside(v: Victim) -> None:
    v.path.rename(v.root / "moved")
    v.path.symlink_to(os.path.relpath(v.root / "moved", v.path.parent))


def hub_cache(v: Victim) -> None:
    """Every file a link from a snapshot into the blobs of the same repository."""
    repo = v.base / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    for n, path in enumerate(sorted(p for p in v.root.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(v.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(repo / "blobs" / f"{n:064x}")
        link.symlink_to(os.path.relpath(repo / "blobs" / f"{n:064x}", link.parent))
    v.root = snapshot


TRAPS = ("modeling_x", "configuration_x", "sitecustomize", "__init__", "numpy", "fp8convert")


def armed(v: Victim) -> None:
    """Code that shows that it was run, as the config asks for it."""
    place = v.root / v.home
    code = f"open({str(v.base / 'fired')!r}, 'w').close()\n"
    for name in TRAPS:
        (place / f"{name}.py").write_text(code)


def code_in(files: Collection[str]) -> set[str]:
    """Names of Python files among ``files``."""
    return {Path(name).stem for name in files if name.endswith(".py")}


HEADERS = (
    Good("any tensor order", "of the header's fields", _fields_reversed),
    Good("any tensor order", "of the data", _data_reversed),
    *(Good("unaligned header", f"by {n}", _unaligned(n)) for n in (1, 4, 7)),
    Good("0-d tensors", "", *_resized(SCALAR)),
    Good("zero-size tensors", "", *_resized(NOTHING, 0)),
    Good("zero-size tensors", "of many axes", *_resized(NOTHING, 3, 0, 5),
         only=tuple(w for w in WORKS if w != "quantize"),
         why="what is no vector is listed in the config as unquantized"),
    Good("names with NUL, ESC, newline, ../", "", _named, _with_odd,
         only=tuple(w for w in WORKS if not w.startswith("shard")), why=UNKNOWN),
)  # fmt: skip
PATHS = (
    Good("wrong total_size", "", _total, says=f"{INDEX}: metadata.total_size is '1', the tensors",
         only=INDEXED, why="tp.json has none"),
    Good("links inside a hub cache", "", hub_cache),
    Good("links inside a hub cache", "or a folder", _link_inside),
    Good(".py never imported", "", armed),
)  # fmt: skip
CASES = (*HEADERS, *PATHS)
