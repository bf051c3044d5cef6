"""What is refused: the message, and that nothing is left of the attempt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fp8convert

from ..quantized.readers import Stored
from .model import Source
from .runs import Runs
from .sources import source


def refused(run: Callable[[Path], object], target: Path, code: int = 1) -> str:
    """The message; nothing is left."""
    with pytest.raises(fp8convert.Fp8ConvertError) as caught:
        run(target)
    assert not target.exists()
    assert caught.value.exit_code == code
    return str(caught.value)


def shard(runs: Runs, of: str | Source, tp: Any = 2, code: int = 1, **options: Any) -> str:
    """The message of ``shard_for_tp``."""
    src = runs.source(of)
    target = runs.new()
    message = refused(lambda dst: fp8convert.shard_for_tp(src, dst, tp=tp, **options), target, code)
    assert not list(target.parent.iterdir())
    return message


def changed(id: str, name: str, tensors: Stored | None = None, **fields: Any) -> Source:
    """A source with other fields in its config (None: without), or more tensors."""
    found = source(id).changed(name, **fields)
    return replace(found, tensors=found.tensors | (tensors or {}))


def copied(runs: Runs, folder: Path) -> Path:
    """A rank set that may be spoiled."""
    target = runs.new()
    shutil.copytree(folder, target)
    return target


def unshard(runs: Runs, folder: Path, **options: Any) -> str:
    """The message of ``unshard``."""
    target = runs.new()
    message = refused(lambda dst: fp8convert.unshard(folder, dst, **options), target)
    assert not [p for p in target.parent.iterdir() if not p.name.startswith(".")]
    return message
