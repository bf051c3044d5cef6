"""Outputs as bytes, read without the package; the one place that knows the manifest's report."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .oracle import Part

Stored = dict[str, Part]


def shard(file: Path) -> Stored:
    """Every tensor of one safetensors file: a length, a JSON header, the data."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length
    header: dict[str, Any] = json.loads(data[8:start])
    header.pop("__metadata__", None)
    out: Stored = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        out[name] = (entry["dtype"], tuple(entry["shape"]), data[start + low : start + high])
    return out


def stored(folder: Path) -> Stored:
    """Every tensor of every shard."""
    out: Stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = shard(file)
        assert not found.keys() & out.keys(), "a name in two shards"
        out |= found
    return out


T = TypeVar("T")


def parts_of(tensors: Mapping[str, T], name: str) -> dict[str, T]:
    """The parts of the weight ``name``, by what follows the module; biases are not parts."""
    module = name.removesuffix("weight")
    leaves = {n.removeprefix(module): t for n, t in tensors.items() if n.startswith(module)}
    return {leaf: t for leaf, t in leaves.items() if "." not in leaf and leaf != "bias"}


def differing(ours: Mapping[str, Part], expected: Mapping[str, Part]) -> list[str]:
    """Names missing, extra, or different in dtype, shape or a byte."""
    return sorted(n for n in ours.keys() | expected.keys() if ours.get(n) != expected.get(n))


def config(folder: Path) -> dict[str, Any]:
    """config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def check_index(folder: Path) -> None:
    """The index names every tensor's shard, and the bytes of all tensors."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file.name: shard(file) for file in folder.glob("*.safetensors")}
    assert index["weight_map"] == {n: file for file, found in files.items() for n in found}
    size = sum(len(data) for found in files.values() for _, _, data in found.values())
    assert index["metadata"]["total_size"] == size


def _report(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    report: dict[str, dict[str, Any]] = found["quantized"]
    return report


def reported(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's word on every quantized weight: exact, or by how much it is not."""
    rows = _report(folder).items()
    return {name: {k: v for k, v in row.items() if k != "copied"} for name, row in rows}


def copied(folder: Path) -> set[str]:
    """The weights whose codes the manifest says were copied."""
    return {name for name, row in _report(folder).items() if row.get("copied")}


def warnings(folder: Path) -> str:
    """Every warning of the manifest, as one text."""
    return "\n".join(json.loads((folder / "manifest.json").read_text())["warnings"])


def unquantized(folder: Path) -> tuple[int, list[str]]:
    """How many weights the warnings say do not fit, and those they name."""
    rows = re.findall(
        r"not quantized(?: either)?: (?:([\d,]+) )?weights?.*?'([^']+)'", warnings(folder)
    )
    return sum(int(count.replace(",", "") or 1) for count, _ in rows), [name for _, name in rows]
