"""Sample checkpoints: the on-disk layout of real models with made-up weights.

A new family is a new file with a function ``size -> Sample``, entered in FAMILIES. What the files
say comes from the publishers' formats, and shares no code with the part that converts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fp8convert.errors import UsageError, shown

from . import (
    deepseek_v3,
    deepseek_v4,
    gpt_oss,
    kimi_k2_thinking,
    minimax_m3,
    mistral_fp8,
    modelopt_nvfp4,
    qwen3_fp8,
)
from .spec import SCHEMES, Sample

__all__ = ["FAMILIES", "SCHEMES", "SIZES", "Made", "make_sample"]

FAMILIES: dict[str, Callable[[str], Sample]] = {
    "deepseek-v3": deepseek_v3.sample,
    "deepseek-v4": deepseek_v4.sample,
    "qwen3-fp8": qwen3_fp8.sample,
    "kimi-k2-thinking": kimi_k2_thinking.sample,
    "gpt-oss": gpt_oss.sample,
    "mistral-fp8": mistral_fp8.sample,
    "minimax-m3": minimax_m3.sample,
    "modelopt-nvfp4": modelopt_nvfp4.sample,
}
SIZES = ("tiny", "small", "full")
FP8_FAMILIES = ("deepseek-v3", "qwen3-fp8", "mistral-fp8")  # what scheme "fp8" may be said of


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
    scheme: str = "published",
    seed: int = 0,
) -> Made:
    """Write a sample checkpoint into the new or empty folder ``dst``.

    ``size`` tiny is a few MB and runs in transformers (as bf16); small is 1 to 2 GB; full, which
    deepseek-v3 and deepseek-v4 have, is every header of the published checkpoint, the data being
    holes that read as zeros. ``scheme`` published stores the weights as the publisher does; bf16
    is the same model unquantized, byte for byte what a correct conversion gives; fp8 is another
    name of published for families with FP8 weights and ``weight_scale_inv``. The same arguments
    give the same bytes.

    Raises UsageError on an unknown family, size or scheme, and TargetError if ``dst`` is not
    empty or cannot be written; then ``dst`` is as it was.
    """
    if family not in FAMILIES:
        raise UsageError(f"family {shown(family)}, expected one of {', '.join(FAMILIES)}")
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {shown(scheme)}, expected one of {', '.join(SCHEMES)}")
    if scheme == "fp8" and family not in FP8_FAMILIES:
        raise UsageError(f"scheme 'fp8' does not say how {family} is stored, use 'published'")
    sample = FAMILIES[family](size)
    from .writer import write_sample  # NumPy is not needed to list the families

    cut = write_sample(dst, sample, scheme, seed)
    return Made(len(cut), sum(map(len, cut)), sum(t.nbytes for shard in cut for t in shard))
