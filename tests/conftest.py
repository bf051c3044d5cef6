"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert import taskrun
from fp8convert.convert import prepare, to_bf16
from fp8convert.options import ToBf16
from fp8convert.plan import Plan
from fp8convert.samples import make_sample

from .mini import CUT, make_mini

# The models of tests are tiny: torch's threads would wait for each other longer than they work.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with Ctrl-C ignored, and so would be what tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is (
    threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3 checkpoint in FP8. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("samples") / "tiny-fp8"
    make_sample(str(folder), size="tiny", scheme="fp8")
    return folder


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in BF16. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("samples") / "tiny-bf16"
    make_sample(str(folder), size="tiny", scheme="bf16")
    return folder


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: some disks take half a second to sync a file."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 256 << 20:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="fp8convert-test-", dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 100 kB. Read only: tests share it."""
    return make_mini(tmp_path_factory.mktemp("samples") / "mini")


@pytest.fixture(scope="session")
def flat(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of mini, as three files; nothing is written."""
    return prepare(mini, tmp_path_factory.mktemp("plan") / "dst", ToBf16(max_shard_size=CUT)).plan


@pytest.fixture
def finished(mini: Path, fast_path: Path) -> Path:
    """A target that was made of mini."""
    to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
    return fast_path / "dst"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that tasks were run for."""
    found: list[str] = []
    real = taskrun.TaskRun.__init__

    def init(self: Any, task: Any, *args: Any) -> None:
        found.append(task.file)
        real(self, task, *args)

    monkeypatch.setattr(taskrun.TaskRun, "__init__", init)
    return found
