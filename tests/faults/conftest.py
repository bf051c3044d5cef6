"""Fixtures of the fault campaign."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .lab import Lab, lab
from .scenes import Scenes


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    """A lab, with the shim if there is one; what the tests of a module leave in it goes with it."""
    with lab() as found:
        yield found


@pytest.fixture(scope="module")
def scenes(made: Lab) -> Scenes:
    """What a run that was killed, or is done, has left."""
    return Scenes(made)
