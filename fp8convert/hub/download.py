"""One shard after the other, by huggingface_hub; each is checked against the hub's sum."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError, ResumableError, shown
from .address import Address
from .client import LIBRARY
from .errors import patiently
from .held import Held
from .quiet import unsigned
from .scratch import Slot
from .sums import Follower, sum_of

TRIES = 2  # downloads of a shard until one has the right sum


class Downloads:
    """From one commit into one slot; ``stop`` ends it soon."""

    def __init__(self, pinned: Address, slot: Slot) -> None:
        unsigned()
        self._pinned, self._slot = pinned, slot
        self._stopping = threading.Event()
        self._follow = True  # whether bytes come in order

    def stop(self) -> None:
        """Whatever is being downloaded ends with ResumableError, at its next bytes."""
        self._stopping.set()

    def fetch(self, name: str, held: Held, arrived: Callable[[int], None]) -> Path:
        """Where the shard is now: downloaded, or left by an earlier run; its sum is right.

        ``arrived`` is told of bytes as they come. DataError if it came with another one, twice;
        FormatError, ResumableError as :mod:`.errors` has them.
        """
        place, found = self._slot.place(name), ""
        if os.path.lexists(place):
            if sum_of(place, held, self._check) == held.sum:
                return self._slot.put(place, name)
            place.unlink()
        for _ in range(TRIES):
            got, found = patiently(
                lambda: self._try(name, held, arrived), self._what(name), self._pause
            )
            if got is not None:
                return got
        raise DataError(
            f"{self._what(name)}: what came, {TRIES} times, has the sum {found}, "
            f"expected {held.sum} as the hub says"
        )

    def _try(
        self, name: str, held: Held, arrived: Callable[[int], None]
    ) -> tuple[Path | None, str]:
        """Download; where it was put, if its sum is right, and the sum."""
        with self._slot.temporary() as folder:
            follower = Follower(folder, held) if self._follow else None

            def came(nbytes: int) -> None:
                if nbytes < 0 and follower:  # a hub that sent all in place of the rest
                    follower.begun_again()
                arrived(nbytes)

            try:
                path = self._download(name, folder, came)
            finally:
                found = follower.end() if follower else ""
            if found != held.sum:
                again = sum_of(path, held, self._check)
                self._follow = self._follow and (not found or again != held.sum)
                found = again
            return (self._slot.put(path, name) if found == held.sum else None), found

    def _download(self, name: str, folder: Path, arrived: Callable[[int], None]) -> Path:
        from huggingface_hub import hf_hub_download

        words: dict[str, Any] = dict(LIBRARY)
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
            words["tqdm_class"] = _watched(self._check, arrived)
        # Neither is the cache copied from, which may be what was wrong, nor is it written to.
        cache = folder / "cache"
        repo, commit = self._pinned
        return Path(
            hf_hub_download(repo, name, revision=commit, local_dir=folder, cache_dir=cache, **words)
        )

    def _check(self) -> None:
        if self._stopping.is_set():
            raise ResumableError("stopped")

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)
        self._check()

    def _what(self, name: str) -> str:
        return f"{shown(name)} of {self._pinned}"


def _watched(check: Callable[[], None], arrived: Callable[[int], None]) -> type:
    """A progress bar for huggingface_hub: it shows nothing, tells of bytes, and may raise."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]

    class Watched(base):  # type: ignore[misc]
        monitor_interval = 0  # no thread that sees to it that something is drawn

        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            check()
            arrived(int(n or 0))
            return None

    return Watched
