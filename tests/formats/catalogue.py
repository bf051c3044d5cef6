"""Every family's cases in one list."""

from __future__ import annotations

import functools

from . import (
    awq,
    compressed_tensors_,
    deepseek_v4,
    fp8_scales,
    gpt_oss,
    gptq,
    mistral,
    modelopt,
)
from .case import Case

FAMILIES = (deepseek_v4, fp8_scales, mistral, gpt_oss, compressed_tensors_, modelopt, awq, gptq)


@functools.cache
def all_cases() -> list[Case]:
    """All but DeepSeek's rank files, whose shards repeat names (``deepseek_ranks.cases``)."""
    return [case for family in FAMILIES for case in family.cases()]
