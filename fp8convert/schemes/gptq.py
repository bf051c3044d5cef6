"""``quant_method: gptq``: ``X.qweight``, ``.scales``, ``.qzeros``, ``.g_idx`` become ``X.weight``.

Sources: AutoGPTQ ``quantize_config.json``, GPTQModel ``checkpoint_format``. Version 1 stores zero
points less one, version 2 as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..codecs.gptq import Gptq
from ..declared import Declared, mapping
from ..errors import shown
from ..strictjson import brief
from .base import Scheme
from .weight import Tensors, Weight, beside

FORMATS = {None: True, "gptq": True, "gptq_v2": False}  # whether zero points are stored less one
BITS = (4, 8)


@dataclass(frozen=True)
class GptqScheme(Scheme):
    """``group`` inputs share a scale; -1: all of them. ``reorders``: ``g_idx`` must be there."""

    bits: int
    group: int
    minus_one: bool
    reorders: bool = False
    name = "gptq"
    declared_as = "gptq (4 or 8 bits)"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """``quant_method: gptq``, or an AutoGPTQ ``quantize_config.json`` without a method."""
        found, at = declared.quantization, declared.where
        if found is None or declared.method != "gptq":
            ours = found is not None and declared.method is None and "desc_act" in found
            if not ours:
                return None
        assert found is not None
        forms = [f for f in ("checkpoint_format", "format") if found.get(f) is not None]
        if len({str(found[f]) for f in forms}) > 1:
            return f"{at} has {' and '.join(f'{f} {brief(found[f])}' for f in forms)}: which?"
        form = forms[0] if forms else "checkpoint_format"
        lasting = [k for k in mapping(found.get("dynamic")) if not k.startswith("-:")]
        if lasting:
            return f"{at}.dynamic has options of its own for {shown(lasting[0])}: not read"
        checks: tuple[tuple[str, tuple[object, ...]], ...] = (
            ("bits", BITS),
            (form, tuple(FORMATS)),
            ("is_marlin_format", (None, False)),
            ("desc_act", (None, False, True)),
            ("pack_dtype", (None, "int32")),
        )
        for field, known in checks:
            if found.get(field) not in known or isinstance(found.get(field), float):
                words = ", ".join(str(k) for k in known if k is not None)
                return f"{at}.{field} is {brief(found.get(field))}, expected one of {words}"
        group = found.get("group_size")
        if type(group) is not int or not (group == -1 or group > 0):
            return f"{at}.group_size is {brief(group)}, expected a positive integer or -1"
        minus_one = FORMATS[found.get(form)]
        return cls(found["bits"], group, minus_one, bool(found.get("desc_act")))

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """``X.qweight`` with scales and zero points, and groups where inputs may be reordered."""
        module, _, leaf = t.name.rpartition(".")
        if leaf != "qweight":
            return None
        parts = (t, *beside(t, tensors, ("scales", "qzeros")))
        if len(parts) < 3:
            missing = "scales" if f"{module}.scales" not in tensors else "qzeros"
            return f"it has no {shown(f'{module}.{missing}')} beside it, in any shard"
        groups = beside(t, tensors, ("g_idx",))
        if self.reorders and not groups:
            return f"inputs are reordered (desc_act), but there is no {shown(module + '.g_idx')}"
        inputs = t.shape[0] * 32 // self.bits if t.shape else 0
        group = max(inputs, 1) if self.group == -1 else self.group
        codec = Gptq(self.bits, group, self.minus_one, bool(groups), not self.reorders)
        return Weight(f"{module}.weight", codec, (*parts, *groups))

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "gptq", "bits": 4, "group": 128, ...}``."""
        facts = {"bits": self.bits, "group": self.group, "zeros_minus_one": self.minus_one}
        return {"scheme": self.name, **facts, "reorders": self.reorders}
