"""Files one folder deep in a checkpoint: what is read and listed, what is refused unopened."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp8convert.catalogue import open_catalogue
from fp8convert.companions import companions
from fp8convert.errors import FormatError
from fp8convert.folder import Folder
from fp8convert.plan import Copy

from .nested import ODD, RANKS


@pytest.fixture
def ranks(mini: Path, tmp_path: Path) -> Path:
    """A checkpoint folder with folders of files."""
    made = tmp_path / "ranks"
    for rank in RANKS:
        shutil.copytree(mini, made / rank)
    (made / "tp.json").write_text("{}")
    return made


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path opened while the test runs, resolved."""
    paths: list[str] = []
    real = os.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> int:
        paths.append(os.path.realpath(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", spy)
    return paths


def test_reading_files_in_folders(ranks: Path, mini: Path, opens: list[str]) -> None:
    found = Folder.at(ranks)
    data = (mini / "config.json").read_bytes()
    opens.clear()
    assert found.read("rank1/config.json", 10_000, "config") == data
    assert found.size("rank1/config.json") == len(data)
    assert set(opens) == {str(ranks / "rank1" / "config.json")}
    assert found.has("rank1/config.json")
    assert found.has("tp.json")
    assert found.has("rank1")
    for absent in ("rank2/config.json", "rank1/x", "config.json", "tp.json/config.json"):
        assert not found.has(absent)
        with pytest.raises(FormatError, match="is missing from"):
            found.size(absent)


def test_names_in_a_folder(ranks: Path, mini: Path) -> None:
    found = Folder.at(ranks)
    assert found.names() == [*RANKS, "tp.json"]
    assert found.names("rank0") == sorted(os.listdir(mini))
    with pytest.raises(FormatError, match=r"'rank2' is missing, expected a folder of"):
        found.names("rank2")
    with pytest.raises(FormatError, match=r"'tp.json' is not a folder, expected a folder of"):
        found.names("tp.json")


@pytest.mark.parametrize("name", [*ODD, "rank0/../tp.json", "rank0/../../x", "rank0//config.json"])
def test_no_method_follows_an_odd_name(ranks: Path, opens: list[str], name: str) -> None:
    (ranks.parent / "x").write_text("mine")
    (ranks / "a" / "b").mkdir(parents=True)
    (ranks / "a" / "b" / "c").write_text("mine")
    found = Folder.at(ranks)
    opens.clear()
    asked: list[Callable[[str], object]] = [
        found.size, found.has, lambda n: found.open(n, "why"), lambda n: found.read(n, 9, "why"),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(FormatError, match="is not a plain file name, or one in a folder"):
            ask(name)
    if name:
        with pytest.raises(FormatError, match="is not a plain file name"):
            found.names(name)
    with pytest.raises(FormatError, match="is not a plain file name"):
        found.names("a/b")
    assert opens == []


@pytest.mark.parametrize("place", ["outside", "neighbour", "parent", "absolute"])
def test_a_folder_that_is_a_link_out(ranks: Path, mini: Path, opens: list[str], place: str) -> None:
    """The file there is never opened, its folder never listed."""
    target = {
        "outside": "../elsewhere",
        "neighbour": "../ranks-2",
        "parent": "..",
        "absolute": str(mini),
    }[place]
    shutil.copytree(mini, ranks.parent / "elsewhere")
    shutil.copytree(mini, ranks.parent / "ranks-2")
    shutil.copy(mini / "config.json", ranks.parent)
    (ranks / "rank2").symlink_to(target)
    found = Folder.at(ranks)
    assert (ranks / "rank2" / "config.json").is_file()  # a naive join would have read it
    opens.clear()
    asked: list[Callable[[], object]] = [
        lambda: found.size("rank2/config.json"),
        lambda: found.open("rank2/config.json", "why"),
        lambda: found.read("rank2/config.json", 10_000, "why"),
        lambda: found.names("rank2"),
    ]
    for ask in asked:
        with pytest.raises(FormatError, match="is a link out of"):
            ask()
    assert opens == []


def test_links_that_stay_inside(ranks: Path) -> None:
    (ranks / "rank2").symlink_to("rank0")
    (ranks / "rank1" / "config.json").unlink()
    (ranks / "rank1" / "config.json").symlink_to("../rank0/config.json")
    found = Folder.at(ranks)
    assert found.names("rank2") == found.names("rank0")
    assert found.size("rank2/config.json") == found.size("rank1/config.json") > 0


def test_links_of_a_file_out_of_the_folder(ranks: Path, mini: Path) -> None:
    (ranks / "rank1" / "config.json").unlink()
    (ranks / "rank1" / "config.json").symlink_to(mini / "config.json")
    with pytest.raises(FormatError, match="is a link out of"):
        Folder.at(ranks).size("rank1/config.json")


def test_folders_of_a_hub_cache(ranks: Path, tmp_path: Path) -> None:
    """Its snapshots have real folders, and links in them to blobs of the repository."""
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    for n, path in enumerate(sorted(p for p in ranks.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(ranks)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repo / "blobs" / f"{n:064x}")
        link.symlink_to(os.path.relpath(repo / "blobs" / f"{n:064x}", link.parent))
    found = Folder.at(snapshot)
    assert found.names("rank1") == sorted(os.listdir(ranks / "rank1"))
    assert found.size("rank1/config.json") == (ranks / "rank1" / "config.json").stat().st_size


@pytest.mark.parametrize("kind", ["FIFO", "folder"])
def test_no_regular_file_in_a_folder(ranks: Path, opens: list[str], kind: str) -> None:
    make: Callable[[Path], None] = os.mkfifo if kind == "FIFO" else os.mkdir
    make(ranks / "rank0" / "odd")
    found = Folder.at(ranks)
    opens.clear()
    with pytest.raises(FormatError, match=f"is a {kind}, expected a regular file"):
        found.size("rank0/odd")
    assert opens == []


def test_companions_of_ranks(ranks: Path) -> None:
    """Those of one folder; what lies beside the folders and in it is told apart."""
    (ranks / "notes.txt").write_text("mine")
    (ranks / ".git").mkdir()
    one = open_catalogue(ranks / "rank0")
    (ranks / "rank0" / "tp.json").write_text("{}")
    names = [f"{rank}/{s.name}" for rank in RANKS for s in one.shards]
    shards = tuple(s._replace(name=n) for s, n in zip(one.shards * 2, names, strict=True))
    found = dataclasses.replace(one, folder=Folder.at(ranks), shards=shards, home="rank0/")
    copies, not_copied = companions(found, copy_code=False)
    assert copies == [
        Copy("rank0/LICENSE", 4, "LICENSE"),
        Copy("rank0/tokenizer.json", 13, "tokenizer.json"),
    ]
    assert not_copied == ["notes.txt", "tp.json", "rank0/tp.json"]


def test_companions_of_a_flat_checkpoint(mini: Path) -> None:
    copies, not_copied = companions(open_catalogue(mini), copy_code=False)
    assert [(c.name, c.file, c.size) for c in copies] == [
        ("LICENSE", "LICENSE", 4),
        ("tokenizer.json", "tokenizer.json", 13),
    ]
    assert not_copied == []


def test_what_says_of_ranks_is_not_copied(mini: Path, tmp_path: Path) -> None:
    """They would say of the target what is not true of it."""
    src = Path(shutil.copytree(mini, tmp_path / "src"))
    (src / "model_args.json").write_text('{"dtype": "fp8"}')
    assert companions(open_catalogue(src), copy_code=False)[1] == ["model_args.json"]


def test_a_companion_that_is_a_link_out(ranks: Path, mini: Path) -> None:
    (ranks / "rank0" / "tokenizer.json").unlink()
    (ranks / "rank0" / "tokenizer.json").symlink_to(mini / "tokenizer.json")
    one = open_catalogue(ranks / "rank1")
    found = dataclasses.replace(one, folder=Folder.at(ranks), home="rank0/")
    with pytest.raises(FormatError, match="is a link out of"):
        companions(found, copy_code=False)
