"""Stored tensors made of others: slices, pieces side by side, equal copies, constant bytes.

No byte is read: a slice says where its bytes are. It is pushed down to what is in the files, so
slices of anything can be sliced again, and put together, as the tensors they were cut from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..dtypes import DTYPES
from ..errors import Fp8ConvertError, SchemeError, shown
from ..header import numel
from .base import COPIES, Stored

Shape = tuple[int, ...]


def sliced(stored: Stored, axis: int, begin: int, end: int) -> Stored:
    """Elements ``[begin, end)`` of ``stored`` along ``axis``; itself, if that is all of it.

    SchemeError where a cut is within a byte.
    """
    size = stored.shape[axis]
    if not (axis >= 0 and 0 <= begin <= end <= size):
        what = f"elements {begin} to {end} along axis {axis} of {list(stored.shape)}"
        raise Fp8ConvertError(f"internal: {shown(stored.name)}: {what}")
    if (begin, end) == (0, size):
        return stored
    if stored.pieces:
        return _of_pieces(stored, axis, begin, end)._replace(name=stored.name)
    shape = resized(stored.shape, axis, end - begin)
    if stored.shard < 0:
        return filled(stored.name, stored.dtype, shape, ~stored.shard)
    return _of_runs(stored, axis, begin, end)._replace(shape=shape)


def stacked(pieces: Sequence[Stored], axis: int) -> Stored:
    """``pieces`` in order along ``axis``, under the name of the first; without those of nothing."""
    first, size = pieces[0], sum(p.shape[axis] for p in pieces)
    shape = resized(first.shape, axis, size)
    for p in pieces:
        if (p.dtype, resized(p.shape, axis, size)) != (first.dtype, shape):
            _misfit(first, p)
        _in_bytes(p, numel(p.shape[axis:]))
    kept = [p for p in pieces if p.end > p.begin]
    if not kept:
        return _empty(first, shape)
    if len(kept) == 1:
        return kept[0]._replace(name=first.name)
    return _together(kept, axis)._replace(name=first.name, shape=shape)


def copies(pieces: Sequence[Stored]) -> Stored:
    """One tensor of which ``pieces`` are copies; all of them are read, and compared."""
    first = pieces[0]
    for p in pieces[1:]:
        if (p.dtype, p.shape) != (first.dtype, first.shape):
            _misfit(first, p)
    if len(pieces) == 1:
        return first
    return _together(pieces, COPIES)._replace(end=first.end - first.begin)


def filled(name: str, dtype: str, shape: Shape, value: int) -> Stored:
    """A tensor all of whose bytes are ``value``; it is in no file."""
    one = Stored(name, dtype, shape, ~value, 0, 0)
    return one._replace(end=_in_bytes(one, numel(shape)))


def literal(name: str, dtype: str, shape: Shape, data: bytes) -> Stored:
    """A tensor of a few bytes that are known, ``data``; it is in no file, and is not sliced."""
    whole = filled(name, dtype, shape, data[0] if data else 0)
    if whole.end != len(data):
        raise Fp8ConvertError(f"internal: {shown(name)}: {len(data)} bytes for {whole.end}")
    pieces = [filled(name, "U8", (len(list(same)),), value) for value, same in groupby(data)]
    return whole if len(pieces) < 2 else whole._replace(pieces=tuple(pieces))


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """``shape`` with ``size`` elements along ``axis``."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def _of_pieces(stored: Stored, axis: int, begin: int, end: int) -> Stored:
    if stored.pieces[0].dtype != stored.dtype:
        raise Fp8ConvertError(f"internal: {shown(stored.name)}: a slice of a literal")
    if stored.axis == COPIES:
        return copies([sliced(p, axis, begin, end) for p in stored.pieces])
    if stored.axis != axis:
        return stacked([sliced(p, axis, begin, end) for p in stored.pieces], stored.axis)
    found, at = [], 0
    for p in stored.pieces:
        size = p.shape[axis]
        lo, hi = (min(max(n - at, 0), size) for n in (begin, end))
        found.append(sliced(p, axis, lo, hi))
        at += size
    return stacked(found, axis)


def _of_runs(stored: Stored, axis: int, begin: int, end: int) -> Stored:
    """Of what is in a file, in one run of bytes or in many."""
    count, one = numel(stored.shape[:axis]), numel(stored.shape[axis + 1 :])
    lo, hi = (_in_bytes(stored, n * one) for n in (begin, end))
    length = hi - lo
    if not count * length:
        return stored._replace(end=stored.begin, run=0, pitch=0)
    row = _in_bytes(stored, stored.shape[axis] * one) if count > 1 else length
    skip, run, pitch = lo, length, row
    if stored.run:
        whole, within = divmod(lo, stored.run)
        skip = whole * stored.pitch + within
        if within + length <= stored.run and row % stored.run == 0:
            pitch = row // stored.run * stored.pitch
        elif count == 1:  # along an axis before that of the runs: some of them, whole
            run, pitch = stored.run, stored.pitch
        else:
            raise Fp8ConvertError(
                f"internal: {shown(stored.name)}: a slice along axis {axis} of runs of "
                f"{stored.run} bytes every {stored.pitch} has two strides"
            )
    first, total = stored.begin + skip, count * length
    if run == total:
        run = pitch = 0
    return stored._replace(begin=first, end=first + total, run=run, pitch=pitch)


def _together(pieces: Sequence[Stored], axis: int) -> Stored:
    first = pieces[0]
    shard = next((p.shard for p in pieces if p.shard >= 0), first.shard)
    end = sum(p.end - p.begin for p in pieces)
    return Stored(first.name, first.dtype, first.shape, shard, 0, end, tuple(pieces), axis)


def _empty(stored: Stored, shape: Shape) -> Stored:
    return Stored(stored.name, stored.dtype, shape, stored.shard, 0, 0)


def _in_bytes(stored: Stored, elements: int) -> int:
    """Bytes of so many elements. SchemeError if they do not end with a byte."""
    bits = elements * DTYPES[stored.dtype].bits
    if bits % 8:
        raise SchemeError(
            f"tensor {shown(stored.name)}, {stored.dtype} {list(stored.shape)}, would be cut "
            f"within a byte, after {elements:,} elements"
        )
    return bits // 8


def _misfit(one: Stored, other: Stored) -> None:
    facts = (f"{shown(p.name)} {p.dtype} {list(p.shape)}" for p in (one, other))
    raise Fp8ConvertError(f"internal: {' and '.join(facts)} do not fit together")
