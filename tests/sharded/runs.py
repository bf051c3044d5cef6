"""Sharding every source once for each set of options; outputs are shared and read only."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fp8convert

from .model import Source
from .sources import source


class Runs:
    """Folders below ``root``, made when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, Path] = {}

    def source(self, of: str | Source) -> Path:
        """The checkpoint of one of :func:`.sources.source`, or of a source at hand."""
        made = source(of) if isinstance(of, str) else of
        folder = self.root / "sources" / made.id
        return folder if folder.exists() else made.write(folder)

    def new(self) -> Path:
        """A path that is not there yet."""
        return Path(tempfile.mkdtemp(dir=self.root)) / "out"

    def shard(self, of: str | Source, tp: int, **options: Any) -> Path:
        """``shard_for_tp``."""
        id = of if isinstance(of, str) else of.id
        return self._once(
            f"shard {id} {tp}", fp8convert.shard_for_tp, self.source(of), options, tp=tp
        )

    def shard_folder(self, folder: Path, tp: int, **options: Any) -> Path:
        """``shard_for_tp`` of what another run wrote."""
        return self._once(f"shard {folder}", fp8convert.shard_for_tp, folder, options, tp=tp)

    def unshard(self, folder: Path, **options: Any) -> Path:
        """``unshard``, or to another number of ranks with ``tp``."""
        return self._once(f"unshard {folder}", fp8convert.unshard, folder, options)

    def to_bf16(self, folder: Path) -> Path:
        """``to_bf16``."""
        return self._once(f"bf16 {folder}", fp8convert.to_bf16, folder, {})

    def quantize(self, folder: Path, scheme: str, **options: Any) -> Path:
        """``quantize``."""
        return self._once(f"quantize {folder}", fp8convert.quantize, folder, options, scheme=scheme)

    def _once(self, key: str, run: Any, src: Path, options: dict[str, Any], **more: Any) -> Path:
        key += f" {sorted(more.items())} {sorted(options.items())}"
        if key not in self._done:
            folder = self.new()
            run(src, folder, workers=2, **more, **options)
            self._done[key] = folder
        return self._done[key]


@contextlib.contextmanager
def runs(fallback: Path) -> Iterator[Runs]:
    """In memory where there is room: some disks take half a second to sync a file."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    root = Path(tempfile.mkdtemp(prefix="fp8convert-test-", dir=memory)) if roomy else fallback
    try:
        yield Runs(root)
    finally:
        if roomy:
            shutil.rmtree(root)
