"""Sample checkpoints: the on-disk layout of real models with made-up weights.

A new family is a new file with a function ``size -> Sample``, entered in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fp8convert.errors import UsageError, shown

from . import deepseek_v3
from .spec import SCHEMES, Sample

__all__ = ["FAMILIES", "SCHEMES", "SIZES", "Made", "make_sample"]

FAMILIES: dict[str, Callable[[str], Sample]] = {"deepseek-v3": deepseek_v3.sample}
SIZES = ("tiny", "small", "full")


@dataclass(frozen=True, slots=True)
class Made:
    """What was written: number of shards, of tensors, and the bytes of the tensors' data."""

    shards: int
    tensors: int
    nbytes: int


def make_sample(
    dst: str,
    family: str = "deepseek-v3",
    size: str = "tiny",
    scheme: str = "fp8",
    seed: int = 0,
) -> Made:
    """Write a sample checkpoint into the new or empty folder ``dst``.

    ``size`` tiny is 13 MB and runs in transformers (as bf16); small is 2 GB; full has the
    headers of the published checkpoint, its data being holes that read as zeros. ``scheme`` fp8
    is the published one (e4m3 codes [o, i], F32 scales [ceil(o/128), ceil(i/128)]); bf16 is the
    same model unquantized. The same arguments give the same bytes.

    Raises UsageError on an unknown family, size or scheme, and TargetError if ``dst`` is not
    empty or cannot be written; then ``dst`` is as it was.
    """
    if family not in FAMILIES:
        raise UsageError(f"family {shown(family)}, expected one of {', '.join(FAMILIES)}")
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {shown(scheme)}, expected one of {', '.join(SCHEMES)}")
    sample = FAMILIES[family](size)
    from .writer import write_sample  # NumPy is not needed to list the families

    cut = write_sample(dst, sample, scheme, seed)
    return Made(len(cut), sum(map(len, cut)), sum(t.nbytes for shard in cut for t in shard))
