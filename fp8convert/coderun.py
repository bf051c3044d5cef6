"""Encoding the weights of one file: what its tiles share while they are worked on in any order.

Codes go where they belong at once. Scales are known with them but lie behind all codes of the file,
and files are hashed in order: they wait in a spool, a file without a name. A scale of a whole
tensor is measured by tiles of their own, and whoever needs it waits for them; they were begun
before, so nobody waits for ever.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .codecs.blocks import Blocks
from .codecs.fp4_block import Fp4Block
from .codecs.scales import from_float32, to_float32
from .encoding.band import Bench, Encoded, Errors, Group, Loaded, UnfitError, joined
from .encoding.encoder import Encoding, covering
from .errors import DataError, ResumableError
from .plan import Task
from .schemes.weight import Weight
from .tile import Chunk, Coding, Measure, Spooled

if TYPE_CHECKING:
    from .codecs.base import Array, Bytes

DIGITS = 6  # of errors that are reported: their sums depend on how a file was cut into tiles
Load = Callable[[Weight, Chunk, "Array"], "list[Bytes]"]  # decode a chunk; the bytes it came from


class CodeRun:
    """One file's; see the module's first lines. ``spool`` is a path that no one else uses.

    ``exact``: whatever is not is refused.
    """

    def __init__(self, task: Task, spool: Path, exact: bool = False) -> None:
        self._exact = exact
        parts = [i for i in task.items if i.part]
        self._begins = {(i.encoding.parts[0].name, i.part): i.begin for i in parts if i.encoding}
        self._first = min((i.begin for i in parts), default=0)
        self._missing = sum(i.nbytes for i in parts)
        self._fd = _nameless(spool) if parts else -1
        self._errors: dict[str, list[Errors]] = {}
        self._rows: dict[tuple[str, bool], int] = {}  # measured; by shared scale and trial
        self._tops: dict[str, float] = {}
        self._trials: dict[str, list[list[float]]] = {}  # squared errors of each candidate
        self._turn = threading.Condition()
        self._stopped = False

    def measure(self, m: Measure, load: Load, bench: Bench) -> None:
        """Look at some rows of a weight whose partners share a scale with it."""
        key, encoder = m.encoding.shared, m.encoding.encoder
        candidates = encoder.tensor_scales(self._top(m.encoding)) if m.trial else []
        group = self._group(m.encoding, m.weight, (m.chunk,), load, bench)
        if m.trial:
            squares = [group.squares(scale) for scale in candidates]
        else:
            top = group.top()
        with self._turn:
            if m.trial:
                self._trials.setdefault(key, []).append(squares)
            else:
                self._tops[key] = max(self._tops.get(key, 0.0), top)
            rows = m.chunk.rect.r1 - m.chunk.rect.r0
            self._rows[key, m.trial] = self._rows.get((key, m.trial), 0) + rows
            self._turn.notify_all()

    def encode(self, coding: Coding, load: Load, bench: Bench, out: Bytes) -> None:
        """Fill ``out`` with codes, and the spool with what belongs to them."""
        encoding, weight = coding.item.encoding, coding.item.weight
        assert encoding
        whole = self._whole(encoding)
        at, errors = 0, []
        for chunks in coding.groups:
            group = self._group(encoding, weight, chunks, load, bench)
            rows = group.r1 - group.r0
            end = at + rows * coding.item.nbytes // weight.shape[0]
            found = group.encode(whole, out[at:end])
            self._keep(encoding, weight, group, found)
            errors.append(found.errors)
            at = end
        with self._turn:
            self._errors.setdefault(weight.name, []).append(joined(errors))

    def read(self, wanted: Spooled, out: Bytes) -> None:
        """Bytes of the spool, once every code before them is there."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or not self._missing)
            self._check()
        got, view = 0, out.data
        while got < wanted.nbytes:
            n = os.preadv(self._fd, [view[got:]], wanted.begin - self._first + got)
            if not n:
                raise DataError("the spool of scales ended too early")
            got += n

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def close(self) -> None:
        """Give the spool's room back; harmless when done twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def errors(self) -> dict[str, list[float]]:
        """Of every weight encoded: largest difference, squared differences, squares; rounded."""
        return {
            name: [float(f"{n:.{DIGITS}g}") for n in joined(found)]
            for name, found in sorted(self._errors.items())
        }

    def _check(self) -> None:
        if self._stopped:
            raise ResumableError("stopped")

    def _measured(self, encoding: Encoding, trial: bool) -> None:
        rows, key = sum(w.shape[0] for w in encoding.members), (encoding.shared, trial)
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._rows.get(key, 0) == rows)
            self._check()

    def _top(self, encoding: Encoding) -> float:
        self._measured(encoding, trial=False)
        return self._tops[encoding.shared]

    def _whole(self, encoding: Encoding) -> float:
        """The scale of the tensor; 1 where it has none, or takes the source's."""
        if not encoding.members:
            return 1.0
        scales = encoding.encoder.tensor_scales(self._top(encoding))
        if len(scales) == 1:
            return scales[0]
        self._measured(encoding, trial=True)
        errors = [math.fsum(of_one) for of_one in zip(*self._trials[encoding.shared], strict=True)]
        return scales[errors.index(min(errors))]  # the first of equals

    def _group(
        self, encoding: Encoding, weight: Weight, chunks: tuple[Chunk, ...], load: Load,
        bench: Bench,
    ) -> Group:  # fmt: skip
        encoder, columns = encoding.encoder, weight.shape[-1]
        held: dict[int, Loaded] = {}  # the last chunk only

        def loaded(k: int) -> Loaded:
            if k not in held:
                held.clear()
                rect = chunks[k].rect
                x = bench.x(rect.r1 - rect.r0, columns)
                data = load(weight, chunks[k], x)
                held[k] = _inherited(weight, chunks[k], data, x, encoding) if (
                    encoder.inherit) else Loaded(x)  # fmt: skip
            return held[k]

        return Group(encoder, weight.shape, [c.rect for c in chunks], loaded, bench)

    def _keep(self, encoding: Encoding, weight: Weight, group: Group, found: Encoded) -> None:
        """Spool the parts after the codes: the scales of the group; the rest with the first."""
        encoder, first = encoding.encoder, group.r0 == 0
        scales = encoding.parts[1]
        offset = group.r0 // encoder.row_step(weight.shape) * group.grid[1]
        if not encoder.one_scale or first:
            raw = from_float32(found.scales, scales.dtype)
            self._put(
                encoding, 1, 0 if encoder.one_scale else offset * raw.size // found.scales.size, raw
            )
        if first and len(encoding.parts) > 2:
            self._put(encoding, 2, 0, _third(encoding, weight, found.whole))
        if self._exact and found.errors.top:
            raise UnfitError(
                f"not exact in rows {group.r0} to {group.r1 - 1}, where the largest difference is "
                f"{found.errors.top:.6g} (refused by require_exact)"
            )

    def _put(self, encoding: Encoding, part: int, offset: int, raw: Bytes) -> None:
        at = self._begins[encoding.parts[0].name, part] - self._first + offset
        view, done = raw.data, 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], at + done)
        with self._turn:
            self._missing -= len(view)
            self._turn.notify_all()


def _third(encoding: Encoding, weight: Weight, whole: float) -> Bytes:
    """NVFP4's global scale, or the shape that packed integers carry."""
    import numpy as np

    if encoding.encoder.two_levels:
        return np.array([whole], "<f4").view(np.uint8)
    return np.array(weight.shape, "<i8").view(np.uint8)


def _inherited(
    weight: Weight, chunk: Chunk, data: list[Bytes], x: Array, encoding: Encoding
) -> Loaded:
    """The source's scales around the blocks of ``encoding``, and its global one turned round."""
    import numpy as np

    codec, rect = weight.codec, chunk.rect
    assert isinstance(codec, Blocks)
    source = codec.block_of(weight.shape)
    phase = rect.r0 % source[0]
    scales, _ = codec.grids(weight.parts, rect, data)
    down = -(-(phase + rect.r1 - rect.r0) // source[0])
    block = encoding.encoder.block_of(weight.shape, rect.r1 - rect.r0)
    around = covering(scales.reshape(down, -1), source, phase, block, x.shape)
    whole = None
    if encoding.encoder.whole == "source" and isinstance(codec, Fp4Block):
        own = to_float32(data[2], "F32")
        whole = float((np.float32(1.0) / own if codec.combine == "multiply" else own)[0])
    return Loaded(x, around, whole)


def _nameless(path: Path) -> int:
    """A file that is gone when it is closed, or when the process dies."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd
