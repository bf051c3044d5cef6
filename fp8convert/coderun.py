"""Encoding the weights of one file: what its tiles share while they are worked on in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .codecs.blocks import Blocks
from .codecs.fp4_block import Fp4Block
from .codecs.scales import to_float32
from .codecs.window import whole_codec
from .encoding.band import Bench, Encoded, Errors, Group, Loaded, UnfitError, joined
from .encoding.encoder import Encoding, covering
from .measuring import Measured
from .plan import Task
from .schemes.weight import Weight
from .spool import Spool
from .tile import Chunk, Coding, Measure, Spooled

if TYPE_CHECKING:
    from .codecs.base import Array, Bytes

DIGITS = 6  # of errors that are reported: their sums depend on how a file was cut into tiles
Load = Callable[[Weight, Chunk, "Array"], "list[Bytes]"]  # decode a chunk; the bytes it came from


class CodeRun:
    """One file's. ``exact``: whatever is not is refused; for ``spool`` see :class:`Spool`."""

    def __init__(self, task: Task, spool: Path, exact: bool = False) -> None:
        self._exact = exact
        self._spool, self._measured = Spool(task, spool), Measured()
        self._found: dict[str, list[Errors]] = {}
        self._lock = threading.Lock()

    def measure(self, m: Measure, load: Load, bench: Bench) -> None:
        """Look at some rows of a weight whose partners share a scale with it."""
        self._measured.look(m, _group(m.encoding, m.weight, (m.chunk,), load, bench))

    def encode(self, coding: Coding, load: Load, bench: Bench, out: Bytes) -> None:
        """Fill ``out`` with codes, and the spool with what belongs to them."""
        encoding, weight = coding.item.encoding, coding.item.weight
        assert encoding
        scale = self._measured.scale(encoding)
        row = coding.item.nbytes // weight.shape[0]
        at, errors = 0, []
        for chunks in coding.groups:
            group = _group(encoding, weight, chunks, load, bench)
            end = at + row * (group.r1 - group.r0)
            found = group.encode(scale, out[at:end])
            self._keep(encoding, weight, group, found)
            errors.append(found.errors)
            at = end
        with self._lock:
            self._found.setdefault(weight.name, []).append(joined(errors))

    def read(self, wanted: Spooled, out: Bytes) -> None:
        """Bytes of the spool, once every code before them is there."""
        self._spool.read(wanted.begin, out)

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        self._spool.stop()
        self._measured.stop()

    def close(self) -> None:
        """Give the spool's room back; harmless when done twice."""
        self._spool.close()

    @property
    def errors(self) -> dict[str, list[float]]:
        """Of every weight encoded: largest difference, squared differences, squares; rounded."""
        return {
            name: [float(f"{n:.{DIGITS}g}") for n in joined(found)]
            for name, found in sorted(self._found.items())
        }

    def _keep(self, encoding: Encoding, weight: Weight, group: Group, found: Encoded) -> None:
        """Spool the parts after the codes: the scales of the group; the rest with the first."""
        if self._exact and found.errors.top:
            raise UnfitError(
                f"not exact in rows {group.r0} to {group.r1 - 1}, where the largest difference is "
                f"{found.errors.top:.6g} (refused by require_exact)"
            )
        encoder, codes = encoding.encoder, encoding.parts[0].name
        if not encoder.one_scale:
            rows_before = group.r0 // encoder.row_step(weight.shape)  # of blocks
            offset = rows_before * found.scales.size // group.grid[0]
            self._spool.put(codes, 1, offset, found.scales)
        elif group.r0 == 0:
            self._spool.put(codes, 1, 0, found.scales)
        if group.r0 == 0 and len(encoding.parts) > 2:
            self._spool.put(codes, 2, 0, _third(encoding, weight, found.whole))


def _group(
    encoding: Encoding, weight: Weight, chunks: tuple[Chunk, ...], load: Load, bench: Bench
) -> Group:
    held: dict[int, Loaded] = {}  # the last chunk only

    def loaded(k: int) -> Loaded:
        if k not in held:
            held.clear()
            rect = chunks[k].rect
            x = bench.x(rect.r1 - rect.r0, weight.shape[1])
            data = load(weight, chunks[k], x)
            inherit = encoding.encoder.inherit
            held[k] = _inherited(encoding, weight, chunks[k], data, x) if inherit else Loaded(x)
        return held[k]

    return Group(encoding.encoder, weight.shape, [c.rect for c in chunks], loaded, bench)


def _inherited(
    encoding: Encoding, weight: Weight, chunk: Chunk, data: list[Bytes], x: Array
) -> Loaded:
    """The source's scales around the blocks of ``encoding``, and its global one turned round."""
    import numpy as np

    codec, rect = weight.codec, chunk.rect
    assert isinstance(codec, Blocks)
    p = codec.piece(weight.parts, rect, data)
    block = encoding.encoder.block_of(weight.shape, rect.r1 - rect.r0)
    around = covering(p.scales, p.block, (p.phase, p.left), block, x.shape)
    codec, whole = whole_codec(codec), None
    if encoding.encoder.whole == "source" and isinstance(codec, Fp4Block):
        own = to_float32(data[2], "F32")
        whole = float((np.float32(1.0) / own if codec.combine == "multiply" else own)[0])
    return Loaded(x, around, whole)


def _third(encoding: Encoding, weight: Weight, whole: float) -> Bytes:
    """NVFP4's global scale, or the shape that packed integers carry."""
    import numpy as np

    if encoding.encoder.two_levels:
        return np.array([whole], "<f4").view(np.uint8)
    return np.array(weight.shape, "<i8").view(np.uint8)
