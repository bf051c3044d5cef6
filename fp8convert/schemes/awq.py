"""``quant_method: awq``: ``X.qweight``, ``X.scales``, ``X.qzeros`` become ``X.weight``.

Source: AutoAWQ's ``quantization_config`` (``bits`` or ``w_bit``, ``group_size`` or
``q_group_size``, ``zero_point``, ``version``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..codecs.awq import Awq
from ..codecs.base import Stored
from ..declared import Declared
from ..errors import shown
from ..strictjson import brief
from .base import Scheme
from .weight import Tensors, Weight, beside

VERSIONS = (None, "gemm", "GEMM")


@dataclass(frozen=True)
class AwqScheme(Scheme):
    """``group`` inputs share a scale and a zero point; -1: all of them."""

    group: int
    zero_points: bool = True
    name = "awq"
    declared_as = "awq (gemm, 4 bits)"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """``quant_method: awq`` in the GEMM packing."""
        found, at = declared.quantization, declared.where
        if found is None or declared.method != "awq":
            return None
        bits = found.get("bits", found.get("w_bit"))
        group = found.get("group_size", found.get("q_group_size"))
        if bits != 4:
            return f"{at}.bits is {brief(bits)}, expected 4"
        version = found.get("version", found.get("format"))
        if version not in VERSIONS:
            return f"{at}.version is {brief(version)}, expected gemm"
        if type(group) is not int or not (group == -1 or group > 0):
            return f"{at}.group_size is {brief(group)}, expected a positive integer or -1"
        return cls(group, found.get("zero_point") is not False)

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """``X.qweight`` with scales and zero points."""
        module, _, leaf = t.name.rpartition(".")
        if leaf != "qweight":
            return None
        wanted = ("scales", "qzeros") if self.zero_points else ("scales",)
        parts = (t, *beside(t, tensors, wanted))
        if len(parts) <= len(wanted):
            missing = [leaf for leaf in wanted if f"{module}.{leaf}" not in tensors]
            return f"it has no {shown(f'{module}.{missing[0]}')} beside it, in any shard"
        group = max(t.shape[0] if t.shape else 0, 1) if self.group == -1 else self.group
        return Weight(f"{module}.weight", Awq(group, self.zero_points), parts)

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "awq", "bits": 4, "group": 128, "zero_points": true}``."""
        facts = {"bits": 4, "group": self.group, "zero_points": self.zero_points}
        return {"scheme": self.name, **facts}
