"""``verify DST --against SRC``: every tensor of DST derived again from SRC, by code that converts
nothing.

A weight that both store alike must have the same bytes. One that SRC has in codes and DST in BF16,
F16 or F32 must be the decoded number, rounded once, bit for bit. One that DST has in other codes
must be the nearest that its scales allow (:mod:`.nearest` has the bounds), and its error what the
manifest says.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ..catalogue import CONFIG
from ..errors import DataError, Fp8ConvertError, SchemeError, UsageError, listed, shown
from .comparing import Found, Unit
from .described import check_configs
from .nearest import Requantized
from .pairing import Pairing
from .parallel import cores
from .report import Check
from .sides import Side, opened
from .stored import Files

MOST = 8  # problems of SRC in an error
AGREES = 0.01  # of the relative error that a manifest records, which has five digits
Progress = Callable[[int, int], None]
Path = str | os.PathLike[str]
Item = TypeVar("Item")


def against(
    dst: Path,
    src: Path,
    sample: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Check]:
    """Compare the checkpoint folder ``dst`` with ``src``, the one it was made of.

    ``sample`` is the part, above 0 and at most 1, of each weight to compare: bands of rows chosen
    by ``seed``, one at least of every weight. ``progress`` is told bytes of DST: done, in all.
    ``dst`` that cannot be read is a check that failed; raises Fp8ConvertError if ``src`` cannot.
    """
    if not 0 < sample <= 1:
        raise UsageError(f"sample {shown(sample)}, expected a number above 0 and at most 1")
    source = opened(src)
    if source.problems or source.apart:
        apart = [f"{listed(source.apart)}: ranks have scales of their own"] if source.apart else []
        raise SchemeError("\n".join([*source.problems, *apart][:MOST]))
    try:
        target = _named_as(opened(dst), source)
    except Fp8ConvertError as e:
        return [Check.of("against: names", "DST cannot be read", str(e).splitlines())]
    source = _named_as(source, target)
    pairing = Pairing(target, source, sample, seed)
    run = _Run(pairing, progress)
    run.go(workers or 2 * cores())  # half of them wait for the disk
    return list(_checks(run))


def _named_as(side: Side, other: Side) -> Side:
    """``side`` by the names of ``other``, if it is DeepSeek's own rank files and that is not."""
    config = os.path.join(other.root, CONFIG)
    if side.bare and not other.bare and os.path.exists(config):
        return opened(side.root, names_of=config)
    return side


@dataclass
class _Weight:
    """What was found of one weight: the first unit with a difference, and sums."""

    wrong: int = 0
    first: tuple[int, str] | None = None
    squares: float = 0.0
    power: float = 0.0
    most: float = 0.0
    measured: int = 0
    requantized: bool = False

    def add(self, number: int, found: Found) -> None:
        self.wrong += found.wrong
        if found.wrong and (self.first is None or number < self.first[0]):
            self.first = (number, found.first)
        self.squares += found.squares
        self.power += found.power
        self.most = max(self.most, found.most)
        self.measured += found.measured

    @property
    def relative_rms(self) -> float:
        """Of the weight's own; 0 if nothing differs."""
        return math.sqrt(self.squares / self.power) if self.power and self.squares else 0.0


@dataclass
class _Run:
    """All units, by several threads."""

    pairing: Pairing
    progress: Progress | None
    weights: dict[str, _Weight] = field(default_factory=dict)
    done: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = self.pairing.total()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def go(self, workers: int) -> None:
        """Until all is compared; raises what a thread raised."""
        units = enumerate(self.pairing.units())
        threads = [threading.Thread(target=self._work, args=(units,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()
        if self.errors:
            raise self.errors[0]

    def _work(self, units: Iterator[tuple[int, Unit]]) -> None:
        dst, src = Files(self.pairing.dst.root), Files(self.pairing.src.root)
        try:
            while not self._stop.is_set() and (item := self._next(units)) is not None:
                number, unit = item
                try:
                    found = unit.compare(dst, src)
                except DataError as e:
                    found = Found(1, str(e))
                self._add(number, unit, found)
        except BaseException as e:
            self.errors.append(e)
            self._stop.set()
        finally:
            dst.close()
            src.close()

    def _next(self, units: Iterator[Item]) -> Item | None:
        with self._lock:
            return next(units, None)

    def _add(self, number: int, unit: Unit, found: Found) -> None:
        with self._lock:
            weight = self.weights.setdefault(unit.weight, _Weight())
            weight.add(number, found)
            weight.requantized |= isinstance(unit, Requantized)
            self.done += unit.nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)


def _checks(run: _Run) -> Iterator[Check]:
    pairing = run.pairing
    own, theirs = len(pairing.dst.weights) + len(pairing.dst.apart), len(pairing.src.weights)
    detail = "; ".join([f"{own:,} weights, {theirs:,} in the source", *pairing.notes])
    yield Check.of("against: names", detail, pairing.problems, weights=own, source_weights=theirs)
    yield check_configs(pairing.dst.config, pairing.src.config)
    fraction = run.done / run.total if run.total else 1.0
    yield _bits(run, fraction)
    if any(w.requantized for w in run.weights.values()):
        yield _error(run)


def _bits(run: _Run, fraction: float) -> Check:
    same, decoded = (run.pairing.count(kind) for kind in ("bytes", "decoded"))
    found = {n: w for n, w in run.weights.items() if not w.requantized}
    return Check.of(
        "against: bits",
        f"{same:,} weights byte for byte, {decoded:,} decoded again and rounded once; "
        f"{run.done:,} of {run.total:,} bytes compared ({fraction:.1%})",
        list(_differences(found)),
        same=same, decoded=decoded, compared_bytes=run.done, total_bytes=run.total,
        fraction=fraction,
    )  # fmt: skip


def _error(run: _Run) -> Check:
    found = {n: w for n, w in run.weights.items() if w.requantized}
    problems = [*_differences(found), *_disagreements(run, found)]
    worst = max(found.values(), key=lambda w: w.relative_rms)
    squares, power = (sum(getattr(w, k) for w in found.values()) for k in ("squares", "power"))
    rms = math.sqrt(squares / power) if power else 0.0
    return Check.of(
        "against: error",
        f"{len(found):,} weights encoded anew, held against half a step of their codes; relative "
        f"rms error {rms:.5g}, of the worst weight {worst.relative_rms:.5g}",
        problems,
        weights=len(found), relative_rms=rms, worst_relative_rms=worst.relative_rms,
        max_abs=max(w.most for w in found.values()),
    )  # fmt: skip


def _differences(found: dict[str, _Weight]) -> Iterator[str]:
    """A line for each weight, in the order they were compared in."""
    first = sorted((w.first, w.wrong) for w in found.values() if w.first is not None)
    for (_, text), wrong in first:
        yield text if wrong == 1 else f"{text}; {wrong:,} of it in all"


def _disagreements(run: _Run, found: dict[str, _Weight]) -> Iterator[str]:
    """Where a manifest's error is not the one that was measured; of whole weights only."""
    for name, weight in found.items():
        recorded = run.pairing.dst.quantized.get(name, {}).get("relative_rms")
        if run.pairing.sample < 1 or not isinstance(recorded, float):
            continue
        if not math.isclose(weight.relative_rms, recorded, rel_tol=AGREES):
            yield (
                f"{shown(name)[1:-1]}: relative rms error {weight.relative_rms:.5g}, but manifest"
                f".json records {recorded:.5g}"
            )
