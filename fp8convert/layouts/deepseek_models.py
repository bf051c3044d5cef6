"""DeepSeek's own layout as its ``inference/generate.py`` reads it: of V3 and its kin, and of V4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import SchemeError, shown
from .base import RankLayout
from .deepseek_names import (
    DENSE,
    SHARED,
    V3_ROWS,
    V3_TYPES,
    V4_ONLY,
    V4_ROWS,
    V4_TYPES,
    VOCABULARY,
    Key,
    Row,
    key,
    parsed,
)
from .shares import WHOLE, Share

BLOCK = 128  # of the published code's kernels, whatever a config says
EXACT = (VOCABULARY, DENSE, SHARED)  # their units are single rows or columns
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DeepSeek(RankLayout):
    """One family of models: what its inference code calls a weight, and how ranks share it."""

    config: Mapping[str, Any]
    made: dict[tuple[object, ...], Share] = field(default_factory=dict, repr=False)

    renames: ClassVar[bool] = True
    types: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()  # every model of the family has one of these names
    by_hf: ClassVar[dict[Key, Row]] = {}
    by_ours: ClassVar[dict[Key, Row]] = {}
    across: ClassVar[dict[str, tuple[str, ...]]] = {}  # columns of linears whose columns are cut

    @staticmethod
    def of(config: Mapping[str, Any], names: Iterable[str]) -> DeepSeek:
        """By ``model_type`` and the names in a checkpoint, or in rank files; SchemeError for any
        other model."""
        kind = config.get("model_type")
        family = next((f for f in (V3, V4) if kind in f.types), None)
        if family and any(mark in name for name in names for mark in family.marks):
            return family(config)
        found = f"{shown(kind)} under other names" if family else shown(kind)
        raise SchemeError(
            f"model_type is {found}, but layout deepseek is DeepSeek's own, for "
            f"{', '.join((*V3_TYPES, *V4_TYPES))}: choose --layout hf"
        )

    def share(self, name: str, shape: Shape) -> Share | None:
        """What the ranks get of the weight ``name`` of decoded ``shape``; None: not known.

        SchemeError where its shape is not what the config says.
        """
        at, numbers = parsed(name)
        row = self.by_hf.get(at)
        if row is None or not row.units:
            return None if row is None else WHOLE
        expert = numbers[-1] if row.axis is None else None
        wanted = (row.axis, row.units, expert)
        share = self.made.get(wanted)
        if share is None:
            share = self.made[wanted] = self._share(name, row, expert)
        if row.axis is not None:
            self._check(name, shape, share, row)
        return share

    def _share(self, name: str, row: Row, expert: str | None) -> Share:
        counts = [n for unit in row.units if type(n := self.config.get(unit)) is int and n > 0]
        units, of = math.prod(counts), " x ".join(row.units)
        if len(counts) < len(row.units):
            raise SchemeError(f"weight {shown(name)} needs {of} in config.json, positive integers")
        if expert is None:
            return Share(row.axis, units, of)
        if int(expert) >= units:
            raise SchemeError(f"weight {shown(name)}, but {of} is {units:,} in config.json")
        return Share(None, units, of, expert=int(expert))

    def _check(self, name: str, shape: Shape, share: Share, row: Row) -> None:
        assert row.axis is not None
        size = shape[row.axis] if row.axis < len(shape) else 0
        each = [n for field in row.each if type(n := self.config.get(field)) is int]
        exact = row.units in EXACT or (bool(each) and len(each) == len(row.each))
        wanted = share.units * (sum(each) if exact and each else 1)
        if not size or (size != wanted if exact else size % wanted):
            fields = f"{share.of} x ({' + '.join(row.each)})" if exact and each else share.of
            raise SchemeError(
                f"weight {shown(name)} is {list(shape)}, expected "
                f"{'' if exact else 'a multiple of '}{wanted:,} along axis {row.axis}: {fields} in "
                "config.json"
            )

    def renamed(self, name: str) -> str:
        """What a tensor of that name is called in a rank's files."""
        weight, is_scale = _weight_of(name, ".weight_scale_inv")
        at, numbers = parsed(weight)
        row = self.by_hf.get(at)
        return name if row is None else _filled(row.ours, numbers, ".scale" if is_scale else None)

    def original(self, name: str) -> str:
        """What a tensor in a rank's files is called in a checkpoint."""
        weight, is_scale = _weight_of(name, ".scale")
        at, numbers = parsed(weight)
        row = self.by_ours.get(at)
        tail = ".weight_scale_inv" if is_scale else None
        return name if row is None else _filled(row.hf, numbers, tail)

    def stored_as(self, name: str, dtype: str, shape: Shape) -> tuple[str, Shape]:
        """Dtype and shape of a tensor in a rank's files, where its bytes are as they were."""
        return dtype, shape

    def limits(self, ranks: int, block: int = BLOCK) -> str | None:
        """Why the published code refuses FP8 weights of so many ranks, if it does.

        Its ``convert.py`` divides a linear's scales by the ranks, and its kernels quantize the
        inputs of what is left in whole blocks.
        """
        widths = {
            what: math.prod(self.config[f] for f in fields)
            for what, fields in self.across.items()
            if all(type(self.config.get(f)) is int for f in fields)
        }
        odd = {what: width for what, width in widths.items() if width % (ranks * block)}
        if not odd:
            return None
        what = min(odd, key=odd.__getitem__)
        fit = [n for n in range(1, ranks) if all(w % (n * block) == 0 for w in widths.values())]
        return (
            f"DeepSeek's own code takes whole blocks of {block}: {ranks} ranks do not divide the "
            f"{odd[what] / block:,g} blocks across {what}; of fewer, it takes "
            f"{', '.join(map(str, fit)) or 'none'}"
        )


class V3(DeepSeek):
    """V2, V3, V3.1, R1, Kimi K2, and V3.2 with its indexer."""

    mtp = "drop"  # generate.py refuses tensors that its model does not have
    types = V3_TYPES
    marks = (".self_attn.kv_b_proj.", ".attn.wkv_b.")
    by_hf: ClassVar = {key(row.hf): row for row in V3_ROWS}
    by_ours: ClassVar = {key(row.ours): row for row in V3_ROWS}
    across: ClassVar = {
        "attention": ("num_attention_heads", "v_head_dim"),
        "dense layers": DENSE,
        "shared experts": SHARED,
    }


class V4(DeepSeek):
    """V4-Flash and Pro: names as published, shared experts whole on every rank."""

    mtp = "keep"  # its model has the MTP layers
    types = V4_TYPES
    marks = (f".attn.{V4_ONLY}",)
    by_hf: ClassVar = {key(row.hf): row for row in V4_ROWS}
    by_ours = by_hf
    across: ClassVar = {"output groups": ("o_groups", "o_lora_rank")}
    tied: ClassVar = (key("mtp.#.embed.weight"), key("mtp.#.head.weight"))

    def original(self, name: str) -> str:
        """As it is: scales too have one name everywhere."""
        return name

    def plain(self, name: str) -> bool:
        """``wo_a``, which is no linear in the published model: BF16 matrices, one for a group."""
        return name.endswith(".attn.wo_a.weight")

    def dropped(self, name: str) -> bool:
        """The MTP layers' own tables: they use the model's."""
        return parsed(name)[0] in self.tied

    def stored_as(self, name: str, dtype: str, shape: Shape) -> tuple[str, Shape]:
        """Two e2m1 codes a byte are F4: torch copies no I8 into the model's F4 weights."""
        if dtype == "I8" and ".experts." in name and name.endswith(".weight"):
            return "F4", (*shape[:-1], 2 * shape[-1])
        return dtype, shape

    def whole_as(self, name: str, dtype: str, shape: Shape) -> tuple[str, Shape]:
        """As published: I8."""
        return ("I8", (*shape[:-1], shape[-1] // 2)) if dtype == "F4" else (dtype, shape)


def _weight_of(name: str, scale: str) -> tuple[str, bool]:
    """The weight that a tensor is, or is the scale of."""
    if name.endswith(scale):
        return f"{name[: -len(scale)]}.weight", True
    return name, False


def _filled(row: str, numbers: tuple[str, ...], scale: str | None) -> str:
    name = row.replace("#", "%s") % numbers
    return name if scale is None else name.removesuffix(".weight") + scale
