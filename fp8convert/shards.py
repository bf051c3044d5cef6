"""The safetensors files of a checkpoint: what their headers say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from . import header, strictjson
from .codecs.base import Stored
from .errors import FormatError, shown
from .lanes import mapped
from .origin import Origin, Shard
from .strictjson import brief

MAX_JSON = 100_000_000
APART = "fp8convert.apart"  # in the metadata of ranks that cannot be put together


def read_json(folder: Origin, name: str, why: str) -> dict[str, Any]:
    return as_object(strictjson.loads(folder.read(name, MAX_JSON, why), name), name)


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {brief(value)}, expected an object")
    return value


def read_shards(folder: Origin, files: list[str]) -> tuple[list[Shard], list[dict[str, Stored]]]:
    """Every shard, and its tensors by name."""
    shards: list[Shard] = []
    by_file: list[dict[str, Stored]] = []
    for number, (shard, parsed) in enumerate(_read_headers(folder, files)):
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


def _read_headers(folder: Origin, files: list[str]) -> Iterable[tuple[Shard, header.Header]]:
    """In order; several at once where each has to be waited for."""
    if folder.lanes == 1:
        return (_read_header(folder, file) for file in files)
    return mapped(lambda file: _read_header(folder, file), files, folder.lanes)


def _read_header(folder: Origin, file: str) -> tuple[Shard, header.Header]:
    with folder.peek(file) as found:
        prefix = found.read(64, 0)
        length = header.header_length(prefix, found.size, shown(file))
        raw = found.read(length, 8)
    if len(raw) != length:
        raise FormatError(f"{shown(file)}: read {len(raw):,} of {length:,} header bytes")
    parsed = header.parse(raw, found.size, shown(file))
    digest = hashlib.sha256(raw).hexdigest()
    apart = APART in parsed.metadata
    return Shard(file, found.size, found.mtime_ns, digest, apart, found.etag), parsed
