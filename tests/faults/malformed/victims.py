"""Copies of sources to be spoiled, and what the tables of bad files say of each.

A copy is made of hard links, so whatever spoils a file writes it anew: see :func:`put`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from ...quantized import readers
from ...quantized.readers import Stored
from ...sharded import model
from ..lab import Files, Work

INDEX, CONFIG, TP = "model.safetensors.index.json", "config.json", "tp.json"

# The works whose sources are spoiled: every command, and every form a source has.
WORKS = ("to-bf16", "quantize", "shard-hf", "unshard-deepseek", "unshard-hf")
RANK_FILES, RANK_FOLDERS = "unshard-deepseek", "unshard-hf"  # model{i}-mp{N}; rank{i}/
INDEXED = tuple(work for work in WORKS if work != RANK_FILES)  # whose sources have an index

Head = dict[str, Any]


class Entry(NamedTuple):
    """One tensor of a header; offsets are from the start of the data."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


class Victim:
    """A copy of a work's source, at ``base/src``. ``shard`` and ``index`` are what is spoiled.

    The index of rank files is ``tp.json``, which says of every tensor where it lies.
    """

    def __init__(self, work: Work, base: Path) -> None:
        self.work, self.base, self.root = work, base, base / "src"
        _link(work.source, self.root)
        folders = (self.root / "rank0").is_dir()
        self.ranks = (self.root / TP).exists()
        self.home = "rank0/" if folders else ""  # of config and companions
        self.at = "rank1/" if folders else ""  # of what is spoiled
        self.index = TP if self.ranks and not folders else f"{self.at}{INDEX}"
        one = "model1-mp2" if self.index == TP else "model-00002-of-000003"
        self.shard = f"{self.at}{one}.safetensors"
        self.a, self.b = in_order(parsed(self.path.read_bytes())[0])[:2]
        self.listed = next(iter(self.table(self.read_index())))

    @property
    def path(self) -> Path:
        """The shard to be spoiled."""
        return self.root / self.shard

    @property
    def shards(self) -> list[Path]:
        """All of them."""
        return sorted(self.root.rglob("*.safetensors"))

    @property
    def of_rank(self) -> list[Path]:
        """Those of the rank, or the checkpoint, that is spoiled."""
        return sorted(self.path.parent.glob("*.safetensors"))

    @property
    def field(self) -> str:
        """Of the index: what has a value for each tensor."""
        return "tensors" if self.index == TP else "weight_map"

    def read_index(self) -> dict[str, Any]:
        """The index, parsed."""
        found: dict[str, Any] = json.loads((self.root / self.index).read_text())
        return found

    def table(self, index: dict[str, Any]) -> dict[str, Any]:
        """Its part with a value for each tensor."""
        found: dict[str, Any] = index[self.field]
        return found

    def argv(self, target: Path, *more: object) -> list[object]:
        """The command line."""
        return self.work.argv(target, "--workers", 1, *more, source=self.root)


Spoil = Callable[[Victim], object]


class Facts(NamedTuple):
    """Of a victim that has been spoiled, for the message that is expected.

    ``a`` and ``b`` are the first tensors in the shard, as they were; ``start`` is where its data
    begins now, if its header is as long as it says, and ``size`` its length.
    """

    field: str
    a: Entry
    b: Entry
    listed: str
    start: int
    size: int

    @classmethod
    def of(cls, v: Victim) -> Facts:
        """What can be said of ``v``."""
        start = size = 0
        if v.path.is_file() and not v.path.is_symlink():
            with open(v.path, "rb") as f:
                start = 8 + int.from_bytes(f.read(8), "little")
            size = v.path.stat().st_size
        return cls(v.field, v.a, v.b, v.listed, start, size)


Says = Callable[[Facts], Sequence[str]]


class Case(NamedTuple):
    """One way to spoil a source, and what must be said of it.

    ``item`` is what it is an example of; ``named`` which file the message has to name: the shard,
    the index, or what it says. Where it is not for all works, ``why`` says so.
    """

    item: str
    name: str
    spoil: Spoil
    says: Says
    named: str = "shard"
    only: Collection[str] = WORKS
    why: str = ""


def _link(source: Path, to: Path) -> None:
    for path in source.rglob("*"):
        if not path.is_dir():
            place = to / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


def put(path: Path, data: bytes) -> None:
    """A new file of that name: the old one has other links."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def sparse(path: Path, begin: bytes, size: int) -> None:
    """A new file that begins so, and is long without taking space."""
    put(path, begin)
    os.truncate(path, size)


read_shard = readers.shard


def write_shard(path: Path, tensors: Stored) -> None:
    """A new shard of that name."""
    path.unlink(missing_ok=True)
    model.write_shard(path, tensors)


def parsed(file: bytes) -> tuple[Head, bytes]:
    """Header and data of a sound shard."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def in_order(head: Head) -> list[Entry]:
    """Its tensors, as their data lie."""
    found = [
        Entry(name, e["dtype"], e["shape"], *e["data_offsets"])
        for name, e in head.items()
        if name != "__metadata__"
    ]
    return sorted(found, key=lambda e: (e.begin, e.end))


def tensors(files: Files) -> dict[tuple[str, str], tuple[object, ...]]:
    """Every tensor of a target, as the safetensors library finds it; by where it is, and its name.

    Where it is, is its folder, or a rank's file: that of a shard otherwise depends on the order.
    """
    found: dict[tuple[str, str], tuple[object, ...]] = {}
    for path, data in files.items():
        if path.endswith(".safetensors"):
            place = path if "-mp" in path else path.rpartition("/")[0]
            for name, t in safetensors.deserialize(data):
                assert (place, name) not in found
                found[place, name] = (t["dtype"], tuple(t["shape"]), bytes(t["data"]))
    return found
