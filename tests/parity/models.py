"""Checkpoints to compare: tiny models, and copies of them with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[torch.Tensor], torch.Tensor]


def copy(
    source: Path,
    target: Path,
    changes: Mapping[str, Change | None] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """``source`` with other tensors (None: without them) and fields of config.json."""
    shutil.copytree(source, target)
    for shard in target.glob("*.safetensors"):
        found = load_file(shard)
        if not found.keys() & (changes or {}).keys():
            continue
        for name, change in (changes or {}).items():
            if name in found:
                before = found.pop(name)
                if change is not None:
                    found[name] = change(before).contiguous()
        save_file(found, shard, metadata={"format": "pt"})
    _forget(target, [name for name, change in (changes or {}).items() if change is None])
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(config or {})))
    return target


def _forget(folder: Path, names: list[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if not names or not index.exists():
        return
    said = json.loads(index.read_text())
    for name in names:
        said["weight_map"].pop(name)
    said["metadata"].pop("total_size", None)
    index.write_text(json.dumps(said))


def times(factor: float) -> Change:
    """Every element."""
    return lambda w: w * factor


def first_block(factor: float) -> Change:
    """The first 128 rows and columns."""

    def change(w: torch.Tensor) -> torch.Tensor:
        w = w.clone()
        w[:128, :128] *= factor
        return w

    return change


def nan(w: torch.Tensor) -> torch.Tensor:
    """One element of it."""
    w = w.clone()
    w.view(-1)[0] = float("nan")
    return w
