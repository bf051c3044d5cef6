"""Downloads: ``/resolve/``, and the store behind it where LFS files are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from . import access
from .faults import METADATA
from .files import File
from .replies import RefusedError, Reply, Span
from .store import Commit, Repo
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub

Body = Iterator[memoryview]
SIGNATURE = "X-Amz-Signature=of-the-hub"
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


def resolve(
    hub: Hub, request: Request, body: Body, name: str, revision: str, path: str
) -> Reply:  # fmt: skip
    """A file of a commit; one that is in LFS is redirected to where it is, as the hub does it."""
    repo = access.read(hub, request, name)
    commit = repo.commit(revision)
    file = _file(commit, path)
    headers = {
        "X-Repo-Commit": commit.sha,
        "ETag": f'"{file.key}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{quote(path.rsplit("/", 1)[-1])}"',
    }
    if file.lfs is not None:
        headers |= {"X-Linked-Etag": f'"{file.lfs}"', "X-Linked-Size": str(file.size)}
    headers |= _untruths(hub, request)
    if file.lfs is None or not hub.cdn:
        return _content(repo, file, request, headers)
    where = f"{hub.cdn_endpoint}/cdn/{name}/resolve/{commit.sha}/{quote(path)}?{SIGNATURE}"
    return Reply(302, f"Found. Redirecting to {where}".encode(), {**headers, "Location": where})


def content(hub: Hub, request: Request, body: Body, name: str, sha: str, path: str) -> Reply:
    """What the redirect led to: whoever has the link may read, and a token is too much."""
    if request.authorization is not None:
        raise RefusedError(400, "Only one auth mechanism allowed: the link is signed already")
    repo = hub.found(name)
    if SIGNATURE not in request.query or repo is None:
        raise RefusedError(403, "Access Denied")
    file = _file(repo.commit(sha), path)
    return _content(repo, file, request, {"ETag": f'"{file.key}"', "Accept-Ranges": "bytes"})


def _file(commit: Commit, path: str) -> File:
    if (file := commit.tree.get(path)) is not None:
        return file
    headers = {"X-Repo-Commit": commit.sha}
    raise RefusedError(404, "Entry not found", "EntryNotFound", headers)


def _untruths(hub: Hub, request: Request) -> dict[str, str]:
    """What HEAD is to say in place of the truth."""
    found: dict[str, str] = {}
    for fault in hub.faults.strike(request, METADATA) if request.method == "HEAD" else ():
        if fault.etag is not None:
            found |= {"ETag": f'"{fault.etag}"', "X-Linked-Etag": f'"{fault.etag}"'}
        if fault.size is not None:
            found |= {"Content-Length": str(fault.size), "X-Linked-Size": str(fault.size)}
    return found


def _content(repo: Repo, file: File, request: Request, headers: dict[str, str]) -> Reply:
    """The whole of a file, or the range that was asked for."""
    kind = {"Content-Type": "application/octet-stream"}
    match = _RANGE.fullmatch(request.range or "")
    if match is None or match.groups() == ("", ""):
        return Reply(200, Span(repo.blob(file), 0, file.size), {**kind, **headers})
    first, last = match.groups()
    start = int(first) if first else max(0, file.size - int(last))
    end = min(file.size, int(last) + 1) if first and last else file.size
    if start >= end:
        raise RefusedError(416, "Requested Range Not Satisfiable", "",
                      {"Content-Range": f"bytes */{file.size}"})  # fmt: skip
    headers = {**kind, **headers, "Content-Range": f"bytes {start}-{end - 1}/{file.size}"}
    return Reply(206, Span(repo.blob(file), start, end - start), headers)
