"""What a format's case is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One checkpoint and what converting it to BF16 must write."""

    id: str
    config: dict[str, Any]
    """The whole config.json."""
    shards: list[Tensors]
    """Stored tensors, shard by shard; a scale is often in another shard than its weight."""
    expected: Tensors
    """Decoded weights as the float32 product, before rounding; every other tensor as stored."""
    decoded: frozenset[str]
    """The names in ``expected`` that were coded: the converter writes them rounded to BF16."""
    dropped: frozenset[str]
    """Stored names that have no place in the output: scales, zero points, shapes."""
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other JSON files of the checkpoint."""
    oracle: str = ""
    """The independent tool or formula that ``expected`` comes from, or is tested against."""

    @property
    def stored(self) -> Tensors:
        """Every stored tensor, of all shards."""
        return {name: tensor for shard in self.shards for name, tensor in shard.items()}


class Builder:
    """Collects a case tensor by tensor."""

    def __init__(self) -> None:
        self.stored: Tensors = {}
        self.expected: Tensors = {}
        self.decoded: set[str] = set()
        self.dropped: set[str] = set()

    def keep_all(self, tensors: Tensors) -> None:
        """Tensors that pass untouched."""
        self.stored |= tensors
        self.expected |= tensors

    def drop(self, tensors: Tensors) -> None:
        """Tensors that vanish."""
        self.stored |= tensors
        self.dropped |= tensors.keys()

    def code(self, name: str, parts: Tensors, value: torch.Tensor) -> None:
        """A coded weight: ``parts`` stored, ``value`` (float32) written as ``name``."""
        assert value.dtype == torch.float32, name
        # clone: contiguous() keeps odd strides of axes of length 1, which view() then refuses
        plain = torch.contiguous_format
        self.stored |= {part: t.clone(memory_format=plain) for part, t in parts.items()}
        self.expected[name] = value.clone(memory_format=plain)
        self.decoded.add(name)
        self.dropped |= parts.keys() - {name}

    def case(
        self,
        id: str,
        config: dict[str, Any],
        oracle: str,
        sidecars: dict[str, dict[str, Any]] | None = None,
        shards: int = 2,
    ) -> Case:
        """The case, its names dealt out in turn, so that neighbours are in different shards."""
        dealt: list[Tensors] = [{} for _ in range(shards)]
        for number, name in enumerate(sorted(self.stored)):
            dealt[number % shards][name] = self.stored[name]
        return Case(
            id=id,
            config=config,
            shards=dealt,
            expected=self.expected,
            decoded=frozenset(self.decoded),
            dropped=frozenset(self.dropped),
            sidecars=sidecars or {},
            oracle=oracle,
        )
