"""What is in a folder that may be damaged: every file is read on its own, and errors are kept.

The rest of the library opens a checkpoint whole or not at all; here one bad shard must not hide
the others. Nothing but headers, indexes and small JSON files is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import ranksets
from ..catalogue import CONFIG, RANK_FOLDER
from ..codecs.base import Stored
from ..declared import SIDECARS, Declared, declared
from ..errors import FormatError, listed, shown
from ..folder import Folder
from ..layouts.deepseek import RANK_FILE
from ..layouts.hf import INDEX, SINGLE
from ..ranksets import RankSet
from ..shards import as_object, read_json, read_shards
from ..strictjson import brief

SUFFIX = ".safetensors"
MEMBERSHIP = re.compile(r"rank([0-9]+)/")


@dataclass(frozen=True)
class Home:
    """A folder with its own shards: the checkpoint's (``prefix`` "") or a rank's (``rank0/``).

    ``files`` are all safetensors files there, with the prefix; ``weight_map`` and ``metadata`` are
    the index's, None where it has none; ``wrong`` says why it cannot be read.
    """

    prefix: str
    files: tuple[str, ...]
    weight_map: dict[str, str] | None = None
    metadata: dict[str, Any] | None = None
    wrong: str = ""

    @cached_property
    def named(self) -> set[str]:
        """The files that the index names."""
        return {self.prefix + file for file in (self.weight_map or {}).values()}

    @cached_property
    def members(self) -> list[str]:
        """The files that are the checkpoint; others lie beside it."""
        if self.weight_map is not None:
            return [f for f in self.files if f in self.named]
        single = [f for f in self.files if f == self.prefix + SINGLE]
        return single or [f for f in self.files if RANK_FILE.fullmatch(f)] or list(self.files)


@dataclass(frozen=True)
class Survey:
    """``tensors`` are by file, then by name; ``broken`` says of a file why its header is not read.

    ``ranks`` is what ``tp.json`` says, ``ranks_wrong`` why it is not believed.
    """

    folder: Folder
    homes: tuple[Home, ...]
    tensors: dict[str, dict[str, Stored]]
    broken: dict[str, str]
    ranks: RankSet | None = None
    ranks_wrong: str = ""

    @property
    def members(self) -> list[str]:
        """All files of the checkpoint that are there."""
        return [file for home in self.homes for file in home.members]

    @property
    def incomplete(self) -> str:
        """Why what all files hold together is not known; "" if it is."""
        absent = sorted(f for h in self.homes for f in h.named - set(h.files))
        if lost := [f for f in self.members if f in self.broken] + absent:
            return f"{listed(lost)} cannot be read"
        return ""

    @property
    def lacks_config(self) -> bool:
        """Whether there is no config.json, and nothing that could do without."""
        return not (self.folder.has(self.config_home + CONFIG) or self.named_by_rank)

    @property
    def unrelated(self) -> bool:
        """Whether there are folders of ranks, and nothing that says what they are parts of."""
        return bool(self.homes[0].prefix) and self.ranks is None

    def units(self) -> Iterator[list[str]]:
        """Files within which a name is there once: a folder's, or one rank's."""
        for home in self.homes:
            ranked = [f for f in home.members if RANK_FILE.fullmatch(f)]
            yield from ([f] for f in ranked)
            if not ranked:
                yield home.members

    @property
    def named_by_rank(self) -> bool:
        """Whether these are DeepSeek's own rank files."""
        return any(RANK_FILE.fullmatch(f) for f in self.members)

    @property
    def config_home(self) -> str:
        """The prefix of config.json."""
        return self.homes[0].prefix

    def declared(self, prefix: str) -> Declared:
        """config.json of a home, and the files that stand in for it. FormatError if damaged.

        Rank files may have none.
        """
        has = self.folder.has
        config = read_json(self.folder, prefix + CONFIG, "config") if has(prefix + CONFIG) else {}
        beside = {n: read_json(self.folder, prefix + n, "declaration")
                  for n in SIDECARS if has(prefix + n)}  # fmt: skip
        ranked = sum(bool(RANK_FILE.fullmatch(f)) for f in self.members)
        return declared(config, beside, 0 if self.ranks else ranked)


def survey(folder: Folder) -> Survey:
    """Look through ``folder``. FormatError if it is no checkpoint, or one rank of several."""
    ranks, ranks_wrong = _ranks(folder)
    homes = _homes(folder)
    if not any(h.files or h.weight_map or h.wrong for h in homes) and not ranks:
        raise FormatError(
            f"no {SUFFIX} file and no {INDEX} in {shown(folder.root)}, expected a checkpoint folder"
        )
    tensors: dict[str, dict[str, Stored]] = {}
    broken: dict[str, str] = {}
    for number, file in enumerate(f for home in homes for f in home.files):
        try:
            _, (found,) = read_shards(folder, [file])
            tensors[file] = {n: t._replace(shard=number) for n, t in found.items()}
        except (FormatError, OSError) as e:
            broken[file] = str(e)
    return Survey(folder, homes, tensors, broken, ranks, ranks_wrong)


def _ranks(folder: Folder) -> tuple[RankSet | None, str]:
    if not folder.has(ranksets.TP):
        return None, ""
    try:
        record = read_json(folder, ranksets.TP, "record of ranks")
        if not ranksets.is_member(record):
            return ranksets.parse(record), ""
    except (FormatError, OSError) as e:
        return None, str(e)
    raise FormatError(
        f"{shown(folder.root)} has one rank only, number {brief(record['rank'])} of "
        f"{brief(record['ranks'])}: give the folder that holds all of them"
    )


def _homes(folder: Folder) -> tuple[Home, ...]:
    names = folder.names()
    own = _home(folder, "", names)
    ranks = [n for n in names if RANK_FOLDER.fullmatch(n) and os.path.isdir(folder.root / n)]
    if own.files or own.weight_map or not ranks:
        return (own,)
    ranks.sort(key=lambda n: int(n.removeprefix("rank")))
    return tuple(_home(folder, f"{n}/", folder.names(n)) for n in ranks)


def _home(folder: Folder, prefix: str, names: list[str]) -> Home:
    files = tuple(prefix + n for n in names if n.endswith(SUFFIX))
    if not folder.has(prefix + INDEX):
        return Home(prefix, files)
    try:
        index = read_json(folder, prefix + INDEX, "index")
        weight_map = as_object(index.get("weight_map"), f"{prefix}{INDEX}: weight_map")
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise FormatError(
                    f"{prefix}{INDEX}: weight_map of {shown(name)} is {brief(file)}, "
                    "expected a file name"
                )
        metadata = index.get("metadata")
        if metadata is not None:
            as_object(metadata, f"{prefix}{INDEX}: metadata")
    except (FormatError, OSError) as e:
        return Home(prefix, files, wrong=str(e))
    return Home(prefix, files, weight_map, metadata)
