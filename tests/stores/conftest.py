"""The fixtures ``s3``, ``place`` and ``runs``, and s3fs of this process pointed at the emulator."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from ..crash import Forker
from .emulator import ENVIRONMENT, Emulator, Place

SCHEMES = ("s3", "memory")


@pytest.fixture(scope="module")
def s3() -> Iterator[Emulator]:
    """The emulator of a module; whatever is run from here finds it."""
    clients = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        made = Emulator()
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": made.url}.items():
            patch.setenv(name, value)
        clients.clear_instance_cache()
        yield made
        clients.clear_instance_cache()
        made.stop()


@pytest.fixture
def bucket(s3: Emulator) -> Place:
    """A bucket of this test alone; the emulator forgets what it was asked before."""
    made = Place("s3")
    s3.requests.clear()
    return made


@pytest.fixture
def memory() -> Place:
    """A place in memory of this test alone: for what is the same in every store, and quick."""
    return Place("memory")


@pytest.fixture(params=SCHEMES)
def place(s3: Emulator, request: pytest.FixtureRequest) -> Place:
    """A bucket, or a place in memory, of this test alone."""
    made = Place(request.param)
    s3.requests.clear()
    return made


@pytest.fixture(scope="module")
def forker(s3: Emulator) -> Iterator[Forker]:
    """Runs in processes of their own, which use the emulator."""
    made = Forker(modules=["s3fs"])
    yield made
    made.close()
