"""Of every command: other threads, memory and faults on the way give the same target; and
``verify`` accepts it, and nothing else.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import assume
from hypothesis import strategies as st

from fp8convert.errors import ResumableError
from fp8convert.options import Options, Quantize, ShardForTp, ToBf16, Unshard
from fp8convert.verify import verify

from ... import crash
from . import encodings, models
from .checkpoints import checkpoints
from .ways import PLAIN_WAY, WAYS, Way, files_of, place


@dataclass(frozen=True)
class Command:
    """A command on a drawn source. ``ranks``: the source is cut first, and put together."""

    found: Any
    options: Options
    ranks: ShardForTp | None = None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def source(self, folder: Path) -> Path:
        """What the command reads."""
        src = folder / "src"
        self.found.write(src)
        if self.ranks is None:
            return src
        PLAIN_WAY.run(src, folder / "ranks", self.ranks)
        return folder / "ranks"


@st.composite
def _sharded(draw: st.DrawFn, together: bool, encoded: bool = False) -> Command:
    """Of a model that so many ranks can be cut of; ``encoded`` in the same pass, or not."""
    case = draw(models.shardings())
    assume((case.options.get("weights") == "fp8-block") is encoded)
    options = ShardForTp(tp=case.tp, **{**case.options, "misaligned": "error"})
    try:
        models.ranks_of(case.source.tensors, case.source.config, case.tp, case.options)
    except models.Refused:
        assume(False)
    return Command(case.written, Unshard() if together else options, options if together else None)


@st.composite
def _quantized(draw: st.DrawFn) -> Command:
    case = draw(encodings.encodings())
    assume(case.source.fitting(case.scheme, case.options.get("group", 128)))
    return Command(case, Quantize(scheme=case.scheme, **case.options))


def _decoded() -> st.SearchStrategy[Command]:
    limits = st.none() | st.sampled_from([1, 5000])
    return st.builds(Command, checkpoints(safe=True), st.builds(ToBf16, max_shard_size=limits))


def exact() -> st.SearchStrategy[Command]:
    """Commands of whose output every bit is determined."""
    return _decoded() | _decoded() | _sharded(False) | _sharded(True)


def commands() -> st.SearchStrategy[Command]:
    """All four."""
    return exact() | inexact()


def inexact() -> st.SearchStrategy[Command]:
    """Commands that encode: of another code ``verify`` may say that it is as near."""
    return _quantized() | _quantized() | _sharded(False, encoded=True)


# Other ways


@dataclass(frozen=True)
class Runs:
    """One command in two ways; the second fails at each of the calls ``faults``, and resumes."""

    command: Command
    ways: tuple[Way, Way]
    faults: tuple[int, ...]


def several() -> st.SearchStrategy[Runs]:
    """Up to two faults."""
    faults = st.lists(st.integers(1, 60), max_size=2).map(tuple)
    return st.builds(Runs, commands(), st.tuples(WAYS, WAYS), faults)


def sameness(case: Runs) -> None:
    """Every file of the target is the same, the manifest too."""
    one, other = case.ways
    with place() as folder:
        src = case.command.source(folder)
        one.run(src, folder / "one", case.command.options)
        for n in case.faults:
            interrupted(other, src, folder / "other", case.command.options, n)
        other.run(src, folder / "other", case.command.options)
        assert files_of(folder / "other") == files_of(folder / "one")
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def interrupted(way: Way, src: Path, dst: Path, options: Options, n: int) -> None:
    """A run whose ``n``-th call that changes something fails, if it makes so many."""
    with contextlib.ExitStack() as stack:

        def set_attribute(owner: object, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        fail = crash.FailAt(n)
        crash.trace(set_attribute, crash.CHANGES, fail, crash.nothing)
        with contextlib.suppress(ResumableError):
            way.run(src, dst, options)
            assert dst.is_dir()


# Verified


@dataclass(frozen=True)
class Verified:
    """A command, and the byte of the output's tensors that is changed in one bit."""

    command: Command
    way: Way
    place: int
    bit: int


def verified() -> st.SearchStrategy[Verified]:
    """Where the output is determined, whatever bit is changed is found."""
    return st.builds(Verified, exact(), WAYS, st.integers(0, 1 << 20), st.integers(0, 7))


def accepted_quantized() -> st.SearchStrategy[Verified]:
    """Encoded ones are only accepted: a neighbouring code may be as near."""
    return st.builds(Verified, inexact(), WAYS, st.just(-1), st.just(0))


def verifying(case: Verified) -> None:
    """``verify`` accepts the output by itself and against its source, and no changed one."""
    with place() as folder:
        src, dst = case.command.source(folder), folder / "dst"
        case.way.run(src, dst, case.command.options)
        report = verify(dst, against=folder / "src", workers=1)
        assert not [(c.name, c.problems) for c in report.failed]
        checked = {c.name for c in report.checks if c.checked}
        assert checked >= {"manifest", "headers", "index", "against: names", "against: bits"}
        if case.place >= 0 and flip(dst, case.place, case.bit):
            assert "manifest" in {c.name for c in verify(dst, workers=1).failed}
            unlisted(dst)
            found = verify(dst, against=folder / "src", workers=1)
            assert "against: bits" in {c.name for c in found.failed}


def flip(dst: Path, where: int, bit: int) -> bool:
    """One bit of the data of some file; whether there is any data."""
    data = [(f, len(_data(f))) for f in sorted(dst.rglob("*.safetensors"))]
    where %= max(sum(size for _, size in data), 1)
    for file, size in data:
        if where < size:
            raw = bytearray(file.read_bytes())
            raw[len(raw) - size + where] ^= 1 << bit
            file.write_bytes(raw)
            return True
        where -= size
    return False


def _data(file: Path) -> bytes:
    raw = file.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def unlisted(dst: Path) -> None:
    """Without the manifest, whose sums would say it."""
    (dst / "manifest.json").unlink()
