"""Fixtures of the tests of many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ..faults.lab import Lab, lab
from ..faults.together import Stage, stage
from .fleet import Fleet


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    """Works, and what they end with."""
    with lab() as found:
        yield found


@pytest.fixture(scope="module")
def machines(made: Lab) -> Iterator[Stage]:
    """Forkers whose children find the kernels of all works compiled."""
    with stage(made, few=False) as found:
        yield found


@pytest.fixture
def fleet(made: Lab) -> Iterator[Callable[..., Fleet]]:
    """Makes plans that are begun; of to-bf16, if no other work is named."""
    found: list[Fleet] = []

    def begin(name: str = "to-bf16") -> Fleet:
        found.append(Fleet(made, made.by_name[name]).plan())
        return found[-1]

    yield begin
    for one in found:
        if one.target.parent.exists():
            one.remove()
