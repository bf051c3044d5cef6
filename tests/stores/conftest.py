"""The stores of tests, and the clients of this process pointed at them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import fsspec
import pytest

from ..crash import Forker
from . import gcs
from .emulator import ENVIRONMENT, Emulator, Place

SCHEMES = ("s3", "gs", "memory")


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


@pytest.fixture(scope="module")
def google() -> Iterator[gcs.Google]:
    """The same of Google's."""
    clients = fsspec.get_filesystem_class("gs")
    with pytest.MonkeyPatch.context() as patch:
        made = gcs.Google()
        for name, value in {**gcs.ENVIRONMENT, "STORAGE_EMULATOR_HOST": made.url}.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        clients.clear_instance_cache()
        yield made
        clients.clear_instance_cache()
        made.stop()


@pytest.fixture
def cloud(google: gcs.Google) -> gcs.Bucket:
    """A bucket of Google's, of this test alone; what was asked before is forgotten."""
    google.requests.clear()
    return gcs.Bucket(google)


@pytest.fixture
def hasty(google: gcs.Google, monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs tries again at once, and not after seconds; as often as ever."""
    import gcsfs.retry

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=sleep))


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
def place(s3: Emulator, google: gcs.Google, request: pytest.FixtureRequest) -> Place:
    """A bucket, or a place in memory, of this test alone."""
    made = gcs.Bucket(google) if request.param == "gs" else Place(request.param)
    s3.requests.clear()
    return made


@pytest.fixture(scope="module")
def forker(s3: Emulator) -> Iterator[Forker]:
    """Runs in processes of their own, which use the emulator."""
    made = Forker(modules=["s3fs"])
    yield made
    made.close()
