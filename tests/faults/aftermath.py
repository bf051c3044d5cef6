"""What must be on a disk after the power failed, and what the same command must make of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import disk
from .lab import Lab, Work, state_of, tree

LOST_AND_FOUND = "lost+found"


class Case(NamedTuple):
    """One run on one filesystem."""

    work: str
    io: str = "auto"
    mount: str = disk.STRICT
    place: str = ""  # "deep": below folders yet to be made; "empty": an empty folder is there
    tamper: tuple[tuple[object, ...], ...] = ()  # a broken tool, for the controls
    before: str = ""  # an earlier run of the same command lost "power", or was "killed"
    workers: int = 1
    step: int = 0  # of the earlier run, where it was killed

    def __str__(self) -> str:
        before = f"{self.before} before" if self.before else ""
        words = (self.work, self.io, self.mount, self.place, before, f"workers {self.workers}")
        return " ".join(filter(None, words))

    def argv(self, lab: Lab, mounted: Path) -> list[object]:
        """The command line."""
        more = ("--io", self.io, "--workers", self.workers)
        return lab.by_name[self.work].argv(self.target(mounted), *more)

    def target(self, mounted: Path) -> Path:
        """On the filesystem."""
        return mounted / ("new/folder/dst" if self.place == "deep" else "dst")


class Cut(NamedTuple):
    """What is left on the disk, and when it was."""

    image: Path
    when: str
    done: bool  # the run had ended with 0


def examined(lab: Lab, case: Case, cut: Cut) -> tuple[list[str], list[str]]:
    """Promises that are broken on the disk, and what is wrong after the command was run again."""
    try:
        with disk.mounted(cut.image, cut.image.with_name("left"), case.mount) as root:
            notes, after = _seen(lab, case, cut, root), _again(lab, case, root)
    except subprocess.CalledProcessError as e:
        return [f"cannot be mounted: {e.stderr!r}"], ["not run again"]
    return [*notes, *filter(None, [disk.broken(cut.image)])], after


def _seen(lab: Lab, case: Case, cut: Cut, root: Path) -> list[str]:
    work, target = lab.by_name[case.work], case.target(root)
    notes = broken_promises(work, target)
    if cut.done and not work.ended_right(target):
        notes.append("the run had ended with 0, and its target is not there")
    return notes


def _again(lab: Lab, case: Case, root: Path) -> list[str]:
    work, target, notes = lab.by_name[case.work], case.target(root), []
    journaled = _journaled(target)
    ended = lab.run(work, target, "--io", case.io, tamper=("enter", os.getpid()))
    if ended.code:
        notes.append(f"run again: exit {ended.code}: {ended.err or ended.out}".strip())
    if not work.ended_right(target):
        notes.append("run again: not the bytes of an undisturbed run")
    if made_again := [n for n, when in journaled.items() if _written(target / n) != when]:
        notes.append(f"run again: journaled files were not kept: {made_again}")
    inside = target.parents[: len(target.relative_to(root).parts) - 1]
    others = {p for p in root.rglob("*") if target not in p.parents} - {target, *inside}
    if others := {p for p in others if LOST_AND_FOUND not in p.parts}:
        notes.append(f"run again: left {sorted(map(str, others))}")
    return notes


def _journaled(target: Path) -> dict[str, int]:
    """The files that are to be kept, and when they were written."""
    state, found = state_of(target), {}
    for path in (p for p in (state / "journal").glob("*") if p.suffix != ".tmp"):
        with contextlib.suppress(ValueError):  # broken_promises tells
            file = json.loads(path.read_bytes())["file"]
            found[file] = _written(state / "out" / file)
    return {file: when for file, when in found.items() if when}


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def broken_promises(work: Work, target: Path) -> list[str]:
    """Of docs/crash-safety.md, on what lies at ``target`` and beside it."""
    state = state_of(target)
    there = tree(target) if target.is_dir() else {}
    notes = [] if there in ({}, work.expected) else [f"target: {_unlike(there, work)}"]
    if target.exists() and not target.is_dir():
        notes.append("target: not a folder")
    if not state.is_dir():
        return notes
    # A file is durable before it gets its name: whatever has one is whole.
    named = {name: data for name, data in tree(state).items() if not name.endswith(".tmp")}
    built = {name[4:]: data for name, data in named.items() if name.startswith("out/")}
    if unlike := _unlike({**work.expected, **built}, work):
        notes.append(f"out: {unlike}")
    for name, data in named.items():
        if name == "job.json" or name.startswith("journal/"):
            notes += _bad_json(name, data)
    if not notes and there != work.expected:
        notes += _bad_records(named, built)
    return notes


def _unlike(files: dict[str, bytes], work: Work) -> str:
    names = sorted(files.keys() | work.expected.keys())
    return ", ".join(
        f"{name} ({len(files.get(name, b''))} of {len(work.expected.get(name, b''))} bytes)"
        for name in names
        if files.get(name) != work.expected.get(name)
    )


def _bad_json(name: str, data: bytes) -> Iterator[str]:
    try:
        if not isinstance(json.loads(data), dict):
            yield f"{name}: not an object"
    except ValueError as e:
        yield f"{name}: {len(data)} bytes, {e}"


def _bad_records(named: dict[str, bytes], built: dict[str, bytes]) -> Iterator[str]:
    """Every file that the journal vouches for is there, and has the size and sum it says."""
    for name, data in named.items():
        if name.startswith("journal/"):
            record = json.loads(data)
            found = built.get(record["file"])
            if found is None:
                yield f"{name}: {record['file']} is not there"
            elif (len(found), hashlib.sha256(found).hexdigest()) != (
                record["size"], record["sha256"],
            ):  # fmt: skip
                yield f"{name}: {record['file']} is not what it says"
