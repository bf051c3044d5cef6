"""Every command from and to object stores: what it writes has the bytes of a local conversion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.convert import Manifest
from fp8convert.target import MANIFEST

from ..faults.lab import Files, sources, tree
from .emulator import Emulator, Place

Command = Callable[..., Manifest]
WORKERS = 3
COMMANDS: dict[str, tuple[str, Command, dict[str, Any]]] = {
    "to-bf16": ("fp8", fp8convert.to_bf16, {"max_shard_size": 150_000}),
    "quantize": ("bf16", fp8convert.quantize, {"scheme": "nvfp4", "max_shard_size": 150_000}),
    "shard-for-tp": ("fp8", fp8convert.shard_for_tp, {"tp": 2, "layout": "hf"}),
    "unshard": ("ranks", fp8convert.unshard, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sources, and by its name what each command makes of its own, from disk to disk."""
    root = tmp_path_factory.mktemp("models")
    fp8, bf16 = (made.write(root / made.id) for made in sources())
    found = {"fp8": fp8, "bf16": bf16}
    for name, (source, command, options) in COMMANDS.items():
        command(found[source], root / name, **options)
        found["ranks" if name == "shard-for-tp" else name] = root / name
    return {**found, "shard-for-tp": found["ranks"]}


def same(found: Files, expected: Files) -> bool:
    """Whether all bytes are, but for what manifests say of source files, and their own sums."""
    return {n: _plain(n, d) for n, d in found.items()} == {
        n: _plain(n, d) for n, d in expected.items()
    }


def _plain(name: str, data: bytes) -> Any:
    if name != MANIFEST:
        return data
    return {k: v for k, v in json.loads(data).items() if k not in ("source", "sha256")}


@pytest.mark.parametrize("name", COMMANDS)
def test_to_a_store(name: str, models: dict[str, Path], bucket: Place) -> None:
    source, command, options = COMMANDS[name]
    command(models[source], bucket.at("dst"), **options, workers=WORKERS)
    assert same(bucket.files("dst"), tree(models[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_from_a_store(name: str, models: dict[str, Path], bucket: Place, tmp_path: Path) -> None:
    source, command, options = COMMANDS[name]
    address = bucket.upload(models[source], "src/model")
    command(address, tmp_path / "dst", **options, workers=WORKERS)
    assert same(tree(tmp_path / "dst"), tree(models[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_within_a_store(name: str, models: dict[str, Path], place: Place) -> None:
    source, command, options = COMMANDS[name]
    address = place.upload(models[source], "src/model")
    command(address, place.at("a/b/dst"), **options, workers=WORKERS)
    assert same(place.files("a/b/dst"), tree(models[name]))


def test_the_comparison_sees_a_byte(models: dict[str, Path]) -> None:
    """The control of those above."""
    found = tree(models["to-bf16"])
    for name in found:
        changed = {**found, name: found[name][:-3] + b"?" + found[name][-2:]}
        if name != MANIFEST:
            assert not same(changed, found)
    assert not same({n: d for n, d in found.items() if n != MANIFEST}, found)


def test_the_manifest_knows_objects_by_their_tags(models: dict[str, Path], place: Place) -> None:
    address = place.upload(models["fp8"], "src")
    made = fp8convert.to_bf16(address, place.at("dst"))
    stored = place.marks("src")
    for name, stamp in made.data["source"].items():
        size, etag, _, created = stored[name]
        assert stamp == {"size": size, "etag": etag.strip('"') if etag else str(created)}


def test_done_already(models: dict[str, Path], place: Place, s3: Emulator) -> None:
    """Nothing is written, and no tensor is read."""
    fp8convert.to_bf16(models["fp8"], place.at("dst"))
    before = place.marks("dst")
    s3.requests.clear()
    again = fp8convert.to_bf16(models["fp8"], place.at("dst"))
    assert again.already_done
    assert place.marks("dst") == before
    assert not {r.method for r in s3.requests} & {"PUT", "POST", "DELETE"}


def test_without_sums(models: dict[str, Path], place: Place) -> None:
    """Files are written all the same, though nothing is hashed."""
    made = fp8convert.to_bf16(
        models["fp8"], place.at("dst"), max_shard_size=150_000, checksum="none"
    )
    expected = tree(models["to-bf16"])
    assert {f["name"]: f["sha256"] is None for f in made.files} == {
        name: name.endswith(".safetensors") for name in expected if name != MANIFEST
    }
    found = place.files("dst")
    assert {n: d for n, d in found.items() if n != MANIFEST} == {
        n: d for n, d in expected.items() if n != MANIFEST
    }
