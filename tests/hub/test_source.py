"""A checkpoint on the hub is converted to the bytes that its folder is converted to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import fp8convert
from fp8convert import header, origins
from fp8convert.convert import Manifest, execute, prepare
from fp8convert.errors import FormatError, Fp8ConvertError, UsageError
from fp8convert.hub.address import MAIN, Address, bare
from fp8convert.inspection import inspect
from fp8convert.settings import Settings

from .faults import Fault
from .models import contents, make_chain, shards_of, without_origin
from .server import Hub

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
BIN = Path(sys.executable).parent


def sent_of_shards(hub: Hub) -> dict[str, int]:
    """Bytes of each shard that the hub has sent."""
    found: dict[str, int] = {}
    for request in hub.log:
        name = request.path.rsplit("/", 1)[-1]
        if name.endswith(".safetensors") and request.status in (200, 206):
            found[name] = found.get(name, 0) + request.sent
    return found


COMMANDS: dict[str, tuple[Callable[..., Manifest], dict[str, Any]]] = {
    "to-bf16": (fp8convert.to_bf16, {}),
    "to-bf16, cut anew": (fp8convert.to_bf16, {"max_shard_size": 150_000}),
    "quantize": (fp8convert.quantize, {"scheme": "int8-channel"}),
    "shard-for-tp": (fp8convert.shard_for_tp, {"tp": 2}),
    "unshard": (fp8convert.unshard, {}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_bytes_are_those_of_the_folder(
    command: str, tiny_fp8: Path, hub: Hub, tmp_path: Path
) -> None:
    source = tiny_fp8
    if command == "unshard":
        source = fp8convert.shard_for_tp(tiny_fp8, tmp_path / "ranks", 2).path  # type: ignore[assignment]
        (source / "manifest.json").unlink()
    sha = hub.add(REPO, source)
    convert, options = COMMANDS[command]
    here = convert(source, tmp_path / "here", **options)
    there = convert(AT, tmp_path / "there", **options)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert without_origin(there.data) == without_origin(here.data)
    assert there.data["identity"]["origin"] == {"hub": REPO, "commit": sha}
    assert "origin" not in here.data["identity"]
    left = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("."))
    assert left == [], "nothing stays beside the target"


def test_a_plan_takes_headers_only(chain: Path, hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, chain)
    for look in (lambda: inspect(AT), lambda: prepare(AT, tmp_path / "dst")):
        look()
        for name, sent in sent_of_shards(hub).items():
            with (chain / name).open("rb") as file:
                length = header.header_length(file.read(64), (chain / name).stat().st_size, name)
            assert sent == 64 + length, "its first bytes, and the header"
        assert set(sent_of_shards(hub)) == set(shards_of(chain))
        hub.traffic.clear()
    assert not list(tmp_path.glob(".dst*"))


def test_every_shard_comes_once(
    chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, chain)
    job = prepare(AT, tmp_path / "dst")
    hub.traffic.clear()
    execute(job)
    assert contents(tmp_path / "dst") == expected
    sizes = {name: (chain / name).stat().st_size for name in shards_of(chain)}
    assert sent_of_shards(hub) == sizes


@pytest.mark.parametrize("cdn", [True, False])
def test_with_and_without_a_store_behind_it(
    cdn: bool, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    hub.add(REPO, chain)
    hub.cdn = cdn
    fp8convert.to_bf16(AT, tmp_path / "dst")
    assert contents(tmp_path / "dst") == expected


def test_a_long_listing(chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, chain)
    hub.page_size = 2
    fp8convert.to_bf16(AT, tmp_path / "dst")
    assert contents(tmp_path / "dst") == expected


class TestRevisions:
    def test_a_branch_a_tag_a_commit(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        first = hub.add(REPO, chain)
        hub.tag(REPO, "v1", first)
        hub.branch(REPO, "user/try", first)
        other = make_chain(tmp_path / "other", seed=4)
        second = hub.add(REPO, other)
        for revision, commit in {
            "": second, "@main": second, "@v1": first, "@user/try": first, f"@{first}": first,
        }.items():  # fmt: skip
            found = origins.at(f"{AT}{revision}")
            assert found.provenance == {"hub": REPO, "commit": commit}
            assert found.place == f"hf://{REPO}@{commit}"
            data = found.read("config.json", 10_000, "test")
            assert data == (chain / "config.json").read_bytes()

    @pytest.mark.parametrize("revision", ["nowhere", "0" * 40, "refs/pr/7"])
    def test_one_that_is_not_there(self, revision: str, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        with pytest.raises(FormatError, match="no such branch, tag or commit"):
            inspect(f"{AT}@{revision}")


class TestAddresses:
    @pytest.mark.parametrize(
        "text",
        ["hf://", "hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@x y", "hf:// /b",
         "hf://a--b/c", "hf://a/b..c", "hf://a/b.git", "hf://é/b", "hf://a/b@x@y"],
    )  # fmt: skip
    def test_none(self, text: str) -> None:
        with pytest.raises(UsageError, match="expected hf://org/name"):
            Address.of(text)

    def test_of(self) -> None:
        assert Address.of("hf://org/name") == Address("org/name", MAIN)
        assert Address.of("hf://org/name/") == Address("org/name", MAIN)
        assert Address.of("hf://o_1/n.2-x@refs/pr/3") == Address("o_1/n.2-x", "refs/pr/3")
        assert str(Address.of("hf://org/name@v1")) == "hf://org/name@v1"

    def test_bare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert bare("org/name") == Address("org/name")
        assert bare("org/name@v1") == Address("org/name", "v1")
        for path in ("name", "./name", "/org/name", "a/b/c", "../name", "~/name", "org/"):
            assert bare(path) is None
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert bare("org/name") is None

    def test_no_folder_here(
        self, chain: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, chain)
        monkeypatch.chdir(tmp_path)
        said = origins.at(REPO).remarks
        assert said == (f"'{REPO}' is no folder here: read from the hub",)
        with pytest.raises(FormatError) as e:
            inspect("org/nothing")
        assert "'org/nothing' is no folder here" in str(e.value)
        assert "hf://org/nothing@main: no such repository" in str(e.value)

    def test_a_folder_of_that_name_is_it(
        self, chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(chain.parents[1])  # the hub is not asked: there is none
        found = inspect(f"{chain.parent.name}/{chain.name}")
        assert found.shards == 6

    @pytest.mark.parametrize("words", [["verify", AT], ["parity", AT, AT, "--seed", "1", "--length",
                                       "4"], ["logits", AT, "--seed", "1", "--length", "4",
                                              "--out", "x.npy"]])  # fmt: skip
    def test_what_reads_folders_says_so(self, words: list[str], hub: Hub, tmp_path: Path) -> None:
        done = subprocess.run([BIN / "fp8convert", *words], cwd=tmp_path, capture_output=True,
                              text=True, env=hub.env)  # fmt: skip
        assert done.returncode == 2
        assert f"'{AT}' is an address, and this command reads folders only" in done.stderr
        assert not hub.log


class TestCache:
    def test_it_is_read_where_it_is(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        sha = hub.add(REPO, chain)
        cached = Path(snapshot_download(REPO, ignore_patterns=["*-00005-*", "*.json"]))
        before = {p: p.stat().st_mtime_ns for p in cached.parents[1].rglob("*")}
        hub.traffic.clear()
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert set(sent_of_shards(hub)) == {"model-00005-of-00006.safetensors"}
        assert {p: p.stat().st_mtime_ns for p in cached.parents[1].rglob("*")} == before
        assert cached.name == sha

    def test_all_of_it_needs_no_scratch(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        snapshot_download(REPO)
        hub.traffic.clear()
        job = prepare(AT, tmp_path / "dst")
        scratch = fp8convert.Scratch(tmp_path / "nowhere", size=0)
        assert job.feed(scratch).room == 0
        execute(job, Settings(scratch=scratch))
        assert contents(tmp_path / "dst") == expected
        assert sent_of_shards(hub) == {}
        assert not (tmp_path / "nowhere").exists()

    def test_one_of_a_wrong_size_is_not_it(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        blob = (Path(snapshot_download(REPO)) / shards_of(chain)[2]).resolve()
        blob.write_bytes(blob.read_bytes()[:-1])
        fp8convert.to_bf16(AT, tmp_path / "dst")
        assert contents(tmp_path / "dst") == expected
        assert blob.stat().st_size < (chain / shards_of(chain)[2]).stat().st_size

    def test_a_shard_in_it_is_read_without_a_run(self, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        name = "model.layers.0.mlp.up_proj.weight"
        here = fp8convert.open_checkpoint(chain).read(name)
        there = fp8convert.open_checkpoint(AT)
        with pytest.raises(UsageError, match=r"hf download org/model --revision [0-9a-f]{40}"):
            there.read(name)
        snapshot_download(REPO)
        assert (there.read(name) == here).all()


class TestOffline:
    @pytest.fixture
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], None]:
        def switch(hub: Hub) -> None:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            hub.traffic.clear()
            hub.down()

        return switch

    def test_the_cached_commit(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path,
        offline: Callable[[Hub], None],
    ) -> None:  # fmt: skip
        sha = hub.add(REPO, chain)
        snapshot_download(REPO)
        offline(hub)
        job = prepare(AT, tmp_path / "dst")
        assert job.catalogue.folder.remarks[0].startswith("HF_HUB_OFFLINE: ")
        found = execute(job)
        assert contents(tmp_path / "dst") == expected
        assert found.data["identity"]["origin"] == {"hub": REPO, "commit": sha}
        assert not hub.log

    def test_it_is_the_same_plan_and_source_as_online(
        self, chain: Path, hub: Hub, tmp_path: Path, offline: Callable[[Hub], None]
    ) -> None:
        hub.add(REPO, chain)
        online = fp8convert.to_bf16(AT, tmp_path / "dst")
        snapshot_download(REPO)
        offline(hub)
        again = fp8convert.to_bf16(AT, tmp_path / "dst")
        assert again.already_done
        assert again.data == online.data

    def test_nothing_cached(
        self, chain: Path, hub: Hub, tmp_path: Path, offline: Callable[[Hub], None]
    ) -> None:
        hub.add(REPO, chain)
        offline(hub)
        with pytest.raises(FormatError, match="in the cache of huggingface_hub"):
            prepare(AT, tmp_path / "dst")

    def test_the_variable(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        snapshot_download(REPO)
        hub.traffic.clear()
        env = {**hub.env, "HF_HUB_OFFLINE": "1"}
        words = [BIN / "fp8convert", "to-bf16", AT, tmp_path / "dst"]
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "note: HF_HUB_OFFLINE: hf://org/model@main is read from the cache" in done.stderr
        assert not hub.log


class TestUntrusted:
    ODD = ("a\\b.json", "c:d.json", "deep/er/x.json", "deep/y.json")

    def test_names_of_a_listing(self, hub: Hub) -> None:
        hub.put(REPO, dict.fromkeys((*self.ODD, "config.json"), b"{}"))
        found = origins.at(AT)
        assert found.names() == ["a\\b.json", "c:d.json", "config.json", "deep"]
        assert found.names("deep") == ["er", "y.json"]
        assert found.is_folder("deep")
        assert not found.is_folder("config.json")
        assert found.read("deep/y.json", 10, "test") == b"{}"
        for name in ("a\\b.json", "c:d.json", "deep/er/x.json", "../config.json", "/config.json"):
            with pytest.raises(FormatError, match="not a plain file name"):
                found.read(name, 10, "test")
            with pytest.raises(FormatError, match="not a plain file name"):
                found.size(name)
        with pytest.raises(FormatError, match="is missing from hf://org/model@"):
            found.read("other.json", 10, "test")
        with pytest.raises(FormatError, match="no folder of"):
            found.names("config.json")

    def test_a_large_small_file(self, hub: Hub) -> None:
        hub.put(REPO, {"config.json": b"x" * 100})
        with pytest.raises(FormatError, match="has 100 bytes, expected at most 99"):
            origins.at(AT).read("config.json", 99, "test")
        assert not any("resolve" in r.path for r in hub.log)

    def test_a_flipped_byte_of_a_small_file(self, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        once = hub.faults.add(Fault("config.json", flip=20, times=1))
        assert inspect(AT).weights == 6
        assert once.struck == 1
        hub.faults.add(Fault("config.json", flip=20))
        with pytest.raises(FormatError, match=r"'config.json' of .* came, twice, with another sum"):
            inspect(AT)

    def test_a_file_in_place_of_a_range(self, chain: Path, hub: Hub) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault(r"cdn/.*model-00003", status=200, message="x" * 100))
        with pytest.raises(FormatError, match="all of it came where bytes=0-63 was asked for"):
            inspect(AT)

    def test_an_empty_file(self, chain: Path, hub: Hub) -> None:
        hub.put(REPO, {"config.json": b""})
        assert origins.at(AT).read("config.json", 10, "test") == b""


def test_like_a_checkpoint_on_the_hub(tiny_fp8: Path, tiny_bf16: Path, hub: Hub, tmp_path: Path
) -> None:  # fmt: skip
    hub.add(REPO, tiny_fp8)
    options: dict[str, Any] = {"scheme": "fp8-block"}
    fp8convert.quantize(tiny_bf16, tmp_path / "here", like=str(tiny_fp8), **options)
    fp8convert.quantize(tiny_bf16, tmp_path / "there", like=AT, **options)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert max(sent_of_shards(hub).values()) < 20_000, "headers only"


def test_a_local_conversion_does_not_load_huggingface_hub(mini: Path, tmp_path: Path) -> None:
    code = (
        "import sys, fp8convert\n"
        f"fp8convert.to_bf16({str(mini)!r}, {str(tmp_path / 'dst')!r})\n"
        "sys.exit(int(bool({'huggingface_hub', 'httpx', 'httpx2', 'fsspec', 'ray'} "
        "& set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_address_in_messages_and_json(chain: Path, hub: Hub, tmp_path: Path) -> None:
    sha = hub.add(REPO, chain)
    words = [BIN / "fp8convert", "to-bf16", REPO, tmp_path / "dst", "--dry-run", "--json"]
    done = subprocess.run(words, env=hub.env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"note: '{REPO}' is no folder here: read from the hub" in done.stderr
    plan = json.loads(done.stdout)
    assert plan["origin"] == {"hub": REPO, "commit": sha}
    assert plan["scratch"] == sum((chain / name).stat().st_size for name in shards_of(chain))
    assert list(tmp_path.glob(".dst*")) == []


def test_an_endpoint_that_is_no_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    hub.faults.add(Fault("/api/", status=200, message="<html>"))
    with pytest.raises(Fp8ConvertError, match="hf://org/model@main: no sense in the answer"):
        inspect(AT)
