"""Encode: every scheme's plain rule on one core, against torch, and the whole call with its errors.

The input is one chunk as the engine cuts them, BF16 numbers that look trained. The plain rule is:
measure blocks, choose scales, encode, from float32 in memory to codes in memory. The whole call is
what a conversion does: widen the chunk, all of that, decode what was encoded, sum its errors; then
the same with --scale-search mse. Torch computes the plain rule's formula from the same float32 with
one thread. Codes and scales of all but the search must be torch's, byte by byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8convert import kernels
from fp8convert.codecs.base import Rect, Stored
from fp8convert.codecs.raw import Raw
from fp8convert.codecs.scales import to_float32
from fp8convert.encoding.band import CHUNK, Bench, Group, Loaded
from fp8convert.encoding.lossless import decodable, encoding, way
from fp8convert.encoding.targets import Target
from fp8convert.schemes.weight import Weight

from . import quantize_inputs
from .common import Bound, Env, Report, Values
from .encode_peers import PEERS, Made
from .rates import Side, one_thread, rates

BOUND = Bound(at_least=0.5)  # G elements/s, the plain rule
SHAPE = ROWS, COLUMNS = CHUNK // 4096, 4096
COUNT = ROWS * COLUMNS
ALL = Rect(0, ROWS, 0, COLUMNS)
WEIGHT = Weight("w.weight", Raw(), (Stored("w.weight", "BF16", SHAPE, 0, 0, 2 * COUNT),))
PLAIN, WHOLE, SEARCH = "plain rule", "whole call", "whole call, searched"
TORCH = "torch, plain rule"
Array = NDArray[Any]


def run(env: Env, report: Report) -> None:
    """Each scheme, then all of them as a table."""
    bits = np.concatenate([*quantize_inputs.values(("w", "BF16", SHAPE))])
    with one_thread():
        rows = [(scheme, *_measure(env, report, scheme, bits)) for scheme in PEERS]
    _table(rows)


def _table(rows: list[tuple[Any, ...]]) -> None:
    heads = "".join(f"{side.label:>22}" for side in rows[0][1:])
    print(f"\n  {'G/s, median':<17}{heads}")
    for scheme, *sides in rows:
        figures = "".join(f"{np.median(side.values):22.3f}" for side in sides)
        print(f"  {scheme:<17}{figures}", flush=True)


class Ours:
    """One scheme's encoding of the chunk, ready to run in parts."""

    def __init__(self, scheme: str, bits: Array, search: bool = False) -> None:
        to = Target(scheme)
        how = way((WEIGHT,), to, powers=False)
        self.encoder = encoding(WEIGHT, to, search, how, ()).encoder
        self.data, self.bench = bits.reshape(-1).view(np.uint8), Bench(COUNT)
        self.x = (bits.astype(np.uint32) << 16).view(np.float32)
        self.out = np.empty((ROWS, COLUMNS * self.encoder.codec.element.bits // 8), np.uint8)
        self.scales = np.empty(0, np.float32)  # what codes are multiplied by

    def plain(self) -> None:
        """The kernels and the rule, without looking at the result."""
        encoder, block = self.encoder, self.encoder.block_of(SHAPE, ROWS)
        top, used = np.zeros((2, -(-ROWS // block[0]), -(-COLUMNS // block[1])), np.uint32)
        kernels.load().measure(self.x, 0, block, top, used)
        tops = top.view(np.float32)
        whole = encoder.tensor_scale(float(tops.max())) if encoder.whole else 1.0
        scales = np.full_like(tops, whole) if encoder.one_scale else encoder.rule.plain(tops, whole)
        self.scales = encoder.rule.effective(scales, whole)
        kernels.load().encode(
            encoder.codec.element, self.x, self.scales, encoder.zero, 0, block, self.out
        )

    def whole(self) -> None:
        """All of a conversion; what is of the whole tensor takes passes of their own before."""
        encoder, whole = self.encoder, 1.0
        if encoder.whole:
            tried = encoder.tensor_scales(self._group().top())
            squares = [self._group().squares(s) for s in tried] if len(tried) > 1 else [0.0]
            whole = tried[squares.index(min(squares))]
        group = self._group()
        found = group.encode(whole, self.out.reshape(-1))
        scales = to_float32(found.scales, encoder.stored).reshape(group.grid)
        self.scales = encoder.rule.effective(scales, found.whole)

    def _group(self) -> Group:
        x, weight = self.bench.x(ROWS, COLUMNS), decodable(WEIGHT)
        weight.codec.decode(weight.parts, ALL, [self.data], x.reshape(-1), "F32")
        return Group(self.encoder, SHAPE, [ALL], lambda _: Loaded(x), self.bench)


def _measure(env: Env, report: Report, scheme: str, bits: Array) -> tuple[Values, ...]:
    ours, searched = Ours(scheme, bits), Ours(scheme, bits, search=True)
    x, encode = torch.from_numpy(ours.x), PEERS[scheme]
    sides: dict[str, Side] = {
        PLAIN: ours.plain,
        WHOLE: ours.whole,
        SEARCH: searched.whole,
        TORCH: lambda: encode(x),
    }
    plain, whole, search, peer = rates(env, {name: (side, COUNT) for name, side in sides.items()})
    report.figure(f"{scheme}: the plain rule", plain, BOUND)
    report.ratio(f"{scheme}: the plain rule against torch", plain, peer)
    report.figure(f"{scheme}: the whole call", whole)
    report.figure(f"{scheme}: the whole call with --scale-search mse", search)
    for label, side in ((PLAIN, ours.plain), (WHOLE, ours.whole)):
        side()
        _compare(report, f"{scheme}: {label}: codes and scales", ours, encode(x))
    return plain, whole, search, peer


def _compare(report: Report, title: str, ours: Ours, theirs: Made) -> None:
    codes = theirs.codes.contiguous().view(torch.uint8).numpy()
    odd = int(np.count_nonzero(codes != ours.out))
    scales = int(np.count_nonzero(theirs.scales.numpy() != ours.scales))
    detail = f"{odd:,} of {codes.size:,} bytes, {scales:,} of {ours.scales.size:,} scales differ"
    report.fact(title, not odd and not scales, f"{detail} from torch's")
