"""Every fact."""

from __future__ import annotations

from . import bf16, compressed_tensors_, deepseek, fp8, modelopt_
from .facts import Fact

FAMILIES = (deepseek, fp8, compressed_tensors_, modelopt_, bf16)


def all_facts() -> dict[str, Fact]:
    """By the checkpoint they are of."""
    facts = [fact for family in FAMILIES for fact in family.facts()]
    found = {fact.source.split(" of ")[-1].split(" on ")[-1]: fact for fact in facts}
    assert len(found) == len(facts)
    return found
