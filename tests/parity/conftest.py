"""Checkpoints that the tests share; they are read only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fp8convert

from ..sharded import tiny
from .commands import Run, runner


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dense layers of random weights, in float32."""
    folder = tmp_path_factory.mktemp("parity") / "llama"
    tiny.write("llama", folder)
    return folder


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file gets its final name any more."""

    def full(src: object, dst: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)


@pytest.fixture(scope="session")
def llama_ranks(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, cut for two ranks."""
    folder = tmp_path_factory.mktemp("parity") / "llama-tp2"
    fp8convert.shard_for_tp(llama, folder, tp=2, layout="hf")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command line."""
    yield from runner(capsys, monkeypatch)
