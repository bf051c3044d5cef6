"""Rank sets as they lie on disk, read without the package, and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..quantized import readers
from ..quantized.oracle import Part
from ..quantized.readers import Stored
from .arrays import cut, joined, part


def deepseek_files(folder: Path) -> list[Stored]:
    """Every rank's tensors; the names of the files are checked."""
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    assert found == sorted(f"model{r}-mp{len(found)}.safetensors" for r in range(len(found)))
    assert not (folder / "model.safetensors.index.json").exists()
    return [readers.shard(folder / f"model{r}-mp{len(found)}.safetensors")
            for r in range(len(found))]  # fmt: skip


def hf_files(folder: Path) -> list[Stored]:
    """Every rank's tensors; each folder is a checkpoint of its own, with an index if need be."""
    assert not list(folder.glob("*.safetensors"))
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    assert names == sorted(f"rank{r}" for r in range(len(names)))
    return [hf_rank(folder / f"rank{r}") for r in range(len(names))]


def hf_rank(folder: Path) -> Stored:
    """One folder."""
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if files == ["model.safetensors"]:
        assert not index.exists()
    else:
        readers.check_index(folder)
    return readers.stored(folder)


def differing(ours: Sequence[Stored], expected: Sequence[Stored]) -> dict[int, list[str]]:
    """Of every rank, the names missing, extra, or different in dtype, shape or a byte."""
    assert len(ours) == len(expected)
    found = {
        r: readers.differing(a, b) for r, (a, b) in enumerate(zip(ours, expected, strict=True))
    }
    return {r: names for r, names in found.items() if names}


def read_json(file: Path) -> Any:
    """Whatever it holds."""
    return json.loads(file.read_text())


def pieced(folder: Path) -> Stored:
    """The whole checkpoint by what tp.json says of every tensor, and nothing else."""
    table = read_json(folder / "tp.json")
    ranks = deepseek_files(folder) if table["layout"] == "deepseek" else hf_files(folder)
    assert table["ranks"] == len(ranks)
    out: Stored = {}
    used: list[set[str]] = [set() for _ in ranks]
    for name, entry in table["tensors"].items():
        here = entry.get("name", name)
        if "rank" in entry:
            held = {entry["rank"]: ranks[entry["rank"]][here]}
        else:
            held = {r: rank[here] for r, rank in enumerate(ranks)}
        for rank in held:
            used[rank].add(here)
        out[name] = _whole(entry, held)
    assert [set(r) for r in ranks] == used, "a tensor that tp.json does not know"
    return out


def _whole(entry: dict[str, Any], held: dict[int, Part]) -> Part:
    if entry["dtype"] == "I8":
        held = {r: as_bytes(t) for r, t in held.items()}
    if "axis" not in entry:
        first = next(iter(held.values()))
        assert all(t == first for t in held.values())
        if "whole_value" in entry:  # the shape of a weight, which a rank says of its part
            width = {"I32": np.int32, "I64": np.int64}[entry["dtype"]]
            return part(entry["dtype"], np.array(entry["whole_value"], width))
        return first
    axis, at, parts = entry["axis"], 0, []
    for rank, offset, length in entry["pieces"]:
        whole = held[rank]
        assert whole[1][axis] >= length
        if not length:  # all of it is padding
            assert not any(whole[2])
            continue
        if length < whole[1][axis]:
            assert not any(cut(whole, axis, length, whole[1][axis])[2])
        piece = cut(whole, axis, 0, length)
        if offset == at:
            parts.append(piece)
            at += length
        else:  # one that another rank has as well
            assert piece == parts[-1]
            assert offset + length == at
    assert (entry["dtype"], at) == (parts[0][0], entry["shape"][axis])
    return joined(parts, axis)


def as_bytes(stored: Part) -> Part:
    """Two values a byte as they are in a published checkpoint."""
    tag, shape, data = stored
    return ("I8", (*shape[:-1], shape[-1] // 2), data) if tag == "F4" else stored


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def by_file(folder: Path) -> dict[str, Stored]:
    """The tensors of every shard of a checkpoint."""
    return {p.name: readers.shard(p) for p in sorted(folder.glob("*.safetensors"))}
