"""The safetensors files of a checkpoint folder: which there are, and what their headers say."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, NamedTuple

from . import header, strictjson
from .codecs.base import Stored
from .errors import FormatError, listed, shown
from .folder import Folder, check_plain_name
from .layouts import deepseek
from .layouts.hf import INDEX, SINGLE
from .strictjson import brief

MAX_JSON = 100_000_000
APART = "fp8convert.apart"  # in the metadata of ranks that cannot be put together
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NUMBERED = re.compile(r"(?P<stem>.+)-(?P<i>[0-9]{5,6})-of-(?P<n>[0-9]{5,6})\.safetensors")


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


def read_index(folder: Folder, home: str = "") -> tuple[dict[str, str], dict[str, Any]]:
    index = read_json(folder, home + INDEX, "index")
    weight_map = as_object(index.get("weight_map"), f"{INDEX}: weight_map")
    metadata = as_object(index.get("metadata", {}), f"{INDEX}: metadata")
    checked: set[str] = set()
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(
                f"{INDEX}: weight_map of {shown(name)} is {brief(file)}, expected a file name"
            )
        if file not in checked:
            check_plain_name(file, f"{INDEX}: weight_map of {shown(name)}")
            checked.add(file)
    return weight_map, metadata


def shard_files(names: list[str], weight_map: dict[str, str] | None, folder: Folder) -> list[str]:
    """The shards, in order; refuses what would have to be unpickled or guessed."""
    if weight_map is not None:
        files = sorted(set(weight_map.values()))
        for file in files:
            if not file.endswith(".safetensors"):
                raise FormatError(f"{INDEX} names {shown(file)}, expected .safetensors files only")
        if SINGLE in names and SINGLE not in files:
            raise FormatError(
                f"{INDEX} and a {SINGLE} that it does not name: two checkpoints in one folder"
            )
        if not files:
            raise FormatError(f"{INDEX}: weight_map is empty")
        return files
    if SINGLE in names:
        return [SINGLE]
    found = [n for n in names if n.endswith(".safetensors")]
    if not found:
        unsafe = listed(n for n in names if n.lower().endswith(UNSAFE))
        note = f"; {unsafe} would have to be unpickled, which is never done" if unsafe else ""
        raise FormatError(f"no {INDEX} and no {SINGLE} in {shown(folder.root)}{note}")
    return deepseek.rank_files(found) or _numbered(found)


def _numbered(found: list[str]) -> list[str]:
    matches = [NUMBERED.fullmatch(n) for n in found]
    sets = {(m["stem"], m["n"]) for m in matches if m}
    if None in matches or len(sets) != 1:
        raise FormatError(f"no {INDEX}, and {listed(found)} are not one numbered set of shards")
    count = int(next(n for _, n in sets))
    numbers = {int(m["i"]) for m in matches if m}
    missing = count - sum(1 <= i <= count for i in numbers)
    if missing:
        first = next(i for i in range(1, count + 1) if i not in numbers)
        raise FormatError(
            f"no {INDEX}, and of {count:,} numbered shards {missing:,} are missing "
            f"(first: number {first:,})"
        )
    if len(found) != count:
        raise FormatError(
            f"no {INDEX}, and {len(found):,} shards, {listed(found)}, claim to be {count:,}"
        )
    return found


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
        prefix = os.pread(fd, 64, 0)
        length = header.header_length(prefix, state.st_size, shown(file))
        raw = os.pread(fd, length, 8)
    finally:
        os.close(fd)
    if len(raw) != length:
        raise FormatError(f"{shown(file)}: read {len(raw):,} of {length:,} header bytes")
    parsed = header.parse(raw, state.st_size, shown(file))
    digest = hashlib.sha256(raw).hexdigest()
    apart = APART in parsed.metadata
    return Shard(file, state.st_size, state.st_mtime_ns, digest, apart), parsed
