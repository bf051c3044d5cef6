"""One side of a comparison: the weights of a checkpoint, and in which files each of them is.

What the headers and the config say is read as everywhere in this package. Where the tensors of
ranks lie in the whole is taken from ``tp.json`` itself, not from the code that joins them; only
DeepSeek's own rank files, which have none, are understood by the layout's table of names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .. import ranksets, schemes
from ..catalogue import CONFIG, Catalogue, open_catalogue
from ..codecs.base import COPIES, Codec, Stored
from ..declared import SIDECARS, Config, Declared, declared, mapping
from ..dtypes import DTYPES
from ..errors import FormatError, SchemeError, listed, shown
from ..folder import Folder
from ..header import numel
from ..schemes.base import Reading, Scheme
from ..schemes.weight import Weight
from ..shards import read_json
from ..target import MANIFEST
from ..unsharder import whole_names
from .spreads import Spreading, tensors_of_ranks
from .stored import Leaf, Piece, Place, Shape


class Held(NamedTuple):
    """A weight, or what one rank has of it: elements from ``begin`` on along ``axis``."""

    codec: Codec
    shape: Shape
    parts: tuple[Place, ...]
    axis: int | None = None
    begin: int = 0

    @property
    def coded(self) -> bool:
        """Whether it is stored in codes."""
        return self.codec.coded


@dataclass(frozen=True)
class Side:
    """A checkpoint. ``problems`` are what bars reading it whole; ``apart`` are weights whose ranks
    have scales of their own; ``beside`` are scales of activations; ``quantized`` is what its
    manifest says of the weights that were encoded; ``bare``: DeepSeek's own rank files."""

    root: str
    declared: Declared
    weights: Mapping[str, Held]
    beside: Mapping[str, Place]
    problems: tuple[str, ...] = ()
    apart: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)
    quantized: Mapping[str, Config] = field(default_factory=dict)
    bare: bool = False

    @property
    def config(self) -> Config | None:
        """config.json; None if it may be missing, and is."""
        return None if self.bare and not self.declared.config else self.declared.config


def opened(path: str | os.PathLike[str], names_of: str | None = None) -> Side:
    """The checkpoint at ``path``. FormatError or SchemeError if it cannot be understood.

    ``names_of`` is the config.json of a model whose names it shall have, if it is DeepSeek's rank
    files without a config.
    """
    folder = Folder.at(path)
    side = _ranks(folder) if folder.has(ranksets.TP) else _whole(path, names_of)
    return replace(side, quantized=_quantized(folder))


def _quantized(folder: Folder) -> dict[str, Config]:
    """What a manifest of ours says, if it can be read: whether it can is another check's."""
    try:
        said = read_json(folder, MANIFEST, "manifest")
    except FormatError:
        return {}
    ours = mapping(said.get("quantized")) if str(said.get("tool")).startswith("fp8convert") else {}
    return {name: entry for name, entry in ours.items() if isinstance(entry, dict)}


def _whole(path: str | os.PathLike[str], names_of: str | None) -> Side:
    found = open_catalogue(path)
    inside = {(t.shard, t.begin, t.end): t for t in found.tensors.values()}
    if names_of is not None and found.declared.ranks:
        found = whole_names(found, names_of)
    places = {t.name: _place(t, found, inside) for t in found.tensors.values()}
    reading = schemes.detect(found.declared, found.tensors).read(found.tensors, found.shard_names)
    return Side(
        found.folder.place, found.declared, _held(reading, places), _beside(reading, places),
        reading.problems, bare=found.declared.ranks > 0,
    )  # fmt: skip


def _held(reading: Reading, places: Mapping[str, Place]) -> dict[str, Held]:
    return {w.name: _weight(w, places) for w in reading.weights}


def _weight(w: Weight, places: Mapping[str, Place]) -> Held:
    return Held(w.codec, w.shape, tuple(places[p.name] for p in w.parts))


def _beside(reading: Reading, places: Mapping[str, Place]) -> dict[str, Place]:
    """Scales of activations and caches, which no weight has."""
    own = dict.fromkeys(d.name for w in reading.weights for d in w.dropped)
    return {name: places[name] for name in (*own, *(t.name for t in reading.dropped))}


def _place(t: Stored, of: Catalogue, inside: Mapping[tuple[int, int, int], Stored]) -> Place:
    """Of a tensor in one file, or in DeepSeek's rank files: in pieces, or in copies."""

    def leaf(p: Stored, rank: int | None) -> Leaf:
        there = inside[p.shard, p.begin, p.end] if numel(p.shape) else p
        return Leaf(of.shards[p.shard].name, there.name, there.dtype, there.shape, rank)

    if not t.pieces:
        return Place(t.name, t.dtype, t.shape, (Piece(0, 0, (leaf(t, None),)),))
    if t.axis == COPIES:
        copies = tuple(_leaf_of_piece(p, of) for p in t.pieces)
        return Place(t.name, t.dtype, t.shape, (Piece(0, 0, copies),))
    pieces, at = [], 0
    for p in t.pieces:
        end = at + p.shape[t.axis]
        pieces.append(Piece(at, end, (_leaf_of_piece(p, of),)))
        at = end
    return Place(t.name, t.dtype, t.shape, tuple(pieces), t.axis)


def _leaf_of_piece(p: Stored, of: Catalogue) -> Leaf:
    return Leaf(of.shards[p.shard].name, p.name, p.dtype, p.shape, p.shard)


def _ranks(folder: Folder) -> Side:
    """By ``tp.json``; what the files do not bear out is a problem."""
    record = read_json(folder, ranksets.TP, "record of ranks")
    if ranksets.is_member(record):
        raise FormatError(f"{shown(folder.root)} has one rank only: give the folder of all of them")
    said = ranksets.parse(record)
    home = f"{ranksets.rank_folder(0)}/" if said.layout == "hf" else ""
    config = read_json(folder, home + CONFIG, "config")
    sidecars = {n: read_json(folder, home + n, n) for n in SIDECARS if folder.has(home + n)}
    spreading = Spreading(said, tensors_of_ranks(folder, said))
    places = {t.name: place for t in said.tensors if (place := spreading.place(t)) is not None}
    problems = [*spreading.problems, *spreading.leftovers()]
    declaration = declared(config, sidecars)
    whole = {name: _stored(place.name, place.dtype, place.shape) for name, place in places.items()}
    scheme = schemes.detect(declaration, whole)
    apart = _apart(scheme, said.apart, said.ranks, places)
    own = {p.name for parts in apart.values() for held in parts for p in held.parts}
    reading = scheme.read({n: t for n, t in whole.items() if n not in own}, [ranksets.TP])
    problems += [p for p in reading.problems if p != scheme.nothing_coded() or not apart]
    return Side(
        str(folder.root), declaration, _held(reading, places), _beside(reading, places),
        tuple(problems), apart,
    )  # fmt: skip


def _stored(name: str, dtype: str, shape: Shape) -> Stored:
    return Stored(name, dtype, shape, 0, 0, numel(shape) * DTYPES[dtype].bits // 8)


def _apart(
    scheme: Scheme, names: Sequence[str], ranks: int, places: Mapping[str, Place]
) -> dict[str, tuple[Held, ...]]:
    """Of weights whose ranks have scales of their own: what each rank has, read by itself."""
    found: dict[str, list[Held]] = {name: [] for name in names}
    for rank in range(ranks if names else 0):
        own = {
            name: place._replace(
                shape=leaf.shape, axis=None, pieces=(piece._replace(copies=(leaf,)),)
            )
            for name, place in places.items()
            for piece in place.pieces
            for leaf in piece.copies
            if leaf.rank == rank
        }
        stored = {name: _stored(name, p.dtype, p.shape) for name, p in own.items()}
        for w in scheme.read(stored, [ranksets.rank_folder(rank)]).weights:
            if w.name in found:
                held = _weight(w, own)
                codes = places[held.parts[0].name]
                begin = held.parts[0].pieces[0].begin
                if codes.axis is None or not w.codec.coded:
                    raise SchemeError(f"{shown(w.name)}: ranks have no scales of their own for it")
                scale = held.shape[codes.axis] // max(held.parts[0].shape[codes.axis], 1)
                found[w.name].append(held._replace(axis=codes.axis, begin=begin * scale))
    if missing := [name for name, of in found.items() if len(of) != ranks]:
        raise SchemeError(f"{listed(missing)}: not all ranks have their part of it")
    return {name: tuple(of) for name, of in found.items()}
