"""Tensors over the files of ranks, by what ``tp.json`` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import ranksets
from ..errors import FormatError, listed, shown
from ..folder import Folder
from ..layouts import deepseek
from ..ranksets import Spread
from ..shards import read_shards
from .stored import Leaf, Piece, Place, Shape


def tensors_of_ranks(folder: Folder, said: ranksets.RankSet) -> list[dict[str, Leaf]]:
    """The tensors in the files of each rank."""
    if said.layout == "hf":
        at = [ranksets.rank_folder(rank) for rank in range(said.ranks)]
        if missing := [n for n in at if not folder.has(n)]:
            raise FormatError(f"folders of {said.ranks} ranks: {listed(missing)} missing")
        by_rank = [[f"{n}/{file}" for file in _safetensors(folder.names(n))] for n in at]
    else:
        files = deepseek.rank_files(_safetensors(folder.names()))
        if len(files) != said.ranks:
            raise FormatError(f"{len(files)} rank files, expected {said.ranks}")
        by_rank = [[file] for file in files]
    found = []
    for rank, files in enumerate(by_rank):
        _, headers = read_shards(folder, files)
        found.append(
            {
                t.name: Leaf(file, t.name, t.dtype, t.shape, rank)
                for file, tensors in zip(files, headers, strict=True)
                for t in tensors.values()
            }
        )
    return found


def _safetensors(names: Sequence[str]) -> list[str]:
    return sorted(n for n in names if n.endswith(".safetensors"))


class Spreading:
    """Lines of ``tp.json`` as places in files."""

    def __init__(self, said: ranksets.RankSet, by_rank: Sequence[Mapping[str, Leaf]]) -> None:
        self.ranks, self.by_rank = said.ranks, by_rank
        self.apart = {name.removesuffix("weight") for name in said.apart}
        self.problems: list[str] = []
        self.used: set[tuple[int, str]] = set()

    def place(self, t: Spread) -> Place | None:
        """None if a rank does not have its part of it."""
        if t.axis is None:
            ranks = range(self.ranks) if t.rank is None else (t.rank,)
            copies = self._leaves(t, ranks, t.shape)
            pieces = [] if copies is None else [Piece(0, 0, copies)]
        else:
            by_range: dict[tuple[int, int], list[int]] = {}
            for rank, offset, length in t.pieces:
                by_range.setdefault((offset, offset + length), []).append(rank)
            pieces = []
            for (begin, end), ranks_of in by_range.items():
                length = t.padded_to // self.ranks if t.padded_to else end - begin
                shape = (*t.shape[: t.axis], length, *t.shape[t.axis + 1 :])
                found = self._leaves(t, ranks_of, shape)
                pieces += [] if found is None else [Piece(begin, end, found)]
            if len(pieces) < len(by_range):
                return None
        return Place(t.name, t.dtype, t.shape, tuple(pieces), t.axis, t.value) if pieces else None

    def _leaves(self, t: Spread, ranks: Sequence[int], shape: Shape) -> tuple[Leaf, ...] | None:
        found = []
        for rank in ranks:
            leaf = self.by_rank[rank].get(t.inside)
            self.used.add((rank, t.inside))
            if leaf is None:
                self.problems.append(f"{shown(t.name)} is missing on rank {rank}")
                continue
            want = Leaf("", "", t.dtype, shape)
            if self._is_of_its_own(t, leaf, want):
                found.append(leaf)
                continue
            same = leaf.dtype == t.dtype or (leaf.dtype == t.stored and leaf.nbytes == want.nbytes)
            if not same or leaf.held != want.held:
                self.problems.append(
                    f"{shown(t.name)} on rank {rank} is {leaf.dtype} {list(leaf.shape)}, expected "
                    f"{t.stored or t.dtype} {list(shape)}"
                )
                continue
            found.append(leaf)
        return tuple(found) if len(found) == len(ranks) else None

    def _is_of_its_own(self, t: Spread, leaf: Leaf, want: Leaf) -> bool:
        """Whether it is a scale of what was encoded for each rank: no slice of a whole one."""
        module = f"{t.name.rpartition('.')[0]}."
        return module in self.apart and "scale" in t.name and leaf.dtype == want.dtype

    def leftovers(self) -> list[str]:
        """What the files have, and ``tp.json`` has not."""
        return [
            f"rank {rank} has {shown(name)}, which {ranksets.TP} does not list"
            for rank, tensors in enumerate(self.by_rank)
            for name in tensors
            if (rank, name) not in self.used
        ]
