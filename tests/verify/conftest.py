"""Outputs that the tests of verify share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..sharded.runs import Runs, runs
from .made import Made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Conversions, each done once; read only."""
    with runs(tmp_path_factory.mktemp("verify")) as found:
        yield found


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Samples and what is made of them, by name; also copies, to be damaged."""
    with runs(tmp_path_factory.mktemp("right")) as found:
        yield Made(found.root)
