"""Checkpoints of other hands, and changes to files that a converter should never make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


def copied(folder: Path, to: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(folder, to))


def file_of(folder: Path, name: str) -> Path:
    """The file that has a tensor; the first in order of names."""
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            if name in f.keys():  # noqa: SIM118 - no mapping
                return file
    raise AssertionError(name)


def rewritten(file: Path, change: Callable[[Tensors], None]) -> None:
    """One file with other tensors, and the index beside it, if there is one, to match."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    index = file.with_name(INDEX)
    if index.exists():
        found = json.loads(index.read_text())
        kept = {n: f for n, f in found["weight_map"].items() if f != file.name}
        found["weight_map"] = kept | dict.fromkeys(tensors, file.name)
        index.write_text(json.dumps(found))


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """One tensor replaced by what ``change`` makes of it."""

    def replace(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    rewritten(file_of(folder, name), replace)


def flipped(folder: Path, name: str, at: tuple[int, ...], bit: int) -> None:
    """One bit of one element, whatever the dtype."""

    def flip(t: torch.Tensor) -> torch.Tensor:
        raw = t.contiguous().view(torch.uint8).numpy().reshape(*t.shape, -1)
        raw[(*at, bit // 8)] ^= np.uint8(1 << bit % 8)
        return t

    changed(folder, name, flip)


def swapped(folder: Path, one: str, other: str) -> None:
    """What is called ``one`` is called ``other``, and the other way round."""
    found = {n: load_file(file_of(folder, n))[n] for n in (one, other)}
    changed(folder, one, lambda _: found[other])
    changed(folder, other, lambda _: found[one])


def loaded(folder: Path) -> Tensors:
    """All tensors."""
    return {
        n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()
    }


def single(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    """One file without an index, as other tools write small models."""
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
