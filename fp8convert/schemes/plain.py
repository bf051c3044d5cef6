"""No codec at all: a BF16, F16 or F32 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..codecs.raw import Raw
from ..dtypes import CODED_FLOATS
from ..errors import shown
from .base import Config, Reading, Scheme, Weight, quantization_config


@dataclass(frozen=True)
class PlainScheme(Scheme):
    """Every stored tensor is a weight of its own."""

    name = "none"
    declared_as = "no quantization_config at all"

    @classmethod
    def recognise(cls, config: Config, tensors: Mapping[str, Stored]) -> Scheme | str | None:
        """Nothing declared."""
        return cls() if quantization_config(config) is None else None

    def read(self, tensors: Mapping[str, Stored], shards: Sequence[str]) -> Reading:
        """All raw; 8-bit floats without a declaration are a problem."""
        raw = Raw()
        problems = tuple(
            f"{shards[t.shard]}: tensor {shown(t.name)} is {t.dtype}, but config.json has no "
            "quantization_config that says how it is scaled"
            for t in tensors.values()
            if t.dtype in CODED_FLOATS
        )
        return Reading(tuple(Weight(t.name, raw, (t,)) for t in tensors.values()), problems)

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "none"}``."""
        return {"scheme": self.name}
