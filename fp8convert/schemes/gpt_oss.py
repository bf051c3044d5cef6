"""gpt-oss, ``quant_method: mxfp4``: ``X_blocks`` beside ``X_scales`` become the weight ``X``.

Source: ``config.json`` of openai/gpt-oss-120b, transformers ``integrations/mxfp4.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..codecs.gpt_oss import GptOss
from ..declared import Declared, strings
from ..errors import shown
from .base import Scheme
from .weight import Tensors, Weight

CODES, SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class GptOssScheme(Scheme):
    """Fused experts only; everything else of such a checkpoint is BF16."""

    ignored: tuple[str, ...] = ()
    name = "mxfp4"
    declared_as = "mxfp4 (gpt-oss)"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """``quant_method: mxfp4``."""
        if declared.quantization is None or declared.method != "mxfp4":
            return None
        return cls(strings(declared.quantization.get("modules_to_not_convert")))

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """``X_blocks`` with its scales."""
        if not t.name.endswith(CODES):
            return None
        name = t.name.removesuffix(CODES)
        scales = tensors.get(name + SCALES)
        if scales is None:
            return f"it has no scales: expected a tensor {shown(name + SCALES)} in any shard"
        return Weight(name, GptOss(), (t, scales))

    def hints(self) -> Sequence[str]:
        """``modules_to_not_convert``."""
        return self.ignored

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "mxfp4"}``."""
        return {"scheme": self.name}
