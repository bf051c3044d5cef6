"""Copies of checkpoints and rank sets, spoiled tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...quantized.oracle import Part
from ...quantized.readers import Stored, shard
from ...sharded.model import write_shard
from .victims import INDEX


class Spoiled:
    """A folder of files that may be changed: a checkpoint, or the ranks of one.

    Tensors are called as the whole checkpoint does. Of ranks, the first that has it is changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = folder / "tp.json"
        entries = json.loads(table.read_text())["tensors"] if table.exists() else {}
        self._inside = {name: e.get("name", name) for name, e in entries.items()}

    def inside(self, name: str) -> str:
        """What a file calls it."""
        return self._inside.get(name, name)

    def files(self) -> list[Path]:
        """All shards."""
        return sorted(self.folder.rglob("*.safetensors"))

    def file(self, name: str) -> Path:
        """The first shard with the tensor."""
        return next(f for f in self.files() if self.inside(name) in shard(f))

    def part(self, name: str) -> Part:
        """The stored tensor."""
        return shard(self.file(name))[self.inside(name)]

    def change(self, name: str, edit: Callable[[Part], Part]) -> None:
        """Another tensor of that name."""
        self._edit(self.file(name), {self.inside(name): edit(self.part(name))})

    def drop(self, name: str) -> None:
        """Without it."""
        self._edit(self.file(name), {self.inside(name): None})

    def add(self, name: str, part: Part, file: Path | None = None) -> None:
        """One more, in the first shard if not elsewhere."""
        self._edit(file or self.files()[0], {name: part})

    def move(self, name: str, to: Path) -> None:
        """Into another shard of the same index."""
        part = self.part(name)
        self.drop(name)
        self.add(name, part, to)

    def configure(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Every config.json, as each rank has one."""
        for file in self.folder.rglob("config.json"):
            config = json.loads(file.read_text())
            edit(config)
            file.write_text(json.dumps(config))

    def _edit(self, file: Path, changes: dict[str, Part | None]) -> None:
        every: dict[str, Part | None] = {**shard(file), **changes}
        tensors: Stored = {n: t for n, t in every.items() if t is not None}
        write_shard(file, tensors)
        index = file.parent / INDEX
        if index.exists():
            said = json.loads(index.read_text())
            said["weight_map"] = {n: f for n, f in said["weight_map"].items() if n not in changes}
            said["weight_map"] |= {n: file.name for n, t in changes.items() if t is not None}
            index.write_text(json.dumps(said))


def numbers(part: Part, dtype: Any, value: float, at: int = 0) -> Part:
    """With element number ``at`` changed; ``dtype`` is that of the array."""
    tag, shape, data = part
    array = np.frombuffer(data, dtype).copy()
    array[at] = value
    return tag, shape, array.tobytes()
