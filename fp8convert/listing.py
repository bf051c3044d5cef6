"""Which safetensors files a folder of weights has, and whether its index is right about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .codecs.base import Stored
from .errors import FormatError, listed, shown
from .folder import check_plain_name
from .layouts import deepseek
from .layouts.hf import INDEX, SINGLE
from .origin import Origin, Shard
from .shards import as_object, read_json
from .strictjson import brief

UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NUMBERED = re.compile(r"(?P<stem>.+)-(?P<i>[0-9]{5,6})-of-(?P<n>[0-9]{5,6})\.safetensors")


class Listing(NamedTuple):
    """The shards of a checkpoint or of one rank, in order, and its index if there is one.

    ``home`` is its folder, such as ``rank0/``, or none; it is part of the names in ``files``, not
    of those in ``weight_map``. ``unused`` are shards there that are not listed.
    """

    home: str
    files: list[str]
    weight_map: dict[str, str] | None
    metadata: dict[str, Any]
    unused: list[str]

    @classmethod
    def of(cls, folder: Origin, home: str = "") -> Listing:
        """Of ``folder``, or of its folder ``home``; FormatError names what is wrong."""
        names = folder.names(home.rstrip("/"))
        indexed = folder.has(home + INDEX)
        weight_map, metadata = _read_index(folder, home) if indexed else (None, {})
        files = _shard_files(names, weight_map, folder, home)
        used = set(files)
        unused = [home + n for n in names if n.endswith(".safetensors") and n not in used]
        return cls(home, [home + file for file in files], weight_map, metadata, unused)

    def check(self, tensors: Mapping[str, Stored], shards: Sequence[Shard]) -> list[str]:
        """FormatError unless the index has every tensor where it is; warnings about the rest."""
        warnings = unused(self.unused)
        if self.weight_map is None:
            return warnings
        self._check_places(self.weight_map, tensors, shards)
        return warnings + self._total_size(tensors)

    def _check_places(
        self, weight_map: dict[str, str], tensors: Mapping[str, Stored], shards: Sequence[Shard]
    ) -> None:
        index = self.home + INDEX
        if absent := [n for n in weight_map if n not in tensors]:
            file = self.home + weight_map[absent[0]]
            raise FormatError(
                f"{index} puts {listed(absent)} in {shown(file)}, which does not hold it"
            )
        for name, t in tensors.items():
            said = weight_map.get(name)
            found = shards[t.shard].name
            if said is None or self.home + said != found:
                raise FormatError(
                    f"tensor {shown(name)} is in {shown(found)}, but {index} "
                    + (f"says {shown(said)}" if said is not None else "does not list it")
                )

    def _total_size(self, tensors: Mapping[str, Stored]) -> list[str]:
        actual = sum(t.end - t.begin for t in tensors.values())
        said = self.metadata.get("total_size")
        if said == actual:
            return []
        found = f"is {brief(said)}" if "total_size" in self.metadata else "is missing"
        return [
            f"{self.home}{INDEX}: metadata.total_size {found}, the tensors hold {actual:,} bytes"
        ]


def unused(names: list[str]) -> list[str]:
    """The warning about shards that are not read, if there are any."""
    return [f"{listed(names)} not part of the checkpoint: not converted"] if names else []


def _read_index(folder: Origin, home: str) -> tuple[dict[str, str], dict[str, Any]]:
    where = home + INDEX
    index = read_json(folder, where, "index")
    weight_map = as_object(index.get("weight_map"), f"{where}: weight_map")
    metadata = as_object(index.get("metadata", {}), f"{where}: metadata")
    checked: set[str] = set()
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(
                f"{where}: weight_map of {shown(name)} is {brief(file)}, expected a file name"
            )
        if file not in checked:
            check_plain_name(file, f"{where}: weight_map of {shown(name)}")
            checked.add(file)
    return weight_map, metadata


def _shard_files(
    names: list[str], weight_map: dict[str, str] | None, folder: Origin, home: str
) -> list[str]:
    """The shards, in order; refuses what would have to be unpickled or guessed.

    ``names`` are all there are in ``home``, the folder itself or one in it.
    """
    if weight_map is not None:
        return _indexed(names, sorted(set(weight_map.values())), home + INDEX)
    if SINGLE in names:
        return [SINGLE]
    found = [n for n in names if n.endswith(".safetensors")]
    if not found:
        where = shown(f"{folder.place}/{home}".rstrip("/"))
        raise FormatError(f"no {INDEX} and no {SINGLE} in {where}{unpickled(names)}")
    return deepseek.rank_files(found) or _numbered(found)


def unpickled(names: list[str]) -> str:
    """What to say of those that are not read; nothing if there are none."""
    unsafe = listed(n for n in names if n.lower().endswith(UNSAFE))
    return f"; {unsafe} would have to be unpickled, which is never done" if unsafe else ""


def _indexed(names: list[str], files: list[str], index: str) -> list[str]:
    """The ``files`` that an index names, in order; all ranks, where they are of ranks."""
    if not files:
        raise FormatError(f"{index}: weight_map is empty")
    for file in files:
        if not file.endswith(".safetensors"):
            raise FormatError(f"{index} names {shown(file)}, expected .safetensors files only")
    if SINGLE in names and SINGLE not in files:
        raise FormatError(
            f"{index} and a {SINGLE} that it does not name: two checkpoints in one folder"
        )
    ranks = deepseek.rank_files(files, f"{index} names ")
    if others := set(files) - set(ranks) if ranks else None:
        raise FormatError(f"{index} names {listed(sorted(others))} beside the files of ranks")
    return ranks or files


def _numbered(found: list[str]) -> list[str]:
    matches = [NUMBERED.fullmatch(n) for n in found]
    sets = {(m["stem"], m["n"]) for m in matches if m}
    if None in matches or len(sets) != 1:
        raise FormatError(f"no {INDEX}, and {listed(found)} are not one numbered set of shards")
    count = int(next(n for _, n in sets))
    numbers = {int(m["i"]) for m in matches if m}
    missing = count - sum(1 <= i <= count for i in numbers)
    if missing:
        first = next(i for i in range(1, count + 1) if i not in numbers)
        raise FormatError(
            f"no {INDEX}, and of {count:,} numbered shards {missing:,} are missing "
            f"(first: number {first:,})"
        )
    if len(found) != count:
        raise FormatError(
            f"no {INDEX}, and {len(found):,} shards, {listed(found)}, claim to be {count:,}"
        )
    return found
