"""``quant_method: fp8``: DeepSeek V3 to V4.1, Qwen3, GLM, MiniMax, Mistral, and who follows them.

Sources: DeepSeek-V3 ``config.json`` and ``README_WEIGHTS.md``; the configs of the others. Despite
its name ``weight_scale_inv`` multiplies. Also DeepSeek's own ``model{i}-mp{N}`` files, whose code
fixes the block at 128 x 128 and says so nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..codecs.base import Stored
from ..codecs.elements import BY_DTYPE
from ..codecs.fp8_block import Block
from ..declared import Declared, strings
from ..dtypes import CODED_FLOATS
from ..strictjson import brief
from .base import Reading, Scheme
from .forms import by_dtype
from .weight import Tensors, Weight

# Fields that could say something else of the codes than is read here, and what they may hold.
READ_ONLY_IF: dict[str, tuple[object, ...]] = {
    "fmt": (None, "e4m3", "float8_e4m3fn", "e4m3fn", "e5m2", "float8_e5m2", "e4m3fnuz",
            "float8_e4m3fnuz", "e5m2fnuz", "float8_e5m2fnuz"),
    "quant_algo": (None, "FP8", "NVFP4", "MIXED_PRECISION"),
    "expert_dtype": (None, "fp8", "fp4"),
    "scale_fmt": (None, "ue8m0", "float"),
}  # fmt: skip
METHODS = ("fp8", "mxfp8", "fbgemm_fp8")
RANK_BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8BlockScheme(Scheme):
    """``block`` is the declared one; None where the config has none: a scale a tensor or a row."""

    block: Block | None
    ignored: tuple[str, ...] = ()
    fmt: str | None = None
    experts: str | None = None
    name = "fp8-block"
    declared_as = "fp8 (blocks of weight_block_size, or a scale a tensor)"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """``quant_method: fp8``; anything else in the declaration must be what is read here."""
        found = declared.quantization
        if found is None and declared.ranks:
            coded = any(t.dtype in CODED_FLOATS for t in tensors.values())
            return cls(RANK_BLOCK) if coded else None
        if found is None or declared.method not in METHODS:
            return None
        block = found.get("weight_block_size")
        if block is not None and not _is_block(block):
            return (
                f"{declared.where}.weight_block_size is {brief(block)}, "
                "expected two positive integers such as [128, 128]"
            )
        for where, place in declared.places():
            for field, accepted in READ_ONLY_IF.items():
                if place.get(field) not in accepted:
                    known = ", ".join(str(a) for a in accepted if a is not None)
                    return f"{where}{field} is {brief(place[field])}, expected one of {known}"
        said = [place.get("expert_dtype") for _, place in declared.places()]
        experts = next((e for e in said if e is not None), None)
        # In ModelOpt's mixtures a module that is ignored was left as it was: FP8, often.
        lists = () if "quant_algo" in found else LISTS
        names = [n for key in lists for n in strings(found.get(key))]
        covered = (block[0], block[1]) if block else None
        return cls(covered, tuple(names), found.get("fmt"), experts)

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """FP8 beside a scale, or FP4 experts."""
        return by_dtype(t, tensors, self.block)

    def read(self, tensors: Tensors, shards: Sequence[str]) -> Reading:
        """As every scheme; what the config says of dtypes that no tensor bears out is reported."""
        found = super().read(tensors, shards)
        dtypes = {w.parts[0].dtype for w in found.weights if w.codec.coded}
        more = []
        if self.fmt is not None and not dtypes & _dtypes(self.fmt):
            more.append(("fmt", self.fmt))
        if self.experts == "fp4" and not dtypes & {"I8", "U8", "F4"}:
            more.append(("expert_dtype", self.experts))
        notes = tuple(
            f"config.json: {field} is {value!r}, but the codes are {', '.join(sorted(dtypes))}: "
            "the stored dtypes are believed"
            for field, value in more
            if dtypes
        )
        return replace(found, warnings=found.warnings + notes)

    def hints(self) -> Sequence[str]:
        """``modules_to_not_convert``, ``ignored_layers`` or ``ignore``."""
        return self.ignored

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "fp8-block", "block": [br, bc]}``; null: a scale a tensor or a row."""
        return {"scheme": self.name, "block": list(self.block) if self.block else None}


LISTS = ("modules_to_not_convert", "ignored_layers", "ignore")


def _dtypes(fmt: str) -> set[str]:
    name = fmt.removeprefix("float8_")
    return {d for d, element in BY_DTYPE.items() if element in (name, f"{name}fn")}


def _is_block(block: object) -> bool:
    return type(block) is list and len(block) == 2 and all(type(b) is int and b > 0 for b in block)
