"""What a sample checkpoint is made of, as data: weights, how each is stored, in which shard.

Shapes are [..., out, in]; sizes are bytes. Nothing here opens a file or needs NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fp8convert.dtypes import DTYPES
from fp8convert.errors import UsageError, shown
from fp8convert.header import numel

SCHEMES = ("published", "fp8", "bf16")
FILE_5 = "model-{number:05d}-of-{count:05d}.safetensors"
FILE_6 = "model-{number:05d}-of-{count:06d}.safetensors"  # a few publishers use six digits

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a model. ``kind`` selects the storage the family has for it.

    ``same_as`` names the weight whose values this one repeats, if any; ``fused`` the weight that
    runs in one matrix multiply with this one and so has the same per-tensor scales.
    """

    name: str
    shape: Shape
    kind: str
    same_as: str = ""
    fused: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stored weight: named as the weight, ``.weight`` replaced by ``suffix``.

    An element stands for ``block`` rows and columns of the weight (a ragged edge has elements of
    its own) and is ``lanes`` long where that is not 0; ``block`` None is one 0-d value for all.
    ``fill`` says how the values are made; a ``shared`` part is the same in fused weights.
    """

    suffix: str
    dtype: str
    fill: str
    block: tuple[int, int] | None = (1, 1)
    lanes: int = 0
    shared: bool = False

    def shape(self, weight: Shape) -> Shape:
        """The shape of this part of a weight."""
        if self.fill == "shape":
            return (len(weight),)
        if self.block is None:
            return ()
        if self.block == (1, 1):
            return weight
        *experts, rows, columns = weight
        grid = (*experts, -(-rows // self.block[0]), -(-columns // self.block[1]))
        return (*grid, self.lanes) if self.lanes else grid


@dataclass(frozen=True, slots=True)
class Storage:
    """How a kind of weight is stored: codes, scales that multiply them, and what has no part in it.

    Without scales the codes are the weight. ``turned`` weights decode to [..., in, out].
    """

    codes: Part
    scales: tuple[Part, ...] = ()
    extras: tuple[Part, ...] = ()
    turned: bool = False


def plain(dtype: str, fill: str) -> Storage:
    """A weight stored as it is."""
    return Storage(Part("", dtype, fill))


# What the families have in common: tables and routers, norms, and float32 vectors.
PLAIN: dict[str, Storage] = {
    "matrix": plain("BF16", "matrix"),
    "norm": plain("BF16", "norm"),
    "bias": plain("F32", "bias"),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file. ``fill`` says how its values are made, ``stream`` seeds them.

    ``of`` is the shape of the weight it belongs to, ``block`` as in Part. Fill "decoded" makes
    the values from ``parts``, the codes and then the scales, ``turned`` as in Storage.
    """

    name: str
    dtype: str
    shape: Shape
    fill: str
    stream: str
    of: Shape = ()
    block: tuple[int, int] | None = (1, 1)
    parts: tuple[Stored, ...] = ()
    turned: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in its file."""
        return numel(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A checkpoint to be written: config.json, weights in model order, small files (name -> text).

    ``storages`` has one entry for each kind of weight. A shard is closed once it holds
    ``shard_bytes``; ``sparse`` writes headers and holes only. The unquantized twin goes without
    ``coded_files`` and the config's ``coded_keys``.
    """

    config: Mapping[str, Any]
    weights: tuple[Weight, ...]
    storages: Mapping[str, Storage]
    files: Mapping[str, str]
    shard_bytes: int
    sparse: bool = False
    shard_file: str = FILE_5
    coded_keys: frozenset[str] = frozenset({"quantization_config"})
    coded_files: Mapping[str, str] = field(default_factory=dict)


def chosen(family: str, sizes: Mapping[str, T], size: str) -> T:
    """The entry of one size. Raises UsageError naming the sizes that the family has."""
    if size not in sizes:
        raise UsageError(f"size {shown(size)}, expected one of {', '.join(sizes)} for {family}")
    return sizes[size]


def store(sample: Sample, scheme: str) -> Iterator[Stored]:
    """The tensors that hold the weights under ``scheme``, in model order."""
    for weight in sample.weights:
        how = sample.storages[weight.kind]
        values = tuple(_stored(weight, part) for part in (how.codes, *how.scales))
        if scheme != "bf16":
            yield from values
            yield from (_stored(weight, part) for part in how.extras)
        elif how.scales:
            yield _decoded(weight, values, how.turned)
        else:
            yield from values


def _stored(weight: Weight, part: Part) -> Stored:
    stream = (part.shared and weight.fused) or weight.same_as or weight.name
    return Stored(
        _part_name(weight.name, part),
        part.dtype,
        part.shape(weight.shape),
        part.fill,
        _part_name(stream, part),
        weight.shape,
        part.block,
    )


def _part_name(weight: str, part: Part) -> str:
    return weight.removesuffix(".weight") + part.suffix if part.suffix else weight


def _decoded(weight: Weight, parts: tuple[Stored, ...], turned: bool) -> Stored:
    *experts, rows, columns = weight.shape
    shape = (*experts, columns, rows) if turned else weight.shape
    return Stored(
        weight.name, "BF16", shape, "decoded", "", weight.shape, parts=parts, turned=turned
    )


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


def shard_names(sample: Sample, count: int) -> list[str]:
    """File names of ``count`` shards. ``index`` and ``last`` are for families that start at 0."""
    return [
        sample.shard_file.format(number=i + 1, count=count, index=i, last=count - 1)
        for i in range(count)
    ]


def decoder(
    c: Mapping[str, Any], layer: Callable[[str, dict[str, Any]], Iterator[Weight]]
) -> Iterator[Weight]:
    """The weights of a decoder as most name them: table, layers, norm, head."""
    table = (c["vocab_size"], c["hidden_size"])
    yield Weight("model.embed_tokens.weight", table, "matrix")
    for n in range(c["num_hidden_layers"]):
        yield from layer(f"model.layers.{n}.", dict(c))
    yield Weight("model.norm.weight", (c["hidden_size"],), "norm")
    yield Weight("lm_head.weight", table, "matrix")
