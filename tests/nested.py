"""Plans whose files lie in folders, made of flat ones: what the commands for ranks plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from fp8convert import convert
from fp8convert.plan import Copy, Plan

from .crash import Set

RANKS = ("rank0", "rank1")
SAME = "model.safetensors"  # of three tasks: one in each folder, one beside them
FILES = [*(f"{rank}/{SAME}" for rank in RANKS), SAME]
# Names that lead elsewhere, lie deeper, or are not plain.
ODD = ("../x", "/x", "a/b/c", "a//b", "", "a/", "/", "a/..", "./a", "../../x", ".", "..", "a/.",
       "a/b\\c", "C:/x", "a/\0", "a/\n", "x" * 256, "a/" + "x" * 256, "\ud800/x")  # fmt: skip
TEXT = '{"ranks": 2}\n'


def nested(plan: Plan) -> Plan:
    """A plan of three tasks, their files called the same; texts and companions in each folder."""
    tasks = tuple(
        dataclasses.replace(t, file=file) for t, file in zip(plan.tasks, FILES, strict=True)
    )
    texts = {f"{rank}/{name}": text for rank in RANKS for name, text in plan.texts.items()}
    copies = [Copy(c.name, c.size, f"{rank}/{c.file}") for rank in RANKS for c in plan.copies]
    licence = next(c for c in plan.copies if c.name == "LICENSE")
    return dataclasses.replace(
        plan, tasks=tasks, texts={**texts, "tp.json": TEXT}, copies=(*copies, licence)
    )


def nest(set_attribute: Set) -> None:
    """Have every conversion planned so."""
    real = convert.prepare

    def prepare(*args: object) -> convert.Job:
        job = real(*args)  # type: ignore[arg-type]
        return dataclasses.replace(job, plan=nested(job.plan))

    set_attribute(convert, "prepare", prepare)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by its name relative to it; empty folders are an error."""
    found = sorted(folder.rglob("*"))
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if p.is_file()}
    assert {p for p in found if p.is_dir()} == _parents(folder, files)
    return files


def _parents(folder: Path, files: Iterable[str]) -> set[Path]:
    return {folder / name.split("/")[0] for name in files if "/" in name}
