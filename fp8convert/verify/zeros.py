"""Scales that are zero: allowed only where all codes they cover are zero as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..codecs.base import Stored
from ..header import numel
from .scales import Scale
from .tensors import Opened

if TYPE_CHECKING:
    from .bits import Tensor

MOST = 32 << 20  # bytes of codes looked at together


def first_wrong_zero(opened: Opened, first: int, scales: Tensor, scale: Scale) -> int:
    """Which of float32 ``scales`` [n] is the first zero over codes that are not; -1 if none is.

    ``first`` is the number of the first of them among the elements of their tensor; they are whole
    rows of blocks.
    """
    codes = opened.stored(scale.codes)
    if codes is None or len(codes.shape) < 2:
        return -1  # no such codes: other checks say that
    zero = scales == 0
    step, per = _step(codes, scale)
    touched = sorted({(int(n) + first) // per for n in zero.nonzero().reshape(-1)})
    row = (codes.end - codes.begin) // max(codes.shape[0], 1)
    for lo, hi in _runs(touched, max(MOST // max(step * row, 1), 1)):
        held = _held(opened, codes, scale, lo * step, min(hi * step, codes.shape[0]))
        begin = lo * per - first
        wrong = held & zero[begin : begin + len(held)]
        if bool(wrong.any()):
            return begin + int(wrong.nonzero()[0])
    return -1


def _step(codes: Stored, scale: Scale) -> tuple[int, int]:
    """Rows of the first axis of ``codes`` that some scales cover together, and how many scales."""
    if scale.block is None:
        return codes.shape[0], 1
    down, across = scale.block
    blocks = -(-_width(codes) // across)
    if len(codes.shape) == 2:
        return down, blocks
    return 1, numel(codes.shape[1:-2]) * -(-codes.shape[-2] // down) * blocks


def _width(codes: Stored) -> int:
    """Bytes of a row."""
    return (codes.end - codes.begin) // max(numel(codes.shape[:-1]), 1)


def _held(opened: Opened, codes: Stored, scale: Scale, begin: int, end: int) -> Tensor:
    """bool [n]: of each block in these rows whether a code in it is not zero."""
    import torch

    assert scale.mask is not None
    raw = opened.rows(scale.codes, begin, end).view(torch.uint8) & scale.mask
    if scale.block is None:
        return raw.any().reshape(1)
    matrices = raw.reshape(-1, codes.shape[-2] if raw.dim() > 2 else end - begin, _width(codes))
    down, across = scale.block
    rows, columns = matrices.shape[1:]
    padded = torch.nn.functional.pad(matrices, (0, -columns % across, 0, -rows % down))
    cut = padded.reshape(len(padded), -1, down, padded.shape[2] // across, across)
    return (cut.amax((2, 4)) != 0).reshape(-1)


def _runs(numbers: list[int], most: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of numbers that follow each other, at most so many together."""
    begin = 0
    for at in range(1, len(numbers) + 1):
        ends = at == len(numbers) or numbers[at] != numbers[at - 1] + 1
        if ends or at - begin == most:
            yield numbers[begin], numbers[at - 1] + 1
            begin = at
