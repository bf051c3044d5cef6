"""Objects of any size, written in order and not there until they are committed.

S3: the parts of a multipart upload, several on their way at once. Google's store: see
:mod:`.google`. What is in memory is in memory anyway.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ..errors import Fp8ConvertError
from .blocks import Block, Lanes
from .google import Resumable
from .store import Store

PART = 6 << 20  # bytes; S3 wants 5 MiB at least
MOST_PARTS = 9_000  # S3 takes 10,000


class Upload(Protocol):
    """One object being written. Errors are TargetError, or ResumableError."""

    def write(self, view: memoryview) -> None:
        """What comes next; it may be reused."""

    def finish(self) -> None:
        """All of it is in the store, or on its last step there, and not to be seen."""

    def commit(self) -> str:
        """It is there, whole. What the store calls this very object, if it says so."""

    def discard(self) -> None:
        """Nothing of it stays."""


class Parts:
    """A multipart upload to S3, in parts of one size; some stores want that."""

    def __init__(self, store: Store, name: str, size: int, lanes: Lanes) -> None:
        self._store, self._name, self._lanes = store, name, lanes
        self._part = part_size(size)
        self._id = ""
        self._block: Block | None = None
        self._sent: list[Future[Any]] = []

    def write(self, view: memoryview) -> None:
        """Keep it until there is a part."""
        while view:
            self._block = self._block or self._lanes.block(self._part)
            view = view[self._block.add(view) :]
            if self._block.filled == self._part:
                self._send(self._block)

    def finish(self) -> None:
        """Send the rest, and wait for all parts."""
        if self._block is not None:
            self._send(self._block)
        self._etags = [part.result()["ETag"] for part in self._sent]

    def commit(self) -> str:
        """Complete it."""
        parts = [{"PartNumber": n, "ETag": e} for n, e in enumerate(self._etags, 1)]
        self._call("complete_multipart_upload", MultipartUpload={"Parts": parts})
        self._id = ""
        return ""

    def discard(self) -> None:
        """Abort it, once no part is on its way any more: such a part would stay."""
        for part in self._sent:
            part.exception()
        if self._id:
            self._call("abort_multipart_upload")
            self._id = ""

    def _send(self, block: Block) -> None:
        if not self._id:
            self._id = self._store.called(self._name, "create_multipart_upload")["UploadId"]
            self._store.attempting("UploadPart", _from_its_start)
        for part in self._sent:
            if part.done():
                part.result()  # what has failed, fails here
        self._block, number = None, len(self._sent) + 1
        self._sent.append(
            self._lanes.send(block, lambda b: self._call("upload_part", PartNumber=number, Body=b))
        )

    def _call(self, method: str, **words: Any) -> dict[str, Any]:
        return self._store.called(self._name, method, UploadId=self._id, **words)


def _from_its_start(params: dict[str, Any], **_: Any) -> None:
    """s3fs tries again with the same block, which is where the last attempt left it: what it sent
    would be the rest of the part, or nothing."""
    if isinstance(block := params.get("Body"), Block):
        block.seek(0)


class Held:
    """Bytes that are put into a store in memory."""

    def __init__(self, store: Store, name: str, size: int, lanes: Lanes) -> None:
        self._store, self._name, self._data = store, name, io.BytesIO()

    def write(self, view: memoryview) -> None:
        """Keep it."""
        self._data.write(view)

    def finish(self) -> None:
        """It is here."""

    def commit(self) -> str:
        """Put it there."""
        self._store.put(self._name, self._data.getvalue())
        return ""

    def discard(self) -> None:
        """Forget it."""
        self._data = io.BytesIO()


KINDS: dict[str, Callable[[Store, str, int, Lanes], Upload]] = {
    "s3": Parts, "gs": Resumable, "memory": Held,
}  # fmt: skip


def part_size(size: int) -> int:
    """Bytes of a part of an object of ``size`` bytes."""
    return max(PART, -(-size // MOST_PARTS))


def abort_left(store: Store, names: set[str]) -> None:
    """Abort what a run that was killed has begun to upload as one of ``names``.

    S3 keeps it, unseen and paid for, until it is aborted; Google's go by themselves. Where that is
    not permitted, a lifecycle rule of the bucket has to do it; and what is gone, is gone.
    """
    if store.path.scheme != "s3":
        return
    marks: dict[str, str] = {}
    while True:
        try:
            found = store.uploads(marks)
        except Fp8ConvertError:
            return
        for one in found.get("Uploads", []):
            name = store.name(one["Key"])
            if name in names:
                with contextlib.suppress(Fp8ConvertError):
                    store.called(name, "abort_multipart_upload", UploadId=one["UploadId"])
        if not found.get("IsTruncated"):
            return
        marks = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}
