"""No codec at all: a BF16, F16 or F32 checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..declared import Declared
from ..dtypes import CODED_FLOATS
from .base import Reading, Scheme
from .weight import Tensors, Weight


@dataclass(frozen=True)
class PlainScheme(Scheme):
    """Every stored tensor is a weight of its own."""

    name = "none"
    declared_as = "no quantization_config at all"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """Nothing declared."""
        return cls() if declared.quantization is None else None

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """Codes without a declaration are a problem."""
        if t.dtype not in CODED_FLOATS:
            return None
        return f"it is {t.dtype}, but no quantization_config says how it is scaled"

    def read(self, tensors: Tensors, shards: Sequence[str]) -> Reading:
        """All raw, and nothing coded is no problem."""
        found = super().read(tensors, shards)
        problems = tuple(p for p in found.problems if p != self.nothing_coded())
        return Reading(found.weights, problems)

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "none"}``."""
        return {"scheme": self.name}
