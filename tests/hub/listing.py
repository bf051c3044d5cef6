"""What the hub says of repositories: their files, branches, commits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode

from . import access
from .files import File, git_oid, pointer
from .replies import RefusedError, Reply, as_json
from .store import Commit
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub

Body = Iterator[memoryview]


def whole(body: Body) -> bytes:
    """All of a request's body."""
    return b"".join(bytes(piece) for piece in body)


def info(hub: Hub, request: Request, body: Body, name: str, revision: str = "main") -> Reply:
    """A model at a revision; ``?blobs=true`` for sizes and sums."""
    repo = access.seen(hub, request, name)
    commit, state = repo.commit(revision), repo.state
    blobs = _flag(request, "blobs")
    value = {
        "_id": git_oid(name.encode())[:24],
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repo.history(revision)[-1].date,
        "private": state.private,
        "gated": "manual" if state.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [_sibling(p, f, blobs) for p, f in sorted(commit.tree.items())],
        "usedStorage": sum(f.size for f in commit.tree.values()),
    }
    return as_json(value, headers={"X-Repo-Commit": commit.sha})


def tree(
    hub: Hub, request: Request, body: Body, name: str, revision: str, below: str = ""
) -> Reply:  # fmt: skip
    """The files and folders of a commit, page by page: the link to the next is in ``Link``."""
    commit = access.seen(hub, request, name).commit(revision)
    entries = _entries(commit, below.strip("/"), _flag(request, "recursive"))
    if not entries and below:
        headers = {"X-Repo-Commit": commit.sha}
        raise RefusedError(404, f"{below} does not exist on {revision}", "EntryNotFound", headers)
    query = parse_qs(request.query)
    begin = int(query.get("cursor", ["0"])[0])
    end = begin + min(hub.page_size, int(query.get("limit", ["1000"])[0]))
    headers = {"X-Repo-Commit": commit.sha}
    if end < len(entries):
        words = urlencode({**{k: v[0] for k, v in query.items()}, "cursor": end})
        path = f"/api/models/{name}/tree/{commit.sha}{'/' if below else ''}{quote(below)}"
        headers["Link"] = f'<{hub.endpoint}{path}?{words}>; rel="next"'
    expand = _flag(request, "expand")
    page = [_expanded(commit, e) if expand else e for e in entries[begin:end]]
    return as_json(page, headers=headers)


def paths_info(hub: Hub, request: Request, body: Body, name: str, revision: str) -> Reply:
    """Of the paths that are named, those that there are."""
    commit = access.seen(hub, request, name).commit(revision)
    asked = _fields(request, whole(body))
    everything = {entry["path"]: entry for entry in _entries(commit, "", True)}
    found = [everything[path] for path in asked.get("paths", []) if path in everything]
    expand = asked.get("expand", ["false"])[0] in (True, "true", "True")
    return as_json([_expanded(commit, e) if expand else e for e in found])


def refs(hub: Hub, request: Request, body: Body, name: str) -> Reply:
    """Branches and tags."""
    state = access.seen(hub, request, name).state
    value = {
        key: [
            {"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": sha}
            for ref, sha in found.items()
        ]
        for key, kind, found in (("branches", "heads", state.heads), ("tags", "tags", state.tags))
    }
    return as_json({**value, "converts": [], "pullRequests": []})


def commits(hub: Hub, request: Request, body: Body, name: str, revision: str) -> Reply:
    """The history, newest first."""
    history = access.seen(hub, request, name).history(revision)
    return as_json(
        [
            {
                "id": c.sha,
                "title": c.message,
                "message": c.description,
                "authors": [{"user": "tester"}],
                "date": c.date,
            }
            for c in history
        ]
    )


def auth_check(hub: Hub, request: Request, body: Body, name: str) -> Reply:
    """Whether its files may be read."""
    access.read(hub, request, name)
    return as_json({})


def whoami(hub: Hub, request: Request, body: Body) -> Reply:
    """Whose token this is."""
    if access.token_of(request) is None:
        raise RefusedError(401, "Invalid username or password.")
    return as_json({"type": "user", "name": "tester", "orgs": []})


def validate_yaml(hub: Hub, request: Request, body: Body) -> Reply:
    """Any front matter is good."""
    return as_json({"errors": [], "warnings": []})


def _flag(request: Request, name: str) -> bool:
    return parse_qs(request.query).get(name, ["false"])[0].lower() in ("1", "true")


def _fields(request: Request, body: bytes) -> dict[str, list[Any]]:
    """Of a form or of JSON: each a list."""
    if "json" not in request.headers.get("content-type", ""):
        return dict(parse_qs(body.decode()))
    return {k: v if isinstance(v, list) else [v] for k, v in json.loads(body).items()}


def _lfs(file: File, key: str) -> dict[str, object]:
    assert file.lfs is not None
    return {key: file.lfs, "size": file.size, "pointerSize": len(pointer(file.lfs, file.size))}


def _sibling(path: str, file: File, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": path}
    known = {"rfilename": path, "size": file.size, "blobId": file.oid}
    return known if file.lfs is None else {**known, "lfs": _lfs(file, "sha256")}


def _entries(commit: Commit, below: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, by path."""
    prefix = below + "/" if below else ""
    found: dict[str, dict[str, Any]] = {}
    for path, file in commit.tree.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            oid = git_oid(folder.encode(), "tree")
            found[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if recursive or len(parts) == 1:
            entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            found[path] = entry if file.lfs is None else {**entry, "lfs": _lfs(file, "oid")}
    return [found[path] for path in sorted(found)]


def _expanded(commit: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    last = {"id": commit.sha, "title": commit.message, "date": commit.date}
    return {**entry, "lastCommit": last}
