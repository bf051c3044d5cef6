"""DeepSeek's own layout: ``model{rank}-mp{N}.safetensors``, one file a rank, no index.

Most tensors are whole on every rank, some are cut along an axis, and each routed expert is on one
rank. Source: ``inference/convert.py`` of DeepSeek-V3, V3.2 and V4. Reading joins the pieces again:
each tensor is what it was before it was cut, weight and scale alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..codecs.base import COPIES, Stored
from ..errors import FormatError, listed, shown

RANK_FILE = re.compile(r"model(?P<rank>[0-9]{1,4})-mp(?P<ranks>[0-9]{1,4})\.safetensors")
# The axis that is cut, by the name of the module (or tensor) inside a layer; the two tables stand
# outside. Everything else is whole on every rank, and compared when it is read.
TABLES = ("embed", "head")  # cut along axis 0
AXES = {"wq": 0, "wq_b": 0, "wkv_b": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0}
AXES_V4 = {"wq_b": 0, "wo_a": 0, "wo_b": 1, "attn_sink": 0, "weights_proj": 0}
V4_ONLY = "attn_sink"  # no earlier model has one
WHOLE_BEFORE_V4 = "indexer"  # V3.2 keeps all of it on every rank, also what is called wq_b


def rank_files(names: Sequence[str]) -> list[str]:
    """The rank files among ``names`` by rank; [] without any, FormatError if one is missing."""
    found = {n: m for n in names if (m := RANK_FILE.fullmatch(n))}
    if not found:
        return []
    counts = {int(m["ranks"]) for m in found.values()}
    if len(counts) > 1:
        raise FormatError(f"{listed(found)}: rank files of different numbers of ranks")
    (count,) = counts
    by_rank = {int(m["rank"]): n for n, m in found.items()}
    missing = [f"model{r}-mp{count}.safetensors" for r in range(count) if r not in by_rank]
    if missing or len(found) != count:
        what = f"{listed(missing)} missing" if missing else f"{len(found)} files"
        raise FormatError(f"rank files of {count:,} ranks: {what}")
    return [by_rank[r] for r in range(count)]


def join(ranks: Sequence[Mapping[str, Stored]], files: Sequence[str]) -> dict[str, Stored]:
    """Tensors of all ranks as one checkpoint; FormatError where they cannot belong together."""
    names = dict.fromkeys(name for rank in ranks for name in rank)
    v4 = any(name.endswith(f".{V4_ONLY}") for name in names)
    tensors: dict[str, Stored] = {}
    for name in names:
        pieces = [rank[name] for rank in ranks if name in rank]
        if len(pieces) == 1 and (len(ranks) == 1 or ".experts." in name):
            tensors[name] = pieces[0]
            continue
        if len(pieces) < len(ranks) or ".experts." in name:
            on = [files[p.shard] for p in pieces]
            raise FormatError(
                f"tensor {shown(name)} is on {len(pieces)} of {len(ranks)} ranks ({listed(on)}), "
                "expected a routed expert on one, anything else on all"
            )
        tensors[name] = _joined(pieces, _axis(name, v4), files)
    return tensors


def _axis(name: str, v4: bool) -> int:
    parts = name.split(".")
    if not v4 and WHOLE_BEFORE_V4 in parts:
        return COPIES
    if len(parts) == 2 and parts[0] in TABLES:
        return 0
    module = parts[-2] if parts[-1] in ("weight", "scale") and len(parts) > 1 else parts[-1]
    return (AXES_V4 if v4 else AXES).get(module, COPIES)


def _joined(pieces: Sequence[Stored], axis: int, files: Sequence[str]) -> Stored:
    first = pieces[0]
    for p in pieces[1:]:
        if (p.dtype, p.shape) != (first.dtype, first.shape):  # ranks are cut evenly
            raise FormatError(
                f"tensor {shown(p.name)} is {p.dtype} {list(p.shape)} in {shown(files[p.shard])}, "
                f"but {first.dtype} {list(first.shape)} in {shown(files[first.shard])}: "
                "expected the same on every rank"
            )
    if axis == COPIES:
        end = first.end - first.begin
        return first._replace(begin=0, end=end, pieces=tuple(pieces), axis=COPIES)
    if axis >= len(first.shape):
        raise FormatError(
            f"tensor {shown(first.name)} is {list(first.shape)}, expected an axis {axis} to be cut"
        )
    shape = list(first.shape)
    shape[axis] = sum(p.shape[axis] for p in pieces)
    end = sum(p.end - p.begin for p in pieces)
    return Stored(first.name, first.dtype, tuple(shape), first.shard, 0, end, tuple(pieces), axis)
