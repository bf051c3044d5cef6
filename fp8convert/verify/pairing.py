"""What is to be compared with what: a kind of comparison for each weight, in units of a few MB."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..classes import mtp_layer
from ..declared import layers_of, mapping
from ..errors import listed, shown
from .comparing import Bytes, Copies, Decoded, Padding, ShapeOf, Unit
from .decoders import DECODERS
from .nearest import Requantized
from .sides import Held, Side
from .stored import Box, Leaf, Piece, Place, boxes, size

BAND = 1 << 20  # elements of a unit
LEAST = 1 << 12  # of a unit of a sample: below it a weight is compared whole
FLOATS = ("BF16", "F16", "F32")
FREE = ("packed-int", "gptq", "awq")  # codecs whose encoders may make up for one code by others


@dataclass
class Pairing:
    """Weights of two checkpoints. ``problems`` are those of names, shapes and dtypes; ``notes`` say
    what is not compared, and why that is right."""

    dst: Side
    src: Side
    sample: float
    seed: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # by weight

    def __post_init__(self) -> None:
        self.problems += self.dst.problems
        self._names()
        for name in [*self.dst.weights, *self.dst.apart]:
            if name in self.src.weights:
                self.kinds[name] = self._kind(name)
        self._groups = {"bytes": 0, "decoded": 0, "requantized": 0}
        for kind in self.kinds.values():
            self._groups[kind] = self._groups.get(kind, 0) + 1

    def count(self, kind: str) -> int:
        """Weights that are compared so."""
        return self._groups.get(kind, 0)

    def _names(self) -> None:
        src, dst = self.src.weights, {*self.dst.weights, *self.dst.apart}
        missing = [name for name in src if name not in dst]
        left_out = [name for name in missing if self._may_be_left_out(name)]
        known = set(left_out)
        self.problems += [f"{shown(n)} is missing" for n in missing if n not in known]
        extra = [name for name in dst if name not in src]
        self.problems += [f"{shown(n)} is not in the source" for n in sorted(extra)]
        if left_out:
            self.notes.append(
                f"left out of MTP layers, {len(left_out):,} weights: {listed(left_out)}"
            )
        for name in self.dst.beside:
            if name not in self.src.beside:
                self.notes.append(f"{shown(name)}, a scale of activations, is not in the source")
        lost = [name for name in self.src.beside if name not in self.dst.beside]
        if lost and self.dst.declared.quantization == self.src.declared.quantization:
            self.problems += [f"{shown(n)} is missing, a scale of activations" for n in lost]
        elif lost:
            self.notes.append(f"{len(lost):,} scales of activations dropped: {listed(lost)}")

    def _may_be_left_out(self, name: str) -> bool:
        """MTP layers that the config does not count; V4's copies there of the model's own tables,
        which DeepSeek's code does not take."""
        if mtp_layer(name, layers_of(self.src.declared.config)) is None:
            return False
        config = self.dst.declared.config
        places = (config, mapping(config.get("text_config")))
        counted = any(place.get("num_nextn_predict_layers") for place in places)
        tied = name.startswith("mtp.") and name.endswith((".embed.weight", ".head.weight"))
        return tied or not counted

    def _kind(self, name: str) -> str:
        """``bytes``, ``decoded``, ``requantized``; or "", a problem being noted."""
        src = self.src.weights[name]
        if name in self.dst.apart:
            return self._decodable(name, *self.dst.apart[name], src, kind="requantized")
        dst = self.dst.weights[name]
        if _same_form(dst, src) and not self._encoded_anew(name):
            return "bytes"
        a, b = (_words(held) for held in (dst, src))
        if dst.shape != src.shape:
            self.problems.append(f"{shown(name)} is {a}, expected the shape of the source's {b}")
            return ""
        if not dst.coded and src.coded and dst.parts[0].dtype in FLOATS:
            return self._decodable(name, src, kind="decoded")
        if dst.coded and (src.coded or src.parts[0].dtype in FLOATS):
            return self._decodable(name, dst, src, kind="requantized")
        self.problems.append(f"{shown(name)} is {a}, but {b} in the source")
        return ""

    def _decodable(self, name: str, *held: Held, kind: str) -> str:
        for h in held:
            if h.coded and h.codec.name not in DECODERS:
                self.problems.append(f"{shown(name)}: no independent decoder of {h.codec.name}")
                return ""
        return kind

    def _encoded_anew(self, name: str) -> bool:
        """Whether codes of the same form need not be the same: the manifest says that they were
        encoded, or one config only says that scales are powers of two."""
        if not self.dst.weights[name].coded:
            return False
        if (entry := self.dst.quantized.get(name)) is not None:
            return not entry.get("copied")
        said = [(s.declared.quantization or {}).get("scale_fmt") for s in (self.dst, self.src)]
        return ("ue8m0" in said) and said[0] != said[1]

    def units(self) -> Iterator[Unit]:
        """All that is to be compared, or a sample of it, at least one unit of every weight."""
        for name, kind in self.kinds.items():
            yield from getattr(self, f"_{kind}")(name) if kind else ()
        for name, place in self.dst.beside.items():
            if name in self.src.beside:
                yield from self._tensor(name, place, self.src.beside[name])

    def total(self) -> int:
        """Bytes of DST that :meth:`units` has without sampling."""
        held = [*self.dst.weights.values(), *(h for of in self.dst.apart.values() for h in of)]
        places = [p for h in held for p in h.parts] + list(self.dst.beside.values())
        return sum(map(_nbytes, places))

    def _bytes(self, name: str) -> Iterator[Unit]:
        dst, src = self.dst.weights[name], self.src.weights[name]
        for d, s in zip(dst.parts, src.parts, strict=True):
            if d.value is None and s.value is None:
                yield from self._tensor(name, d, s)
            else:
                yield ShapeOf(name, _nbytes(d), d, dst.parts[0], dst.shape)

    def _tensor(self, name: str, dst: Place, src: Place) -> Iterator[Unit]:
        if (dst.dtype, dst.shape) != (src.dtype, src.shape):
            self.problems.append(
                f"{shown(dst.name)} is {dst.dtype} {list(dst.shape)}, expected {src.dtype} "
                f"{list(src.shape)}"
            )
            return
        for piece, leaf, extent in _extents(dst):
            for box in self._chosen(extent, f"{dst.name} {leaf.rank}"):
                yield Bytes(name, _share(leaf, box), dst, piece, leaf, box, src)
        yield from self._padding(name, dst)

    def _decoded(self, name: str) -> Iterator[Unit]:
        (place,), src = self.dst.weights[name].parts, self.src.weights[name]
        for piece, leaf, extent in _extents(place):
            for box in self._chosen(extent, f"{name} {leaf.rank}", len(extent) - 2):
                yield Decoded(name, _share(leaf, box), place, piece, leaf, box, src)
        yield from self._padding(name, place)

    def _requantized(self, name: str) -> Iterator[Unit]:
        src, entry = self.src.weights[name], self.dst.quantized.get(name)
        exact = bool(entry and entry.get("exact"))
        for rank, held in enumerate(self.dst.apart.get(name) or (self.dst.weights[name],)):
            nbytes = sum(p.copies[0].nbytes for place in held.parts for p in place.pieces)
            free = held.codec.name in FREE and entry is None
            for box in self._chosen(held.shape, f"{name} {rank}", len(held.shape) - 2):
                part = nbytes * size(box) // max(math.prod(held.shape), 1)
                yield Requantized(name, part, held, box, src, exact, free)
            for role, place in zip(held.codec.roles, held.parts, strict=True):
                yield from self._copies(name, place)
                yield from self._padding(name, place)
                if role == "shape":
                    yield ShapeOf(name, 0, place, held.parts[0], held.shape)

    def _copies(self, name: str, place: Place) -> Iterator[Unit]:
        """What several ranks have is the same on each."""
        for piece in place.pieces if place.value is None else ():
            for leaf in piece.copies[1:]:
                for box in self._chosen(leaf.held, f"{place.name} {leaf.rank}"):
                    yield Copies(name, _share(leaf, box), place, piece, leaf, box)

    def _padding(self, name: str, place: Place) -> Iterator[Unit]:
        for piece, leaf, extent in _extents(place):
            if place.axis is not None and leaf.held != extent:
                first = extent[place.axis]
                rest = (*extent[: place.axis], leaf.held[place.axis] - first,
                        *extent[place.axis + 1 :])  # fmt: skip
                for box in boxes(rest, BAND):
                    yield Padding(name, _share(leaf, box), place, piece, leaf, box, first)

    def _chosen(self, shape: Sequence[int], key: str, alone: int = 0) -> list[Box]:
        """Boxes of ``shape``: all, or about ``sample`` of them, and one at least."""
        count, limit = math.prod(shape), BAND
        if self.sample < 1:
            limit = max(min(BAND, int(count * self.sample)), LEAST)
        every = list(boxes(tuple(shape), limit, max(alone, 0))) if count else []
        if self.sample >= 1 or len(every) < 2:
            return every
        some = max(round(len(every) * self.sample), 1)
        picked = random.Random(f"{self.seed} {key}").sample(range(len(every)), some)
        return [every[i] for i in sorted(picked)]


def _extents(place: Place) -> Iterator[tuple[Piece, Leaf, tuple[int, ...]]]:
    """Every leaf with its piece, and the shape of it without padding."""
    for piece in place.pieces:
        for leaf in piece.copies:
            extent, axis = leaf.held, place.axis
            if axis is not None:
                extent = (*extent[:axis], piece.end - piece.begin, *extent[axis + 1 :])
            yield piece, leaf, extent


def _share(leaf: Leaf, box: Box) -> int:
    return leaf.nbytes * size(box) // max(math.prod(leaf.held), 1)


def _nbytes(place: Place) -> int:
    return sum(leaf.nbytes for leaf in place.leaves)


def _same_form(dst: Held, src: Held) -> bool:
    """Whether both are stored alike, whatever the parts are called."""
    if dst.codec != src.codec or len(dst.parts) != len(src.parts):
        return False
    pairs = zip(dst.parts, src.parts, strict=True)
    return all((d.dtype, d.shape) == (s.dtype, s.shape) for d, s in pairs)


def _words(held: Held) -> str:
    """``BF16 [576, 7168]``, or with the codec's name."""
    kind = f"{held.codec.name} codes in " if held.coded else ""
    return f"{kind}{held.parts[0].dtype} {list(held.shape)}"
