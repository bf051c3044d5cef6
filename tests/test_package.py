"""What is installed: the wheel's contents, the console scripts, the direction of imports."""

from __future__ import annotations

import ast
import configparser
import io
import subprocess
import sys
import zipfile
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


# Rooms from the bottom up: a module may import only from rooms above its own line.
ROOMS = [
    ["errors", "dtypes", "version", "classes", "junit", "calls", "durable", "fence"],
    ["strictjson", "seal", "header", "folder", "target", "numbaoptions"],
    ["declared", "configout", "options"],
    ["codecs", "kernels"],
    ["layouts", "pieces", "schemes", "ranksets"],
    ["encoding", "choice", "cuts", "shards", "listing"],
    ["catalogue", "plan", "journal"],
    ["tile", "writers"],
    ["companions", "tiles", "codetiles", "teams", "places", "pagecache", "fileio"],
    ["planner", "settings", "publish", "sources"],
    ["quantizer", "report", "fetch", "coderun", "measuring", "spool"],
    ["taskrun", "checkpoint", "inspection", "samples", "misaligned"],
    ["jobs", "sharder"],
    ["engine"],
    ["spreading"],
    ["shardplan"],
    ["unsharder"],
    ["convert"],
    ["reference"],
    ["parity"],
    ["verify"],
    ["__init__"],
]


def room(module: str) -> int:
    return next(i for i, names in enumerate(ROOMS) if module in names)


def test_imports_point_one_way() -> None:
    for path in (ROOT / "fp8convert").rglob("*.py"):
        parts = path.relative_to(ROOT / "fp8convert").with_suffix("").parts
        mine = parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level != len(parts):
                continue
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            for name in names:
                assert room(name) <= room(mine), f"{path.name} imports {name}"


def test_the_tree_is_where_users_look_for_it() -> None:
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
                 ".ci/run", "docs", "benchmarks", "constraints.txt"):  # fmt: skip
        assert (ROOT / name).exists(), name
