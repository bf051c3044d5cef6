"""However many shards a task reads, few are open at a time, and each is checked before it goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fp8convert
from fp8convert import sources
from fp8convert.catalogue import Catalogue, open_catalogue
from fp8convert.errors import FormatError
from fp8convert.origin import Direct
from fp8convert.sources import Sources

from .checkpoints import pair, write
from .oracle import dequantize_all, differing, load


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Twelve shards of one weight each."""
    shards = [pair(f"w{n:02}.weight", 130, 70, n) for n in range(12)]
    return open_catalogue(write(tmp_path / "src", shards))


def test_many_shards_into_one_file_within_few_descriptors(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LIMIT", 3)
    most = 0
    opened = Sources._opened

    def spy(self: Sources, shard: int) -> object:
        nonlocal most
        file = opened(self, shard)
        most = max(most, len(self._open) + 1)
        return file

    monkeypatch.setattr(Sources, "_opened", spy)
    source = catalogue.folder.root
    fp8convert.to_bf16(source, tmp_path / "dst", max_shard_size=10**9, workers=1)
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []
    assert most == 3


def test_a_shard_in_use_is_not_closed(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LIMIT", 1)
    pool = Sources(Direct(catalogue.folder, catalogue.shards), "auto")
    with pool.borrowed(0) as first, pool.borrowed(1) as second, pool.borrowed(2):
        assert first.fd >= 0
        assert second.fd >= 0
    with pool.borrowed(3):
        assert first.fd == second.fd == -1
    pool.close()


def test_a_change_is_found_at_the_latest_when_a_shard_is_closed(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LIMIT", 1)
    pool = Sources(Direct(catalogue.folder, catalogue.shards), "auto")
    with pool.borrowed(0):
        pass
    os.utime(catalogue.folder.root / catalogue.shards[0].name, (1, 1))
    with pytest.raises(FormatError, match="changed since it was planned"):
        pool.check({0})
    with pytest.raises(FormatError, match="changed since it was planned"), pool.borrowed(1):
        pass
    pool.close()


def test_closing_closes_everything(catalogue: Catalogue) -> None:
    pool = Sources(Direct(catalogue.folder, catalogue.shards), "auto")
    with pool.borrowed(0) as file:
        pass
    with pool.borrowed(0) as again:
        assert again is file
    pool.close()
    assert file.fd == -1
