"""``tp.json``: which tensor of a checkpoint is where on tensor-parallel ranks, written and read.

It says of every tensor its dtype and whole shape, and where it lies: on every rank, on one
(``rank``), or cut along ``axis`` into ``pieces`` of [rank, offset, length]. What a piece has beyond
its length is padding; pieces of the same offset are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from .codecs.base import Stored
from .codecs.slices import copies, literal, resized, sliced, stacked
from .dtypes import DTYPES
from .errors import FormatError, listed, shown
from .folder import check_plain_name
from .header import MAX_DIMS, MAX_INT, numel
from .options import LAYOUTS, MOST_RANKS
from .strictjson import brief

TP = "tp.json"
FORMAT = 1
INTEGERS = {"I32": 4, "I64": 8}
MOST_AXES = 8  # of a weight whose shape is a value

Piece = tuple[int, int, int]  # rank, offset, length


class Spread(NamedTuple):
    """One tensor over ranks: ``name`` in a whole checkpoint, ``inside`` a rank's files.

    ``file`` is the source's. Without ``rank`` and ``axis``: the same on every rank. ``adds``: one
    rank only is to add it. ``value``: integers that the whole has instead, the shape of a weight.
    ``stored``: the dtype of a rank's file, if that is another for the same bytes. ``padded_to``:
    the sum of lengths with padding.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    inside: str
    file: str
    rank: int | None = None
    axis: int | None = None
    pieces: tuple[Piece, ...] = ()
    adds: bool = False
    value: tuple[int, ...] | None = None
    stored: str = ""
    padded_to: int = 0

    def to_json(self) -> str:
        """Its line of ``tp.json``; what goes without saying is left out. (A hundred thousand of
        them, and ``json.dumps`` of small objects is slow.)"""
        facts = f'"dtype": "{self.dtype}", "shape": {list(self.shape)}, "file": {quoted(self.file)}'
        if self.inside != self.name:
            facts += f', "name": {quoted(self.inside)}'
        if self.stored:
            facts += f', "stored": "{self.stored}"'
        if self.rank is not None:
            facts += f', "rank": {self.rank}'
        if self.axis is not None:
            facts += f', "axis": {self.axis}, "pieces": {[list(p) for p in self.pieces]}'
        if self.padded_to:
            facts += f', "padded_to": {self.padded_to}'
        if self.adds:
            facts += ', "add_on_one_rank": true'
        if self.value is not None:
            facts += f', "whole_value": {list(self.value)}'
        return f"{quoted(self.name)}: {{{facts}}}"


class RankSet(NamedTuple):
    """What ``tp.json`` says. ``apart`` are weights whose ranks have scales of their own, across
    the blocks of the whole: they cannot be put together."""

    layout: str
    ranks: int
    tensors: tuple[Spread, ...]
    metadata: dict[str, Any]  # of the source's index
    apart: tuple[str, ...] = ()

    def to_json(self) -> str:
        """A line for each tensor."""
        head = {"format": FORMAT, "layout": self.layout, "ranks": self.ranks,
                "index_metadata": self.metadata, "apart": self.apart}  # fmt: skip
        tensors = ",\n  ".join(t.to_json() for t in self.tensors)
        return f'{json.dumps(head, indent=1)[:-2]},\n "tensors": {{\n  {tensors}\n }}\n}}\n'


def rank_folder(rank: int) -> str:
    """Of layout ``hf``."""
    return f"rank{rank}"


def member(rank: int, ranks: int) -> str:
    """``tp.json`` in a rank's own folder: which of how many it is."""
    return json.dumps({"format": FORMAT, "rank": rank, "ranks": ranks}) + "\n"


def is_member(found: Any) -> bool:
    """Whether this is ``tp.json`` of a rank's own folder."""
    return isinstance(found, dict) and found.keys() == {"format", "rank", "ranks"}


def check_member(found: Any, where: str, rank: int, ranks: int) -> None:
    """FormatError unless ``found`` says that it is ``rank`` of ``ranks``."""
    said = (found.get("rank"), found.get("ranks")) if isinstance(found, dict) else None
    if said != (rank, ranks):
        raise FormatError(f"{shown(where)} says {brief(found)}, expected rank {rank} of {ranks}")


def parse(found: Any) -> RankSet:
    """``tp.json`` as a RankSet; FormatError says what is wrong with it."""
    said = _Fields(found, TP)
    if (version := said.get("format", int)) != FORMAT:
        raise FormatError(f"{TP}: format is {version}, expected {FORMAT}")
    layout, ranks = said.get("layout", str), said.get("ranks", int)
    if layout not in LAYOUTS or not 0 < ranks <= MOST_RANKS:
        raise FormatError(
            f"{TP}: layout {shown(layout)} of {ranks} ranks, expected {' or '.join(LAYOUTS)} of at "
            f"most {MOST_RANKS}"
        )
    tensors = tuple(
        _spread(name, _Fields(facts, f"{TP}: tensor {shown(name)}"), ranks)
        for name, facts in said.get("tensors", dict).items()
    )
    apart = tuple(str(name) for name in said.get("apart", list))
    return RankSet(layout, ranks, tensors, said.get("index_metadata", dict), apart)


class _Fields:
    """Fields of an object, each of its type."""

    def __init__(self, found: Any, where: str) -> None:
        if not isinstance(found, dict):
            raise FormatError(f"{where} is {brief(found)}, expected an object")
        self.found, self.where = found, where

    def get(self, field: str, kind: type, default: Any = None) -> Any:
        value = self.found.get(field, default)
        if type(value) is not kind:
            raise FormatError(f"{self.where}: {field} is {brief(value)}, expected {kind.__name__}")
        return value

    def wrong_pieces(self, expected: str) -> FormatError:
        return FormatError(
            f"{self.where}: pieces are {brief(self.found['pieces'])}, expected {expected}"
        )

    def count(self, field: str, below: int) -> int | None:
        value = self.found.get(field)
        if value is None or (type(value) is int and 0 <= value < below):
            return value
        raise FormatError(
            f"{self.where}: {field} is {brief(value)}, expected an integer from 0 to {below - 1}"
        )


def _spread(name: str, said: _Fields, ranks: int) -> Spread:
    shape = said.get("shape", list)
    sound = all(type(n) is int and 0 <= n <= MAX_INT for n in shape)
    if not sound or len(shape) > MAX_DIMS:  # as a header's, so that products stay small
        raise FormatError(f"{said.where}: shape is {brief(shape)}, expected sizes of axes")
    axis, rank = said.count("axis", len(shape)), said.count("rank", ranks)
    pieces: tuple[Piece, ...] = ()
    if axis is not None:
        pieces = tuple(_pieces(said, shape[axis], ranks))
    dtype, file = said.get("dtype", str), said.get("file", str)
    check_plain_name(file, f"{said.where}: file")
    if not file.endswith(".safetensors"):
        raise FormatError(f"{said.where}: file is {shown(file)}, expected a .safetensors file")
    inside = said.get("name", str, name)
    value = _value(said, numel(tuple(shape))) if "whole_value" in said.found else None
    stored, padded = said.get("stored", str, ""), said.get("padded_to", int, 0)
    if unknown := {dtype, stored or dtype} - DTYPES.keys():
        raise FormatError(f"{said.where}: unknown dtype {listed(sorted(unknown))}")
    if value is not None and dtype not in INTEGERS:
        raise FormatError(f"{said.where}: whole_value of {dtype}, expected {' or '.join(INTEGERS)}")
    if padded % ranks or not 0 <= padded <= MAX_INT:
        raise FormatError(
            f"{said.where}: padded_to is {brief(padded)}, expected as much on each of {ranks} ranks"
        )
    return Spread(
        name, dtype, tuple(shape), inside, file, rank, axis, pieces,
        value=value, stored=stored, padded_to=padded,
    )  # fmt: skip


def _value(said: _Fields, count: int) -> tuple[int, ...]:
    found = said.get("whole_value", list)
    if len(found) == count <= MOST_AXES and all(type(n) is int and 0 <= n < 1 << 31 for n in found):
        return tuple(found)
    raise FormatError(
        f"{said.where}: whole_value is {brief(found)}, expected {count} integers below 2**31, "
        f"of at most {MOST_AXES} axes"
    )


def _pieces(said: _Fields, size: int, ranks: int) -> Iterator[Piece]:
    """One of each rank, in order; together all of ``size``, those of one offset alike."""
    begin = end = 0
    found = said.get("pieces", list)
    if len(found) != ranks:
        raise said.wrong_pieces(f"one for each of {ranks} ranks")
    for rank, piece in enumerate(found):
        if not isinstance(piece, list) or [type(n) for n in piece] != [int] * 3 or min(piece) < 0:
            raise said.wrong_pieces("[rank, offset, length] each")
        number, offset, length = piece
        again = offset == begin and offset + length == end
        if number != rank or not (again or offset == end):
            raise said.wrong_pieces("ranks and offsets in order, without holes")
        begin, end = offset, offset + length
        yield number, offset, length
    if end != size:
        raise said.wrong_pieces(f"an end at {size}")


def joined(
    said: RankSet, by_rank: Sequence[Mapping[str, Stored]], files: Sequence[str]
) -> dict[str, Stored]:
    """Tensors of all ranks, as ``by_rank`` has them by name, as one checkpoint's.

    ``files`` are names by shard number. FormatError where the files are not as ``said``.
    """
    join = _Join(said, by_rank, files)
    tensors = {t.name: join(t) for t in said.tensors}
    for rank, found in enumerate(by_rank):
        if rest := found.keys() - join.used[rank].keys():
            raise FormatError(f"rank {rank} has {listed(sorted(rest))}, which {TP} does not list")
    return tensors


class _Join:
    def __init__(
        self, said: RankSet, by_rank: Sequence[Mapping[str, Stored]], files: Sequence[str]
    ) -> None:
        self.said, self.by_rank, self.files = said, by_rank, files
        self.used: list[dict[str, str]] = [{} for _ in by_rank]  # what each is of

    def __call__(self, t: Spread) -> Stored:
        """The whole tensor, under its name."""
        if t.rank is not None:
            found = self._of(t, t.rank, t.shape)
        elif t.axis is None:
            found = copies([self._of(t, rank, t.shape) for rank in range(self.said.ranks)])
            if t.value is not None:
                width = INTEGERS[t.dtype]
                data = b"".join(n.to_bytes(width, "little") for n in t.value)
                found = literal(t.name, t.dtype, t.shape, data)
        else:
            by_offset: dict[tuple[int, int], list[Stored]] = {}
            for rank, offset, length in t.pieces:
                piece = self._piece(t, rank, length)
                by_offset.setdefault((offset, length), []).append(piece)
            found = stacked([copies(same) for same in by_offset.values()], t.axis)
        return found._replace(name=t.name)

    def _piece(self, t: Spread, rank: int, length: int) -> Stored:
        """Without padding."""
        assert t.axis is not None
        padded = t.padded_to // self.said.ranks if t.padded_to else length
        found = self._of(t, rank, resized(t.shape, t.axis, padded))
        return sliced(found, t.axis, 0, length)

    def _of(self, t: Spread, rank: int, shape: tuple[int, ...]) -> Stored:
        """The rank's tensor, which must be of ``shape``."""
        found = self.by_rank[rank].get(t.inside)
        if found is None:
            raise FormatError(f"tensor {shown(t.inside)} is missing on rank {rank}, {TP} lists it")
        if (other := self.used[rank].setdefault(t.inside, t.name)) != t.name:
            raise FormatError(
                f"{TP}: tensors {shown(t.name)} and {shown(other)} are both {shown(t.inside)} on "
                f"rank {rank}"
            )
        if t.stored and found.dtype == t.stored:
            found = _counted_as(t.dtype, found)
        if (found.dtype, found.shape) != (t.dtype, shape):
            raise FormatError(
                f"{shown(self.files[found.shard])}: tensor {shown(t.inside)} is {found.dtype} "
                f"{list(found.shape)}, expected {t.dtype} {list(shape)} on rank {rank}"
            )
        return found


def _counted_as(dtype: str, found: Stored) -> Stored:
    """The same bytes as elements of ``dtype``."""
    *lead, last = found.shape or (1,)
    columns, rest = divmod(last * DTYPES[found.dtype].bits, DTYPES[dtype].bits)
    return found if rest else found._replace(dtype=dtype, shape=(*lead, columns))
