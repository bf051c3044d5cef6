"""A checkpoint in an object store, read where it is: ranges of bytes, no more than are needed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from ..errors import FormatError, ResumableError, shown
from ..folder import check_name, check_plain_name
from ..origin import Direct, Scratch, Shard, Wanted
from ..target import MANIFEST
from .address import STATE, ObjectPath
from .store import LIBRARY, Entry, Store

LANES = 8  # headers looked at at once: each waits for the network
ASKED = 4 << 20  # bytes a request: it takes as long as megabytes, however few they are
REQUESTS = 6  # such requests at once


class ObjectOrigin:
    """The objects below one place. What is directly in it is listed once, and so are folders."""

    def __init__(self, path: ObjectPath) -> None:
        self._store = Store(path, FormatError)
        self._requests = threading.Semaphore(REQUESTS)
        self._listed: dict[str, dict[str, Entry]] = {}

    @classmethod
    def at(cls, path: ObjectPath) -> ObjectOrigin:
        """The place at ``path``; FormatError if nothing is there, or a conversion unfinished."""
        origin = cls(path)
        found = origin._in("")
        if STATE in found and MANIFEST not in found:
            raise FormatError(
                f"{shown(path)} is what an unfinished conversion has written so far: expected its "
                f"{MANIFEST}, which comes last"
            )
        return origin

    @property
    def place(self) -> str:
        """Its address."""
        return str(self._store.path)

    @property
    def provenance(self) -> dict[str, str]:
        """Nothing: an address says nothing of what is there tomorrow."""
        return {}

    @property
    def asked(self) -> str:
        """Nothing that moves."""
        return ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def lanes(self) -> int:
        """Several."""
        return LANES

    def names(self, sub: str = "") -> list[str]:
        """Names of everything directly in it, or in its folder ``sub``, sorted."""
        if sub:
            check_plain_name(sub, "folder")
        return sorted(self._in(sub))

    def has(self, name: str) -> bool:
        """Whether there is an object of that name."""
        check_name(name, "looked for")
        return self._entry(name) is not None

    def is_folder(self, name: str) -> bool:
        """Whether there are objects below that name."""
        entry = self._entry(name)
        return entry is not None and entry.folder

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return self._object(name, "companion file").size

    def read(self, name: str, limit: int, why: str) -> bytes:
        """The whole of a small object, at most ``limit`` bytes."""
        size = self._object(name, why).size
        if size > limit:
            raise FormatError(f"{shown(name)} has {size:,} bytes, expected at most {limit:,}")
        # A byte more: has it grown? Of an empty one there are no ranges to ask for.
        data = self._store.get(name, 0, size + 1) if size else b""
        if len(data) != size or (not size and self._store.look(name).size):
            raise FormatError(f"{shown(name)} changed since it was listed: {size:,} bytes then")
        return data

    @contextlib.contextmanager
    def peek(self, name: str) -> Iterator[Glance]:
        """A shard, before it is planned."""
        yield Glance(self._store, name, self._object(name, "shard"))

    def opened(self, shard: Shard, io: str) -> RangedFile:
        """A shard as it was planned."""
        return RangedFile(self._store, shard, self._requests)

    def feed(self, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch) -> Ranged:
        """Everything is there already."""
        return Ranged(self, shards, self._store.path.scheme)

    def _object(self, name: str, why: str) -> Entry:
        check_name(name, why)
        entry = self._entry(name)
        if entry is None:
            raise FormatError(f"{shown(name)} ({why}) is missing from {shown(self.place)}")
        if entry.folder:
            raise FormatError(f"{shown(name)} ({why}) is a folder, expected an object")
        return entry

    def _entry(self, name: str) -> Entry | None:
        sub, _, plain = name.rpartition("/")
        if sub and sub not in self._in(""):
            return None
        return self._in(sub).get(plain)

    def _in(self, sub: str) -> dict[str, Entry]:
        if sub not in self._listed:
            self._listed[sub] = self._store.beside(sub)
        return self._listed[sub]


class Glance:
    """An object being looked at, as it was when it was listed."""

    def __init__(self, store: Store, name: str, entry: Entry) -> None:
        self._store, self._name = store, name
        self.size, self.mtime_ns, self.etag = entry.size, 0, entry.etag

    def read(self, nbytes: int, begin: int) -> bytes:
        """``nbytes`` from ``begin`` on; fewer only where the object ends."""
        return self._store.get(self._name, begin, min(begin + nbytes, self.size))


class Ranged(Direct):
    """The feed of what is read by ranges: requests take memory, each answer twice for a moment."""

    def __init__(self, origin: ObjectOrigin, shards: Sequence[Shard], scheme: str) -> None:
        super().__init__(origin, shards)
        self.memory = LIBRARY[scheme] + REQUESTS * 2 * ASKED


class RangedFile:
    """A shard being read, a request a call. It must be the one that was planned, all the time."""

    def __init__(self, store: Store, shard: Shard, requests: threading.Semaphore) -> None:
        self._store, self._shard, self._requests = store, shard, requests
        self._modified = ""  # when it was written: may another have been there in between?
        self._modified = self._look().modified

    def check_unchanged(self) -> None:
        """FormatError if the object is not the one that was planned."""
        self._look()

    def read(self, view: memoryview, begin: int, end: int) -> None:
        """Fill ``view`` from ``begin`` to ``end``, and nothing of it behind that."""
        for at in range(begin, end, ASKED):
            upto = min(at + ASKED, end)
            view[at - begin : upto - begin] = self._exactly(at, upto)

    def gather(self, view: memoryview, begin: int, count: int, stride: int) -> None:
        """Fill ``view`` with ``count`` runs of equal length, ``stride`` apart from ``begin`` on.

        Runs near each other come in one answer, gaps and all: a request takes as long as megabytes.
        """
        import numpy as np

        length, step = len(view) // count, ASKED // stride
        if step < 2:
            for k in range(count):
                at = begin + k * stride
                self.read(view[k * length : (k + 1) * length], at, at + length)
            return
        out = np.frombuffer(view, np.uint8).reshape(count, length)
        for k in range(0, count, step):
            n, at = min(step, count - k), begin + k * stride
            found = np.frombuffer(self._exactly(at, at + (n - 1) * stride + length), np.uint8)
            out[k : k + n] = np.lib.stride_tricks.as_strided(found, (n, length), (stride, 1))

    def close(self) -> None:
        """Nothing is held."""

    def _look(self) -> Entry:
        shard, now = self._shard, self._store.look(self._shard.name)
        same = (now.size, now.etag) == (shard.size, shard.etag)
        if not same or self._modified not in ("", now.modified):
            raise FormatError(
                f"{shown(shard.name)} changed since it was planned: {shard.size:,} bytes then, "
                f"{now.size:,} now, ETag {shown(shard.etag)} then, {shown(now.etag)} now"
            )
        return now

    def _exactly(self, begin: int, end: int) -> bytes:
        name = self._shard.name
        try:
            with self._requests:
                found = self._store.get(name, begin, end)
        except FormatError:  # out of its range, or gone
            self.check_unchanged()
            raise
        if len(found) != end - begin:
            self.check_unchanged()
            raise ResumableError(
                f"{shown(name)}: the store has sent {len(found):,} of {end - begin:,} bytes from "
                f"byte {begin:,} on: run the same again"
            )
        return found
