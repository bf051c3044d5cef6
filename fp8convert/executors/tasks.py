"""The tasks of a plan, as Ray's: asked for all at once, waited for, and called off together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import Fp8ConvertError, ResumableError, UsageError, shown
from ..origin import Scratch
from ..plan import Plan
from ..settings import Progress, Settings
from ..version import VERSION
from . import working
from .totals import Count, Tally
from .working import work_on

CPUS = 1  # of a task: its checksum takes one, and what else there is to do fits beside it
RETRIES = 3  # of a task whose worker or node is lost
TICK_S = 0.5
STOPPING_S = 2.0
NOWHERE_S = 60.0  # that a run goes on for while no node could take a task


class Tasks:
    """All tasks of ``plan``, each in a worker with the settings ``how``.

    ``scratch`` is as it was given: each worker has its own there.
    """

    def __init__(
        self, ray: ModuleType, plan: Plan, how: Settings, scratch: Scratch,
        tell: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self._ray: Any = ray
        self._plan, self._how, self._tell = plan, how, tell
        self._sent = {n: getattr(how, n) for n in ("workers", "memory", "io")}
        self._sent["scratch"] = scratch
        self._fits = time.monotonic()  # when there was room last
        if not self._room():
            raise UsageError(
                f"no node of the Ray cluster has {CPUS} CPU and {how.peak_memory >> 20} MiB of "
                "memory for a task: start one that has, or give a smaller --memory"
            )

    def run(self, plan: working.Plan, run: str) -> None:
        """Until all are done; what refuses one ends all."""
        tally = Tally(
            self._ray, f"fp8convert {run}", [t.size for t in self._plan.tasks], self._tell
        )
        waiting = self._asked(plan, run, tally.name)
        try:
            while waiting:
                done, _ = self._ray.wait([*waiting], timeout=TICK_S)
                for ref in done:
                    number = waiting.pop(ref)
                    tally.done(number, self._outcome(ref, number))
                tally.tell()
                if not done:
                    self._check_room()
        except BaseException as e:
            self._call_off([*waiting])
            if isinstance(e, KeyboardInterrupt):
                raise ResumableError("interrupted") from e
            raise

    def _asked(self, plan: working.Plan, run: str, totals: str) -> dict[Any, int]:
        """The largest first, or the last to be begun would keep all waiting.

        Over all nodes, or Ray would fill some halfway, and leave the disks of others idle.
        """
        task = self._ray.remote(
            num_cpus=CPUS,
            memory=self._how.peak_memory,
            scheduling_strategy="SPREAD",
            max_retries=RETRIES,
            retry_exceptions=False,
        )(work_on)
        sent = plan if isinstance(plan, str) else self._ray.put(plan)
        sizes = [t.size for t in self._plan.tasks]
        order = sorted(range(len(sizes)), key=lambda n: -sizes[n])
        return {task.remote(sent, run, n, self._sent, totals): n for n in order}

    def _outcome(self, ref: Any, number: int) -> Count:
        file = shown(self._plan.tasks[number].file)
        try:
            found: working.Outcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as e:  # a bug of ours; or it is not there
            raise Fp8ConvertError(
                f"{file}: the Ray worker failed: {e}\nIs fp8convert {VERSION} installed on all "
                "nodes, in the Python that Ray runs there?"
            ) from e
        except self._ray.exceptions.RayError as e:
            raise ResumableError(
                f"{file}: Ray lost its worker, and those of {RETRIES} more tries: {e}"
            ) from e
        found.check()
        return found.moved

    def _call_off(self, refs: list[Any]) -> None:
        """Whatever they were writing is swept by the next run, as after a kill."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            for ref in refs:
                self._ray.cancel(ref, force=True)
            if refs:
                self._ray.wait(refs, num_returns=len(refs), timeout=STOPPING_S)

    def _check_room(self) -> None:
        if self._room():
            self._fits = time.monotonic()
        elif time.monotonic() - self._fits > NOWHERE_S:
            raise ResumableError("no node is left that could take a task")

    def _room(self) -> bool:
        """Whether a node could take a task, if it did nothing else."""
        found = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        memory = self._how.peak_memory
        return any(r.get("CPU", 0) >= CPUS and r.get("memory", 0) >= memory for r in found)
