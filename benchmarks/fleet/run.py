"""The simulation: lanes take tasks, a task is a few phases, and time goes on to the next one's end.

A lane is one of the files that a machine writes at a time. Handed out statically, machine I of N
has tasks I, I + N, ... in one process, which keeps a downloaded shard until none of them needs it.
Dynamically, each lane is a process of its own, takes the largest task that is left, and keeps
nothing; the first tasks are spread over the machines.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import NamedTuple

from .inputs import Fleet, Plan, Task
from .machines import Lane, Machine, capacity, machines, wait
from .sharing import Flow, Resource, share

SOON = 1e-9  # seconds: what ends so soon after something else ends with it


class Outcome(NamedTuple):
    """What came of it."""

    seconds: float  # until the last task is done
    held: dict[str, float]  # fraction of all lanes' time, by what held them up
    used: dict[str, float]  # fraction of each resource, over all that time
    done: tuple[tuple[int, ...], ...]  # tasks finished, by machine


def simulate(plan: Plan, fleet: Fleet) -> Outcome:
    """Run it to its end."""
    return _Run(plan, fleet).outcome()


class _Run:
    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self.plan, self.fleet = plan, fleet
        self.machines = machines(plan.tasks, fleet)
        self.lanes = [m.lanes[i] for i in range(fleet.lanes) for m in self.machines]
        self.capacity = capacity(self.lanes, fleet)
        self.now, self.left = 0.0, len(plan.tasks)
        self.held: defaultdict[str, float] = defaultdict(float)  # seconds of lanes
        self.used: defaultdict[str, float] = defaultdict(float)  # bytes

    def outcome(self) -> Outcome:
        """Of all of it."""
        lose = self.fleet.lose
        while self.left:
            for lane in self.lanes:
                self._take(lane)
            busy = [lane for lane in self.lanes if lane.phases]
            share([lane.phases[0] for lane in busy if lane.phases[0].uses], self.capacity)
            step = min((lane.phases[0].seconds for lane in busy), default=math.inf)
            self._pass(busy, min(step, lose - self.now))
            if self.now >= lose:
                self._lose(self.machines[0])
                lose = math.inf
        held = sorted(self.held.items(), key=lambda item: -item[1])
        return Outcome(
            self.now,
            {kind: seconds / (self.now * len(self.lanes)) for kind, seconds in held if seconds},
            {kind: self.used[kind] / (rate * self.now) for kind, rate in self.fleet.limits.items()},
            tuple(tuple(m.done) for m in self.machines),
        )

    def _take(self, lane: Lane) -> None:
        """Give an idle lane the next task that it may have."""
        machine = self.machines[lane.machine]
        if lane.phases or not machine.queue:
            return
        lane.task = machine.queue.popleft()
        lane.phases.extend(self._phases(lane, machine, self.plan.tasks[lane.task]))

    def _phases(self, lane: Lane, machine: Machine, task: Task) -> Iterator[Flow]:
        if self.fleet.hub:
            missing = [name for name in task.reads if name not in machine.held]
            nbytes = sum(self.plan.shards[name] for name in missing)
            yield Flow(nbytes, {("hub", lane.machine): 1.0, ("scratch", lane.machine): 1.0})
            if self.fleet.hand == "static":
                machine.held.update(missing)
        yield _conversion(lane, task, bool(self.fleet.hub))
        yield wait(self.fleet.each, "each")

    def _pass(self, busy: list[Lane], seconds: float) -> None:
        """Let time pass, and end what ends."""
        self.now += seconds
        self.held["idle"] += seconds * (len(self.lanes) - len(busy))
        for lane in busy:
            flow = lane.phases[0]
            self.held[flow.held] += seconds
            ends = flow.seconds <= seconds + SOON
            moved = flow.left if ends else flow.rate * seconds
            flow.left -= moved
            for (kind, _), amount in flow.uses.items():
                self.used[kind] += amount * moved
            if ends:
                self._end(lane)

    def _end(self, lane: Lane) -> None:
        """Of a phase, and perhaps of the task."""
        lane.phases.popleft()
        if not lane.phases and lane.task is not None:
            self.machines[lane.machine].done.append(lane.task)
            lane.task = None
            self.left -= 1

    def _lose(self, machine: Machine) -> None:
        """What it was doing is to be done again; what it had finished is on the storage."""
        running = [lane.task for lane in machine.lanes if lane.task is not None]
        machine.queue.extendleft(reversed(running))
        machine.held.clear()
        for lane in machine.lanes:
            lane.task = None
            waits = [wait(self.fleet.back, "down"), wait(self.fleet.start, "start")]
            lane.phases = deque([*waits, self._check(machine)])

    def _check(self, machine: Machine) -> Flow:
        """A lane's share of hashing again what its process had finished, before it goes on."""
        static = self.fleet.hand == "static"
        nbytes = sum(self.plan.tasks[i].size for i in machine.done) if static else 0
        of = machine.lanes[0].machine
        hashing = self.fleet.core / self.fleet.file  # of what converting takes
        uses = {("link in", of): 1.0, ("storage", 0): 1.0, ("cpu", of): hashing}
        return Flow(nbytes / self.fleet.lanes, uses)


def _conversion(lane: Lane, task: Task, downloaded: bool) -> Flow:
    """All at once, for a byte of output: read, compute, write."""
    reads = sum(task.reads.values()) / task.size
    of = lane.machine
    uses: dict[Resource, float] = {
        ("file", lane.number): 1.0,
        ("cpu", of): 1.0,
        ("link out", of): 1.0,
        ("storage", 0): 1.0 if downloaded else 1.0 + reads,
        ("scratch" if downloaded else "link in", of): reads,
    }
    return Flow(task.size, uses)
