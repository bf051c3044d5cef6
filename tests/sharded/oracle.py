"""The files of every rank, by a plain loop over whole tensors.

A weight and its scale are cut together: elements [lo, hi) of the weight are rows [lo / b, ceil(hi
/ b)) of a scale with one row for b elements, and lo is a multiple of b, or it is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quantized.oracle import Part, over_elements
from ..quantized.readers import Stored
from .arrays import cut, padded, part, words
from .coding import Place, coded, place, rounded, size_of, weight_of
from .rules import Config, Rule, Unfit, deepseek_rule, hf_rule, is_mtp, is_v4, span

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("w1", "w3"),
)


class Misaligned(Exception):  # noqa: N818
    """A cut inside a block, or inside a byte or a word."""


def deepseek_ranks(
    tensors: Stored, config: Config, ranks: int, *, mtp: str | None = None
) -> list[Stored]:
    """``model{rank}-mp{ranks}.safetensors`` of every rank. Keys are the inference names."""
    v4 = is_v4(config)
    tensors = kept(tensors, config, mtp or ("keep" if v4 else "drop"))
    if v4:
        tensors = _as_v4_runs(tensors, config)
    rules = {}
    names = {}
    for name, at in _places(tensors, config).items():
        names[name], _ = deepseek_rule(name, config)
        _, rules[name] = deepseek_rule(at.weight, config)
    found = _cut(tensors, config, rules, ranks)
    return [{names[n]: as_loaded(n, t) for n, t in one.items()} for one in found]


def as_loaded(name: str, tensor: Part) -> Part:
    """V4's experts: ``convert.py`` views two e2m1 a byte as float4_e2m1fn_x2, which is F4."""
    tag, shape, data = tensor
    if tag != "I8" or ".experts." not in name:
        return tensor
    return "F4", (*shape[:-1], 2 * shape[-1]), data


def kept(tensors: Stored, config: Config, mtp: str) -> Stored:
    """Without the MTP layers, if they are dropped."""
    return {n: t for n, t in tensors.items() if mtp == "keep" or not is_mtp(n, config)}


def _as_v4_runs(tensors: Stored, config: Config) -> Stored:
    """``wo_a`` decoded to BF16; MTP's own ``embed`` and ``head``, which are tied, left out."""
    out = dict(tensors)
    for name, parts in coded(tensors, config).items():
        if name.endswith(".wo_a.weight"):
            for one in parts:
                del out[one]
            out[name] = rounded(weight_of(name, parts, tensors, config))
    tied = ("embed", "head")
    return {
        n: t
        for n, t in out.items()
        if not (n.startswith("mtp.") and n.split(".")[2] in tied and n.count(".") == 3)
    }


def hf_ranks(
    tensors: Stored,
    config: Config,
    ranks: int,
    *,
    mtp: str = "keep",
    experts: str = "owner",
    pad_vocab: int | None = None,
) -> list[Stored]:
    """The tensors of ``rank{r}/`` of every rank."""
    tensors = kept(tensors, config, mtp)
    rules = {}
    for name, at in _places(tensors, config).items():
        rules[name] = hf_rule(at.weight, config, experts)
    if pad_vocab:
        for name, rule in rules.items():
            if rule.padded:
                rows = tensors[name][1][0]
                tensors[name] = padded(tensors[name], -(-rows // pad_vocab) * pad_vocab)
    return _cut(tensors, config, rules, ranks)


def _places(tensors: Stored, config: Config) -> dict[str, Place]:
    return {name: place(name, tensors, config) for name in tensors}


def _cut(tensors: Stored, config: Config, rules: dict[str, Rule], ranks: int) -> list[Stored]:
    places = _places(tensors, config)
    sizes = {n: tensors[n][1] for n, at in places.items() if at.role == "plain"}
    sizes |= {at.weight: size_of(tensors[n], at) for n, at in places.items() if at.role == "codes"}
    found: list[Stored] = [{} for _ in range(ranks)]
    for name, at in places.items():
        rule, size = rules[name], sizes[at.weight]
        for rank in range(ranks):
            along = span(rule, size[rule.axis or 0] if size else 1, rank, ranks)
            if along is not None:
                found[rank][name] = share(tensors[name], at, rule, size, along)
    return found


def share(
    whole: Part, at: Place, rule: Rule, size: tuple[int, ...], along: tuple[int, int]
) -> Part:
    """The piece of one stored tensor that goes with elements ``along`` the axis of the weight."""
    if rule.axis is None:
        return whole
    if at.role == "shape":
        shape = [b - a if n == rule.axis else s for n, (s, (a, b)) in
                 enumerate((s, along) for s in size)]  # fmt: skip
        return part(whole[0], np.array(shape, {"I32": np.int32, "I64": np.int64}[whole[0]]))
    own = at.own(rule.axis)
    if own is None or not at.grain[own]:
        return whole  # one for all of the axis
    grain = at.grain[own]
    begin, end = along
    if (begin, end) == (0, size[rule.axis]):
        return whole
    if begin % grain or (end % grain and end != size[rule.axis]):
        raise Misaligned(f"{at.weight}: [{begin}, {end}) in blocks of {grain}")
    return cut(whole, own, begin // grain, -(-end // grain))


def legal(
    tensors: Stored, config: Config, layout: str, most: int = 64, **options: Any
) -> list[int]:
    """The numbers of ranks up to ``most`` that divide everything and cut through no block."""
    found = []
    for ranks in range(1, most + 1):
        try:
            if layout == "hf":
                hf_ranks(tensors, config, ranks, **options)
            else:
                deepseek_ranks(tensors, config, ranks, **options)
        except (Misaligned, Unfit):
            continue
        found.append(ranks)
    return found


def misaligned(
    tensors: Stored, config: Config, layout: str, ranks: int, **options: Any
) -> set[str]:
    """The weights that so many ranks would cut inside a block; divisibility must be given."""
    names = set()
    for name, parts in coded(tensors, config).items():
        own = {n: tensors[n] for n in parts}
        try:
            if layout == "hf":
                hf_ranks(own, config, ranks, **options)
            else:
                deepseek_ranks(own, config, ranks, **options)
        except Misaligned:
            names.add(name)
    return names


def reblocked(
    tensors: Stored, config: Config, block: tuple[int, int]
) -> tuple[Stored, dict[str, Any]]:
    """The same codes, every scale repeated for smaller blocks; and what the config says then."""
    out = dict(tensors)
    for name, at in _places(tensors, config).items():
        if at.role == "scale":
            codes = tensors[at.weight]
            assert isinstance(at.grain, tuple)
            wide = over_elements(words(tensors[name]), (at.grain[0], at.grain[1]), codes[1])
            out[name] = part(tensors[name][0], wide[:: block[0], :: block[1]])
    section = {**config["quantization_config"], "weight_block_size": list(block)}
    return out, {**config, "quantization_config": section}


def common_block(tensors: Stored, config: Config, ranks: int, **options: Any) -> tuple[int, int]:
    """The largest sizes within the declared block that no cut of the ranks parts."""
    rows, columns = config["quantization_config"]["weight_block_size"]

    def fits(block: tuple[int, int]) -> bool:
        try:
            hf_ranks(*reblocked(tensors, config, block), ranks, **options)
        except Misaligned:
            return False
        return True

    return (
        max(b for b in range(1, rows + 1) if rows % b == 0 and fits((b, 1))),
        max(b for b in range(1, columns + 1) if columns % b == 0 and fits((1, b))),
    )


def fused(names: set[str], tensors: Stored, config: Config) -> set[str]:
    """With the coded weights that engines read in one precision with one of ``names``."""
    groups = {_fusion(n) for n in names}
    return {n for n in coded(tensors, config) if _fusion(n) in groups}


def _fusion(name: str) -> str:
    if ".experts." in name:
        return name.partition(".experts.")[0]
    module, leaf = name.removesuffix(".weight").rsplit(".", 1)
    for group in FUSED:
        if leaf in group:
            return f"{module}.{group[0]}"
    return name


def decoded_some(tensors: Stored, config: Config, names: set[str], tag: str = "BF16") -> Stored:
    """Only these weights decoded."""
    out = dict(tensors)
    for name, parts in coded(tensors, config).items():
        if name in names:
            for one in parts:
                del out[one]
            out[name] = rounded(weight_of(name, parts, tensors, config), tag)
    return out
