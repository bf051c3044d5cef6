"""The contract of a scheme: how a family of checkpoints declares its codecs. Opens no file.

A scheme says, for one stored tensor that may hold codes, which weight it is and which other tensors
are parts of it; pairing, what is left over, and what a part without its weight means are the same
for all and live here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..codecs.base import Codec, Stored
from ..codecs.raw import Raw
from ..declared import Config, Declared
from ..dtypes import CODED_FLOATS
from ..errors import shown
from ..header import numel

Tensors = Mapping[str, Stored]


class Weight(NamedTuple):
    """A named full-precision tensor and the stored tensors that encode it, in codec role order.

    ``dropped`` belong to the codes alone (activation scales) and mean nothing once it is decoded.
    """

    name: str
    codec: Codec
    parts: tuple[Stored, ...]
    dropped: tuple[Stored, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded shape."""
        return self.codec.shape(self.parts)

    def out_dtype(self, target: str) -> str:
        """The dtype it is written with when coded weights become ``target``."""
        return self.codec.out_dtype(self.parts, target)


@dataclass(frozen=True, slots=True)
class Reading:
    """Stored tensors understood as weights, in stored order.

    ``problems`` bar a conversion, ``warnings`` do not; ``dropped`` are scales of what is not a
    weight (the KV cache), without meaning in a checkpoint that is not quantized.
    """

    weights: tuple[Weight, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    dropped: tuple[Stored, ...] = ()


# Dtypes that may hold codes; no other tensor is asked about.
CODE_DTYPES = CODED_FLOATS | {"I8", "U8", "I32"}
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32")  # what narrow codes are kept in
# Last parts of names. Of activations, beside a coded weight; of the KV cache; of a coded weight.
ACTIVATION = ("input_scale", "activation_scale", "qscale_act", "input_global_scale",
              "input_zero_point", "output_scale", "output_zero_point")  # fmt: skip
CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale")
ORPHANS = ("weight_scale", "weight_scale_2", "weight_zero_point", "weight_global_scale",
           "weight_g_idx", "weight_shape", "qscale_weight", "qzeros", "g_idx")  # fmt: skip
SUFFIXES = ("_scale_inv", "_scales", "_scale", "_scale_2")


class Scheme(ABC):
    """One way of declaring codecs. Recognised by config and dtypes, never by a name alone.

    Subclasses are frozen dataclasses without slots (slots make a second, registered class).
    """

    name: ClassVar[str]
    declared_as: ClassVar[str]  # what a config says, for the message that lists the known ones

    @classmethod
    @abstractmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """An instance if this is what the config declares; None if it is something else.

        A string says why it nearly is but is not read: shown if no other scheme takes it.
        """

    @abstractmethod
    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """The coded weight whose codes ``t`` holds; why it cannot be one; None if it holds none."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The scheme as JSON, for ``inspect`` and the manifest."""

    def hints(self) -> Sequence[str]:
        """What the config says is not coded: modules, patterns."""
        return ()

    def read(self, tensors: Tensors, shards: Sequence[str]) -> Reading:
        """Pair stored tensors into weights. ``shards`` are file names, for messages."""
        claims: dict[str, Weight | str] = {}
        for t in tensors.values():
            if t.dtype in CODE_DTYPES and (claim := self.claim(t, tensors)) is not None:
                claims[t.name] = claim
        sound = [c for c in claims.values() if isinstance(c, Weight)]
        used = {p.name for w in sound for p in (*w.parts[1:], *w.dropped)}
        leaves = {_leaf(p) for w in sound for p in w.parts[1:]}
        used |= {n + s for n, c in claims.items() if isinstance(c, str) for s in SUFFIXES}
        weights: list[Weight] = []
        problems: list[str] = []
        dropped: list[Stored] = []
        coded, raw = bool(sound), Raw()
        for t in tensors.values():
            claim = claims.get(t.name)
            if isinstance(claim, Weight):
                wrong = claim.codec.check(claim.parts)
                weights.append(claim if wrong is None else Weight(t.name, raw, (t,)))
            elif t.name in used:
                continue
            elif coded and _leaf(t) in CACHE and is_scale(t):
                dropped.append(t)
                continue
            else:
                wrong = claim or left_over(t, tensors, leaves)
                weights.append(Weight(t.name, raw, (t,)))
            if wrong:
                problems.append(f"{shards[t.shard]}: weight {shown(t.name)}: {wrong}")
        if not claims and not problems:
            problems.append(self.nothing_coded())
        if len({w.name for w in weights}) < len(weights):
            problems.append(_doubled(weights))
        warnings = tuple(contradictions(sound, self.hints()))
        return Reading(tuple(weights), tuple(problems), warnings, tuple(dropped))

    def nothing_coded(self) -> str:
        """The problem of a declaration without codes."""
        return (
            f"the config declares {self.declared_as.partition(' ')[0]}, but no tensor is coded: "
            "already converted, with a stale config? Remove its quantization_config if so"
        )


def is_scale(t: Stored) -> bool:
    """Whether ``t`` can be the scale of an activation: a float, at most one axis that counts."""
    return t.dtype in ("F32", "BF16", "F16") and numel(t.shape) == max((1, *t.shape))


def beside(t: Stored, tensors: Tensors, leaves: Sequence[str]) -> tuple[Stored, ...]:
    """The tensors of the same module as ``t`` that are named so and are there."""
    module = t.name.rpartition(".")[0]
    prefix = f"{module}." if module else ""
    return tuple(found for leaf in leaves if (found := tensors.get(prefix + leaf)) is not None)


def activation_scales(t: Stored, tensors: Tensors) -> tuple[Stored, ...]:
    """Scales of the activations of the module that ``t`` is in."""
    return tuple(s for s in beside(t, tensors, ACTIVATION) if is_scale(s))


def _leaf(t: Stored) -> str:
    return t.name.rpartition(".")[2]


def left_over(t: Stored, tensors: Tensors, parts: Collection[str]) -> str | None:
    """Why a tensor that no coded weight claims cannot pass as it is, or None.

    ``parts`` are the last names that scales and the like have in this checkpoint.
    """
    leaf = _leaf(t)
    if t.dtype in CODED_FLOATS:
        return (
            f"it is {t.dtype} but has no scale: expected a tensor {shown(t.name + '_scale_inv')} "
            "or the like in any shard"
        )
    owner = next((t.name.removesuffix(s) for s in SUFFIXES if t.name.endswith(s)), "")
    if leaf in parts and len(t.shape) > 1:
        owner = owner or t.name.removesuffix(leaf) + "weight"
        leaf = ORPHANS[0]
    if leaf.endswith("_scales") and t.dtype == "U8":
        return f"it is the scale of a tensor {shown(owner + '_blocks')}, which is not there"
    if leaf in ORPHANS or owner in tensors or t.name.endswith("_scale_inv"):
        found = tensors.get(owner)
        what = f"that weight is {found.dtype}" if found else "there is no such weight"
        return f"it belongs to a coded weight {shown(owner or '?')}, but {what}"
    if t.dtype in PACKED and len(t.shape) > 1:
        scaled = any(t.name + s in tensors for s in SUFFIXES)
        if scaled or leaf in ("weight", "weight_packed", "qweight") or leaf.endswith("_blocks"):
            return f"it is {t.dtype} {list(t.shape)}: packed codes? expected a known form of them"
    return None


def _doubled(weights: Sequence[Weight]) -> str:
    (twice, _), *_ = Counter(w.name for w in weights).most_common(1)
    return f"weight {shown(twice)} is there twice: coded, and as a tensor of that name"


def contradictions(coded: Sequence[Weight], hints: Sequence[str]) -> Iterator[str]:
    """Where a config lists modules as not coded whose tensors are: the tensors are believed."""
    from .hints import Listed

    listed = Listed(hints)
    found = [w.name for w in coded if hints and listed.names(w.name)]
    if found:
        yield (
            f"config.json lists {shown(found[0])} as not quantized, and {len(found) - 1:,} more, "
            "but they have codes and scales: decoded"
        )


# What a loader takes as "this checkpoint is quantized", or as the dtype to load in.
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "expert_dtype")
DTYPE_KEYS = ("torch_dtype", "dtype")


def plain_config(config: Config, dtype: str) -> Config:
    """``config`` for a checkpoint without codecs: every other key, and their order, kept."""
    out = copy.deepcopy(config)
    places = [p for p in (out, out.get("text_config")) if isinstance(p, dict)]
    for place in places:
        for key in QUANTIZATION_KEYS:
            place.pop(key, None)
        for key in DTYPE_KEYS:
            if key in place:
                place[key] = dtype
    if not any(key in place for place in places for key in DTYPE_KEYS):
        out["torch_dtype"] = dtype  # the name that every version of every loader reads
    return out
