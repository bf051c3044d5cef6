"""DeepSeek's own layout: ``model{rank}-mp{N}.safetensors``, one file a rank, no index.

Most tensors are whole on every rank, some are cut along an axis, and each routed expert is on one
rank: see :mod:`.deepseek_names`. Source: ``inference/convert.py`` of DeepSeek-V3, V3.2 and V4.
Reading joins the pieces again: each tensor is what it was before it was cut, weight and scale
alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..codecs.base import COPIES, Stored
from ..errors import FormatError, listed, shown
from .deepseek_models import DeepSeek as DeepSeek
from .deepseek_names import V3_ROWS, V4_ONLY, V4_ROWS, key, parsed

RANK_FILE = re.compile(r"model(?P<rank>[0-9]{1,4})-mp(?P<ranks>[0-9]{1,4})\.safetensors")
V3_AXES = {key(row.ours): row.axis for row in V3_ROWS if row.axis is not None}
V4_AXES = {key(row.ours): row.axis for row in V4_ROWS if row.axis is not None}


def rank_file(rank: int, ranks: int) -> str:
    """The file of one rank."""
    return f"model{rank}-mp{ranks}.safetensors"


def rank_files(names: Sequence[str], among: str = "") -> list[str]:
    """The rank files among ``names`` by rank; [] without any, FormatError if one is missing.

    ``among`` begins the message, where these names are not all there are.
    """
    found = {n: m for n in names if (m := RANK_FILE.fullmatch(n))}
    if not found:
        return []
    counts = {int(m["ranks"]) for m in found.values()}
    if len(counts) > 1:
        raise FormatError(f"{among}{listed(found)}: rank files of different numbers of ranks")
    (count,) = counts
    by_rank = {int(m["rank"]): n for n, m in found.items()}
    missing = [rank_file(r, count) for r in range(count) if r not in by_rank]
    if missing or len(found) != count:
        more = [n for n in found if n not in {rank_file(r, count) for r in range(count)}]
        what = f"{len(found)} files, {listed(more)} too many"
        what = f"{listed(missing)} missing" if missing else what
        raise FormatError(f"{among}rank files of {count:,} ranks: {what}")
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
    """Along which a tensor is cut. What is not known is whole, and compared when it is read."""
    scaled = f"{name.removesuffix('.scale')}.weight" if name.endswith(".scale") else name
    return (V4_AXES if v4 else V3_AXES).get(parsed(scaled)[0], COPIES)


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
