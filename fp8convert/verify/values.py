"""Check ``values``: every number is finite, every scale is above zero.

Read by the safetensors library, in bands of rows, by several threads. What is zero, NaN or
infinite in a form is said by its bits, from the published formats; no codec is asked.
"""

from __future__ import annotations

import random
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..codecs.base import Stored
from ..codecs.scales import PLAIN
from ..errors import FormatError, shown
from ..header import numel
from . import bits
from .parallel import Progress, Tally, each
from .report import Check
from .scales import Scale
from .survey import Survey
from .tensors import Opened
from .zeros import first_wrong_zero

if TYPE_CHECKING:
    from .bits import Tensor

NAME = "values"
BAND = 16 << 20  # bytes of a tensor looked at together
SAMPLED = 256 << 10  # the same where only some are: a fraction of smaller ones is nearer to it
JOB = 64 << 20  # bytes a file is mapped for


class Band(NamedTuple):
    """Rows [begin, end) of one tensor; all of it if it has no rows."""

    name: str
    begin: int
    end: int
    nbytes: int


class Job(NamedTuple):
    """Bands of one file, read together; ``owner`` is the file of each name of its rank."""

    file: str
    bands: tuple[Band, ...]
    owner: Mapping[str, str]


@dataclass
class Found:
    """What one job, or all of them, met. ``uneven`` are scales that are no powers of two."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Count in another job's."""
        self.problems += other.problems
        self.warnings += other.warnings
        self.uneven += other.uneven


@dataclass(frozen=True)
class Reading:
    """How values are read: what are scales, which part, by how many threads."""

    scales: Mapping[str, Scale]
    sample: float = 1.0
    seed: int = 0
    workers: int = 1
    progress: Progress | None = None


def check_values(survey: Survey, how: Reading) -> tuple[Check, Found]:
    """Every float, code and scale of every file that can be read, or a sample of bands."""
    import torch

    jobs = [job for unit in survey.units() for job in _jobs(survey, unit, how)]
    tally = Tally("values", sum(b.nbytes for j in jobs for b in j.bands), how.progress)
    found = Found()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # those here are enough
    try:
        for one in each(lambda job: _run(survey, job, how.scales, tally), jobs, how.workers):
            found.add(one)
    finally:
        torch.set_num_threads(threads)
    if survey.incomplete and not found.problems:
        return Check.skipped(NAME, f"not all: {survey.incomplete}"), found
    tensors = len({(j.file, b.name) for j in jobs for b in j.bands})
    part = "all rows" if how.sample == 1 else f"a sample of {how.sample:g}, seed {how.seed}"
    detail = f"{tensors:,} tensors of floats, codes and scales, {part}"
    counts = {"tensors": tensors, "bytes": tally.done, "sample": how.sample}
    return Check.of(NAME, detail, found.problems, found.warnings, **counts), found


def _jobs(survey: Survey, unit: list[str], how: Reading) -> Iterator[Job]:
    """The bands of a unit's files, in file order, some at a time."""
    readable = [f for f in unit if f in survey.tensors]
    owner = {name: file for file in readable for name in survey.tensors[file]}
    for file in readable:
        bands: list[Band] = []
        total = 0
        own = ChainMap(dict.fromkeys(survey.tensors[file], file), owner)  # names may be doubled
        for t in survey.tensors[file].values():
            if t.dtype not in bits.READ and not (t.dtype == "U8" and t.name in how.scales):
                continue
            for band in _bands(file, t, how):
                if bands and total + band.nbytes > JOB:
                    yield Job(file, tuple(bands), own)
                    bands, total = [], 0
                bands.append(band)
                total += band.nbytes
        if bands:
            yield Job(file, tuple(bands), own)


def _bands(file: str, t: Stored, how: Reading) -> list[Band]:
    """Of one tensor; with a sample only some, at least one, drawn by file, name and seed."""
    size = t.end - t.begin
    if not size:
        return []
    rows = t.shape[0] if t.shape else 1
    row = size // rows
    step = max((BAND if how.sample == 1 else SAMPLED) // max(row, 1), 1)
    starts = range(0, rows, step)
    if how.sample < 1:
        count = max(round(how.sample * len(starts)), 1)
        drawn = random.Random(f"{how.seed} {file} {t.name}").sample(starts, count)
        return [_band(t.name, r, min(r + step, rows), row) for r in sorted(drawn)]
    return [_band(t.name, r, min(r + step, rows), row) for r in starts]


def _band(name: str, begin: int, end: int, row: int) -> Band:
    return Band(name, begin, end, (end - begin) * row)


def _run(survey: Survey, job: Job, scales: Mapping[str, Scale], tally: Tally) -> Found:
    from safetensors import SafetensorError

    found = Found()
    with Opened(survey, job.owner) as opened:
        for band in job.bands:
            t = survey.tensors[job.file][band.name]
            where = f"{shown(job.file)}: tensor {shown(t.name)}"
            try:
                _look(opened, where, t, band, scales.get(t.name), found)
            except (SafetensorError, FormatError, OSError) as e:
                found.problems.append(f"{where}: {e}")
            tally.add(band.nbytes)
    return found


def _look(
    opened: Opened, where: str, t: Stored, band: Band, scale: Scale | None, found: Found
) -> None:
    """One band."""
    dtype = bits.E8M0 if t.dtype == "U8" else t.dtype
    values = opened.rows(t.name, band.begin, band.end)
    if bits.has_odd(dtype, values):
        at, value = bits.first_odd(dtype, values)
        place = _coordinates(t, band, at)
        found.problems.append(f"{where}: {value} at {place}, expected finite values")
    elif scale is not None:
        _look_at_scales(opened, where, t, band, scale, bits.decoded(dtype, values), found)


def _look_at_scales(
    opened: Opened, where: str, t: Stored, band: Band, scale: Scale, values: Tensor, found: Found
) -> None:
    """Signs and zeros of a band of finite scales, float32 [n]; whether they are powers of two."""

    def at(n: int) -> str:
        return f"{where}: scale {float(values[n]):g} at {_coordinates(t, band, n)}"

    low = float(values.min())
    if scale.mask is None:
        if bool((values == 0).any()):
            found.warnings.append(f"{where}: a scale is 0, what it covers decodes to zeros")
    elif low < 0:
        negative = int((values < 0).nonzero()[0])
        found.problems.append(f"{at(negative)}, expected a number above 0")
    elif low == 0:
        first = band.begin * numel(t.shape[1:]) if t.shape else 0
        if (wrong := first_wrong_zero(opened, first, values, scale)) >= 0:
            found.problems.append(
                f"{at(wrong)}, but not all codes of {shown(scale.codes)} that it covers are"
            )
    if scale.block is not None and t.dtype in PLAIN and (n := bits.first_uneven(values)) >= 0:
        found.uneven.append(at(n))


def _coordinates(t: Stored, band: Band, at: int) -> str:
    """``[3, 17]`` of element ``at`` of a band."""
    at += band.begin * numel(t.shape[1:]) if t.shape else 0
    place: list[int] = []
    for size in reversed(t.shape):
        at, rest = divmod(at, size)
        place.append(rest)
    return str(place[::-1])
