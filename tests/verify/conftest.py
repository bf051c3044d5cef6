"""Outputs that all tests of ``verify`` share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .made import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """In memory where there is room: some disks take half a second to sync a file."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    root = Path(tempfile.mkdtemp(prefix="fp8convert-test-", dir=memory if roomy else None))
    yield Made(root)
    shutil.rmtree(root)
