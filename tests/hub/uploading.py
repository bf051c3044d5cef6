"""Content for LFS: asked for, sent in one piece or in parts, checked, put among the blobs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import access
from .files import lfs_file, sha256_of
from .listing import whole
from .replies import RefusedError, Reply, as_json
from .store import Repo
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub

Body = Iterator[memoryview]
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(eq=False)
class Upload:
    """One object that is on its way; whoever has the link may send it."""

    repo: Repo
    oid: str  # SHA-256 of the whole
    size: int  # bytes of the whole
    path: Path  # where it is put together
    part_size: int | None = None
    etags: dict[int, str] = field(default_factory=dict)  # of the parts that are there, from 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def parts(self) -> int:
        """How many parts make the whole."""
        return -(-self.size // self.part_size) if self.part_size else 0


def batch(hub: Hub, request: Request, body: Body, name: str) -> Reply:
    """Where to send which object; nothing to do for one that the repository has."""
    repo = access.written(hub, request, name)
    fields = json.loads(whole(body))
    if fields.get("operation") != "upload" or fields.get("hash_algo", "sha256") != "sha256":
        raise RefusedError(422, "uploads by SHA-256 only")
    found = [_instructions(hub, repo, o["oid"], o["size"]) for o in fields["objects"]]
    multipart = any("chunk_size" in _header(o) for o in found)
    return as_json({"transfer": "multipart" if multipart else "basic", "objects": found})


def _header(instructions: dict[str, Any]) -> dict[str, str]:
    upload = instructions.get("actions", {}).get("upload", {})
    header: dict[str, str] = upload.get("header", {})
    return header


def _instructions(hub: Hub, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    known = {"oid": oid, "size": size}
    if not _SHA256.fullmatch(oid) or size < 0:
        return {**known, "error": {"code": 422, "message": "invalid oid or size"}}
    if repo.blob(lfs_file(oid, size)).is_file():
        return known
    code = secrets.token_hex(16)
    path = hub.root / "incoming" / code
    path.parent.mkdir(exist_ok=True)
    upload = hub.uploads[code] = Upload(repo, oid, size, path)
    sent: dict[str, Any] = {"href": f"{hub.cdn_endpoint}/s3/{code}"}
    if size > hub.part_size:
        upload.part_size = hub.part_size
        parts = {str(n): f"{hub.cdn_endpoint}/s3/{code}/{n}" for n in range(1, upload.parts + 1)}
        where = f"{hub.endpoint}/api/complete_multipart/{code}"
        sent = {"href": where, "header": {"chunk_size": str(hub.part_size), **parts}}
    verified = {"href": f"{hub.endpoint}/{repo.name}.git/info/lfs/objects/verify"}
    return {**known, "authenticated": True, "actions": {"upload": sent, "verify": verified}}


def verify(hub: Hub, request: Request, body: Body, name: str) -> Reply:
    """Whether an object has arrived."""
    repo = access.written(hub, request, name)
    fields = json.loads(whole(body))
    blob = repo.blob(lfs_file(fields["oid"], fields["size"]))
    if not blob.is_file() or blob.stat().st_size != fields["size"]:
        raise RefusedError(404, f"object {fields['oid']} of {fields['size']} bytes is not there")
    return as_json({})


def put(hub: Hub, request: Request, body: Body, code: str) -> Reply:
    """The whole of an object at once."""
    upload = _upload(hub, request, code)
    if upload.part_size is not None:
        raise RefusedError(400, "this object is to be sent in parts")
    path = upload.path.with_name(f"{code}.{secrets.token_hex(4)}")
    try:
        with open(path, "wb", buffering=0) as file:
            found = _received(file.fileno(), 0, body, upload.size)
        _publish(upload, path, found)
    finally:
        path.unlink(missing_ok=True)
    return Reply(200, headers={"ETag": f'"{found}"'})


def put_part(hub: Hub, request: Request, body: Body, code: str, number: str) -> Reply:
    """One part, in any order, as often as need be."""
    upload, n = _upload(hub, request, code), int(number)
    if upload.part_size is None or not 1 <= n <= upload.parts:
        raise RefusedError(400, f"this object has no part {n}")
    start = (n - 1) * upload.part_size
    length = min(upload.part_size, upload.size - start)
    target = os.open(upload.path, os.O_CREAT | os.O_WRONLY)
    try:
        etag = f'"{_received(target, start, body, length)}"'
    finally:
        os.close(target)
    with upload.lock:
        upload.etags[n] = etag
    return Reply(200, headers={"ETag": etag})


def complete(hub: Hub, request: Request, body: Body, code: str) -> Reply:
    """All parts are there: make the object of them."""
    upload = _upload(hub, request, code)
    fields = json.loads(whole(body))
    with upload.lock:
        said = {part["partNumber"]: part["etag"] for part in fields["parts"]}
        if fields["oid"] != upload.oid or said != upload.etags or len(said) != upload.parts:
            raise RefusedError(400, "the parts that were named are not those that have arrived")
        if upload.path.exists():  # a completion that is sent again has nothing left to do
            _publish(upload, upload.path, sha256_of(upload.path))
    return as_json({})


def _upload(hub: Hub, request: Request, code: str) -> Upload:
    if request.host == "cdn" and request.authorization is not None:
        raise RefusedError(400, "Only one auth mechanism allowed: the link is signed already")
    if (upload := hub.uploads.get(code)) is None:
        raise RefusedError(403, "Access Denied")
    return upload


def _received(target: int, start: int, body: Body, length: int) -> str:
    """Write a body from an offset on; its SHA-256 comes back."""
    total, at = hashlib.sha256(), start
    for piece in body:
        total.update(piece)
        if at + len(piece) > start + length:
            raise RefusedError(400, f"more than the {length} bytes that were announced")
        while piece:
            count = os.pwrite(target, piece, at)
            piece, at = piece[count:], at + count
    if at != start + length:
        raise RefusedError(400, f"{at - start} bytes where {length} were announced")
    return total.hexdigest()


def _publish(upload: Upload, path: Path, found: str) -> None:
    """Among the blobs, if its SHA-256 is what was announced; else its parts are to come again."""
    if found != upload.oid:
        path.unlink()
        upload.etags.clear()
        raise RefusedError(400, f"content with SHA-256 {found}, not {upload.oid}")
    os.replace(path, upload.repo.blob(lfs_file(upload.oid, upload.size)))
