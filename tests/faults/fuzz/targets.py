"""What is fuzzed: functions of bytes that raise where a promise is broken.

An input is the untrusted file itself. Where it is tried on one of several checkpoints, or as one of
several files, its first line says so; a line that says nothing known stands for the first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors

from fp8convert import header
from fp8convert.cli.inspect import _print as print_report
from fp8convert.convert import prepare
from fp8convert.folder import Folder
from fp8convert.header import Header
from fp8convert.inspection import inspect
from fp8convert.options import Options, Quantize, ShardForTp, ToBf16
from fp8convert.verify import verify
from fp8convert.verify.index import check_index
from fp8convert.verify.survey import survey

from . import words
from .benches import CONFIG, INDEX, bench, root, single, tables
from .promises import opening_only_in, printable, readable, refusing, sound
from .states import STATES
from .words import WORDS, split

WORK: dict[str, Options | None] = {  # what is done with a config; None: it is described
    "to-bf16": ToBf16(),
    "inspect": None,
    "fp8": Quantize(scheme="fp8-block"),
    "nvfp4": Quantize(scheme="nvfp4"),
    "int4": Quantize(scheme="int4-group"),
    "tensor": Quantize(scheme="fp8-tensor"),
    "deepseek": ShardForTp(tp=2),
    "hf": ShardForTp(tp=2, layout="hf", experts="cut"),
    "hf-bf16": ShardForTp(tp=2, layout="hf", misaligned="bf16", pad_vocab=64),
    "hf-anew": ShardForTp(tp=2, layout="hf", misaligned="requantize", mtp="drop"),
    "reblock": ShardForTp(tp=2, layout="hf", misaligned="reblock"),
    "hf-fp8": ShardForTp(tp=2, layout="hf", weights="fp8-channel", misaligned="bf16"),
}
READERS = ("model", "verify")


def fuzz_header(data: bytes) -> None:
    """What we accept the safetensors library accepts, with the same tensors, bytes and metadata."""
    found = None
    with refusing():
        length = header.header_length(data[:64], len(data), "f")
        found = header.parse(data[8 : 8 + length], len(data), "f")
    if found is None:
        return
    try:
        theirs = {n: (t["dtype"], t["shape"], t["data"]) for n, t in safetensors.deserialize(data)}
    except safetensors.SafetensorError as e:
        raise AssertionError(f"refused by the safetensors library: {e}") from e
    ours = {e.name: (e.dtype, list(e.shape), data[e.begin : e.end]) for e in found.entries}
    assert ours == theirs, f"read in two ways: {ours}, {theirs}"
    assert _metadata(data) == found.metadata, "metadata read in two ways"
    _built_again(found)


def _metadata(data: bytes) -> dict[str, str]:
    path = root() / "x.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, "np") as opened:
        return opened.metadata() or {}


def _built_again(found: Header) -> None:
    """A header that we write for the same tensors says the same."""
    raw = header.build([(e.name, e.dtype, e.shape) for e in found.entries], found.metadata)
    size = len(raw) + sum(e.end - e.begin for e in found.entries)
    again = header.parse(raw[8:], size, "f")
    facts = [[(e.name, e.dtype, e.shape) for e in h.entries] for h in (found, again)]
    assert facts[0] == facts[1], "written otherwise"
    assert again.metadata == found.metadata, "metadata written otherwise"


def fuzz_index(data: bytes) -> None:
    """model.safetensors.index.json: refused or read, and nothing outside the folder is opened."""
    folder = bench("index", "-indexed")
    (folder / INDEX).write_bytes(data)
    with refusing(), opening_only_in(str(folder)):
        sound(prepare(folder, root() / "x", ToBf16()).plan)
    with refusing(), opening_only_in(str(folder)):
        check, _ = check_index(survey(Folder.at(folder)))
        printable("\n".join((*check.problems, *check.warnings)))


def fuzz_config(data: bytes) -> None:
    """config.json of a checkpoint: planned as if for real; what would be written is sound."""
    (name, what), said = split(data, tuple(tables()), tuple(WORK))
    folder = bench(name)
    (folder / CONFIG).write_bytes(said)
    _plan(folder, WORK[what])


def _plan(folder: Path, options: Options | None) -> None:
    with refusing():
        if options is not None:
            sound(prepare(folder, root() / "x", options).plan)
            return
        report = inspect(folder)
        readable(json.dumps(report.to_dict()))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print_report(report)
        printable(out.getvalue())


def fuzz_tensors(data: bytes) -> None:
    """A table of tensors as a sound file has it: names, dtypes and shapes are somebody's."""
    (name, what), said = split(data, tuple(tables()), tuple(WORK))
    folder = single(name, said)
    if folder is not None:
        _plan(folder, WORK[what])


def fuzz_model(data: bytes) -> None:
    """config.json as the reference model reads it, and as ``verify`` does: both load torch."""
    (name, what), said = split(data, tuple(tables()), READERS)
    folder = bench(name)
    (folder / CONFIG).write_bytes(said)
    with refusing():
        if what == "verify":
            report = verify(folder, workers=1)
            readable(json.dumps(report.to_dict()))
            for check in report.checks:
                printable("\n".join((check.detail, *check.problems, *check.warnings)))
            return
        from fp8convert.reference.run import open_model

        model = open_model(folder)
        assert model.layers > 0, "a model without layers"
        assert all(isinstance(model.kind(n), str) for n in range(min(model.layers, 8))), "no kind"


def fuzz_state(data: bytes) -> None:
    """A file that an earlier run left, or says it did: believed only if it is sound."""
    (file,), said = split(data, tuple(STATES))
    with refusing():
        STATES[file](said)


def fuzz_words(data: bytes) -> None:
    """A value of the command line, or a file of tokens."""
    (kind,), said = split(data, tuple(WORDS))
    with words.refusing_usage(), refusing():
        WORDS[kind](said)


class Target(NamedTuple):
    """``heads`` are the first lines that mean something: words, one of each list."""

    run: Callable[[bytes], None]
    heads: tuple[tuple[str, ...], ...] = ()

    @property
    def lines(self) -> list[bytes]:
        """All such lines."""
        return [" ".join(of).encode() for of in itertools.product(*self.heads)]


@functools.cache
def targets() -> dict[str, Target]:
    """By name."""
    return {
        "header": Target(fuzz_header),
        "index": Target(fuzz_index),
        "config": Target(fuzz_config, (tuple(tables()), tuple(WORK))),
        "tensors": Target(fuzz_tensors, (tuple(tables()), tuple(WORK))),
        "model": Target(fuzz_model, (tuple(tables()), READERS)),
        "state": Target(fuzz_state, (tuple(STATES),)),
        "words": Target(fuzz_words, (tuple(WORDS),)),
    }
