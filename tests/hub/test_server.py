"""The hub of the tests against huggingface_hub itself: listings and downloads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    get_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from . import Hub
from .plain import ask

REPO = "org/model"


@pytest.fixture
def model(hub: Hub, mini: Path) -> str:
    """The SHA of a commit with a small checkpoint, a folder and a name that has to be quoted."""
    hub.add(REPO, mini)
    return hub.put(REPO, {"docs/über uns.md": b"words\n", "docs/deep/er.txt": b"more\n"})


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> content, without what huggingface_hub keeps for itself."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }


def expected(mini: Path) -> dict[str, bytes]:
    """What the repository has."""
    return contents(mini) | {"docs/über uns.md": b"words\n", "docs/deep/er.txt": b"more\n"}


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_a_snapshot_has_every_byte_in_the_cache_and_in_a_folder(
    hub: Hub, model: str, mini: Path, tmp_path: Path
) -> None:
    cached = Path(snapshot_download(REPO))
    assert cached.name == model
    assert contents(cached) == expected(mini)
    assert contents(Path(snapshot_download(REPO, local_dir=tmp_path / "l"))) == expected(mini)


def test_a_file_comes_by_branch_by_sha_and_by_tag(hub: Hub, model: str, tmp_path: Path) -> None:
    hub.tag(REPO, "v1")
    hub.branch(REPO, "a/b")
    hub.put(REPO, {"config.json": b"{}"})
    old = json.loads(hub.read(REPO, "config.json", model))
    for revision in (model, "v1", "a/b"):
        path = hf_hub_download(REPO, "config.json", revision=revision, local_dir=tmp_path / "l")
        assert json.loads(Path(path).read_bytes()) == old
    path = hf_hub_download(REPO, "docs/über uns.md", local_dir=tmp_path / "l")
    assert Path(path).read_bytes() == b"words\n"
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"


@pytest.mark.parametrize("page_size", [1000, 2])
def test_the_tree_has_sizes_and_sums_however_many_pages_it_takes(
    hub: Hub, model: str, mini: Path, page_size: int
) -> None:
    hub.page_size = page_size
    entries = list(HfApi().list_repo_tree(REPO, recursive=True))
    folders = {e.path for e in entries if isinstance(e, RepoFolder)}
    files = {e.path: e for e in entries if isinstance(e, RepoFile)}
    assert folders == {"docs", "docs/deep"}
    assert len(entries) == len(files) + len(folders)
    assert set(files) == set(expected(mini))
    for path, data in expected(mini).items():
        entry = files[path]
        assert entry.size == len(data)
        if path.endswith(".safetensors"):
            sha = hashlib.sha256(data).hexdigest()
            text = "version https://git-lfs.github.com/spec/v1\n"
            text += f"oid sha256:{sha}\nsize {len(data)}\n"
            assert entry.lfs is not None
            assert (entry.lfs.sha256, entry.lfs.pointer_size) == (sha, len(text))
            assert entry.blob_id == git_blob(text.encode())
        else:
            assert (entry.lfs, entry.blob_id) == (None, git_blob(data))


def test_a_folder_of_the_tree_is_listed_by_itself(hub: Hub, model: str) -> None:
    api = HfApi()
    flat = {e.path for e in api.list_repo_tree(REPO)}
    assert "docs" in flat
    assert not any("/" in path for path in flat)
    assert {e.path for e in api.list_repo_tree(REPO, "docs")} == {"docs/deep", "docs/über uns.md"}
    deep = api.list_repo_tree(REPO, "docs/deep", expand=True)
    assert [(e.path, e.last_commit and e.last_commit.oid) for e in deep] == [
        ("docs/deep/er.txt", model)
    ]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "doc"))


def test_what_is_known_of_a_model(hub: Hub, model: str, mini: Path) -> None:
    info = HfApi().model_info(REPO, files_metadata=True)
    assert (info.sha, info.private, info.gated, info.id) == (model, False, False, REPO)
    assert {s.rfilename: s.size for s in info.siblings or []} == {
        path: len(data) for path, data in expected(mini).items()
    }
    shard = next(s for s in info.siblings or [] if s.rfilename.endswith(".safetensors"))
    sha = hashlib.sha256((mini / shard.rfilename).read_bytes()).hexdigest()
    assert shard.lfs is not None
    assert shard.lfs.sha256 == sha
    assert HfApi().repo_info(REPO, revision=model).sha == model
    commits = HfApi().list_repo_commits(REPO)
    assert [(c.commit_id, c.title) for c in commits] == [
        (c.sha, c.message) for c in hub.commits(REPO)
    ]
    assert commits[0].commit_id == model
    refs = HfApi().list_repo_refs(REPO)
    assert [(b.name, b.target_commit) for b in refs.branches] == [("main", model)]


def test_the_filesystem_reads_ranges(hub: Hub, model: str, mini: Path) -> None:
    shard = next(p for p in sorted(mini.iterdir()) if p.suffix == ".safetensors")
    data = shard.read_bytes()
    filesystem = HfFileSystem(endpoint=hub.endpoint, skip_instance_cache=True)
    with filesystem.open(f"{REPO}/{shard.name}", block_size=4096, cache_type="none") as file:
        file.seek(1000)
        assert file.read(100) == data[1000:1100]
        file.seek(len(data) - 10)
        assert file.read() == data[-10:]
    names = {Path(str(p)).name for p in filesystem.ls(REPO, detail=False)}
    assert shard.name in names
    asked = [r.range for r in hub.log if r.host == "cdn"]
    assert asked == ["bytes=1000-1099", f"bytes={len(data) - 10}-{len(data) - 1}"]


def test_headers_of_safetensors(hub: Hub, model: str, mini: Path) -> None:
    metadata = get_safetensors_metadata(REPO)
    names: dict[str, Any] = {}
    for shard in mini.glob("*.safetensors"):
        with safetensors.safe_open(shard, "pt") as file:
            names |= dict.fromkeys(file.keys(), shard.name)
    assert metadata.weight_map == names
    assert {r.range for r in hub.log if r.host == "cdn"} == {"bytes=0-100000"}


def test_ranges_to_the_byte(hub: Hub) -> None:
    hub.put(REPO, {"x.bin": bytes(range(100)), "y.txt": bytes(range(100))})
    for path in (f"/{REPO}/resolve/main/x.bin", f"/{REPO}/resolve/main/y.txt"):
        if path.endswith("x.bin"):
            path = ask(hub, path).headers["location"]
        for words, begin, end in (("0-0", 0, 1), ("10-19", 10, 20), ("90-", 90, 100),
                                  ("-5", 95, 100), ("98-1000", 98, 100)):  # fmt: skip
            answer = ask(hub, path, Range=f"bytes={words}")
            assert (answer.status, answer.body) == (206, bytes(range(begin, end)))
            assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/100"
        answer = ask(hub, path, Range="bytes=100-")
        assert (answer.status, answer.headers["content-range"]) == (416, "bytes */100")
        assert ask(hub, path).status == 200


def test_a_file_in_lfs_is_somewhere_else_and_takes_no_token(hub: Hub) -> None:
    sha = hub.put(REPO, {"x.bin": b"content", "empty.bin": b""})
    oid = hashlib.sha256(b"content").hexdigest()
    for method in ("HEAD", "GET"):
        answer = ask(hub, f"/{REPO}/resolve/main/x.bin", method, Authorization="Bearer hf_me")
        assert answer.status == 302
        assert answer.headers["x-repo-commit"] == sha
        assert answer.headers["x-linked-etag"] == f'"{oid}"'
        assert answer.headers["x-linked-size"] == "7"
    where = answer.headers["location"]
    assert where.startswith(hub.cdn_endpoint)
    assert ask(hub, where).body == b"content"
    assert ask(hub, where, Authorization="Bearer hf_me").status == 400
    assert ask(hub, where.split("?")[0]).status == 403
    # In git after all, since it is empty; and with no CDN, at once.
    assert ask(hub, f"/{REPO}/resolve/main/empty.bin").headers["etag"] == f'"{git_blob(b"")}"'
    hub.cdn = False
    answer = ask(hub, f"/{REPO}/resolve/main/x.bin")
    assert (answer.status, answer.body) == (200, b"content")


def test_what_is_not_there_is_called_as_the_hub_calls_it(hub: Hub, model: str) -> None:
    for token in (False, "hf_me"):
        with pytest.raises(RepositoryNotFoundError) as e:
            HfApi(token=token).repo_info("org/none")
        assert e.value.response.status_code == (404 if token else 401)
    with pytest.raises(RevisionNotFoundError):
        HfApi().repo_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="0" * 40)
    with pytest.raises(RemoteEntryNotFoundError) as missing:
        hf_hub_download(REPO, "none.json")
    assert missing.value.response.headers["X-Repo-Commit"] == model
    assert ask(hub, "/nothing/at/all").status == 404
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as e2:
        HfApi(token="nobody").repo_info(REPO)
    assert not isinstance(e2.value, RepositoryNotFoundError)


def test_a_private_repository_is_there_for_its_token_only(hub: Hub, model: str) -> None:
    hub.private(REPO, "hf_mine")
    for token, status in ((False, 401), ("hf_other", 404)):
        with pytest.raises(RepositoryNotFoundError) as e:
            hf_hub_download(REPO, "config.json", token=token)
        assert e.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            list(HfApi(token=token).list_repo_tree(REPO))
    assert hf_hub_download(REPO, "config.json", token="hf_mine")
    assert HfApi(token="hf_mine").repo_info(REPO).private
    assert [r.authorization for r in hub.log][-1] == "Bearer hf_mine"


def test_a_gated_repository_may_be_listed_but_not_read(hub: Hub, model: str) -> None:
    hub.gate(REPO, "hf_accepted")
    assert HfApi(token=False).repo_info(REPO).gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as e:
            hf_hub_download(REPO, "config.json", token=token)
        assert e.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            HfApi(token=token).auth_check(REPO)
    assert hf_hub_download(REPO, "config.json", token="hf_accepted")


def test_a_folder_replaces_a_branch_and_the_old_commit_stays(
    hub: Hub, model: str, tmp_path: Path
) -> None:
    (tmp_path / "next" / ".git").mkdir(parents=True)
    (tmp_path / "next" / ".git" / "HEAD").write_text("no file of the repository")
    (tmp_path / "next" / "a.txt").write_text("a")
    before = hub.tree(REPO)
    sha = hub.add(REPO, tmp_path / "next")
    assert set(hub.tree(REPO)) == {"a.txt"}
    assert hub.tree(REPO, model) == before
    assert [c.sha for c in hub.commits(REPO)][:2] == [sha, model]
    assert hub.commits(REPO)[0].parent == model
    other = hub.add(REPO, tmp_path / "next", branch="other")
    assert hub.branches(REPO) == {"main": sha, "other": other}


def test_a_large_file_is_linked_and_its_sum_may_be_told(hub: Hub, tmp_path: Path) -> None:
    big = tmp_path / "src" / "x.safetensors"
    big.parent.mkdir()
    with open(big, "wb") as file:
        file.truncate(16 << 20)
    hub.add(REPO, big.parent)
    assert hub.blob(REPO, "x.safetensors").samefile(big)
    told = "0" * 64
    hub.add("org/told", big.parent, sums={"x.safetensors": told})
    assert hub.tree("org/told")["x.safetensors"].lfs == told


def test_it_runs_by_itself_and_serves_again_what_it_had(mini: Path, tmp_path: Path) -> None:
    root, shas = tmp_path / "hub", []
    for more in ([f"--add={REPO}={mini}", f"--private={REPO}=hf_mine"], []):
        command = [sys.executable, "-m", "tests.hub", str(root), *more]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
            shas.append(HfApi(endpoint=endpoint, token="hf_mine").repo_info(REPO).sha)
            with pytest.raises(RepositoryNotFoundError):
                HfApi(endpoint=endpoint, token=False).repo_info(REPO)
            process.terminate()
            assert process.wait(30) == 0
    assert shas[0] == shas[1]


def test_nothing_of_this_process_reaches_another(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    program = (
        "from huggingface_hub import constants as c, get_token; print(c.ENDPOINT, get_token())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=hub.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [hub.endpoint, "None"]
    assert not any("proxy" in name.lower() and name.lower() != "no_proxy" for name in hub.env)
