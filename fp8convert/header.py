"""The safetensors header: strict parse of untrusted bytes, and exact bytes for what we write.

A file is ``u64 little-endian N | N bytes of JSON | data``; each entry gives dtype, shape and
``data_offsets`` relative to the data, and the tensors tile the data without hole or overlap.
What is accepted here the safetensors library accepts with the same bytes; the reverse need not
hold (it takes duplicate keys).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import strictjson
from .dtypes import DTYPES
from .errors import FormatError, shown
from .strictjson import brief

MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 500_000
MAX_DIMS = 64  # as NumPy
MAX_INT = 2**63 - 1
ALIGN = 4096  # our data starts on a page, so direct I/O lines up

_BITS = {tag: d.bits for tag, d in DTYPES.items()}
_FIELDS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """A stored tensor: ``[begin, end)`` are byte offsets from the start of the *file*."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: entries in file order of their data, and the ``__metadata__`` strings."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    data_start: int


def numel(shape: Iterable[int]) -> int:
    """Product of a shape; 1 for a scalar."""
    n = 1
    for d in shape:
        n *= d
    return n


def header_length(prefix: bytes, file_size: int, where: str) -> int:
    """N from the first 8 bytes of a file of ``file_size`` bytes, checked before it is believed."""
    if file_size < 8:
        raise FormatError(f"{where}: {file_size} bytes long, a safetensors file has at least 8")
    length = int.from_bytes(prefix[:8], "little")
    # Only when it cannot be right: 640 as a length is also the first bytes of a pickle.
    believable = 0 < length <= min(MAX_HEADER_BYTES, file_size - 8)
    imposter = None if believable and prefix[8:9] in (b"{", b"") else _what_it_is(prefix)
    if imposter:
        raise FormatError(f"{where}: {imposter}, not a safetensors file")
    if length == 0 or length > MAX_HEADER_BYTES:
        raise FormatError(
            f"{where}: header length field is {length:,} (bytes 0-7), "
            f"expected 1 to {MAX_HEADER_BYTES:,}"
        )
    if 8 + length > file_size:
        raise FormatError(
            f"{where}: header length field is {length:,} (bytes 0-7), expected at most "
            f"{file_size - 8:,} in a file of {file_size:,} bytes (truncated download?)"
        )
    return length


def _what_it_is(prefix: bytes) -> str | None:
    head = prefix.lstrip()[:64].lower()
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (the real file was never fetched)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page (a failed download)"
    if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "a pickle or zip archive (a torch .bin/.pt file)"
    if prefix.startswith(b"GGUF"):
        return "a GGUF file"
    if all(32 <= c < 127 or c in b"\t\r\n" for c in prefix):
        return f"text beginning {shown(prefix[:40].decode('ascii'))} (a failed download?)"
    return None


def parse(raw: bytes, file_size: int, where: str) -> Header:
    """Parse the N header bytes of a file of ``file_size`` bytes; raise FormatError on any doubt."""
    if raw[:1] != b"{":
        found = shown(raw[:8].decode("latin-1"))
        raise FormatError(f"{where}: header starts with {found} at byte 8, expected '{{'")
    if raw.count(b"{") > MAX_TENSORS + 2:  # known before anything is allocated for them
        raise FormatError(f"{where}: header has more than {MAX_TENSORS:,} JSON objects")
    # Nothing accepted below nests, and nothing else is printed whole: no need to walk it first.
    fields = strictjson.loads(raw, where, base=8, max_depth=None)
    if len(fields) > MAX_TENSORS + 1:
        raise FormatError(f"{where}: {len(fields):,} tensors, more than {MAX_TENSORS:,}")
    metadata = _metadata(fields.pop("__metadata__", {}), where)
    start = 8 + len(raw)
    entries = [_entry(name, info, start, where) for name, info in fields.items()]
    entries.sort(key=lambda e: (e.begin, e.end))
    _check_tiling(entries, start, file_size, where)
    return Header(tuple(entries), metadata, start)


def _metadata(found: Any, where: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise FormatError(f"{where}: __metadata__ is {brief(found)}, expected an object")
    for key, value in found.items():
        if not isinstance(value, str):
            raise FormatError(
                f"{where}: __metadata__ field {shown(key)} is {brief(value)}, expected a string"
            )
    return found


def _entry(name: str, info: Any, start: int, where: str) -> Entry:
    if type(info) is not dict or info.keys() != _FIELDS:
        raise FormatError(
            f"{where}: tensor {shown(name)}: expected an object with exactly dtype, shape and "
            f"data_offsets, found {brief(list(info) if isinstance(info, dict) else info)}"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    bits = _BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise FormatError(f"{where}: tensor {shown(name)}: unknown dtype {brief(dtype)}")
    _check_ints(shape, "shape", name, where)
    if len(shape) > MAX_DIMS:
        raise FormatError(
            f"{where}: tensor {shown(name)}: shape has {len(shape):,} dimensions, "
            f"expected at most {MAX_DIMS}"
        )
    _check_ints(offsets, "data_offsets", name, where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(
            f"{where}: tensor {shown(name)}: data_offsets {brief(offsets)}, "
            "expected [begin, end] with begin <= end"
        )
    begin, end = offsets
    total = bits
    for d in shape:  # checked product: a later 0 must not hide an overflow
        total *= d
        if total > MAX_INT:
            raise FormatError(
                f"{where}: tensor {shown(name)}: shape {brief(shape)} of {dtype} is too large, "
                "expected under 2**63 bits"
            )
    if total % 8:
        raise FormatError(
            f"{where}: tensor {shown(name)}: shape {brief(shape)} of {dtype} takes {total:,} bits, "
            "expected whole bytes"
        )
    if end - begin != total // 8:
        raise FormatError(
            f"{where}: tensor {shown(name)}: shape {brief(shape)} of {dtype} takes "
            f"{total // 8:,} bytes, but data_offsets [{begin}, {end}] hold {end - begin:,}"
        )
    return Entry(name, dtype, tuple(shape), start + begin, start + end)


def _check_ints(values: Any, field: str, name: str, where: str) -> None:
    if type(values) is list:
        for v in values:
            if type(v) is not int or v < 0 or v > MAX_INT:
                break
        else:
            return
    raise FormatError(
        f"{where}: tensor {shown(name)}: {field} {brief(values)}, "
        "expected a list of integers from 0 to 2**63-1"
    )


def _check_tiling(entries: list[Entry], start: int, file_size: int, where: str) -> None:
    cursor, before = start, None
    for e in entries:
        if e.begin != cursor:
            kind = "a hole" if e.begin > cursor else "an overlap"
            end = "the header ends" if before is None else f"tensor {shown(before.name)} ends"
            raise FormatError(
                f"{where}: {kind}: tensor {shown(e.name)} begins at byte {e.begin:,}, "
                f"expected {cursor:,}, where {end}"
            )
        cursor, before = e.end, e
    if cursor != file_size:
        problem = "truncated" if cursor > file_size else "extra bytes at the end"
        raise FormatError(
            f"{where}: {problem}: the tensors end at byte {cursor:,}, "
            f"the file has {file_size:,} bytes"
        )


def build(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The exact first bytes (length field included) of a file holding ``tensors`` in that order.

    ``tensors`` are (name, dtype tag, shape). The JSON is padded with spaces so that the data
    starts on a multiple of ALIGN.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + numel(shape) * _BITS[dtype] // 8
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    body += b" " * (-(8 + len(body)) % ALIGN)
    return len(body).to_bytes(8, "little") + body
