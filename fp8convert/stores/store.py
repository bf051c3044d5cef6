"""A place in an object store: what is listed, read and written there. Names are relative to it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import Fp8ConvertError, UsageError, shown
from .address import EXTRAS, ObjectPath
from .refusals import told

STAMPS = ("ETag", "generation", "etag", "created")  # s3fs; gcsfs; memory
LIBRARY = {"s3": 48 << 20, "gs": 64 << 20, "memory": 0}  # bytes: s3fs or gcsfs, what they need
VERSION = "?versionId="  # s3fs takes what precedes it in a path for another object's path
TIMES = ("LastModified", "timeCreated", "mtime", "created")  # of the content, not of its labels
QUIET = logging.NullHandler()  # gcsfs logs each error with a traceback; it is told in words


class Entry(NamedTuple):
    """What a store says of an object: its bytes, what changes with its content, and when it was
    written. Of a folder, so to speak: nothing."""

    size: int
    etag: str = ""
    modified: str = ""
    folder: bool = False


class Store:
    """What is below ``path``. What it refuses is ``refused``; whatever may pass, ResumableError."""

    def __init__(self, path: ObjectPath, refused: type[Fp8ConvertError]) -> None:
        self.path, self._refused = path, refused

    @cached_property
    def fs(self) -> Any:
        """fsspec's filesystem, without its caches."""
        with self.told(""):
            return _filesystem(self.path)

    def full(self, name: str = "") -> str:
        """Bucket and key of ``name``."""
        found = f"{self.path.key}/{name}" if name else self.path.key
        if VERSION in found:
            raise self._refused(f"{shown(self.address(name))}: expected no {VERSION!r} in it")
        return found

    def beside(self, name: str = "") -> dict[str, Entry]:
        """What is directly in the folder ``name``, by its name there."""
        with self.told(name):
            found = self.fs.ls(self.full(name), detail=True)
        return self._by_name(found, name)

    def below(self) -> dict[str, Entry]:
        """Every object, by name; none if there is no such place."""
        with self.told(""):
            found = self.fs.find(self.full(), detail=True)
        return self._by_name(found.values(), "")

    def look(self, name: str) -> Entry:
        """What the store says of one object now."""
        with self.told(name):
            found = self.fs.info(self.full(name))
        if found["type"] == "directory":
            raise self._refused(f"{shown(self.address(name))} is a folder, expected an object")
        return _entry(found)

    def get(self, name: str, begin: int, end: int) -> bytes:
        """Bytes ``[begin, end)``; fewer where the object ends."""
        if begin >= end:
            return b""
        with self.told(name):
            found: bytes = self.fs.cat_file(self.full(name), start=begin, end=end)
            return found

    def find(self, name: str, limit: int) -> bytes | None:
        """All bytes of a small object, or the first ``limit``; None if it is not there."""
        with self.told(name):
            try:
                size = self.fs.info(self.full(name))["size"]  # of an empty one there are no ranges
                return self.get(name, 0, min(size, limit))
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        """Write a small object whole."""
        with self.told(name):
            self.fs.pipe_file(self.full(name), data)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self.told(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.full(name))

    def address(self, name: str = "") -> str:
        """For messages."""
        return f"{self.path}/{name}" if name else str(self.path)

    @contextlib.contextmanager
    def told(self, name: str) -> Iterator[None]:
        """What goes wrong with ``name`` is told as it is meant; see :mod:`.refusals`."""
        with told(self.address(name), self._refused):
            yield

    def called(self, name: str, method: str, **words: Any) -> dict[str, Any]:
        """The answer of an S3 call on the object ``name``, by the library's client."""
        with self.told(name):
            bucket, key = self.split(name)
            found: dict[str, Any] = self.fs.call_s3(method, Bucket=bucket, Key=key, **words)
            return found

    def attempting(self, operation: str, before: Callable[..., None]) -> None:
        """Have the library's client for S3 call ``before``, with the ``params``, at the beginning
        of every attempt at an ``operation``."""
        from fsspec.asyn import sync  # type: ignore[import-untyped]

        with self.told(""):
            client = sync(self.fs.loop, self.fs.get_s3, self.split("")[0])
            event = f"before-parameter-build.s3.{operation}"
            client.meta.events.register(event, before, unique_id=f"fp8convert.{operation}")

    def uploads(self, marks: dict[str, str]) -> dict[str, Any]:
        """S3's multipart uploads that are not complete, a page of them after ``marks``."""
        with self.told(""):
            bucket, key = self.split("")
            words = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **marks}
            found: dict[str, Any] = self.fs.call_s3("list_multipart_uploads", **words)
            return found

    def name(self, key: str) -> str:
        """What lies at ``key``, of the bucket, is called here."""
        return key.removeprefix(f"{self.split('')[1]}/")

    def split(self, name: str) -> tuple[str, str]:
        """Bucket and key of ``name``."""
        bucket, key, _ = self.fs.split_path(self.full(name))
        return bucket, key

    def _by_name(self, found: Any, sub: str) -> dict[str, Entry]:
        above = self.full(sub)
        entries = {}
        for one in found:
            name, folder = str(one["name"]).lstrip("/"), one["type"] == "directory"
            if name == above and not folder:
                raise self._refused(f"{shown(self.address(sub))} is an object, expected a folder")
            if name != above and not name.endswith("/"):  # a console's marker of a folder
                entries[name.removeprefix(f"{above}/")] = _entry(one)
        return entries


def _entry(found: dict[str, Any]) -> Entry:
    if found["type"] == "directory":
        return Entry(0, folder=True)
    stamp, time = (_first(found, names) for names in (STAMPS, TIMES))
    return Entry(int(found["size"]), stamp.strip('"'), time)


def _first(found: dict[str, Any], names: tuple[str, ...]) -> str:
    value = next((found[name] for name in names if found.get(name)), "")
    return str(value.timestamp() if isinstance(value, datetime) else value)


def check_installed(path: ObjectPath) -> None:
    """UsageError unless there is the package that opens ``path``."""
    extra = EXTRAS[path.scheme]
    try:
        import fsspec  # type: ignore[import-untyped]

        fsspec.get_filesystem_class(path.scheme)
    except ImportError as e:
        wanted = f"fp8convert[{extra}]" if extra else "fsspec"
        raise UsageError(f"{shown(path)} needs another package: pip install '{wanted}'") from e


def _filesystem(path: ObjectPath) -> Any:
    check_installed(path)
    import fsspec

    kind = fsspec.get_filesystem_class(path.scheme)
    if path.scheme == "gs":
        # Not the class that asks which kind a bucket is, by another protocol, and writes to some
        # what is seen before it is whole.
        kind = next(c for c in kind.__mro__ if c.__module__ == "gcsfs.core")
        logging.getLogger("gcsfs").addHandler(QUIET)
    return kind(use_listings_cache=False)
