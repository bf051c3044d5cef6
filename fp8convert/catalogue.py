"""What a checkpoint folder holds, from headers, index and config alone: no tensor byte is read."""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from . import origins, ranksets
from .codecs.base import Stored
from .declared import SIDECARS, Declared, declared
from .errors import FormatError, listed, shown
from .folder import Folder
from .layouts import deepseek
from .layouts.hf import INDEX, SINGLE
from .listing import Listing, unpickled
from .origin import Origin, Shard
from .shards import merged, read_json, read_shards
from .strictjson import brief

CONFIG = "config.json"
NOT_JOINED = "the ranks have scales of their own across blocks, and cannot be put together"
RANK_FOLDER = re.compile(r"rank[0-9]{1,9}")


@dataclass(frozen=True)
class Catalogue:
    """All stored tensors of a checkpoint. ``warnings`` do not bar a conversion; errors raise.

    ``home`` is the folder, ``rank0/`` or none, where config and companions are. ``origins`` are
    the files that tensors were in before they were cut over ranks, where that is recorded.
    """

    folder: Origin
    shards: tuple[Shard, ...]
    tensors: dict[str, Stored]
    declared: Declared
    has_index: bool
    index_metadata: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())
    home: str = ""
    verbatim: bool = True  # whether ``config`` is what config.json there says
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """config.json; empty if rank files have none beside them."""
        return self.declared.config

    @cached_property
    def files(self) -> list[str]:
        """Names of shards, as they were before they were cut over ranks, where that is recorded."""
        return sorted(set(self.origins.values())) or self.shard_names

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {file: n for n, file in enumerate(self.files)} if self.origins else {}

    def place(self, stored: Stored) -> int:
        """The number, among ``files``, of the one that a tensor is in, or was."""
        return self._numbers[self.origins[stored.name]] if self.origins else stored.shard

    @property
    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Size and time, or what else tells a change, of every shard when its header was read."""
        return {s.name: s.stamp for s in self.shards}

    @property
    def shard_names(self) -> list[str]:
        """File names by shard number."""
        return [s.name for s in self.shards]


def open_catalogue(path: str | os.PathLike[str]) -> Catalogue:
    """Read every header of the checkpoint at ``path``, a folder or an address as
    :func:`.origins.at` has it; FormatError names what is wrong."""
    return catalogue_of(origins.at(path))


def catalogue_of(folder: Origin) -> Catalogue:
    """Read every header of a checkpoint; FormatError names what is wrong."""
    with uncollected():
        return _open_ranks(folder) if folder.has(ranksets.TP) else _open(folder)


def open_ranks(path: str | os.PathLike[str]) -> list[Catalogue] | None:
    """The rank set at ``path``, each rank's own files as they are; None if it is no rank set.

    ``tp.json`` says how many ranks there are, and is not used for anything else: nothing is put
    together. ``config`` is empty where rank files have none beside them. FormatError where ranks
    are missing, or there are too many.
    """
    folder = Folder.at(path)
    with uncollected():
        if folder.has(ranksets.TP):
            said = _record(folder)
            if said.layout == "hf":
                _rank_folders(folder, said.ranks)  # for its checks
                names = map(ranksets.rank_folder, range(said.ranks))
                return [_open(Folder(folder.root / name, folder.inside)) for name in names]
            files = [file for rank in _rank_files(folder, said.ranks) for file in rank.files]
        elif folder.has(INDEX) or folder.has(SINGLE):
            return None
        else:
            files = deepseek.rank_files([n for n in folder.names() if n.endswith(".safetensors")])
        said_of_all = declared(_config(folder, optional=True), _sidecars(folder), len(files))
        return [_rank(folder, file, said_of_all) for file in files] or None


def _rank(folder: Origin, file: str, said: Declared) -> Catalogue:
    shards, by_file = read_shards(folder, [file])
    return Catalogue(folder, tuple(shards), merged(by_file, [file]), said, False, {})


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: hundreds of thousands of small tuples, and no cycles among them,
    take twice as long with it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _open(folder: Origin) -> Catalogue:
    found = Listing.of(folder)
    files = found.files
    ranks = len(files) if deepseek.RANK_FILE.fullmatch(files[0]) else 0
    config = _config(folder, optional=ranks > 0)
    shards, by_file = read_shards(folder, files)
    if ranks and (own := [s.name for s in shards if s.apart]):
        raise FormatError(f"{listed(own)}: {NOT_JOINED}")
    tensors = deepseek.join(by_file, files) if ranks else merged(by_file, files)
    warnings = tuple(found.check(tensors, shards))
    said = declared(config, _sidecars(folder), ranks)
    indexed = found.weight_map is not None
    return Catalogue(folder, tuple(shards), tensors, said, indexed, found.metadata, warnings)


def _record(folder: Origin) -> ranksets.RankSet:
    """``tp.json`` of all ranks."""
    record = read_json(folder, ranksets.TP, "record of ranks")
    if ranksets.is_member(record):
        raise FormatError(
            f"{shown(folder.place)} has one rank only, number {brief(record['rank'])} of "
            f"{brief(record['ranks'])}: give the folder that holds all of them"
        )
    return ranksets.parse(record)


def _open_ranks(folder: Origin) -> Catalogue:
    """Ranks as one checkpoint, by what ``tp.json`` says of them."""
    said = _record(folder)
    home = f"{ranksets.rank_folder(0)}/" if said.layout == "hf" else ""
    by_rank = _rank_folders(folder, said.ranks) if home else _rank_files(folder, said.ranks)
    files = [file for rank in by_rank for file in rank.files]
    shards, by_file = read_shards(folder, files)
    found = iter(by_file)
    ranks = [merged([next(found) for _ in rank.files], files) for rank in by_rank]
    warnings = [w for of, rank in zip(by_rank, ranks, strict=True) for w in of.check(rank, shards)]
    if said.apart:
        raise FormatError(f"{listed(said.apart)}: {NOT_JOINED}")
    tensors = ranksets.joined(said, ranks, files)
    config = _config(folder, optional=False, home=home)
    origins = {t.name: t.file for t in said.tensors}
    return Catalogue(
        folder, tuple(shards), tensors, declared(config, _sidecars(folder, home)), True,
        said.metadata, tuple(warnings), home=home, origins=origins,
    )  # fmt: skip


def _rank_files(folder: Origin, ranks: int) -> list[Listing]:
    """A file for each rank; what is none of them is told of with the first."""
    names = folder.names()
    files = deepseek.rank_files([n for n in names if n.endswith(".safetensors")])
    if len(files) != ranks:
        raise FormatError(
            f"{len(files)} rank files, expected {ranks} as {ranksets.TP} says{unpickled(names)}"
        )
    rest = [n for n in names if n.endswith(".safetensors") and n not in set(files)]
    return [Listing("", [f], None, {}, [] if n else rest) for n, f in enumerate(files)]


def _rank_folders(folder: Origin, ranks: int) -> list[Listing]:
    """Files of each rank, in its folder."""
    wanted = [ranksets.rank_folder(rank) for rank in range(ranks)]
    there = {n for n in folder.names() if RANK_FOLDER.fullmatch(n)}
    if missing := [name for name in wanted if name not in there]:
        raise FormatError(f"folders of {ranks} ranks: {listed(missing)} missing")
    if more := there - set(wanted):
        raise FormatError(f"folders of {ranks} ranks: {listed(sorted(more))} too many")
    return [_rank_folder(folder, rank, ranks) for rank in range(ranks)]


def _rank_folder(folder: Origin, rank: int, ranks: int) -> Listing:
    name = ranksets.rank_folder(rank)
    member = f"{name}/{ranksets.TP}"
    ranksets.check_member(read_json(folder, member, "record of a rank"), member, rank, ranks)
    return Listing.of(folder, f"{name}/")


def _sidecars(folder: Origin, home: str = "") -> dict[str, dict[str, Any]]:
    """The files that may declare what config.json does not."""
    return {n: read_json(folder, home + n, "declaration") for n in SIDECARS if folder.has(home + n)}


def _config(folder: Origin, optional: bool, home: str = "") -> dict[str, Any]:
    if not folder.has(home + CONFIG):
        if optional:
            return {}
        raise FormatError(f"{home}{CONFIG} is missing from {shown(folder.place)}")
    return read_json(folder, home + CONFIG, "config")
