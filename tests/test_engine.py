"""Tiles of several files in turn: the same bytes, each file in order, no more begun than said."""

from __future__ import annotations

from pathlib import Path

import pytest

import fp8convert
from fp8convert.convert import prepare
from fp8convert.engine import Engine
from fp8convert.jobs import Jobs
from fp8convert.plan import MOST_FILES, NO_NEEDS, Needs
from fp8convert.publish import Staging
from fp8convert.settings import Settings

from .oracle import differing, load


@pytest.mark.parametrize(("files", "workers"), [(1, 8), (2, 2), (3, 3), (4, 8)])
def test_any_number_of_files_at_a_time_gives_the_same_bytes(
    files: int, workers: int, tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8convert.to_bf16(tiny_fp8, tmp_path / "one", workers=1)
    monkeypatch.setattr(Settings, "files", files)
    fp8convert.to_bf16(tiny_fp8, tmp_path / "several", workers=workers)
    assert differing(load(tmp_path / "several"), load(tmp_path / "one")) == []


@pytest.mark.parametrize("files", [1, 2, 3])
def test_files_are_begun_as_others_end_and_each_is_in_order(
    files: int, tiny_fp8: Path, tmp_path: Path
) -> None:
    job = prepare(tiny_fp8, tmp_path / "dst")
    staging = Staging(job.target, job.plan)
    staging.out.mkdir(parents=True)
    engine = Engine(job.catalogue, staging, Settings())
    at: dict[str, int] = {}
    order: list[str] = []
    for ((run, tile),) in Jobs(job.plan.tasks, engine._begin, files, 1 << 18, engine.feed):
        assert tile.begin == at.get(run.task.file, 0)
        at[run.task.file] = tile.end
        order.append(run.task.file)
        unfinished = [t for t in job.plan.tasks if t.file in at and at[t.file] < t.size]
        assert len(unfinished) <= files
    assert at == {t.file: t.size for t in job.plan.tasks}
    if files > 1:
        assert order[0] != order[1]
    for run in engine._running:
        run.abandon()
    engine.sources.close()


def test_no_more_files_than_threads_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert Settings().files == MOST_FILES
    assert Settings().threads == 32
    assert Settings(workers=1).files == 1
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert Settings().files == 1


def test_threads_that_encode_are_two_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute; those that only decode wait for the disk, so there are more of them."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert Settings().threads == Settings().fitted(NO_NEEDS).threads == 16
    encoding = Needs(scratch=1 << 19)
    assert Settings().fitted(encoding).threads == 4
    assert Settings(workers=7).fitted(encoding).threads == 7
