"""Changes of a right checkpoint, made with the safetensors library and ``json`` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from fp8convert.seal import sealed
from fp8convert.target import MANIFEST

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], None]


def put(file: Path, data: bytes) -> None:
    """Write ``file`` anew: it may be a link to one that is shared."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def edit_json(file: str, change: Callable[[Any], None]) -> Change:
    """``change`` what is in a JSON file; a manifest gets the sum of what it is then."""

    def run(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        change(data)
        text = sealed(data) if file == MANIFEST else json.dumps(data).encode()
        put(folder / file, text)

    return run


def config(**fields: Any) -> Change:
    """Set fields of config.json; None removes one."""

    def change(data: dict[str, Any]) -> None:
        data.update(fields)
        for key in [k for k, v in data.items() if v is None]:
            del data[key]

    return edit_json("config.json", change)


def shards(folder: Path) -> list[Path]:
    """In order."""
    return sorted(folder.glob("*.safetensors"))


def shard_of(folder: Path, name: str) -> Path:
    """The shard that holds a tensor."""
    for file in shards(folder):
        with safe_open(file, "pt") as f:
            if name in set(f.keys()):
                return file
    raise KeyError(name)


def load(file: Path) -> Tensors:
    """Copies of what is in a shard."""
    with safe_open(file, "pt") as f:
        return {name: f.get_tensor(name).clone() for name in set(f.keys())}


def store(file: Path, tensors: Tensors) -> None:
    """As the library writes it."""
    put(file, save(tensors, {"format": "pt"}))


def edit(name: str, change: Callable[[torch.Tensor], torch.Tensor | None], at: str = "") -> Change:
    """``change`` one tensor in its shard, in place or to another; of the rank ``at``, if given."""

    def run(folder: Path) -> None:
        file = shard_of(folder / at, name)
        tensors = load(file)
        tensors[name] = changed if (changed := change(tensors[name])) is not None else tensors[name]
        store(file, tensors)

    return run


def put_at(name: str, place: tuple[int, ...], value: float, at: str = "") -> Change:
    """Set one element; of 8-bit floats its code."""

    def change(t: torch.Tensor) -> None:
        raw = t.view(torch.uint8) if t.element_size() == 1 else t
        raw[place] = value

    return edit(name, change, at)


def drop(*names: str, like: str = "") -> Change:
    """Remove tensors, and those whose names begin ``like``, from shards and index alike."""

    def run(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        gone = {n for n in index["weight_map"] if n in names or (like and n.startswith(like))}
        assert gone
        for file in {index["weight_map"][n] for n in gone}:
            kept = {n: t for n, t in load(folder / file).items() if n not in gone}
            store(folder / file, kept) if kept else (folder / file).unlink()
        _indexed(folder)

    return run


def add(file: str, tensors: Tensors, indexed: bool = True) -> Change:
    """Put tensors into a shard that is there or not; into the index, unless said otherwise."""

    def run(folder: Path) -> None:
        path = folder / file
        store(path, (load(path) if path.exists() else {}) | tensors)
        if indexed:
            _indexed(folder)

    return run


def _indexed(folder: Path) -> None:
    """A new index of what the shards hold."""
    weight_map, total = {}, 0
    for file in shards(folder):
        with safe_open(file, "pt") as f:
            weight_map |= dict.fromkeys(f.keys(), file.name)
        total += file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    put(folder / INDEX, json.dumps(index).encode())


def unlink(name: str) -> Change:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def both(*changes: Change) -> Change:
    """One after the other."""

    def run(folder: Path) -> None:
        for change in changes:
            change(folder)

    return run
