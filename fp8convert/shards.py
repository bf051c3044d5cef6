"""The safetensors files of a checkpoint folder: what their headers say."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

from . import header, strictjson
from .calls import let_go, read_all
from .codecs.base import Stored
from .errors import FormatError, shown
from .folder import Folder
from .strictjson import brief

MAX_JSON = 100_000_000
APART = "fp8convert.apart"  # in the metadata of ranks that cannot be put together


class Shard(NamedTuple):
    """One safetensors file as it was when its header was read."""

    name: str
    size: int
    mtime_ns: int
    header_sha256: str
    apart: bool = False  # a rank's, with scales of its own: see APART


def read_json(folder: Folder, name: str, why: str) -> dict[str, Any]:
    return as_object(strictjson.loads(folder.read(name, MAX_JSON, why), name), name)


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {brief(value)}, expected an object")
    return value


def read_shards(folder: Folder, files: list[str]) -> tuple[list[Shard], list[dict[str, Stored]]]:
    """Every shard, and its tensors by name."""
    shards: list[Shard] = []
    by_file: list[dict[str, Stored]] = []
    for number, file in enumerate(files):
        shard, parsed = _read_header(folder, file)
        by_file.append(
            {
                e.name: Stored(e.name, e.dtype, e.shape, number, e.begin, e.end)
                for e in parsed.entries
            }
        )
        shards.append(shard)
    return shards, by_file


def merged(by_file: list[dict[str, Stored]], files: list[str]) -> dict[str, Stored]:
    """All tensors; none may be in two shards."""
    tensors: dict[str, Stored] = {}
    for found in by_file:
        for name in tensors.keys() & found.keys():
            one, other = (shown(files[of[name].shard]) for of in (tensors, found))
            raise FormatError(f"tensor {shown(name)} is in both {one} and {other}")
        tensors.update(found)
    return tensors


def _read_header(folder: Folder, file: str) -> tuple[Shard, header.Header]:
    fd = folder.open(file, "shard")
    try:
        state = os.fstat(fd)
        prefix = read_all(fd, 64, 0, file)
        length = header.header_length(prefix, state.st_size, shown(file))
        raw = read_all(fd, length, 8, file)
    finally:
        let_go(fd)
    if len(raw) != length:
        raise FormatError(f"{shown(file)}: read {len(raw):,} of {length:,} header bytes")
    parsed = header.parse(raw, state.st_size, shown(file))
    digest = hashlib.sha256(raw).hexdigest()
    apart = APART in parsed.metadata
    return Shard(file, state.st_size, state.st_mtime_ns, digest, apart), parsed
