"""``quant_method: fp8`` with ``weight_block_size``: ``X.weight`` beside ``X.weight_scale_inv``.

Source: DeepSeek-V3 ``config.json`` and ``README_WEIGHTS.md``. Despite its name the scale
multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..codecs.base import Stored
from ..codecs.fp8_block import Fp8Block
from ..codecs.raw import Raw
from ..dtypes import CODED_FLOATS
from ..errors import shown
from ..strictjson import brief
from .base import Config, Reading, Scheme, Weight, quantization_config

SCALE_SUFFIX = "_scale_inv"
# Fields that would say something else of the codes than this scheme reads, and what they may hold.
READ_ONLY_IF: dict[str, tuple[str | None, ...]] = {
    "fmt": (None, "float8_e4m3fn", "e4m3"),
    "quant_algo": (None,),
    "expert_dtype": (None, "fp8"),
}
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32")  # what other schemes keep narrow codes in


@dataclass(frozen=True)
class Fp8BlockScheme(Scheme):
    """Codes and scales paired by name, then held to the declared block by the codec."""

    block: tuple[int, int]
    name = "fp8-block"
    declared_as = "fp8 (with weight_block_size)"

    @classmethod
    def recognise(cls, config: Config, tensors: Mapping[str, Stored]) -> Scheme | str | None:
        """``quant_method: fp8``; anything else in the declaration must be what is read here."""
        declared = quantization_config(config)
        if declared is None or declared.get("quant_method") != "fp8":
            return None
        block = declared.get("weight_block_size")
        if not (
            type(block) is list and len(block) == 2 and all(type(b) is int and b > 0 for b in block)
        ):
            return (
                f"config.json: quantization_config.weight_block_size is {brief(block)}, "
                "expected two positive integers such as [128, 128]"
            )
        for where, place in _places(config):
            for field, accepted in READ_ONLY_IF.items():
                if place.get(field) not in accepted:
                    return (
                        f"config.json: {where}{field} is {brief(place[field])}, "
                        f"expected {accepted[-1] or 'none'}"
                    )
        return cls((block[0], block[1]))

    def read(self, tensors: Mapping[str, Stored], shards: Sequence[str]) -> Reading:
        """Every F8_E4M3 tensor needs its scale, every scale its weight; the rest is raw."""
        codec, raw = Fp8Block(self.block), Raw()
        weights: list[Weight] = []
        problems: list[str] = []
        used: set[str] = set()
        later: list[Stored] = []
        for t in tensors.values():
            scale = tensors.get(t.name + SCALE_SUFFIX) if t.dtype in CODED_FLOATS else None
            if t.name.endswith(SCALE_SUFFIX):
                later.append(t)
            elif scale is not None:
                used.add(scale.name)
                wrong = codec.check((t, scale))
                if wrong:
                    problems.append(f"{shards[t.shard]}: weight {shown(t.name)}: {wrong}")
                weights.append(Weight(t.name, codec, (t, scale)))
            elif t.dtype in CODED_FLOATS:
                problems.append(
                    f"{shards[t.shard]}: weight {shown(t.name)} is {t.dtype} but has no scale: "
                    f"expected a tensor {shown(t.name + SCALE_SUFFIX)} in any shard"
                )
            elif _packed(t, tensors):
                problems.append(
                    f"{shards[t.shard]}: weight {shown(t.name)} is {t.dtype} {list(t.shape)}: "
                    "packed codes? expected F8_E4M3, or a floating-point weight"
                )
            else:
                weights.append(Weight(t.name, raw, (t,)))
        for t in later:
            if t.name not in used:
                problems.append(_orphan(t, tensors, shards))
        if not used and not problems:
            problems.append(
                "config.json declares quant_method fp8, but no tensor is FP8: already converted, "
                "with a stale config? Remove its quantization_config if so"
            )
        return Reading(tuple(weights), tuple(problems))

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "fp8-block", "block": [br, bc]}``."""
        return {"scheme": self.name, "block": list(self.block)}


def _places(config: Config) -> Iterator[tuple[str, Config]]:
    """Every object of the config that may speak of the codes, and its path for a message."""
    for where, place in (("", config), ("text_config.", config.get("text_config"))):
        if isinstance(place, dict):
            yield where, place
            inner = place.get("quantization_config")
            if isinstance(inner, dict):
                yield f"{where}quantization_config.", inner


def _packed(t: Stored, tensors: Mapping[str, Stored]) -> bool:
    """A matrix of integers that is named like a weight, or that has a scale of some kind."""
    if t.dtype not in PACKED or len(t.shape) < 2:
        return False
    beside = (f"{t.name}_scale", t.name + SCALE_SUFFIX)
    return t.name.endswith("weight") or any(name in tensors for name in beside)


def _orphan(scale: Stored, tensors: Mapping[str, Stored], shards: Sequence[str]) -> str:
    owner = tensors.get(scale.name.removesuffix(SCALE_SUFFIX))
    found = f"that weight is {owner.dtype}" if owner else "there is no such weight"
    return (
        f"{shards[scale.shard]}: scale {shown(scale.name)}: expected an F8_E4M3 weight "
        f"{shown(scale.name.removesuffix(SCALE_SUFFIX))}, but {found}"
    )
