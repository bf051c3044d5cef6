"""Small checkpoints of holes, on which a fuzzed file is tried: only their headers are ever read.

``benches.json`` has the dtype and shape of every tensor (see :mod:`.seeds`, which writes it).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fp8convert import header, strictjson
from fp8convert.convert import prepare
from fp8convert.dtypes import DTYPES
from fp8convert.errors import Fp8ConvertError
from fp8convert.options import ShardForTp

HERE = Path(__file__).parent
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARDS = 2
MOST = 1 << 42  # bytes of holes

Rows = list[tuple[str, str, tuple[int, ...]]]  # name, dtype, shape


@functools.cache
def root() -> Path:
    """Where all of them are: in memory if there is some; gone when the process ends."""
    asked, memory = os.environ.get("TMPDIR"), "/dev/shm"
    place = asked or (memory if os.access(memory, os.W_OK) else None)
    folder = Path(tempfile.mkdtemp(prefix="fp8convert-fuzz-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    """``benches.json``: by name, ``tensors``, and further ``files`` by their names."""
    found: dict[str, dict[str, Any]] = json.loads((HERE / "benches.json").read_text())
    return found


@functools.cache
def bench(name: str, use: str = "") -> Path:
    """The checkpoint of that name, as it was made; one for each use, which may change it."""
    table, folder = tables()[name], root() / f"{name}{use}"
    folder.mkdir()
    rows: Rows = [(n, dtype, tuple(shape)) for n, (dtype, *shape) in table["tensors"].items()]
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        mine = rows[number::SHARDS]
        write_holes(folder / file, header.build(mine, {"format": "pt"}), sum(map(nbytes, mine)))
        weight_map |= dict.fromkeys((n for n, _, _ in mine), file)
    index = {"metadata": {"total_size": sum(map(nbytes, rows))}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    for file, said in {CONFIG: table["config"], **table.get("files", {})}.items():
        (folder / file).write_text(json.dumps(said))
    return folder


def single(name: str, table: bytes) -> Path | None:
    """The checkpoint of that name with other tensors, all in one file; None if that is no table."""
    rows = _rows(table)
    if rows is None:
        return None
    bench, folder = tables()[name], root() / f"single-{name}"
    folder.mkdir(exist_ok=True)
    for file, said in {CONFIG: bench["config"], **bench.get("files", {})}.items():
        (folder / file).write_text(json.dumps(said))
    head = header.build(rows, {"format": "pt"})
    write_holes(folder / "model.safetensors", head, sum(map(nbytes, rows)))
    return folder


def _rows(table: bytes) -> Rows | None:
    try:
        found = strictjson.loads(table, "table")
        rows: Rows = [(n, dtype, tuple(shape)) for n, (dtype, *shape) in found.items()]
        known = all(dtype in DTYPES for _, dtype, _ in rows)
        sizes = [size for _, _, shape in rows for size in shape]
        counts = all(type(size) is int and 0 <= size < MOST for size in sizes)
        return rows if known and counts and sum(map(nbytes, rows)) < MOST else None
    except (Fp8ConvertError, ValueError, TypeError, AttributeError):
        return None


def nbytes(row: tuple[str, str, tuple[int, ...]]) -> int:
    """Of a tensor."""
    return header.numel(row[2]) * DTYPES[row[1]].bits // 8


def write_holes(path: Path, head: bytes, data: int) -> None:
    """A file of a header and ``data`` bytes that were never written."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head)
    os.truncate(path, len(head) + data)


@functools.cache
def rank_set(layout: str) -> Path:
    """A model cut for two ranks."""
    folder = root() / f"ranks-{layout}"
    folder.mkdir()
    whole = bench("deepseek-v3", "-whole")
    plan = prepare(whole, root() / "x", ShardForTp(tp=2, layout=layout)).plan
    for task in plan.tasks:
        write_holes(folder / task.file, task.header, task.size - len(task.header))
    for name, text in plan.texts.items():
        (folder / name).write_text(text)
    for copy in plan.copies:
        shutil.copyfile(whole / copy.name, folder / copy.file)
    return folder
