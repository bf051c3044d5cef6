"""What a run needs of a repository's weights: which shards, for what, and room for how many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..origin import Scratch, Shard, Wanted
from .ledger import least
from .scratch import is_there, kept, slot_name, waiting

if TYPE_CHECKING:
    from .repo import HubRepo

AHEAD = 4  # shards that wait, or come, where nothing else is said
LANES = 4  # downloads at once, at most


class Demand:
    """Of the files of ``wanted``. UsageError if the scratch is too small for it, or none.

    ``here`` are shards, by number, in a cache or kept by an earlier run, where they stay; ``sizes``
    the bytes of all others. ``groups`` are files that are written together: what they need of
    those. ``size`` bytes of shards are in the scratch at once.
    """

    def __init__(
        self, repo: HubRepo, shards: Sequence[Shard], wanted: Sequence[Wanted], scratch: Scratch
    ) -> None:
        self.repo, self.shards, self.scratch = repo, shards, scratch
        self.name = slot_name(repo.pinned)
        numbers = sorted({n for w in wanted for n in w.shards})
        self.here = {n: p for n in numbers if (p := self._there(shards[n]))}
        self.sizes = {n: shards[n].size for n in numbers if n not in self.here}
        self.groups = [w.shards & self.sizes.keys() for w in wanted]
        self.size = self._bound()

    def _there(self, shard: Shard) -> Path | None:
        root = self.scratch.folder
        path = kept(root, self.name) / shard.name if root else None
        return path if path and is_there(path, shard.size) else self.repo.cached(shard.name)

    def _bound(self) -> int:
        """Bytes of shards in the scratch at once; refuses less than is needed."""
        every, asked = sum(self.sizes.values()), self.scratch.size
        need = every if self.scratch.keep else least(self.groups, self.sizes)
        size = min(every, need + AHEAD * self._largest) if asked is None else asked
        if size < need:
            why = "the shards of one output file, or team of them"
            why = "to keep all" if self.scratch.keep else why
            raise UsageError(f"--scratch-size {size:,} bytes, expected at least {need:,}: {why}")
        if need and self.scratch.folder is None:
            raise UsageError("--scratch DIR is needed, for downloads: the target is not on a disk")
        return size

    @property
    def _largest(self) -> int:
        return max(self.sizes.values(), default=0)

    @property
    def lanes(self) -> int:
        """Downloads at once."""
        if not self.sizes:
            return 0
        return min(LANES, self.size // max(self._largest, 1) // 2 + 1, len(self.sizes))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of shards that are not here, by name, in the order of use."""
        return {self.shards[n].name: n for group in self.groups for n in sorted(group)}

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Bytes of the same."""
        return {name: self.sizes[n] for name, n in self.numbers.items()}

    @property
    def room(self) -> int:
        """Bytes that may be filled, beside what is in the scratch already."""
        if not self.sizes or self.scratch.folder is None:
            return 0
        size = min(self.size, sum(self.sizes.values()))
        return max(0, size - waiting(self.scratch.folder, self.name))
