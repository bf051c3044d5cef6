"""NVIDIA ModelOpt: FP8 per matrix, row or block, MXFP8, NVFP4, MXFP4, and mixtures of them.

Declared in ``quantization_config`` (``quant_method: modelopt``, or only ``producer``) or, often, in
``hf_quant_config.json`` alone. The algorithm is a hint; dtypes and shapes say what each weight is.
``weight_scale_2`` multiplies. Source: TensorRT Model Optimizer's unified HF export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..codecs.fp8_block import Block
from ..declared import Declared, mapping, strings
from ..strictjson import brief
from .base import Scheme
from .forms import MX, ROW, WHOLE, by_dtype
from .weight import Tensors, Weight, beside

# What shares a scale of eight-bit codes; where the algorithm does not say it, the shapes do.
ALGORITHMS: dict[str, Block | None] = {
    "FP8": WHOLE,
    "FP8_PER_CHANNEL_PER_TOKEN": ROW,
    "FP8_PB_WO": (128, 128),
    "FP8_PB_REAL": (128, 128),
    "MXFP8": (1, MX),
    "NVFP4": None,
    "W4A16_NVFP4": None,
    "W4A8_NVFP4_FP8": None,
    "MXFP4": None,
    "W4A8_MXFP4_FP8": None,
    "MIXED_PRECISION": None,
}


@dataclass(frozen=True)
class ModelOptScheme(Scheme):
    """``algorithm`` as declared."""

    algorithm: str
    ignored: tuple[str, ...] = ()
    name = "modelopt"
    declared_as = "modelopt (in the config or in hf_quant_config.json)"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """By method or producer; every algorithm named, also per layer, must be a known one."""
        found = declared.quantization
        if found is None or not _is_modelopt(found):
            return None
        found = {**found, **mapping(found.get("quantization"))}
        layers = mapping(found.get("quantized_layers"))
        each = [mapping(layer).get("quant_algo") for layer in layers.values()]
        for algorithm in (found.get("quant_algo"), *each):
            if str(algorithm).upper() not in ALGORITHMS:
                return (
                    f"{declared.where}.quant_algo is {brief(algorithm)}, "
                    f"expected one of {', '.join(ALGORITHMS)}"
                )
        names = strings(found.get("exclude_modules")) + strings(found.get("ignore"))
        return cls(found["quant_algo"], names)

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """By dtype; a weight whose inputs were scaled beforehand is not a weight of its own."""
        claim = by_dtype(t, tensors, ALGORITHMS[self.algorithm.upper()])
        if isinstance(claim, Weight) and beside(t, tensors, ("pre_quant_scale",)):
            return "its inputs are scaled by pre_quant_scale (AWQ): decoding would lose that"
        return claim

    def hints(self) -> Sequence[str]:
        """``exclude_modules`` or ``ignore``."""
        return self.ignored

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "modelopt", "algorithm": ...}``."""
        return {"scheme": self.name, "algorithm": self.algorithm}


def _is_modelopt(found: dict[str, Any]) -> bool:
    method = found.get("quant_method")
    if isinstance(method, str):
        return method.startswith("modelopt")
    made_by = mapping(found.get("producer")).get("name")
    return made_by == "modelopt" or "quant_algo" in found
