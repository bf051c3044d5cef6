"""The checkpoints that are converted, made once and kept in the data folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fp8convert import header
from fp8convert.dtypes import DTYPES
from fp8convert.header import Entry
from fp8convert.samples import make_sample

from .common import MIB, Env

INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}
Tensor = tuple[str, str, tuple[int, ...]]


def sample(env: Env, size: str, family: str = "deepseek-v3") -> Path:
    """The project's own sample of that size."""
    return kept(env, f"{family}-{size}", lambda to: make_sample(str(to), family, size))


def merged(env: Env, source: Path) -> Path:
    """``source`` rewritten as one ``model.safetensors`` without an index."""
    return kept(env, f"{source.name}-merged", lambda to: _merge(source, to))


def recut(env: Env, source: Path, nbytes: int, times: int) -> Path:
    """``source``, so many times, in shards of about ``nbytes``; scales beside their codes, as in
    large models."""
    name = f"{source.name}-{times}-times-{nbytes // MIB}mib"
    return kept(env, name, lambda to: _recut(source, to, nbytes, times))


def sparse(
    env: Env, name: str, shards: list[list[Tensor]], config: dict[str, Any] | None = None
) -> Path:
    """A checkpoint of holes that read as zeros: genuine headers, legal codes and scales.

    Without a ``config`` of its own it has the one of the tiny sample.
    """
    like = config or json.loads((sample(env, "tiny") / "config.json").read_text())
    return kept(env, name, lambda to: _write_sparse(to, shards, like))


def coded(name: str, rows: int, columns: int) -> Iterator[Tensor]:
    """A weight in blocks of 128 x 128, as a header lists it: scales, codes."""
    yield f"{name}_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))
    yield name, "F8_E4M3", (rows, columns)


def entries(file: Path) -> tuple[Entry, ...]:
    """The tensors of one safetensors file."""
    with file.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        length = header.header_length(f.read(64), size, file.name)
        f.seek(8)
        return header.parse(f.read(length), size, file.name).entries


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    return sorted(folder.glob("*.safetensors"))


def kept(env: Env, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, made by ``make`` under another name first: it is whole or absent."""
    path = env.data / name
    if not path.exists():
        print(f"  (making {name})", flush=True)
        partial = env.data / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        env.data.mkdir(parents=True, exist_ok=True)
        make(partial)
        partial.rename(path)
        os.sync()  # or its write-back would run beside the first measurement
    return path


def _merge(source: Path, to: Path) -> None:
    to.mkdir()
    _copy_small(source, to)
    found = [(file, e) for file in shards(source) for e in entries(file)]
    found.sort(key=lambda row: (-DTYPES[row[1].dtype].bits, row[1].name))  # as the library writes
    tensors = [(e.name, e.dtype, e.shape) for _, e in found]
    with (to / "model.safetensors").open("wb") as out:
        out.write(header.build(tensors, METADATA))
        for file, entry in found:
            with file.open("rb") as f:
                f.seek(entry.begin)
                for piece in _pieces(entry.end - entry.begin):
                    out.write(f.read(piece))


def _recut(source: Path, to: Path, nbytes: int, times: int) -> None:
    weights: dict[str, list[tuple[Path, Entry]]] = {}
    for shard, entry in ((s, e) for s in shards(source) for e in entries(s)):
        weights.setdefault(entry.name.removesuffix("_scale_inv"), []).append((shard, entry))
    cut: list[list[tuple[Path, Entry]]] = [[]]
    for rows in weights.values():
        if sum(e.end - e.begin for _, e in cut[-1]) >= nbytes:
            cut.append([])
        cut[-1] += rows
    cut *= times
    tensors = [
        [(_again(e.name, n * times // len(cut)), e.dtype, e.shape) for _, e in rows]
        for n, rows in enumerate(cut)
    ]
    names = begin(to, tensors, json.loads((source / "config.json").read_text()))
    _copy_small(source, to)
    for name, rows, of in zip(names, cut, tensors, strict=True):
        with (to / name).open("wb") as out:
            out.write(header.build(of, METADATA))
            for file, entry in rows:
                with file.open("rb") as f:
                    f.seek(entry.begin)
                    for piece in _pieces(entry.end - entry.begin):
                        out.write(f.read(piece))


def _again(name: str, number: int) -> str:
    """A tensor's name in copy ``number`` of a checkpoint."""
    return f"copy{number}.{name}" if number else name


def _pieces(nbytes: int) -> Iterator[int]:
    for at in range(0, nbytes, 8 * MIB):
        yield min(8 * MIB, nbytes - at)


def _copy_small(source: Path, to: Path) -> None:
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != INDEX:
            shutil.copy(file, to)


def _write_sparse(to: Path, cut: list[list[Tensor]], config: dict[str, Any]) -> None:
    for name, tensors in zip(begin(to, cut, config), cut, strict=True):
        head = header.build(tensors, METADATA)
        (to / name).write_bytes(head)
        os.truncate(to / name, len(head) + _nbytes(tensors))


def begin(to: Path, cut: list[list[Tensor]], config: dict[str, Any]) -> list[str]:
    """The new folder ``to`` with config and index; the names that its shards must have."""
    to.mkdir()
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    names = [f"model-{n + 1:05d}-of-{len(cut):06d}.safetensors" for n in range(len(cut))]
    place = {t[0]: name for name, tensors in zip(names, cut, strict=True) for t in tensors}
    index = {"metadata": {"total_size": sum(map(_nbytes, cut))}, "weight_map": place}
    (to / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(header.numel(shape) * DTYPES[dtype].bits // 8 for _, dtype, shape in tensors)


def evicted(source: Path) -> Path:
    """``source``, its shards not in the page cache."""
    for file in shards(source):
        with file.open("rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return source


def cached(source: Path) -> Path:
    """``source``, its shards in the page cache."""
    for file in shards(source):
        with file.open("rb") as f:
            while f.read(8 * MIB):
                pass
    return source
