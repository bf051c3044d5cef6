"""What a sample checkpoint is made of, as data: weights, how a scheme stores them, in which shard.

Shapes are [out, in]; sizes are bytes. Nothing here opens a file or needs NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fp8convert.dtypes import DTYPES
from fp8convert.header import numel

BLOCK = 128  # rows and columns that share one scale
SCHEMES = ("fp8", "bf16")


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a model. ``kind`` is linear (the scheme may quantize it), matrix, norm or bias.

    ``same_as`` names the weight whose values this one repeats, if any.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file. ``fill`` says how its values are made, ``stream`` seeds them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: str
    stream: str

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in its file."""
        return numel(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A checkpoint to be written: config.json, weights in model order, small files (name -> text).

    A shard is closed once it holds ``shard_bytes``. ``sparse`` writes headers and holes only.
    """

    config: Mapping[str, Any]
    weights: tuple[Weight, ...]
    files: Mapping[str, str]
    shard_bytes: int
    sparse: bool


def scale_name(weight: str) -> str:
    """The tensor that holds the scales of a coded weight; a multiplier, whatever its name says."""
    return f"{weight}_scale_inv"


def store(weights: Iterable[Weight], scheme: str) -> Iterator[Stored]:
    """The tensors that hold ``weights`` under ``scheme``: one or two for each, in model order."""
    for w in weights:
        stream = w.same_as or w.name
        if w.kind == "bias":
            yield Stored(w.name, "F32", w.shape, "bias", stream)
        elif w.kind != "linear":
            yield Stored(w.name, "BF16", w.shape, w.kind, stream)
        elif scheme == "bf16":
            yield Stored(w.name, "BF16", w.shape, "decoded", stream)
        else:
            scale = scale_name(w.name)
            yield Stored(w.name, "F8_E4M3", w.shape, "codes", stream)
            yield Stored(scale, "F32", scale_shape(w.shape), "scales", scale_name(stream))


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[ceil(o / 128), ceil(i / 128)]: a ragged edge has a scale of its own."""
    return tuple(-(-n // BLOCK) for n in shape)


def shards(tensors: Iterable[Stored], shard_bytes: int) -> list[list[Stored]]:
    """Cut the tensors, in order, into shards that are closed as soon as they are full.

    The tensor that fills a shard is nearly always a large weight, so its scales open the next
    shard: as in published checkpoints, a weight and its scales may be apart.
    """
    cut: list[list[Stored]] = []
    room = 0
    for t in tensors:
        if room <= 0:
            cut.append([])
            room = shard_bytes
        cut[-1].append(t)
        room -= t.nbytes
    return [sorted(shard, key=_file_order) for shard in cut]


def _file_order(t: Stored) -> tuple[int, str]:
    """The order in which the safetensors library writes: widest dtype first, then by name."""
    return -DTYPES[t.dtype].bits, t.name


def shard_name(number: int, count: int) -> str:
    """File name of shard ``number`` (from 0), with the digits of the published checkpoints."""
    return f"model-{number + 1:05d}-of-{count:06d}.safetensors"
