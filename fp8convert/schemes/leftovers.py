"""Tensors that no coded weight claims: real parameters, scales without a meaning, or a problem.

A real parameter passes as it is; what belongs to codes that are not there, or changes the meaning
of codes that are, must not pass for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..codecs.base import Stored
from ..codecs.scales import E8M0
from ..dtypes import CODED_FLOATS
from ..errors import shown
from ..header import numel
from .weight import Tensors, Weight, beside, leaf_of, module_of

# Last parts of names. Scales of activations, and of the KV cache:
ACTIVATION = ("input_scale", "activation_scale", "qscale_act", "input_global_scale",
              "input_zero_point", "output_scale", "output_zero_point")  # fmt: skip
CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale")
FUSED = ("_activation_scale", "_input_scale")  # of X in experts that are one tensor X
# Parts of a coded weight that mean something only with it, and what it adds to the weight's name:
ORPHANS = ("_scale_inv", "_scale_2", "_global_scale", "_zero_point", "_g_idx", "_shape", "_scales",
           "_scale")  # fmt: skip
BARE = ("qscale_weight", "qzeros", "g_idx")
# What changes the meaning of a coded weight beside it:
CHANGING = ("pre_quant_scale", "weight_offset", "smooth_scale", "smoothquant_scale")
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32")  # what narrow codes are kept in
FLOATS = ("F32", "BF16", "F16")


def is_scalar(t: Stored) -> bool:
    """Whether ``t`` can be the scale or zero point of an activation: one number."""
    return numel(t.shape) == 1 and (t.dtype in FLOATS or t.name.endswith("zero_point"))


def activation_scales(t: Stored, tensors: Tensors) -> tuple[Stored, ...]:
    """Scales of the activations of the module, or of the fused experts, whose codes are ``t``."""
    experts = t.shape[0] if len(t.shape) == 3 else 1
    fused = (tensors[t.name + s] for s in FUSED if t.name + s in tensors)
    own = (s for s in fused if numel(s.shape) in (1, experts))
    return (*(s for s in beside(t, tensors, ACTIVATION) if is_scalar(s)), *own)


class Leftovers:
    """What is beside the claimed weights of a checkpoint."""

    def __init__(self, tensors: Tensors, claims: Mapping[str, Weight | str]) -> None:
        self._tensors = tensors
        sound = [c for c in claims.values() if isinstance(c, Weight)]
        self.used = {p.name for w in sound for p in (*w.parts[1:], *w.dropped)}
        self._leaves = {leaf_of(p) for w in sound for p in w.parts[1:]}
        self._modules = {module_of(w.parts[0]) for w in sound if leaf_of(w.parts[0]) in WEIGHTS}
        self._refused = {n for n, c in claims.items() if isinstance(c, str)}
        self._coded = {w.parts[0].name for w in sound} | {w.name for w in sound}

    def means_nothing(self, t: Stored) -> bool:
        """Whether ``t`` is a scale of activations or the KV cache of a model that has codes."""
        return bool(self._coded) and leaf_of(t) in (*ACTIVATION, *CACHE) and is_scalar(t)

    def problem(self, t: Stored) -> str | None:
        """Why ``t`` cannot pass as it is, or None."""
        leaf = leaf_of(t)
        owner = next((t.name.removesuffix(s) for s in ORPHANS if t.name.endswith(s)), "")
        if leaf in BARE or (leaf in self._leaves and len(t.shape) > 1):
            owner = owner or module_of(t) + "weight"
        codes = {owner, f"{owner}_packed", f"{module_of(t)}qweight"}
        if owner and not self._refused.isdisjoint(codes):
            return None  # the weight's own problem says it
        if owner and self._is_part(t, owner):
            return self._orphan(t, owner)
        if leaf in CHANGING and module_of(t) in self._modules:
            return "it changes the coded weight beside it: decoding would lose that"
        if t.dtype in E8M0[:1]:
            return f"it is {t.dtype}: exponents, but of no codes that are there"
        if t.dtype in CODED_FLOATS:
            return (
                f"it is {t.dtype} but has no scale: expected a tensor "
                f"{shown(t.name + '_scale_inv')} or the like in any shard"
            )
        scaled = any(t.name + s in self._tensors for s in ORPHANS)
        named = scaled or leaf in WEIGHTS or leaf.endswith("_blocks")
        if t.dtype in PACKED and len(t.shape) > 1 and named:
            return f"it is {t.dtype} {list(t.shape)}: packed codes? expected a known form of them"
        return None

    def _is_part(self, t: Stored, owner: str) -> bool:
        """Whether ``t`` is named as only a part of a weight called ``owner`` is."""
        known = owner in self._tensors or owner.endswith("weight") or owner in self._coded
        blocks = t.name.endswith("_scales") and t.dtype == "U8"
        return known or blocks or t.name.endswith("_scale_inv")

    def _orphan(self, t: Stored, owner: str) -> str:
        if t.name.endswith("_scales") and owner not in self._tensors:
            return f"it is the scale of a tensor {shown(owner + '_blocks')}, which is not there"
        found = self._tensors.get(owner)
        if found is not None and (owner in self._coded or f"{owner}_packed" in self._coded):
            return f"no part of that name is read with the weight {shown(owner)}"
        what = f"that weight is {found.dtype}" if found else "there is no such weight"
        return f"it belongs to a coded weight {shown(owner)}, but {what}"

    def bystanders(self) -> Iterator[str]:
        """A warning if coded weights have company that is not understood: it passes as it is."""
        kept = [
            t.name
            for t in self._tensors.values()
            if leaf_of(t) not in KNOWN and module_of(t) in self._modules and t.name not in self.used
            if t.name not in self._coded and not self.means_nothing(t)
        ]
        if kept:
            more = f" and {len(kept) - 1:,} more" if len(kept) > 1 else ""
            yield f"{shown(kept[0])}{more} beside coded weights: kept, without knowing what it is"


WEIGHTS = ("weight", "weight_packed", "qweight")
KNOWN = ("bias", "weight", *CHANGING)
