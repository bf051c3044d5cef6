"""What holds of every checkpoint: each property is a function of a drawn one.

The other side is always a plain loop, or the safetensors library; no code of the package.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors import safe_open

import fp8convert
from fp8convert.convert import Manifest
from fp8convert.inspection import inspect
from fp8convert.options import ToBf16

from ...quantized import readers
from ...quantized.readers import Stored
from ...sharded.coding import NAMES, rounded
from .checkpoints import INDEX, Checkpoint, checkpoints
from .ways import WAYS, Way, place

TAGS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
LIMITS = st.none() | st.sampled_from([1, 1000, 20_000, 10**9])


def decoded(found: Checkpoint, tag: str) -> Stored:
    """Every tensor that decoding by the plain rule writes."""
    return found.raw | {one.name: rounded(one.value, tag) for one in found.coded}


def overflows(found: Checkpoint, tag: str) -> dict[str, int]:
    """How many numbers of each weight are beyond ``tag``."""
    with np.errstate(over="ignore"):
        odd = {c.name: int(np.isinf(c.value.astype(NAMES[tag])).sum()) for c in found.coded}
    return {name: count for name, count in odd.items() if count}


def check_tensors(folder: Path, expected: Stored) -> None:
    """Names, dtypes, shapes and bytes; the safetensors library sees the same names and shapes."""
    assert readers.differing(readers.stored(folder), expected) == []
    seen: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as shard:
            names = shard.keys()
            seen |= {n: tuple(shard.get_slice(n).get_shape()) for n in names}
    assert seen == {n: t[1] for n, t in expected.items()}


def check_files(folder: Path, found: Checkpoint, limit: int | None) -> None:
    """Index, companions, and no file larger than asked for, if it can be."""
    shards = {f.name: readers.shard(f) for f in folder.glob("*.safetensors")}
    if len(shards) > 1 or (folder / INDEX).exists():
        readers.check_index(folder)
    for tensors in shards.values():
        size = sum(len(data) for _, _, data in tensors.values())
        full = [n for n, (_, _, data) in tensors.items() if data]
        assert limit is None or size <= limit or len(full) == 1
    for name, data in found.companions.items():
        assert (folder / name).read_bytes() == data


def check_plain_config(folder: Path, found: Checkpoint, dtype: str) -> None:
    """Nothing is declared any more, the dtype is; all else is as it was."""
    kept = {k: v for k, v in found.config.items() if k != "quantization_config"}
    assert readers.config(folder) == kept | {"torch_dtype": dtype}


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """It is what the file says; it has every file's size and sum."""
    assert json.loads((folder / "manifest.json").read_text()) == manifest.data
    listed = {f["name"]: (f["size"], f["sha256"]) for f in manifest.files}
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert listed == {name: (len(data), sums[name]) for name, data in found.items()}


# Decoding


@st.composite
def decodings(draw: st.DrawFn) -> tuple[Checkpoint, ToBf16, Way]:
    """Any checkpoint, any options."""
    options = ToBf16(dtype=draw(st.sampled_from(list(TAGS))), max_shard_size=draw(LIMITS))
    return draw(checkpoints()), options, draw(WAYS)


def decoding(case: tuple[Checkpoint, ToBf16, Way]) -> None:
    """``to-bf16`` writes what a plain loop gives, and counts what overflows."""
    found, options, way = case
    with place() as folder:
        manifest = way.run(found.write(folder / "src"), folder / "dst", options)
        check_tensors(folder / "dst", decoded(found, TAGS[options.dtype]))
        check_files(folder / "dst", found, options.max_shard_size)
        check_plain_config(folder / "dst", found, options.dtype)
        assert manifest.data["overflowed"] == overflows(found, TAGS[options.dtype])
        check_manifest(folder / "dst", manifest)
        assert not [p for p in folder.iterdir() if p.name not in ("src", "dst")]


# Reading by name


@st.composite
def readings(draw: st.DrawFn) -> tuple[Checkpoint, int, int]:
    """A checkpoint, and where rows are cut."""
    return draw(checkpoints()), draw(st.integers(0, 300)), draw(st.integers(0, 300))


def reading(case: tuple[Checkpoint, int, int]) -> None:
    """``open_checkpoint`` gives the float32 product, whole and by rows; ``inspect`` knows it."""
    found, *cut = case
    with place() as folder:
        src = found.write(folder / "src")
        opened = fp8convert.open_checkpoint(src)
        assert set(opened.names()) == {c.name for c in found.coded} | found.raw.keys()
        for one in found.coded:
            lo, hi = sorted(n % (one.value.shape[0] + 1) for n in cut)
            assert opened.spec(one.name).shape == one.value.shape
            assert opened.read(one.name).tobytes() == one.value.tobytes()
            assert opened.read(one.name, slice(lo, hi)).tobytes() == one.value[lo:hi].tobytes()
        report = inspect(src)
        assert report.problems == []
        assert report.coded_weights == len(found.coded)
