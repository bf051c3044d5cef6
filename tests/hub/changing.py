"""Repositories, branches and commits: made, changed, removed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from . import access
from .files import ATTRIBUTES, LFS_SIZE, File, is_lfs, lfs_file
from .listing import whole
from .replies import RefusedError, Reply, as_json
from .store import Repo
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub

Body = Iterator[memoryview]
Tree = dict[str, File]


def _named(fields: Mapping[str, Any]) -> str:
    if fields.get("type") not in (None, "model"):
        raise RefusedError(400, "This hub has models only")
    return f"{fields.get('organization') or 'tester'}/{fields['name']}"


def create(hub: Hub, request: Request, body: Body) -> Reply:
    """A new repository, with the one file that the hub puts there."""
    token = access.writer(hub, request)
    fields = json.loads(whole(body))
    name = _named(fields)
    where = {"url": f"{hub.endpoint}/{name}", "name": name, "id": name}
    with hub.lock:
        if hub.found(name) is not None:
            return as_json({"error": "You already created this model repo", **where}, 409)
        private = fields.get("private") is True or fields.get("visibility") == "private"
        repo = Repo(name, hub.folder(name))
        first = {".gitattributes": repo.keep(".gitattributes", ATTRIBUTES.encode())}
        repo.change(private=private, members=(token,))
        repo.advance("main", lambda tree: first, "initial commit")
    return as_json(where)


def delete(hub: Hub, request: Request, body: Body) -> Reply:
    """A repository, with all it holds."""
    name = _named(json.loads(whole(body)))
    access.written(hub, request, name)
    hub.delete(name)
    return as_json({})


def settings(hub: Hub, request: Request, body: Body, name: str) -> Reply:
    """Who may see it."""
    repo = access.written(hub, request, name)
    fields = json.loads(whole(body))
    private = fields.get("private") is True or fields.get("visibility") == "private"
    repo.change(private=private, members=(access.writer(hub, request),))
    return as_json({"private": private})


def create_branch(hub: Hub, request: Request, body: Body, name: str, branch: str) -> Reply:
    """From where ``startingPoint`` is, or main."""
    repo = access.written(hub, request, name)
    fields = json.loads(whole(body) or b"{}")
    if branch.startswith("refs/"):
        raise RefusedError(400, f"Invalid reference for a branch: {branch}")
    with repo.lock:
        if branch in repo.state.heads:
            raise RefusedError(409, "Reference already exists")
        sha = repo.commit(fields.get("startingPoint") or "main").sha
        repo.change(heads={**repo.state.heads, branch: sha})
    return as_json({})


def delete_branch(hub: Hub, request: Request, body: Body, name: str, branch: str) -> Reply:
    """Not of its commits, which stay."""
    repo = access.written(hub, request, name)
    with repo.lock:
        heads = dict(repo.state.heads)
        if heads.pop(branch, None) is None:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        repo.change(heads=heads)
    return as_json({})


def create_tag(hub: Hub, request: Request, body: Body, name: str, revision: str) -> Reply:
    """A name for a commit that stays where it is."""
    repo = access.written(hub, request, name)
    tag = json.loads(whole(body))["tag"]
    with repo.lock:
        if tag in repo.state.tags:
            raise RefusedError(409, "Tag reference exists already")
        repo.change(tags={**repo.state.tags, tag: repo.commit(revision).sha})
    return as_json({})


def preupload(hub: Hub, request: Request, body: Body, name: str, revision: str) -> Reply:
    """How each file is to be sent, and what is there by that name."""
    repo = access.written(hub, request, name)
    commit = repo.commit(revision)
    found = []
    for file in json.loads(whole(body))["files"]:
        path, size = file["path"], file["size"]
        there = commit.tree.get(path)
        mode = "lfs" if is_lfs(path, size) else "regular"
        oid = there.key if there is not None else None
        found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return as_json({"files": found, "commitOid": commit.sha})


def commit(hub: Hub, request: Request, body: Body, name: str, revision: str) -> Reply:
    """All operations of a commit, or none of them."""
    repo = access.written(hub, request, name)
    lines = [json.loads(line) for line in whole(body).splitlines() if line.strip()]
    headers = [line["value"] for line in lines if line["key"] == "header"]
    if len(headers) != 1 or not headers[0].get("summary"):
        raise RefusedError(400, "a commit has one header, with a summary")
    made = repo.advance(
        revision,
        lambda tree: _applied(repo, dict(tree), lines),
        headers[0]["summary"],
        headers[0].get("description", ""),
        headers[0].get("parentCommit"),
    )
    where = f"{hub.endpoint}/{name}/commit/{made.sha}"
    return as_json({"success": True, "commitOid": made.sha, "commitUrl": where, "hookOutput": ""})


def _applied(repo: Repo, tree: Tree, lines: list[dict[str, Any]]) -> Tree:
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "header":
            continue
        if key not in _OPERATIONS:
            raise RefusedError(400, f"unknown operation {key}")
        path = value["path"]
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or ".git" in parts:
            raise RefusedError(400, f"invalid path {path}")
        _OPERATIONS[key](repo, tree, path, value)
    return tree


def _add(repo: Repo, tree: Tree, path: str, value: Mapping[str, Any]) -> None:
    if value.get("encoding", "utf-8") == "base64":
        content = base64.b64decode(value["content"], validate=True)
    else:
        content = value["content"].encode()
    if len(content) >= LFS_SIZE:
        raise RefusedError(400, f"{path}: files of {LFS_SIZE} bytes and more have to be in LFS")
    # What comes as a regular file stays one, whatever its name.
    tree[path] = repo.keep_regular(content)


def _add_lfs(repo: Repo, tree: Tree, path: str, value: Mapping[str, Any]) -> None:
    if value.get("algo") != "sha256":
        raise RefusedError(400, f"{path}: the sum of a file in LFS is its SHA-256")
    file = lfs_file(value["oid"], value.get("size", 0))
    if not repo.blob(file).is_file():
        raise RefusedError(400, f"{path}: LFS pointer pointed to a file that does not exist")
    size = repo.blob(file).stat().st_size
    if value.get("size", size) != size:
        raise RefusedError(
            400, f"{path}: LFS pointer says {value['size']} bytes, the file has {size}"
        )
    tree[path] = lfs_file(value["oid"], size)


def _remove(repo: Repo, tree: Tree, path: str, value: Mapping[str, Any]) -> None:
    if tree.pop(path, None) is None:
        raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


def _remove_folder(repo: Repo, tree: Tree, path: str, value: Mapping[str, Any]) -> None:
    below = [p for p in tree if p.startswith(path.rstrip("/") + "/")]
    if not below:
        raise RefusedError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
    for p in below:
        del tree[p]


_OPERATIONS = {
    "file": _add,
    "lfsFile": _add_lfs,
    "deletedFile": _remove,
    "deletedFolder": _remove_folder,
}
