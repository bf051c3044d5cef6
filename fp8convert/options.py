"""What decides the bytes of the output. Everything else (workers, I/O) is the engine's."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cached_property

from .errors import UsageError, shown

TARGETS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
CHECKSUMS = ("sha256", "none")
SEARCHES = ("plain", "mse")
SCALE_DTYPES = {"f32": "F32", "e8m0": "F8_E8M0"}
BLOCKS = ("fp8-block", "fp8-block-ue8m0")
SCHEMES = (*BLOCKS, "fp8-channel", "fp8-tensor", "int8-channel", "int4-group", "nvfp4", "mxfp4",
           "mxfp8")  # fmt: skip
GROUPS = (32, 64, 128)
MOST_BLOCK = 1024
LAYOUTS = ("deepseek", "hf")
KEEP = "keep"
PLAIN_WEIGHTS = {"bf16": "bfloat16", "float16": "float16", "float32": "float32"}
WEIGHTS = (KEEP, *PLAIN_WEIGHTS, *SCHEMES)
MTP = ("drop", "keep")
MISALIGNED = ("error", "bf16", "requantize", "reblock")
EXPERTS = ("owner", "cut")
MOST_RANKS = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every conversion may be told."""

    max_shard_size: int | None = None  # bytes of tensors a file; None keeps the source's shards
    checksum: str = "sha256"
    copy_code: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        one_of("checksum", self.checksum, CHECKSUMS)
        size = self.max_shard_size
        if size is not None and (type(size) is not int or size < 1):
            raise UsageError(f"max_shard_size {shown(size)}, expected a positive number of bytes")


@dataclass(frozen=True, kw_only=True)
class ToBf16(Options):
    """Of :func:`~fp8convert.convert.to_bf16`."""

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("dtype", self.dtype, tuple(TARGETS))


@dataclass(frozen=True, kw_only=True)
class Encode(Options):
    """How weights are encoded, and which. None where a scheme has no such thing, or its own.

    ``block``: rows and columns that share a scale, of the fp8-block schemes; ``group``: elements of
    a row that do, of int4-group; ``scale_dtype``: of fp8-block-ue8m0, f32 or e8m0. ``like`` is a
    checkpoint folder whose coded weights are the ones to encode.
    """

    block: tuple[int, int] | None = None
    group: int | None = None
    scale_dtype: str | None = None
    scale_search: str = "plain"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    like: str | None = None
    require_exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("scale_search", self.scale_search, SEARCHES)
        if self.scale_dtype is not None:
            one_of("scale_dtype", self.scale_dtype, tuple(SCALE_DTYPES))
        if self.group is not None and (type(self.group) is not int or self.group not in GROUPS):
            raise UsageError(f"group {shown(self.group)}, expected one of {GROUPS}")
        if self.like is not None:
            self._set("like", _path("like", self.like))
        for name in ("include", "exclude"):
            self._set(name, _patterns(name, getattr(self, name)))
        if self.block is not None:
            self._set("block", _block(self.block))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for others


@dataclass(frozen=True, kw_only=True)
class Quantize(Encode):
    """Of :func:`~fp8convert.convert.quantize`."""

    scheme: str

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("scheme", self.scheme, SCHEMES)
        self._only("block", BLOCKS)
        self._only("group", ("int4-group",))
        self._only("scale_dtype", ("fp8-block-ue8m0",))

    def _only(self, option: str, schemes: tuple[str, ...]) -> None:
        if getattr(self, option) is not None and self.scheme not in schemes:
            raise UsageError(f"{option} is for {' and '.join(schemes)}, not for {self.scheme}")


@dataclass(frozen=True, kw_only=True)
class ShardForTp(Encode):
    """Of :func:`~fp8convert.convert.shard_for_tp`. None where the layout decides.

    ``weights``: as they are stored, decoded, or encoded by a scheme, as :class:`Encode` has it.
    ``ranks`` are those to write, all of ``tp`` if None. ``misaligned``: what becomes of weights
    that a cut would part within a block of scales. ``pad_vocab``: the vocabulary is padded with
    zeros to a multiple of this. ``n_experts`` is only checked.
    """

    tp: int
    layout: str = "deepseek"
    weights: str = KEEP
    mtp: str | None = None
    ranks: tuple[int, ...] | None = None
    misaligned: str = "error"
    experts: str = "owner"
    pad_vocab: int | None = None
    n_experts: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("layout", self.layout, LAYOUTS)
        one_of("weights", self.weights, WEIGHTS)
        if self.mtp is not None:
            one_of("mtp", self.mtp, MTP)
        one_of("misaligned", self.misaligned, MISALIGNED)
        one_of("experts", self.experts, EXPERTS)
        for name, most in (("tp", MOST_RANKS), ("pad_vocab", 1 << 30), ("n_experts", 1 << 30)):
            _count(name, getattr(self, name), most, optional=name != "tp")
        if self.ranks is not None:
            self._set("ranks", _ranks(self.ranks, self.tp))
        if self.layout == "deepseek":
            self._not_with_deepseek()
        _ = self.to  # or refuse here

    def _not_with_deepseek(self) -> None:
        if self.max_shard_size is not None:
            raise UsageError("max_shard_size is for layout hf: deepseek has one file a rank")
        if self.pad_vocab is not None or self.experts != "owner":
            raise UsageError("pad_vocab and experts cut are for layout hf, not for deepseek")

    @property
    def written(self) -> tuple[int, ...]:
        """The ranks to write."""
        return self.ranks if self.ranks is not None else tuple(range(self.tp))

    @cached_property
    def to(self) -> ToBf16 | Quantize | None:
        """The conversion in the same pass; None if bytes are kept."""
        shared = {f.name: getattr(self, f.name) for f in fields(Options)}
        encode = {f.name: getattr(self, f.name) for f in fields(Encode)}
        if self.weights in SCHEMES:
            return Quantize(scheme=self.weights, **encode)
        own = [f for f in fields(Encode) if f.name not in shared]
        if self.misaligned == "requantize":
            own = [f for f in own if f.name not in ("scale_search", "require_exact")]
        if odd := [f.name for f in own if encode[f.name] != f.default]:
            known = ", ".join(SCHEMES)
            raise UsageError(f"{', '.join(odd)} goes with weights that are encoded: {known}")
        dtype = PLAIN_WEIGHTS.get(self.weights)
        return None if dtype is None else ToBf16(dtype=dtype, **shared)


@dataclass(frozen=True, kw_only=True)
class Unshard(Options):
    """Of :func:`~fp8convert.convert.unshard`.

    ``tp`` and ``layout``: cut for other ranks, not put together. ``config``: the path of the
    model's own config.json, for rank files that have none beside them.
    """

    tp: int | None = None
    layout: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _count("tp", self.tp, MOST_RANKS, optional=True)
        if self.layout is not None:
            one_of("layout", self.layout, LAYOUTS)
            if self.tp is None:
                raise UsageError("layout goes with tp, the ranks to cut for")
        if self.config is not None:
            object.__setattr__(self, "config", _path("config", self.config))


def _count(option: str, found: object, most: int, optional: bool) -> None:
    if found is None and optional:
        return
    if type(found) is not int or not 0 < found <= most:
        raise UsageError(f"{option} {shown(found)}, expected an integer from 1 to {most}")


def _ranks(found: object, count: int) -> tuple[int, ...]:
    if isinstance(found, (list, tuple)) and found and all(type(r) is int for r in found):
        ranks = tuple(sorted(set(found)))
        if ranks[0] >= 0 and ranks[-1] < count:
            return ranks
    raise UsageError(f"ranks {shown(found)}, expected some of 0 to {count - 1}")


def one_of(option: str, found: object, known: tuple[str, ...]) -> None:
    """UsageError if ``found`` is not one of the words an option may have."""
    if found not in known:
        raise UsageError(f"{option} {shown(found)}, expected one of {', '.join(known)}")


def _path(option: str, found: object) -> str:
    path = os.fspath(found) if isinstance(found, (str, os.PathLike)) else None
    if isinstance(path, str) and "\0" not in path:
        return path
    raise UsageError(f"{option} {shown(found)}, expected a path")


def _patterns(option: str, found: object) -> tuple[str, ...]:
    if isinstance(found, (list, tuple)) and all(isinstance(p, str) for p in found):
        return tuple(found)
    raise UsageError(f"{option} {shown(found)}, expected a list of patterns")


def _block(found: object) -> tuple[int, int]:
    if isinstance(found, (list, tuple)) and [type(b) for b in found] == [int, int]:
        rows, columns = found
        if 0 < rows <= MOST_BLOCK and 0 < columns <= MOST_BLOCK:
            return rows, columns
    raise UsageError(
        f"block {shown(found)}, expected two integers from 1 to {MOST_BLOCK}, as (128, 128)"
    )
