"""What is simulated: the tasks of a plan, and the machines that are to do them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from fp8convert.plan import MOST_FILES

FORMAT, DRY = 1, 1  # of plans, of dry runs
GB = 1e9
MOST_CORES = 256
NONE = math.inf  # a limit that there is not


class Task(NamedTuple):
    """An output file: its bytes, and how many bytes of which shards it is made of."""

    size: int
    reads: Mapping[str, int]


class Plan(NamedTuple):
    """Tasks in the plan's order; bytes of every shard."""

    tasks: tuple[Task, ...]
    shards: Mapping[str, int]


def plan(data: Mapping[str, Any]) -> Plan:
    """From the JSON of ``fp8convert plan``, or of a dry run; ValueError if it is something else.

    A dry run has shards by their number. It needs no place for the output; a plan does.
    """
    if "plan_format" in data:
        shards = {str(n): int(s["size"]) for n, s in enumerate(data["source"].values())}
        found, known = data["plan_format"], DRY
    else:
        shards, found, known = dict(data["shards"]), data.get("format"), FORMAT
    if found != known:
        raise ValueError(f"format {found!r}, expected {known}")
    tasks = tuple(Task(int(t["size"]), dict(t["reads"])) for t in data["tasks"])
    if unknown := {name for t in tasks for name in t.reads} - shards.keys():
        raise ValueError(f"tasks read {sorted(unknown)[0]!r}, which is not among the shards")
    return Plan(tasks, shards)


def read_plan(path: Path) -> Plan:
    """From a file."""
    return plan(json.loads(path.read_text()))


@dataclass(frozen=True)
class Fleet:
    """The machines, all alike but for slow ones. Rates are GB (1e9 bytes) a second."""

    machines: int = 1  # how many
    files: int = 0  # output files a machine writes at a time; 0: as many as the program does
    cores: float = 16.0  # of a machine
    core: float = 0.7  # output a core converts, hashes and writes
    file: float = 1.4  # output of one file at most: it is hashed in order
    storage: float = 10.0  # reads and writes of all machines together; inf: no limit
    link: float = 3.0  # a machine to the storage, each way; inf: none, it is its own disk
    hub: float = 0.0  # a machine from the hub; 0: the source is on the storage
    scratch: float = 2.0  # a machine's own disk, where downloads wait; reads and writes together
    start: float = 3.0  # seconds until a process has imported everything and planned
    each: float = 0.1  # seconds a file takes to open, to make durable and to record
    hand: str = "static"  # or dynamic: whoever is free takes the largest task that is left
    slow: float = 0.0  # this fraction of the machines (rounded up) is slow
    by: float = 3.0  # in everything of their own, by this factor
    lose: float = NONE  # seconds until machine 0 is lost; inf: it is not
    back: float = 600.0  # seconds until it, or another in its place, starts again
    seed: int = 0  # chooses the slow machines

    def __post_init__(self) -> None:
        rates = ("machines", "cores", "core", "file", "storage", "link", "scratch", "by")
        for name in rates:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}, expected more than 0")
        for name in ("files", "hub", "start", "each", "lose", "back"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.slow <= 1:
            raise ValueError(f"slow {self.slow}, expected a fraction")
        if self.hand not in ("static", "dynamic"):
            raise ValueError(f"hand {self.hand!r}, expected static or dynamic")
        if math.isinf(self.start + self.each + self.back):
            raise ValueError("start, each and back are to end")

    @property
    def lanes(self) -> int:
        """Files a machine writes at a time: of one process as many as it would; or one a core."""
        cores = int(min(self.cores, MOST_CORES))
        return self.files or max(1, cores if self.hand == "dynamic" else min(cores, MOST_FILES))

    @property
    def limits(self) -> dict[str, float]:
        """Bytes a second of each resource that there is: of all machines together, none slow."""
        own = {"cpu": self.cores * self.core, "link in": self.link, "link out": self.link}
        if self.hub:
            own |= {"hub": self.hub, "scratch": self.scratch}
        found = {"storage": self.storage} | {k: v * self.machines for k, v in own.items()}
        return {kind: rate * GB for kind, rate in found.items() if rate < math.inf}


OPTIONS = {f.name: type(f.default) for f in fields(Fleet)}
