"""What is installed: the wheel's contents, the console scripts, the direction of imports."""

from __future__ import annotations

import ast
import configparser
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fp8convert", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {"fp8convert/py.typed"}
    for path in (ROOT / "fp8convert").rglob("*.py"):
        expected.add(path.relative_to(ROOT).as_posix())
    for path in (ROOT / "cli").rglob("*.py"):
        expected.add("fp8convert/" + path.relative_to(ROOT).as_posix())
    held = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert held == expected


def test_console_scripts(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_file(io.TextIOWrapper(wheel.open(name)))
    assert dict(parser["console_scripts"]) == {
        "fp8convert": "fp8convert.cli.main:main",
        "shard-for-tp": "fp8convert.cli.shard_for_tp:main",
    }


def imports(path: Path) -> set[str]:
    """Top-level names of what a module imports from outside the project."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


PROOF = {"parity", "reference", "verify"}  # rooms that run models, or read by another library


def test_the_library_imports_no_click_tqdm_or_torch() -> None:
    for path in (ROOT / "fp8convert").rglob("*.py"):
        never = {"click", "tqdm", "transformers"}
        if path.relative_to(ROOT / "fp8convert").parts[0] not in PROOF:
            never |= {"torch", "safetensors"}
        assert not imports(path) & never, path


# Libraries of the one room that needs them: a conversion from a folder to a folder loads none.
ROOM_OF = {"huggingface_hub": "hub", "fsspec": "stores", "ray": "executors"}


def test_each_room_has_a_library_of_its_own() -> None:
    for path in (ROOT / "fp8convert").rglob("*.py"):
        parts = path.relative_to(ROOT / "fp8convert").parts
        foreign = {name for name, owner in ROOM_OF.items() if parts[0] != owner}
        assert not imports(path) & {*foreign, "s3fs", "gcsfs", "httpx", "requests"}, path
    for path in (ROOT / "cli").rglob("*.py"):
        assert not imports(path) & ROOM_OF.keys(), path


# Rooms from the bottom up: a module may import only from rooms above its own line.
ROOMS = [
    ["errors", "dtypes", "version", "classes", "junit", "calls", "durable"],
    ["fence", "lock", "lanes"],
    ["strictjson", "seal", "header", "pagecache", "numbaoptions"],
    ["fileio", "origin"],
    ["folder", "target"],
    ["declared", "configout", "options"],
    ["codecs", "kernels"],
    ["layouts", "pieces", "schemes", "ranksets"],
    ["encoding", "choice", "cuts", "shards", "listing"],
    ["plan", "journal", "stage"],
    ["stores", "hub"],
    ["origins", "catalogue"],
    ["tile", "writers"],
    ["companions", "tiles", "codetiles", "teams", "places"],
    ["planner", "settings", "staged", "sources"],
    ["publish"],
    ["stores.staging"],
    ["stages"],
    ["job", "space", "parity.words"],
    ["hub.shipped", "hub.foreign", "hub.results", "hub.card", "hub.delivery", "hub.shipper"],
    ["quantizer", "report", "fetch", "coderun", "measuring", "spool"],
    ["taskrun", "checkpoint", "inspection", "samples", "misaligned"],
    ["jobs", "sharder"],
    ["engine"],
    ["spreading"],
    ["shardplan"],
    ["unsharder"],
    ["convert"],
    ["planfile", "distributed"],
    ["executors"],
    ["reference"],
    ["parity"],
    ["verify"],
    ["__init__"],
]


NAMED = {name for names in ROOMS for name in names}


def room(parts: tuple[str, ...]) -> int:
    """Of a module or package of the library; a few modules have another one than their package."""
    name = next(n for n in (".".join(parts[:2]), parts[0]) if n in NAMED)
    return next(i for i, names in enumerate(ROOMS) if name in names)


def imported(node: ast.ImportFrom, by: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a relative import is of; of a package, each name may be a module of it."""
    base = (*by[: -node.level], *(node.module.split(".") if node.module else ()))
    names = [(*base, alias.name) for alias in node.names]
    yield from names if len(base) < 2 and (not base or is_package(base)) else [base]


def is_package(parts: tuple[str, ...]) -> bool:
    return (ROOT / "fp8convert").joinpath(*parts).is_dir()


def upward(path: Path) -> list[str]:
    """What a module imports from a higher room, also where only types are wanted."""
    by = path.relative_to(ROOT / "fp8convert").with_suffix("").parts
    relative = [n for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.ImportFrom) and n.level]  # fmt: skip
    found = {parts for node in relative for parts in imported(node, by)}
    return [".".join(parts) for parts in sorted(found) if room(parts) > room(by)]


def test_imports_point_one_way() -> None:
    wrong = {str(path): names for path in (ROOT / "fp8convert").rglob("*.py")
             if (names := upward(path))}  # fmt: skip
    assert wrong == {}


def test_every_room_is_there() -> None:
    """Nothing is left of modules that are gone."""
    base = ROOT / "fp8convert"
    paths = [base.joinpath(*name.split(".")) for name in NAMED]
    assert [p.name for p in paths if not (p.is_dir() or p.with_suffix(".py").exists())] == []


def test_an_import_upward_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: however it is written, and wherever."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "fp8convert" / "codecs").mkdir(parents=True)
    module = tmp_path / "fp8convert" / "codecs" / "base.py"
    for line in ("from ..engine import Engine", "from .. import engine",
                 "from ..verify.run import x", "def f():\n    from ..job import Job"):  # fmt: skip
        module.write_text(f"{line}\n")
        assert len(upward(module)) == 1, line
    module.write_text("from ..errors import shown\nfrom .. import dtypes\nfrom .grid import x\n")
    assert upward(module) == []


def test_the_tree_is_where_users_look_for_it() -> None:
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
                 ".ci/run", "docs", "benchmarks", "constraints.txt"):  # fmt: skip
        assert (ROOT / name).exists(), name
