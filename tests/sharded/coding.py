"""How each stored tensor belongs to a weight, and what the weights of a checkpoint decode to.

A tensor's *grain* is how many elements of the weight an entry stands for along each of its own
axes; 0 is all of them. A plain tensor has a grain of ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..quantized.oracle import Part, over_elements
from ..quantized.readers import Stored
from .arrays import part, words

F32 = npt.NDArray[np.float32]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2, np.float32) * np.repeat([1, -1], 8)
E2M1 = E2M1.astype(np.float32)
E2M1_DEEPSEEK = np.where(np.arange(16) == 8, np.float32(0), E2M1)  # its own table has +0.0
NAMES = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
ONE_FOR_ALL = (
    "weight_global_scale", "input_global_scale", "weight_scale_2", "input_scale",
    "activation_scale",
)  # fmt: skip


class Place(NamedTuple):
    """What a stored tensor is of its weight. ``role``: plain, codes, scale, zeros, other, shape.

    ``axes``: which of the weight's its own are, if they are not the same in the same order.
    """

    weight: str
    role: str
    grain: tuple[int, ...]
    axes: tuple[int, ...] = ()

    def own(self, axis: int) -> int | None:
        """Its own axis that goes along ``axis`` of the weight."""
        axes = self.axes or tuple(range(len(self.grain)))
        return axes.index(axis) if axis in axes else None


def place(name: str, tensors: Stored, config: Mapping[str, Any]) -> Place:
    """By names and dtypes, as FORMATS has them."""
    tag, shape, _ = tensors[name]
    module, _, leaf = name.rpartition(".")
    weight = f"{module}.weight"
    if leaf.endswith(("_blocks", "_scales")):
        stem = name.rsplit("_", 1)[0]
        return Place(stem, *(("codes", (1, 1, 32, 0)) if leaf[-7:] == "_blocks" else
                             ("scale", (1, 1, 32))))  # fmt: skip
    if f"{module}.qweight" in tensors and leaf in TURNED:
        return _turned(leaf, module, tensors, config)
    if leaf in ONE_FOR_ALL:
        return Place(weight, "other", (0,) * len(shape))
    if leaf == "weight_shape":
        return Place(weight, "shape", (0,))
    if leaf == "weight_packed":
        return Place(weight, "codes", (1, {"I32": 8, "U8": 2}[tag]))
    if leaf in ("weight_scale", "weight_scale_inv", "scale"):
        codes = next((n for n in (weight, f"{module}.weight_packed") if n in tensors), None)
        if codes is None or tensors[codes][0] in ("BF16", "F32"):
            return Place(name, "plain", (1,) * len(shape))
        return Place(weight, "scale", _block(tensors[codes], tensors[name], config))
    if leaf == "weight" and tag == "I8" and f"{module}.weight_scale" in tensors:
        return Place(weight, "codes", (1, 1))  # int8
    if leaf == "weight" and tag in ("I8", "U8"):
        return Place(weight, "codes", (1, 2))  # two e2m1 a byte
    coded = any(f"{module}.{s}" in tensors for s in ("weight_scale", "weight_scale_inv", "scale"))
    if leaf == "weight" and tag == "F8_E4M3" and coded:
        return Place(weight, "codes", (1, 1))
    return Place(name, "plain", (1,) * len(shape))


TURNED = {"qweight": "codes", "scales": "scale", "qzeros": "zeros", "g_idx": "groups"}


def _turned(leaf: str, module: str, tensors: Stored, config: Mapping[str, Any]) -> Place:
    """AWQ and GPTQ: [in, out], eight outputs or inputs a word. Mixed groups have all scales."""
    said = config["quantization_config"]
    group = 0 if said.get("desc_act") else said["group_size"]
    awq = said["quant_method"] == "awq"
    grain = {"qweight": (1, 8) if awq else (8, 1), "scales": (group, 1), "qzeros": (group, 8)}
    name, role = f"{module}.weight", TURNED[leaf]
    if leaf == "g_idx":
        return Place(name, role, (1,), (1,))
    return Place(name, role, grain[leaf], (1, 0))


def _block(codes: Part, scale: Part, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The grain of a scale: the declared block or group, never rows divided by rows."""
    if scale[1] in ((), (1,)):
        return (0,) * len(scale[1])
    block: list[int] | None = config.get("quantization_config", {}).get("weight_block_size")
    if codes[0] == "F8_E4M3" and block:  # a matrix of one block may look like a scale a row
        return block[0], block[1]
    if scale[1] == (codes[1][0], 1) and codes[0] in ("F8_E4M3", "I8") and scale[0] != "F8_E8M0":
        return 1, 0
    if codes[0] == "I32":
        return 1, 32
    return 1, {"F8_E4M3": 16, "F8_E8M0": 32}[scale[0]]


def size_of(codes: Part, at: Place) -> tuple[int, ...]:
    """The shape of the weight."""
    stored = tuple(n * g for n, g in zip(codes[1], at.grain, strict=True) if g)
    return stored[::-1] if at.axes else stored


def numbers(stored: Part) -> F32:
    """A tensor of numbers as float32; U8 is an exponent."""
    tag, shape, data = stored
    if tag in ("U8", "F8_E8M0"):
        byte = np.frombuffer(data, np.uint8).astype(np.int64).reshape(shape)
        return np.asarray(np.ldexp(np.float32(1), byte - 127))
    return np.asarray(np.frombuffer(data, NAMES[tag]).reshape(shape), np.float32)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that is in each field of a word


def integers(packed: Part, axis: int, order: tuple[int, ...] = tuple(range(8))) -> F32:
    """Four-bit fields of I32 along ``axis``, as float32."""
    raw = np.moveaxis(words(packed), axis, -1)
    out = np.empty((*raw.shape, 8), np.float32)
    for k, place in enumerate(order):
        out[..., place] = raw >> np.uint32(4 * k) & np.uint32(15)
    return np.moveaxis(out.reshape(*raw.shape[:-1], -1), -1, axis)


def _of_turned(parts: dict[str, Part], group: int, awq: bool) -> F32:
    """(code - zero) * scale of each input's group; GPTQ stores zero - 1."""
    order = AWQ_ORDER if awq else tuple(range(8))
    code = integers(parts["codes"], 1 if awq else 0, order)
    zero = integers(parts["zeros"], 1, order) + np.float32(0 if awq else 1)
    of = np.arange(len(code)) // group
    if "groups" in parts:
        of = np.frombuffer(parts["groups"][2], "<i4")
    return np.ascontiguousarray(((code - zero[of]) * numbers(parts["scale"])[of]).T)


def unpacked(codes: Part, deepseek: bool) -> F32:
    """Codes of any form as float32, one each along the last axis."""
    if codes[0] == "F8_E4M3":
        return numbers(codes)
    raw = words(codes)
    bits = raw.itemsize * 8
    fields = raw[..., None] >> np.arange(0, bits, 4, dtype=raw.dtype) & raw.dtype.type(15)
    fields = fields.reshape(*raw.shape[:-1], -1)
    if codes[0] == "I32":
        return np.asarray(fields.astype(np.float32) - np.float32(8))
    return np.asarray((E2M1_DEEPSEEK if deepseek else E2M1)[fields])


def weight_of(name: str, names: list[str], tensors: Stored, config: Mapping[str, Any]) -> F32:
    """Decoded from its parts: float32(code) times scale, one product, axes as they are stored."""
    by_role = {place(n, tensors, config).role: n for n in names}
    codes, scale = by_role["codes"], by_role["scale"]
    if codes.endswith(".qweight"):
        said = config["quantization_config"]
        parts = {role: tensors[n] for role, n in by_role.items()}
        return _of_turned(parts, said["group_size"], said["quant_method"] == "awq")
    code = unpacked(tensors[codes], tensors[codes][0] == "I8")
    if codes.endswith("_blocks"):
        code = code.reshape(*code.shape[:2], -1)
        return np.asarray(code * numbers(tensors[scale]).repeat(32, axis=-1))
    wide = numbers(tensors[scale])
    module = name.removesuffix("weight")
    if f"{module}weight_scale_2" in tensors:
        wide = wide * numbers(tensors[f"{module}weight_scale_2"])
    if f"{module}weight_global_scale" in tensors:
        wide = wide / numbers(tensors[f"{module}weight_global_scale"])
    grain = place(scale, tensors, config).grain
    if not any(grain):
        return np.asarray(code * wide.reshape(()))
    rows, columns = (g or n for g, n in zip(grain, code.shape, strict=True))
    with np.errstate(under="ignore"):
        return np.asarray(code * over_elements(wide, (rows, columns), code.shape), np.float32)


def rounded(x: F32, tag: str = "BF16") -> Part:
    """One rounding, to nearest even."""
    with np.errstate(under="ignore", over="ignore"):
        return part(tag, x.astype(NAMES[tag]))


def coded(tensors: Stored, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The stored parts of every coded weight."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        at = place(name, tensors, config)
        if at.role != "plain":
            found.setdefault(at.weight, []).append(name)
    return found


def decoded(tensors: Stored, config: Mapping[str, Any], tag: str = "BF16") -> Stored:
    """The whole checkpoint without its codes. gpt-oss experts become [E, in, out]."""
    parts = coded(tensors, config)
    gone = {n for names in parts.values() for n in names}
    out = {n: t for n, t in tensors.items() if n not in gone}
    for name, names in parts.items():
        x = weight_of(name, names, tensors, config)
        turned = any(n.endswith("_blocks") for n in names)
        out[name] = rounded(np.ascontiguousarray(x.swapaxes(1, 2)) if turned else x, tag)
    return out
