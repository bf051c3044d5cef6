"""Where weights are cut for ranks: which numbers of ranks fit, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .errors import shown
from .layouts.shares import Share

MOST_TRIED = 64  # numbers of ranks that are offered instead
MOST_LISTED = 4


class Cut(NamedTuple):
    """One weight that the ranks share: ``size`` along the axis, padding included; what is written
    of it can be cut at multiples of ``step`` (0: nowhere)."""

    name: str
    share: Share
    size: int
    step: int

    def width(self, ranks: int) -> int:
        """What one rank has of ``size``."""
        if self.share.axis is None:
            return self.size
        lo, hi = self.share.range(self.size, 0, ranks) or (0, self.size)
        return hi - lo

    def misses(self, ranks: int) -> bool:
        """Whether ranks end within a block."""
        width = self.width(ranks)
        return width < self.size and (not self.step or width % self.step > 0)


def misfits(cuts: Iterable[Cut], ranks: int) -> list[str]:
    """What so many ranks cannot share, and how many could: one line for each number in config."""
    odd: dict[tuple[str, int], list[Cut]] = {}
    for cut in cuts:
        if not cut.share.fits(ranks):
            odd.setdefault((cut.share.of, cut.share.units), []).append(cut)
    return [_misfit(of, units, found, ranks) for (of, units), found in odd.items()]


def _misfit(of: str, units: int, found: Sequence[Cut], ranks: int) -> str:
    fit = sizes(found, lambda cut, n: cut.share.fits(n))
    return (
        f"{of} is {units:,}, which {ranks} ranks do not divide ({_names(found)}); "
        f"up to {MOST_TRIED}, expected {_numbers(fit)}"
    )


def sizes(cuts: Iterable[Cut], fits: Callable[[Cut, int], bool]) -> list[int]:
    """The numbers of ranks for which every cut ``fits``."""
    different = {(c.share.axis, c.share.units, c.share.repeat, c.share.expert is None, c.size,
                  c.step): c for c in cuts}  # fmt: skip
    counts = range(1, MOST_TRIED + 1)
    return [n for n in counts if all(fits(c, n) for c in different.values())]


def legal(cuts: Iterable[Cut]) -> list[int]:
    """The numbers of ranks that divide everything, and cut through no block."""
    return sizes(cuts, lambda cut, n: cut.share.fits(n) and not cut.misses(n))


def inside_blocks(found: Sequence[Cut], cuts: Iterable[Cut], ranks: int) -> str:
    """The message on ``found``, which so many ranks cut within blocks."""
    first = found[0]
    axis = "row" if first.share.axis == 0 else "column"
    blocks = f"blocks of {first.step:,}" if first.step else "one block"
    return (
        f"{ranks} ranks cut {len(found):,} weights inside their blocks of scales: {_names(found)}; "
        f"the first has {first.size:,} {axis}s in {blocks}, {first.width(ranks):,} for a rank.\n"
        f"Numbers of ranks up to {MOST_TRIED} that cut none: {_numbers(legal(cuts))}."
    )


def refused_by_engines(found: Sequence[Cut], ranks: int) -> list[str]:
    """What SGLang and vLLM say of such sizes of FP8 blocks: of the first two kinds of ``found``."""
    said: dict[str, None] = {}
    for cut in found:
        if cut.step < 2:
            continue
        width = cut.width(ranks)
        if ".experts." in cut.name and cut.share.axis == 0:
            text = ("The output_size of gate's and up's weight = {} is not divisible by weight "
                    "quantization block_n = {}.")  # fmt: skip
        elif cut.share.axis == 0:
            text = ("Weight output_partition_size = {} is not divisible by weight quantization "
                    "block_n = {}.")  # fmt: skip
        else:
            text = ("Weight input_size_per_partition = {} is not divisible by weight quantization "
                    "block_k = {}.")  # fmt: skip
        said[f'SGLang and vLLM refuse such parts: "{text.format(width, cut.step)}"'] = None
    return list(said)[:2]


def _names(found: Sequence[Cut]) -> str:
    names = ", ".join(shown(c.name) for c in found[:MOST_LISTED])
    more = len(found) - MOST_LISTED
    return f"{names} and {more:,} more" if more > 0 else names


def _numbers(found: Sequence[int]) -> str:
    return ", ".join(map(str, found)) or "none"
