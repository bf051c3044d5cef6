"""The hub of the tests against huggingface_hub itself: repositories, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from . import Hub
from .plain import Answer, ask

REPO = "org/new"
TOKEN = "hf_me"
# huggingface_hub sends the content of files in a way that its own client finds outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """Of somebody who may write, in a repository that is new."""
    api = HfApi(token=TOKEN)
    api.create_repo(REPO)
    return api


def post(hub: Hub, path: str, value: object, **headers: str) -> Answer:
    lines = value if isinstance(value, list) else [value]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return ask(hub, path, "POST", body, **{"Authorization": f"Bearer {TOKEN}", **headers})


def commit_of(*operations: dict[str, Any], **header: str) -> list[dict[str, Any]]:
    return [{"key": "header", "value": {"summary": "s", **header}}, *operations]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_new_repository_has_one_commit_and_is_made_once(hub: Hub, api: HfApi) -> None:
    assert set(hub.tree(REPO)) == {".gitattributes"}
    assert b"*.safetensors filter=lfs" in hub.read(REPO, ".gitattributes")
    assert [c.message for c in hub.commits(REPO)] == ["initial commit"]
    with pytest.raises(HfHubHTTPError) as e:
        api.create_repo(REPO)
    assert e.value.response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert not hub.is_private(REPO)
    api.create_repo("org/mine", private=True)
    assert hub.is_private("org/mine")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token="hf_other").repo_info("org/mine")
    api.delete_repo(REPO)
    assert not hub.has(REPO)


@pytest.mark.parametrize("part_size", [64 << 20, 1000])
def test_shards_sent_ahead_are_seen_when_they_are_committed(
    hub: Hub, api: HfApi, tmp_path: Path, part_size: int
) -> None:
    hub.part_size = part_size
    head = hub.commits(REPO)[0].sha
    files = {f"{n}.safetensors": bytes([n]) * (2500 + n) for n in range(3)}
    operations = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        operation = CommitOperationAdd(name, str(tmp_path / name))
        api.preupload_lfs_files(REPO, [operation])
        (tmp_path / name).unlink()
        operations.append(operation)
        assert set(hub.tree(REPO)) == {".gitattributes"}
    operations.append(CommitOperationAdd("config.json", b"{}"))
    made = api.create_commit(
        REPO, operations, commit_message="all", commit_description="more", parent_commit=head
    )
    for name, data in {**files, "config.json": b"{}"}.items():
        assert hub.read(REPO, name) == data
    newest = hub.commits(REPO)[0]
    assert (newest.sha, newest.parent) == (made.oid, head)
    assert (newest.message, newest.description) == ("all", "more")
    assert hub.tree(REPO)["0.safetensors"].lfs == sha256(files["0.safetensors"])
    assert hub.tree(REPO)["config.json"].lfs is None
    puts = [r for r in hub.log if r.method == "PUT"]
    assert len(puts) == (3 if part_size > 2502 else 9)
    assert sum(r.received for r in puts) == sum(map(len, files.values()))
    assert not any(r.authorization for r in puts)
    assert not any((hub.root / "incoming").iterdir())


def test_what_the_repository_has_is_not_sent_again(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors", "note.txt"):
        (folder / name).write_bytes(name.encode())
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert {p: hub.read(REPO, p) for p in hub.tree(REPO) if p != ".gitattributes"} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert len([r for r in hub.log if r.method == "PUT"]) == 2
    hub.traffic.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    api.create_commit(
        REPO, [CommitOperationAdd("c.safetensors", b"a.safetensors")], commit_message="copy"
    )
    assert [r for r in hub.log if r.method == "PUT"] == []
    assert hub.read(REPO, "c.safetensors") == b"a.safetensors"
    # What another repository has is not there.
    api.create_repo("org/other")
    answer = post(
        hub,
        "/org/other.git/info/lfs/objects/batch",
        {"operation": "upload", "objects": [{"oid": sha256(b"a.safetensors"), "size": 13}]},
    )
    assert "actions" in json.loads(answer.body)["objects"][0]


def test_a_commit_on_another_parent_changes_nothing(hub: Hub, api: HfApi) -> None:
    head = hub.commits(REPO)[0].sha
    api.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"a", parent_commit=head)
    before = hub.commits(REPO)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as e:
        api.create_commit(
            REPO, [CommitOperationAdd("b.txt", b"b")], commit_message="late", parent_commit=head
        )
    assert e.value.response.status_code == 412
    assert hub.commits(REPO) == before


def test_branches_have_a_life_of_their_own(hub: Hub, api: HfApi) -> None:
    start = hub.commits(REPO)[0].sha
    api.create_branch(REPO, branch="try/1")
    with pytest.raises(HfHubHTTPError) as e:
        api.create_branch(REPO, branch="try/1")
    assert e.value.response.status_code == 409
    api.create_branch(REPO, branch="try/1", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="try/2", revision="none")
    api.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"a", revision="try/1")
    assert hub.branches(REPO)["main"] == start
    assert hub.read(REPO, "a.txt", "try/1") == b"a"
    api.create_tag(REPO, tag="v1", revision="try/1")
    api.delete_branch(REPO, branch="try/1")
    assert set(hub.branches(REPO)) == {"main"}
    assert hub.read(REPO, "a.txt", "v1") == b"a"
    for revision in ("none", start):  # a commit is no branch
        with pytest.raises(RevisionNotFoundError):
            api.upload_file(repo_id=REPO, path_in_repo="a", path_or_fileobj=b"a", revision=revision)


def test_files_and_folders_are_deleted_and_what_is_not_there_is_not(hub: Hub, api: HfApi) -> None:
    hub.put(REPO, {"a.txt": b"a", "d/b.txt": b"b", "d/e/c.txt": b"c", "dd.txt": b"d"})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("d/")]
    api.create_commit(REPO, operations, commit_message="fewer")
    assert set(hub.tree(REPO)) == {".gitattributes", "dd.txt"}
    before = hub.commits(REPO)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(
            REPO,
            [CommitOperationAdd("n.txt", b"n"), CommitOperationDelete("a.txt")],
            commit_message="half",
        )
    assert hub.commits(REPO) == before


def test_who_may_write(hub: Hub, api: HfApi) -> None:
    hub.read_only.add("hf_reader")
    before = hub.commits(REPO)
    for token, status in ((False, 401), ("hf_reader", 403)):
        acts: dict[str, dict[str, Any]] = {
            "create_repo": {"repo_id": "org/x"},
            "create_branch": {"repo_id": REPO, "branch": "b"},
            "upload_file": {"repo_id": REPO, "path_in_repo": "a", "path_or_fileobj": b"a"},
        }
        for act, arguments in acts.items():
            with pytest.raises(HfHubHTTPError) as e:
                getattr(HfApi(token=token), act)(**arguments)
            assert e.value.response.status_code == status
    assert hub.commits(REPO) == before
    assert set(hub.branches(REPO)) == {"main"}
    assert not hub.has("org/x")


BAD = {
    "a file in LFS that never came": (
        {"key": "lfsFile", "value": {"path": "x", "algo": "sha256", "oid": "0" * 64, "size": 5}},
        "does not exist",
    ),
    "another size": (
        {"key": "lfsFile",
         "value": {"path": "x", "algo": "sha256", "oid": sha256(b"here"), "size": 5}},
        "5 bytes",
    ),
    "a path that climbs": (
        {"key": "file", "value": {"path": "../x", "content": "", "encoding": "base64"}},
        "invalid path",
    ),
    "a regular file of 10 MB": (
        {"key": "file", "value": {"path": "x", "content": "a" * 10_000_000}},
        "have to be in LFS",
    ),
    "something else": ({"key": "rename", "value": {"path": "x"}}, "unknown operation"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_operation_leaves_nothing_of_its_commit(hub: Hub, api: HfApi, what: str) -> None:
    hub.put(REPO, {"here.bin": b"here"})
    before = hub.commits(REPO)
    operation, words = BAD[what]
    good = {"key": "file", "value": {"path": "good", "content": "good"}}
    answer = post(hub, f"/api/models/{REPO}/commit/main", commit_of(good, operation))
    assert answer.status == 400
    assert words in json.loads(answer.body)["error"]
    assert hub.commits(REPO) == before
    assert post(hub, f"/api/models/{REPO}/commit/main", commit_of(good)).status == 200
    assert hub.read(REPO, "good") == b"good"


def upload_link(hub: Hub, data: bytes) -> tuple[str, dict[str, str]]:
    """Where to send it, and the header that comes with that."""
    asked = {"operation": "upload", "objects": [{"oid": sha256(data), "size": len(data)}]}
    answer = post(hub, f"/{REPO}.git/info/lfs/objects/batch", asked)
    upload = json.loads(answer.body)["objects"][0]["actions"]["upload"]
    return upload["href"], upload.get("header", {})


def test_content_that_was_not_announced_is_not_taken(hub: Hub, api: HfApi) -> None:
    data = b"as announced"
    where, _ = upload_link(hub, data)
    for wrong in (b"another text", data + b"!", data[:-1]):
        assert ask(hub, where, "PUT", wrong).status == 400
    assert ask(hub, where, "PUT", data, Authorization=f"Bearer {TOKEN}").status == 400
    assert ask(hub, where[:-1] + "x", "PUT", data).status == 403
    there = {"oid": sha256(data), "size": len(data)}
    verify = f"/{REPO}.git/info/lfs/objects/verify"
    assert post(hub, verify, there).status == 404
    assert ask(hub, where, "PUT", data).status == 200
    assert post(hub, verify, there).status == 200
    assert post(hub, verify, {**there, "size": 1}).status == 404
    assert not any((hub.root / "incoming").iterdir())


def test_parts_make_a_whole_in_any_order_or_none(hub: Hub, api: HfApi) -> None:
    hub.part_size = 10
    data = bytes(range(25))
    where, header = upload_link(hub, data)
    assert header["chunk_size"] == "10"
    assert set(header) == {"chunk_size", "1", "2", "3"}
    etags = {}
    for n in (3, 1, 2, 1):
        piece = data[(n - 1) * 10 : n * 10]
        etags[n] = ask(hub, header[str(n)], "PUT", piece).headers["etag"]
    assert ask(hub, header["3"], "PUT", b"too long").status == 400
    parts = [{"partNumber": n, "etag": etags[n]} for n in (1, 2, 3)]
    path = where.removeprefix(hub.endpoint)
    assert post(hub, path, {"oid": sha256(data), "parts": parts[:2]}).status == 400
    ask(hub, header["2"], "PUT", b"0123456789")  # now its ETag is another
    assert post(hub, path, {"oid": sha256(data), "parts": parts}).status == 400
    ask(hub, header["2"], "PUT", data[10:20])
    assert post(hub, path, {"oid": sha256(data), "parts": parts}).status == 200
    assert post(hub, path, {"oid": sha256(data), "parts": parts}).status == 200  # sent again
    operation = {"path": "x", "algo": "sha256", "oid": sha256(data), "size": len(data)}
    line = {"key": "lfsFile", "value": operation}
    assert post(hub, f"/api/models/{REPO}/commit/main", commit_of(line)).status == 200
    assert hub.read(REPO, "x") == data


def test_whoever_looks_sees_the_whole_of_a_commit(hub: Hub, api: HfApi) -> None:
    """Two files of each commit are of one generation, while a hundred commits go by."""

    def content(n: int) -> dict[str, Any]:
        text = base64.b64encode(str(n).encode()).decode()
        return {"content": text, "encoding": "base64"}

    def change() -> None:
        for n in range(100):
            pair = [{"key": "file", "value": {"path": p, **content(n)}} for p in ("a", "b")]
            assert post(hub, f"/api/models/{REPO}/commit/main", commit_of(*pair)).status == 200

    hub.put(REPO, {"a": b"0", "b": b"0"})
    writer = threading.Thread(target=change)
    writer.start()
    seen = set()
    while writer.is_alive():
        sha = json.loads(ask(hub, f"/api/models/{REPO}").body)["sha"]
        pair = [ask(hub, f"/{REPO}/resolve/{sha}/{p}") for p in ("a", "b")]
        assert [a.status for a in pair] == [200, 200]
        assert pair[0].body == pair[1].body
        seen.add(pair[0].body)
    writer.join()
    assert seen
    assert len(hub.commits(REPO)) == 102


def test_a_bad_request_is_a_bad_request_error(hub: Hub, api: HfApi) -> None:
    operation = CommitOperationAdd("x.safetensors", b"content")
    api.preupload_lfs_files(REPO, [operation])
    (hub.folder(REPO) / "blobs" / sha256(b"content")).unlink()
    with pytest.raises(BadRequestError, match="does not exist"):
        api.create_commit(REPO, [operation], commit_message="lost")
