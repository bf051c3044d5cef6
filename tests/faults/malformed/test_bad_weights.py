"""FAULTS section C by the real commands: what they say, what they leave, and that mending helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fp8convert import to_bf16
from fp8convert.errors import Fp8ConvertError
from fp8convert.verify import verify

from ...crash import Ended, marks
from ...quantized import readers
from ...quantized.readers import Stored
from ...sharded import coding, files
from ..lab import Files, Lab, lab, state_of, tree
from . import weights
from .tensors import Spoiled
from .weights import CASES, COMMANDS, WEIGHT, Case, Command, Outcome


class Bench:
    """A lab, and what each command writes of the good source."""

    def __init__(self, made: Lab) -> None:
        self.lab = made
        self._expected: dict[str, Files] = {}

    def source(self, command: Command) -> Path:
        return self.lab.by_name[command.source].source

    def argv(self, command: Command, source: Path, target: Path, *more: str) -> list[object]:
        return [command.words, source, target, *command.options, "--workers", 1, *more]

    def expected(self, name: str) -> Files:
        if name not in self._expected:
            target = self.lab.new()
            command = COMMANDS[name]
            argv = self.argv(command, self.source(command), target)
            assert self.lab.forker.run(*argv).code == 0
            self._expected[name] = tree(target)
        return self._expected[name]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with lab(preload=False) as made:
        yield Bench(made)


class Tried(NamedTuple):
    """A command on a spoiled source, beside something of the user's."""

    case: Case
    name: str
    copy: Spoiled
    target: Path
    ended: Ended

    @property
    def outcome(self) -> Outcome:
        return self.case.outcomes[self.name]

    @property
    def words(self) -> list[str]:
        """What is to be said."""
        said = {"file": "", "name": WEIGHT}
        if any("{file}" in w for w in self.outcome.words):
            said["file"] = self.copy.file(WEIGHT).relative_to(self.copy.folder).as_posix()
        return [w.format(**said) for w in self.outcome.words]


def attempt(bench: Bench, case: Case, name: str, *more: str) -> Tried:
    """Run it; the source, and what lies beside the target, are as before."""
    command, target = COMMANDS[name], bench.lab.new()
    source = target.parent / "src"
    shutil.copytree(bench.source(command), source)
    copy = Spoiled(source)
    case.spoil(copy)
    (target.parent / "notes.txt").write_text("mine")
    before = marks(source)
    ended = bench.lab.forker.run(*bench.argv(command, source, target, *case.options, *more))
    assert "Traceback" not in ended.err
    assert marks(source) == before
    assert (target.parent / "notes.txt").read_text() == "mine"
    return Tried(case, name, copy, target, ended)


def beside(target: Path) -> list[str]:
    """What a run left, besides the source and the user's."""
    return sorted(p.name for p in target.parent.iterdir() if p.name not in ("src", "notes.txt"))


EVERY = [
    pytest.param(case, name, id=f"{case.name}-{name}") for case in CASES for name in case.outcomes
]


def of_kind(*kinds: str) -> list[Any]:
    return [p for p in EVERY if p.values[0].outcomes[p.values[1]].kind in kinds]  # type: ignore[union-attr]


@pytest.mark.parametrize(("case", "name"), of_kind("refused", "stopped"))
def test_what_is_wrong_is_refused_and_said(case: Case, name: str, bench: Bench) -> None:
    tried = attempt(bench, case, name)
    stopped = tried.outcome.kind == "stopped"
    assert tried.ended.code == 1
    for word in tried.words:
        assert word in tried.ended.err
    assert "done:" not in tried.ended.out
    assert beside(tried.target) == ([state_of(tried.target).name] if stopped else [])
    assert (str(state_of(tried.target)) in tried.ended.err) is stopped
    again(bench, tried)


def again(bench: Bench, tried: Tried) -> None:
    """With the source mended: its run is another one; then, or at once, the right bytes."""
    command = COMMANDS[tried.name]
    shutil.rmtree(tried.copy.folder)
    shutil.copytree(bench.source(command), tried.copy.folder)
    options = [o for o in tried.case.options if o == "--strict"]
    argv = bench.argv(command, tried.copy.folder, tried.target, *options)
    ended = bench.lab.forker.run(*argv)
    if tried.outcome.kind == "stopped":
        assert ended.code == 1
        assert "is not this one" in ended.err
        assert "mtime_ns: " in ended.err
        assert "then, " in ended.err
        assert not tried.target.exists()
        shutil.rmtree(state_of(tried.target))
        ended = bench.lab.forker.run(*argv)
    assert ended.code == 0, ended.err
    if not options:  # which the manifest has
        assert differing(tree(tried.target), bench.expected(tried.name)) == []


def differing(ours: Files, expected: Files) -> list[str]:
    """Files; the manifest has times of the source's shards, which are another's here."""
    names = [n for n in ours.keys() | expected.keys() if n != "manifest.json"]
    return [n for n in names if ours.get(n) != expected.get(n)]


@pytest.mark.parametrize(("case", "name"), of_kind("done"))
def test_what_is_right_is_done(case: Case, name: str, bench: Bench) -> None:
    """And overflow is counted, in the summary and in the manifest."""
    tried = attempt(bench, case, name)
    assert tried.ended.code == 0, tried.ended.err
    for word in tried.words:
        assert word in tried.ended.out
    if case.name == "scale-elsewhere":
        pieces, usual = tensors(tried.target), bench.expected(name)
        good = tried.target.parent / "good"
        restore(good, usual)
        assert readers.differing(pieces, tensors(good)) == []
        return
    found = tensors(tried.target)
    with np.errstate(over="ignore"):
        of = readers.stored(tried.copy.folder), readers.config(tried.copy.folder)
        assert readers.differing(found, coding.decoded(*of)) == []
    counts = json.loads((tried.target / "manifest.json").read_text())["overflowed"]
    infinite = infinities(found[WEIGHT][2])
    assert counts == ({WEIGHT: infinite} if infinite else {})
    assert bool(infinite) is (case.name == "overflow")


def infinities(raw: bytes) -> int:
    """How many BF16 are infinite."""
    return int((np.frombuffer(raw, np.uint16) & 0x7FFF == 0x7F80).sum())


def restore(folder: Path, kept: Files) -> None:
    for name, data in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tensors(folder: Path) -> Stored:
    """Of a checkpoint, or of all its ranks."""
    return files.pieced(folder) if (folder / "tp.json").exists() else readers.stored(folder)


@pytest.mark.parametrize("name", ["to-bf16", "shard-bf16"])
def test_overflow_is_in_the_json(name: str, bench: Bench) -> None:
    (case,) = (c for c in CASES if c.name == "overflow")
    tried = attempt(bench, case, name, "--json")
    said = json.loads(tried.ended.out)
    assert said["overflowed"] == {WEIGHT: 4946}


@pytest.mark.parametrize(("case", "name"), of_kind("moved"))
def test_what_is_moved_is_the_sources_and_still_found(case: Case, name: str, bench: Bench) -> None:
    """The very bytes; who decodes them is told, and so is who verifies them."""
    tried = attempt(bench, case, name)
    assert tried.ended.code == 0, tried.ended.err
    ours, theirs = tensors(tried.target), tensors(tried.copy.folder)
    assert {n: ours[n] for n in ours} == {n: theirs[n] for n in ours}
    assert {WEIGHT, weights.SCALE} <= ours.keys()
    onward = tried.target.parent / "onward"
    ended = bench.lab.forker.run("to-bf16", tried.target, onward, "--workers", 1)
    report = verify(tried.target)
    if tried.words:
        assert ended.code == 1
        assert not onward.exists()
        for word in tried.words:
            assert word in ended.err
        (values,) = (c for c in report.checks if c.name == "values")
        assert values.result == "FAIL"
        assert "down_proj" in values.problems[0] or "w2" in values.problems[0]
    else:
        assert ended.code == 0, ended.err
        assert report.passed


def test_a_checkpoint_that_is_bf16_already(bench: Bench) -> None:
    """Said, and nothing made."""
    target = bench.lab.new()
    ended = bench.lab.forker.run("to-bf16", bench.lab.bf16, target)
    assert ended.code == 1
    assert (
        "nothing to convert: no weight is coded, the checkpoint is BF16, F32 already" in ended.err
    )
    assert beside(target) == []
    ended = bench.lab.forker.run("unshard", bench.lab.bf16, target)
    assert ended.code == 1
    assert "no files of tensor-parallel ranks" in ended.err
    assert beside(target) == []


def test_ranks_of_a_stale_config(bench: Bench) -> None:
    """Declared, but nothing is coded: `unshard` of BF16 ranks."""
    ranks, target = bench.lab.new(), bench.lab.new()
    ended = bench.lab.forker.run("shard-for-tp", bench.lab.bf16, ranks, *weights.TP, "hf")
    assert ended.code == 0
    weights.declare(quant_method="fp8", weight_block_size=[128, 128])(Spoiled(ranks))
    ended = bench.lab.forker.run("unshard", ranks, target)
    assert ended.code == 1
    assert weights.STALE[0] in ended.err
    assert beside(target) == []


RANK_FILES = {
    "scale-missing": ("layers.0.ffn.w2.scale", lambda copy: copy.drop("layers.0.ffn.w2.scale")),
    "unknown-name": (
        "layers.0.ffn.new.weight",
        lambda copy: copy.add("layers.0.ffn.new.weight", ("BF16", (2, 2), bytes(8))),
    ),
}


@pytest.mark.parametrize("case", RANK_FILES)
def test_rank_files_of_the_published_script(case: str, bench: Bench) -> None:
    """Without tp.json, their names are all there is."""
    target = bench.lab.new()
    ranks = target.parent / "src"
    shutil.copytree(bench.source(COMMANDS["unshard"]), ranks)
    for ours in ("tp.json", "manifest.json", "model_args.json"):
        (ranks / ours).unlink()
    name, spoil = RANK_FILES[case]
    spoil(Spoiled(ranks))
    ended = bench.lab.forker.run("unshard", ranks, target)
    assert ended.code == 1
    assert f"tensor '{name}' is on 1 of 2 ranks ('model" in ended.err
    assert beside(target) == []


def test_the_table_has_all_of_section_c() -> None:
    """No item may get lost; what is tested elsewhere in this module is not in the table."""
    items = " | ".join(c.item for c in CASES)
    for word in ("missing", "orphaned", "another shard", "wrong shape", "wrong dtype",
                 "declared block", "scale 0", "negative", "NaN", "Inf", "NaN codes", "overflows",
                 "--strict", "without a declared", "without FP8", "quant_method", "not divide",
                 "cuts a block", "unknown tensor names"):  # fmt: skip
        assert word in items
    used = {name for c in CASES for name in c.outcomes}
    assert used == set(COMMANDS)


def test_a_tool_that_ships_damage_would_be_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with damage overlooked, the command ends with 0 and wrong numbers."""
    from fp8convert import taskrun

    monkeypatch.setattr(taskrun.TaskRun, "judge", lambda *args, **kwargs: None)
    target = bench.lab.new()
    source = target.parent / "src"
    shutil.copytree(bench.lab.fp8, source)
    weights.value(float("nan"))(Spoiled(source))
    try:
        to_bf16(source, target)
    except Fp8ConvertError:
        pytest.fail("the control refused")
    assert target.exists()
    assert not verify(target).passed
