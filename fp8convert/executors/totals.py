"""How far all workers are: an actor beside the driver keeps what each task has last told it.

It is a process of its own, so it is only made once a run takes a while. Before that, and wherever
it cannot be had, progress is by whole files.
"""

from __future__ import annotations

import contextlib
import time
from types import ModuleType
from typing import Any, NamedTuple

from ..settings import Progress

EVERY_S = 0.5  # between two words of a task
AFTER_S = 5.0  # a run without them


class Count(NamedTuple):
    """Bytes of a task: written, read, arrived; as :class:`~fp8convert.settings.Progress`."""

    written: int = 0
    read: int = 0
    arrived: int = 0


class Totals:
    """The most that each task has ever told: one begun again begins at nothing."""

    def __init__(self) -> None:
        self._most: dict[int, Count] = {}

    def note(self, number: int, count: Count) -> None:
        """A task's bytes."""
        before = self._most.get(number, Count())
        self._most[number] = Count(*map(max, before, count))

    def every(self) -> dict[int, Count]:
        """By the task's number."""
        return self._most

    @staticmethod
    def found(name: str) -> Any:
        """The actor of that name; None while there is none."""
        import ray

        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            if ray.is_initialized():  # or Ray would look for a cluster, and start one
                return ray.get_actor(name)
        return None


class Tally:
    """In the driver: bytes of the tasks that are done, and of those at work as far as is known."""

    def __init__(self, ray: ModuleType, name: str, sizes: list[int], tell: Any) -> None:
        self._ray: Any = ray
        self.name, self._sizes, self._tell = name, sizes, tell
        self._totals = Totals()
        self._actor: Any = None
        self._asked: Any = None
        self._begun = time.monotonic()

    def done(self, number: int, count: Count) -> None:
        """A task has ended; whoever did it, all of it is written."""
        self._totals.note(number, count._replace(written=self._sizes[number]))

    def tell(self) -> None:
        """Say how far all are; asks the actor, and waits for no answer."""
        if self._tell is None:
            return
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ask()
        written, read, arrived = map(sum, zip(Count(), *self._totals.every().values(), strict=True))
        self._tell(Progress(written, sum(self._sizes), read, arrived))

    def _ask(self) -> None:
        if self._actor is None:
            if time.monotonic() - self._begun >= AFTER_S:
                self._actor = self._made()
            return
        if self._asked is not None and self._ray.wait([self._asked], timeout=0)[0]:
            answer, self._asked = self._asked, None
            for number, count in self._ray.get(answer).items():
                self._totals.note(number, count)
        self._asked = self._asked or self._actor.every.remote()

    def _made(self) -> Any:
        """It asks for a byte of memory: Ray sends what asks for nothing by way of any node, which
        may be one that is lost and not yet known to be. Then the actor dies with that node."""
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        made = self._ray.remote(num_cpus=0, memory=1, max_restarts=-1)(Totals)
        return made.options(name=self.name, scheduling_strategy=here).remote()
