"""``quant_method: compressed-tensors``: groups of modules, each with a format of its own.

Source: compressed-tensors ``quant_config.py``, ``quant_args.py`` and its compressors. A group's
``weights`` give bits, type, strategy, group size or block, and symmetry; ``targets`` name modules,
patterns of them (``re:``), or classes of layers. Where several groups could mean a module, the one
whose parts have the right dtypes and shapes does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..codecs.base import Codec, Stored
from ..codecs.elements import BY_DTYPE
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Block, Fp8Block, Int8Block
from ..codecs.packed_int import PackedInt
from ..declared import Declared, mapping, strings
from ..errors import shown
from ..strictjson import brief
from .base import Scheme
from .hints import Patterns, Work
from .leftovers import activation_scales
from .weight import Tensors, Weight

FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized",
           "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")  # fmt: skip
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")
MOST_GROUPS = 64
MOST_WORK = 1 << 31  # as that of hints, for all groups: here a pattern may decide
MERGED = ("weight_input", "weight_output")  # transforms that were multiplied into the weights


class Group(NamedTuple):
    """One group's weights. ``block`` is what shares a scale, None for a whole axis.

    It means the modules that ``named`` or ``patterns`` name; ``classes``: or a class of layers.
    """

    key: str
    named: frozenset[str]
    patterns: Patterns
    classes: bool
    kind: str  # float or int
    bits: int
    block: Block
    symmetric: bool
    reordered: bool


@dataclass(frozen=True)
class CompressedTensorsScheme(Scheme):
    """``groups`` in declared order."""

    groups: tuple[Group, ...]
    ignored: tuple[str, ...] = ()
    name = "compressed-tensors"
    declared_as = "compressed-tensors (" + ", ".join(FORMATS) + ")"

    @classmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """``quant_method: compressed-tensors`` with formats and strategies that are known."""
        found, at = declared.quantization, declared.where
        if found is None or declared.method != "compressed-tensors":
            return None
        groups = found.get("config_groups")
        if not isinstance(groups, dict) or not 0 < len(groups) <= MOST_GROUPS:
            return f"{at}.config_groups is {brief(groups)}, expected 1 to {MOST_GROUPS} groups"
        whole = found.get("format")
        if mapping(found.get("sparsity_config")).get("format", "dense") != "dense":
            return f"{at}.sparsity_config is {brief(found['sparsity_config'])}, expected none"
        if wrong := _lasting_transform(found.get("transform_config")):
            return f"{at}.transform_config {wrong}"
        read: list[Group] = []
        work = Work(MOST_WORK)
        for key, group in groups.items():
            if isinstance(group, dict) and group.get("weights", 0) is None:
                continue  # of activations only
            answer = _group(key, group, whole, f"{at}.config_groups.{shown(key)[1:-1]}", work)
            if isinstance(answer, str):
                return answer
            read.append(answer)
        if not read:
            return f"{at}.config_groups has no group with weights"
        return cls(tuple(read), strings(found.get("ignore")))

    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """``X_packed`` or ``X`` with ``X_scale`` and the rest, by the group that fits."""
        packed = t.name.endswith("_packed")
        name = t.name.removesuffix("_packed") if packed else t.name
        scale = tensors.get(f"{name}_scale")
        if scale is None:
            return (
                f"it has no scale: expected a tensor {shown(name + '_scale')}" if packed else None
            )
        fitting: dict[Codec, tuple[Group, Weight]] = {}
        wrongs: list[str] = []
        for group in candidates(self.groups, name.removesuffix(".weight")):
            found = _weight(group, name, (t, scale), packed, tensors)
            wrong = found.codec.check(found.parts) if isinstance(found, Weight) else found
            if isinstance(found, Weight) and wrong is None:
                fitting.setdefault(found.codec, (group, found))
            else:
                wrongs.append(wrong or "")
        if len(fitting) > 1:
            keys = ", ".join(shown(group.key) for group, _ in fitting.values())
            return f"its shapes fit several groups of the config: {keys}"
        return next((weight for _, weight in fitting.values()), None) or wrongs[0]

    def hints(self) -> Sequence[str]:
        """``ignore``."""
        return self.ignored

    def to_dict(self) -> dict[str, Any]:
        """``{"scheme": "compressed-tensors", "groups": [...]}``."""
        rows = [
            {"type": g.kind, "bits": g.bits, "block": list(g.block), "symmetric": g.symmetric}
            for g in self.groups
        ]
        return {"scheme": self.name, "groups": rows}


def candidates(groups: tuple[Group, ...], module: str) -> list[Group]:
    """The groups that may mean ``module``: those that name it; else by a pattern; else by class.

    A pattern that is not tried (see :mod:`.hints`) may mean it, and so may a class of layers.
    """
    exact = [g for g in groups if module in g.named]
    if exact:
        return exact
    matching, unsure = [], []
    for group in groups:
        found = group.patterns.name(module)
        if found:
            matching.append(group)
        elif found is None:
            unsure.append(group)
    if matching:
        return matching + unsure
    by_class = [g for g in groups if g.classes]
    return by_class + [g for g in unsure if g not in by_class] or list(groups)


def _is_class(target: str) -> bool:
    """``Linear``, not a module's name or a pattern of them."""
    return target[:1].isupper() and "." not in target


def _group(key: str, found: Any, whole: Any, at: str, work: Work) -> Group | str:
    """One entry of ``config_groups``, or why it is not read."""
    weights = mapping(found).get("weights")
    if not isinstance(weights, dict):
        return f"{at}.weights is {brief(weights)}, expected an object"
    form = found.get("format") or whole
    if form not in FORMATS:
        return f"{at}.format is {brief(form)}, expected one of {', '.join(FORMATS)}"
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    if kind not in ("int", "float") or bits not in (4, 8) or type(bits) is not int:
        found = f"type {brief(kind)} with num_bits {brief(bits)}"
        return f"{at}.weights has {found}, expected int or float with 4 or 8"
    block = _block(weights)
    if isinstance(block, str):
        return f"{at}.weights.{block}"
    reordered = weights.get("actorder") in (True, "group")
    targets = strings(found.get("targets"))
    patterns = Patterns([t for t in targets if t.startswith("re:")], work)
    symmetric = weights.get("symmetric") is not False
    classes = any(map(_is_class, targets))
    return Group(
        key, frozenset(targets), patterns, classes, kind, bits, block, symmetric, reordered
    )


def _block(weights: Mapping[str, Any]) -> Block | str:
    size, square = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy")
    if strategy is None:  # as compressed-tensors infers it
        strategy = "group" if type(size) is int and size > 0 else "channel" if size else "tensor"
    if strategy not in STRATEGIES:
        return f"strategy is {brief(strategy)}, expected one of {', '.join(STRATEGIES)}"
    if strategy in ("group", "tensor_group"):
        good = type(size) is int and size > 0
        return (1, size) if good else f"group_size is {brief(size)}, expected a positive integer"
    if strategy == "block":
        if isinstance(square, str):  # "128x128" in older configs
            digits = square.split("x")[:3]
            square = [int(n) if n.isdecimal() and len(n) < 10 else 0 for n in digits]
        if type(square) is not list or [type(n) for n in square] != [int, int] or min(square) < 1:
            return f"block_structure is {brief(square)}, expected two positive integers"
        return square[0], square[1]
    return (1, None) if strategy == "channel" else (None, None)


def _weight(
    group: Group, name: str, parts: tuple[Stored, Stored], packed: bool, tensors: Tensors
) -> Weight | str:
    """``name`` as ``group`` encodes it, or what is missing of it."""
    more: list[Stored] = []
    zeros = tensors.get(f"{name}_zero_point")
    if (zeros is None) is not group.symmetric:
        said = "symmetric, but there is a" if group.symmetric else "not symmetric, but there is no"
        return f"it is declared {said} {shown(name + '_zero_point')}"
    codec: Codec
    if group.kind == "float" and group.bits == 8 and not packed:
        codec = Fp8Block(group.block, BY_DTYPE.get(parts[0].dtype, "e4m3fn"))
    elif group.kind == "float" and group.bits == 4 and packed:
        whole = tensors.get(f"{name}_global_scale")
        size = group.block[1] or 0
        if size == 16 and whole is None:
            return f"it has no global scale: expected a tensor {shown(name + '_global_scale')}"
        more = [whole] if whole is not None else []
        codec = Fp4Block(size or 1, "divide" if more else "none")
    elif group.kind == "int" and packed:
        rows = [("zeros", zeros), ("groups", tensors.get(f"{name}_g_idx")),
                ("shape", tensors.get(f"{name}_shape"))]  # fmt: skip
        kept = [(role, part) for role, part in rows if part is not None]
        more = [part for _, part in kept]
        held = [role for role, _ in kept]
        for role, needed in (("groups", group.reordered), ("shape", True)):
            if needed and role not in held:
                leaf = {"groups": "_g_idx", "shape": "_shape"}[role]
                return f"there is no {shown(name + leaf)} in any shard"
        if group.block[0] != 1:
            return f"packed integers with a scale per {list(group.block)}, expected rows or groups"
        codec = PackedInt(group.bits, group.block[1], tuple(held))
    elif group.kind == "int" and group.bits == 8:
        more = [zeros] if zeros is not None else []
        codec = Int8Block(group.block, zero_points=zeros is not None)
    else:
        form = "packed" if packed else parts[0].dtype
        return f"its codes are {form}, expected those of {group.bits}-bit {group.kind}"
    return Weight(name, codec, (*parts, *more), activation_scales(parts[0], tensors))


def _lasting_transform(found: Any) -> str | None:
    """What a transform would still do at run time: decoding must not lose it."""
    for key, group in mapping(mapping(found).get("config_groups")).items():
        applied = mapping(group).get("apply")
        for one in applied if isinstance(applied, list) else [None]:
            place = mapping(one).get("location")
            if place not in MERGED:
                return (
                    f"group {shown(key)} applies at {brief(place)}, expected only "
                    f"{' or '.join(MERGED)}, which are in the weights already"
                )
    return None
