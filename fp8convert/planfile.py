"""plan.json: what other machines need to know of a run that was begun, and nothing else travels.

Each of them plans again, from the source, and goes on if that is the same plan: so what the file
says of tasks and bytes is for readers (schedulers, docs/scale.md), and no part of the work rests on
it. docs/distributed.md has its fields.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import durable
from .calls import discard
from .errors import FormatError, TargetError, UsageError, shown
from .folder import read_named
from .options import Options, Quantize, ShardForTp, ToBf16, Unshard
from .shards import as_object
from .stores.address import scheme_of
from .strictjson import brief, loads
from .version import VERSION

if TYPE_CHECKING:
    from .job import Job

FORMAT = 1
TOOL = f"fp8convert {VERSION}"
MOST_BYTES = 100_000_000
COMMANDS: dict[str, type[Options]] = {
    "to-bf16": ToBf16, "quantize": Quantize, "shard-for-tp": ShardForTp, "unshard": Unshard,
}  # fmt: skip
PATHS = ("like", "config")  # options that are paths


@dataclass(frozen=True)
class PlanFile:
    """The fields of plan.json, but for ``format`` and ``tool``.

    ``run`` is the run's name, as the target's job has it; none if the target was finished.
    ``base`` is the folder that relative paths in ``options`` begin at. ``plan`` is the SHA-256 of
    ``identity``; ``shards`` are bytes by name, ``tasks`` in the order of their numbers.
    """

    plan: str
    run: str
    command: str
    source: str
    target: str
    base: str
    options: dict[str, Any]
    bytes_in: int
    bytes_out: int
    shards: dict[str, Any]
    tasks: list[Any]
    identity: dict[str, Any]

    @classmethod
    def of(cls, job: Job, run: str) -> PlanFile:
        """What other machines are to be told of ``job``, begun as ``run``."""
        plan, names = job.plan, job.catalogue.shard_names
        return cls(
            plan=plan.id,
            run=run,
            command=plan.command,
            source=job.catalogue.folder.place,
            target=str(job.target),
            base=os.getcwd(),
            options=plan.identity["options"],
            bytes_in=plan.bytes_in,
            bytes_out=plan.bytes_out,
            shards={s.name: s.size for s in job.catalogue.shards},
            tasks=[
                {
                    "file": t.file,
                    "size": t.size,
                    "reads": {names[n]: nbytes for n, nbytes in sorted(t.reads.items())},
                    "team": t.team,
                }
                for t in plan.tasks
            ],
            identity=plan.identity,
        )

    @classmethod
    def parse(cls, data: bytes, where: str) -> PlanFile:
        """From the file's bytes; FormatError, or TargetError if another version has written it."""
        found = as_object(loads(data, where), where)
        if found.get("format") != FORMAT or type(found.get("format")) is not int:
            raise FormatError(
                f"{where}: format {brief(found.get('format'))}, expected {FORMAT}: a plan that "
                "fp8convert plan has written"
            )
        if found.get("tool") != TOOL:
            raise TargetError(
                f"{where}: planned by {brief(found.get('tool'))}, this is {shown(TOOL)}: use one "
                "version on all machines"
            )
        rest = {key: value for key, value in found.items() if key not in ("format", "tool")}
        _check_fields(rest, where)
        made = cls(**rest)
        made._check(where)
        return made

    @property
    def chosen(self) -> Options:
        """``options`` as the planner has them."""
        return COMMANDS[self.command](**self.options)

    @property
    def located(self) -> Options:
        """The same, with paths that lead from anywhere to what was meant by them."""
        options, found = self.chosen, dict[str, Any]()
        for name in PATHS:
            path = getattr(options, name, None)
            if path is not None and scheme_of(path) is None:
                whole = os.path.join(self.base, path)
                found[name] = whole if os.path.exists(whole) else path
        return replace(options, **found)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Whole and durably, or not at all; what could not be read is not written."""
        final = Path(os.path.abspath(path))
        facts = {"format": FORMAT, "tool": TOOL, **asdict(self)}
        data = (json.dumps(facts, indent=1) + "\n").encode()
        self.parse(data, final.name)
        temporary = final.with_name(f".fp8convert-plan.{uuid.uuid4().hex}.tmp")
        try:
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            durable.write(fd, data, final.name)
            os.replace(temporary, final)
            durable.sync_folder(final.parent)
        except BaseException:
            discard(temporary)
            raise

    def _check(self, where: str) -> None:
        """What types do not say: every field is one that a plan can have."""
        known = COMMANDS.get(self.command)
        if known is None:
            names = ", ".join(COMMANDS)
            raise FormatError(f"{where}: command {brief(self.command)}, expected one of {names}")
        for name in ("source", "target", "base"):
            if not _is_whole(path := getattr(self, name)) or (name == "base" and "://" in path):
                raise FormatError(f"{where}: {name} {brief(path)}, expected a path from the root")
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        if digest != self.plan or self.identity.get("options") != self.options:
            raise FormatError(
                f"{where}: its identity and options are not of plan {brief(self.plan)}: it was "
                "changed after it was written; plan again"
            )
        _check_options(known, self.options, where)


def read_plan(path: str | os.PathLike[str]) -> PlanFile:
    """The plan at ``path``; FormatError or TargetError say what is wrong with it."""
    if "://" in str(path):
        raise UsageError(f"{shown(path)} is an address, expected the path of a plan file")
    return PlanFile.parse(read_named(path, MOST_BYTES, "plan"), os.path.basename(path))


def _is_whole(path: str) -> bool:
    """Whether it leads to the same place from everywhere: from the root, or an address."""
    try:
        return "\0" not in path and (os.path.isabs(path) or scheme_of(path) is not None)
    except UsageError:
        return False


def _check_fields(found: Mapping[str, Any], where: str) -> None:
    kinds = {"str": str, "int": int, "dict": dict, "list": list}
    expected = {f.name: kinds[str(f.type).partition("[")[0]] for f in fields(PlanFile)}
    if odd := sorted(set(found) ^ set(expected)):
        raise FormatError(f"{where}: {brief(odd[0])} is missing, or no field of a plan")
    for name, kind in expected.items():
        if type(found[name]) is not kind:
            raise FormatError(f"{where}: {name} is {brief(found[name])}, expected {kind.__name__}")


def _check_options(kind: type[Options], found: Mapping[str, Any], where: str) -> None:
    """That they are all of those of ``kind``, and would be planned with as they are."""
    flags = {f.name for f in fields(kind) if f.default is False}
    whole = set(found) == {f.name for f in fields(kind)}
    if not whole or any(type(found[name]) is not bool for name in flags):
        raise FormatError(f"{where}: options {brief(found)} are not those of a {kind.__name__}")
    try:
        kind(**found)
    except UsageError as e:
        raise FormatError(f"{where}: options: {e}") from e
