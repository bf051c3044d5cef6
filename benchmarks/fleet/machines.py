"""The machines: what each of their lanes is to do, and what there is of every resource."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .inputs import GB, Fleet, Task
from .sharing import Flow, Resource

ROUNDING = 1e-9  # of a number of machines


@dataclass(eq=False)
class Lane:
    """One file at a time of a machine; ``phases`` are still to do for its task, or before it."""

    number: int
    machine: int
    phases: deque[Flow]
    task: int | None = None


@dataclass(eq=False)
class Machine:
    """Its lanes; the shards it has downloaded; the tasks it has finished."""

    lanes: list[Lane]
    queue: deque[int]  # the tasks left for it; of all machines if they are handed out dynamically
    held: set[str] = field(default_factory=set)
    done: list[int] = field(default_factory=list)


def wait(seconds: float, why: str) -> Flow:
    """Something that takes its time and nothing else."""
    return Flow(seconds, {}, 1.0, why)


def machines(tasks: Sequence[Task], fleet: Fleet) -> list[Machine]:
    """Every lane about to start."""
    everything = deque(sorted(range(len(tasks)), key=lambda n: -tasks[n].size))
    found = []
    for i in range(fleet.machines):
        static = deque(range(i, len(tasks), fleet.machines))
        numbers = range(i * fleet.lanes, (i + 1) * fleet.lanes)
        lanes = [Lane(n, i, deque([wait(fleet.start, "start")])) for n in numbers]
        found.append(Machine(lanes, static if fleet.hand == "static" else everything))
    return found


def capacity(lanes: list[Lane], fleet: Fleet) -> dict[Resource, float]:
    """Bytes a second of every resource that is limited; less of what slow machines have."""
    count = math.ceil(fleet.slow * fleet.machines - ROUNDING)
    slow = set(random.Random(fleet.seed).sample(range(fleet.machines), count))
    own = {kind: rate / fleet.machines for kind, rate in fleet.limits.items() if kind != "storage"}
    found: dict[Resource, float] = {("storage", 0): fleet.storage * GB}
    for lane in lanes:
        factor = fleet.by if lane.machine in slow else 1.0
        found |= {(kind, lane.machine): rate / factor for kind, rate in own.items()}
        found["file", lane.number] = fleet.file * GB / factor
    return {resource: rate for resource, rate in found.items() if rate < math.inf}
