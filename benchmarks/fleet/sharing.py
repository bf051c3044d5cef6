"""How bandwidth is shared: every flow gets as much as any other until something it needs is full.

Max-min fairness by progressive filling: the rates of all flows rise together; where a resource is
full, those that use it stay as they are and the others go on rising. So no capacity is left unused
that some flow could use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Resource = tuple[str, int]  # what kind, and whose
FULL = 1e-9  # of a capacity: less is rounding


@dataclass(eq=False)
class Flow:
    """Something that goes on: ``left`` of it, at ``rate`` a second, held up by a kind of resource.

    ``uses``: how much of each resource a unit of it takes.
    """

    left: float
    uses: Mapping[Resource, float]
    rate: float = 0.0
    held: str = ""

    @property
    def seconds(self) -> float:
        """Until it ends at this rate."""
        return self.left / self.rate if self.left else 0.0


def share(flows: Sequence[Flow], capacity: Mapping[Resource, float]) -> None:
    """Set ``rate`` and ``held`` of every flow. Resources without a capacity have no limit."""
    rising, free, level = list(flows), dict(capacity), 0.0
    while rising:
        load = _load(rising, free)
        rise = min((free[r] / used for r, used in load.items()), default=math.inf)
        level += rise
        for resource, used in load.items():
            free[resource] -= rise * used
        full = {r for r in load if free[r] <= FULL * capacity[r]}
        for flow in rising:
            flow.rate = level
            flow.held = next((kind for kind, whose in flow.uses if (kind, whose) in full), "")
        rising = [f for f in rising if not f.held] if full else []


def _load(flows: Iterable[Flow], limited: Mapping[Resource, float]) -> dict[Resource, float]:
    """What a unit more of every flow takes of each resource that is limited."""
    load: dict[Resource, float] = {}
    for flow in flows:
        for resource, amount in flow.uses.items():
            if amount and resource in limited:
                load[resource] = load.get(resource, 0.0) + amount
    return load
