"""What decides the bytes of the output. Everything else (workers, I/O) is the engine's."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
class Quantize(Options):
    """Of :func:`~fp8convert.convert.quantize`. None where the scheme has no such thing, or its own.

    ``block``: rows and columns that share a scale, of the fp8-block schemes; ``group``: elements of
    a row that do, of int4-group; ``scale_dtype``: of fp8-block-ue8m0, f32 or e8m0. ``like`` is a
    checkpoint folder whose coded weights are the ones to encode.
    """

    scheme: str
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
        one_of("scheme", self.scheme, SCHEMES)
        one_of("scale_search", self.scale_search, SEARCHES)
        self._only("block", BLOCKS)
        self._only("group", ("int4-group",))
        self._only("scale_dtype", ("fp8-block-ue8m0",))
        if self.scale_dtype is not None:
            one_of("scale_dtype", self.scale_dtype, tuple(SCALE_DTYPES))
        if self.group is not None and (type(self.group) is not int or self.group not in GROUPS):
            raise UsageError(f"group {shown(self.group)}, expected one of {GROUPS}")
        if self.like is not None:
            self._set("like", _path(self.like))
        for name in ("include", "exclude"):
            self._set(name, _patterns(name, getattr(self, name)))
        if self.block is not None:
            self._set("block", _block(self.block))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for others

    def _only(self, option: str, schemes: tuple[str, ...]) -> None:
        if getattr(self, option) is not None and self.scheme not in schemes:
            raise UsageError(f"{option} is for {' and '.join(schemes)}, not for {self.scheme}")


def one_of(option: str, found: object, known: tuple[str, ...]) -> None:
    """UsageError if ``found`` is not one of the words an option may have."""
    if found not in known:
        raise UsageError(f"{option} {shown(found)}, expected one of {', '.join(known)}")


def _path(found: object) -> str:
    if isinstance(found, (str, os.PathLike)) and isinstance(path := os.fspath(found), str):
        return path
    raise UsageError(f"like {shown(found)}, expected the path of a checkpoint folder")


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
