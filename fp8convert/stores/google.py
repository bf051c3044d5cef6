"""Objects in Google's store, written in order: a resumable upload, a block a request.

Requests of one object follow each other, as Google wants it; several objects are on their way at
once. The last block is what makes an object appear, so it is kept until the object is committed.
"""

from __future__ import annotations

import base64
import contextlib
import json
from concurrent.futures import Future
from typing import Any

from ..errors import ResumableError, shown
from .blocks import Block, Lanes
from .store import Store

BLOCK = 6 << 20  # bytes a request: a multiple of 256 KiB, but for the last
PATIENCE = 3  # answers that take nothing of a block, before it is given up
GONE = 410  # an upload that was cancelled, or has expired


class Resumable:
    """One object; its CRC-32C is compared with the store's."""

    def __init__(self, store: Store, name: str, size: int, lanes: Lanes) -> None:
        self._session, self._lanes = Session(store, name), lanes
        self._block: Block | None = None
        self._moving: Future[Any] | None = None  # the block that is on its way
        self._sent = self._sum = 0

    def write(self, view: memoryview) -> None:
        """Keep it until there is more than a block."""
        self._sum = _extended(self._sum, view)
        while view:
            if self._block is not None and self._block.filled == BLOCK:
                self._send(self._block, "*")
                self._block = None
            self._block = self._block or self._lanes.block(BLOCK)
            view = view[self._block.add(view) :]

    def finish(self) -> None:
        """Wait for what is on its way: all but the last block."""
        if self._moving is not None:
            self._moving.result()

    def commit(self) -> str:
        """Send the last block; the object's generation."""
        block, self._block = self._block or self._lanes.block(BLOCK), None
        self._send(block, str(self._sent + block.filled))
        assert self._moving is not None
        found = self._moving.result()
        expected = base64.b64encode(self._sum.to_bytes(4, "big")).decode()
        if (found.get("size"), found.get("crc32c")) != (str(self._sent), expected):
            raise self._session.odd(
                f"{shown(found.get('size'))} bytes with CRC-32C {shown(found.get('crc32c'))} came, "
                f"expected {self._sent:,} with {shown(expected)}"
            )
        return str(found["generation"])

    def discard(self) -> None:
        """Cancel it, once nothing is on its way any more."""
        if self._moving is not None:
            self._moving.exception()
        self._session.cancel()

    def _send(self, block: Block, total: str) -> None:
        if self._moving is not None:
            self._moving.result()  # what has failed, fails here
        self._session.begin()
        begin, self._sent = self._sent, self._sent + block.filled
        self._moving = self._lanes.send(block, lambda b: self._taken(b, begin, total))

    def _taken(self, block: Block, begin: int, total: str) -> dict[str, Any]:
        """Send a block until all of it is taken; what the store says of the object, once whole."""
        end, idle = begin + block.filled, 0
        while idle < PATIENCE:
            taken, found = self._session.put(block, begin, total)
            if found or (taken == end and total == "*"):
                return found
            if not begin <= taken <= end:
                raise self._session.odd(f"{taken:,} bytes taken, expected {begin:,} to {end:,}")
            idle = idle + 1 if taken == begin else 0
            block.drop(taken - begin)
            begin = taken
        raise self._session.odd(f"it takes nothing from byte {begin:,} on")


class Session:
    """An upload that the store knows of. Its address is a secret: whoever has it can write."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._at = ""

    def begin(self) -> None:
        """If it has not begun."""
        if self._at:
            return
        with self._store.told(self._name):
            fs = self._store.fs
            bucket, key = self._store.split(self._name)
            base = fs.base.replace("/storage/v1/", "/upload/storage/v1/")
            headers = {"X-Upload-Content-Type": "application/octet-stream"}
            words = {"uploadType": "resumable", "name": key, "json": {"name": key}}
            found, _ = fs.call("POST", base + "b/{}/o", bucket, headers=headers, **words)
            self._at = found["Location"]

    def put(self, block: Block, begin: int, total: str) -> tuple[int, dict[str, Any]]:
        """Send the object's bytes from ``begin`` on. How many of it the store has; and what it says
        of the object, if it is whole now."""
        count = block.filled
        there = f"{begin}-{begin + count - 1}" if count else "*"
        headers = {
            "Content-Range": f"bytes {there}/{total}",
            "Content-Length": str(count),
            "Content-Type": "application/octet-stream",
        }
        with self._store.told(self._name):
            try:
                found, answer = self._store.fs.call("PUT", self._at, headers=headers, data=block)
            except Exception as e:
                if not (isinstance(e, FileNotFoundError) or getattr(e, "code", 0) == GONE):
                    raise
                raise self.odd("its upload is gone") from e
        taken = found.get("Range", "").rpartition("-")[2]  # "bytes=0-9"; none where it takes none
        return int(taken) + 1 if taken.isdecimal() else begin, _whole(answer)

    def cancel(self) -> None:
        """Nothing of it stays. It may be gone already."""
        at, self._at = self._at, ""
        if at:
            with self._store.told(self._name), contextlib.suppress(FileNotFoundError):
                self._store.fs.call("DELETE", at)

    def odd(self, words: str) -> ResumableError:
        """What to end with if the store does something else."""
        return ResumableError(
            f"{shown(self._store.address(self._name))}: {words}: run the same again"
        )


def _whole(answer: bytes) -> dict[str, Any]:
    """What the store says of an object that it has, or nothing."""
    with contextlib.suppress(ValueError):
        found = json.loads(answer)
        if isinstance(found, dict) and "generation" in found:
            return found
    return {}


def _extended(crc: int, view: memoryview) -> int:
    import google_crc32c
    import numpy as np

    return int(google_crc32c.extend(crc, np.frombuffer(view, np.uint8)))
