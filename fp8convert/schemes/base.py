"""The contract of a scheme: how a family of checkpoints declares its codecs. Opens no file."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..codecs.base import Codec, Stored

Config = dict[str, Any]


class Weight(NamedTuple):
    """A named full-precision tensor and the stored tensors that encode it, in codec role order."""

    name: str
    codec: Codec
    parts: tuple[Stored, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded shape."""
        return self.codec.shape(self.parts)

    def out_dtype(self, target: str) -> str:
        """The dtype it is written with when coded weights become ``target``."""
        return self.codec.out_dtype(self.parts, target)


@dataclass(frozen=True, slots=True)
class Reading:
    """Stored tensors understood as weights, in stored order; ``problems`` bar a conversion."""

    weights: tuple[Weight, ...]
    problems: tuple[str, ...]


class Scheme(ABC):
    """One way of declaring codecs. Recognised by config and dtypes, never by a name alone.

    Subclasses are frozen dataclasses without slots (slots make a second, registered class).
    """

    name: ClassVar[str]
    declared_as: ClassVar[str]  # what a config says, for the message that lists the known ones

    @classmethod
    @abstractmethod
    def recognise(cls, config: Config, tensors: Mapping[str, Stored]) -> Scheme | str | None:
        """An instance if this is what the config declares; None if it is something else.

        A string says why it nearly is but is not read: shown if no other scheme takes it.
        """

    @abstractmethod
    def read(self, tensors: Mapping[str, Stored], shards: Sequence[str]) -> Reading:
        """Pair stored tensors into weights. ``shards`` are file names, for messages."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The scheme as JSON, for ``inspect`` and the manifest."""


def quantization_config(config: Config) -> Config | None:
    """The declaration, at top level or inside ``text_config``; None if there is none."""
    for place in (config, config.get("text_config")):
        if isinstance(place, dict) and place.get("quantization_config") is not None:
            found = place["quantization_config"]
            return found if isinstance(found, dict) else {"quant_method": found}
    return None


# What a loader takes as "this checkpoint is quantized", or as the dtype to load in.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
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
