"""Values that ``quantize`` cannot encode, and sources that change under it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.errors import (
    DataError,
    FormatError,
)
from fp8convert.fileio import SourceFile

from .crash import temporaries
from .quantized import sources
from .quantized.small import (
    ATTENTION,
    MLP,
    SHAPES,
    dealt,
    in_time,
    make_small,
    tensors_of,
    tight,
    write,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_small(tmp_path_factory.mktemp("small") / "src")


# --- Values that cannot be encoded


def spoilt(folder: Path, module: str, row: int, column: int, bits: int, count: int = 3) -> Path:
    """The big checkpoint with one number replaced."""
    tensors = tensors_of(SHAPES)
    dtype, shape, raw = tensors[f"{module}.weight"]
    array = np.frombuffer(raw, np.uint16).reshape(shape).copy()
    array[row, column] = bits
    tensors[f"{module}.weight"] = dtype, shape, array.tobytes()
    return write(folder, dealt(tensors, count))


@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-tensor", "int8-channel", "nvfp4", "mxfp4"])
@pytest.mark.parametrize(
    ("module", "row", "column", "bits", "value"),
    [
        (f"{MLP}.up_proj", 699, 1023, 0x7FC1, "nan"),
        (f"{MLP}.gate_proj", 0, 0, 0xFF80, "-inf"),
        (f"{ATTENTION}.q_proj", 300, 17, 0x7F80, "inf"),
    ],
)
def test_values_that_are_not_finite(
    scheme: str, module: str, row: int, column: int, bits: int, value: str, fast_path: Path
) -> None:
    """Named by shard, weight, row and column, wherever the tiles are cut."""
    src = spoilt(fast_path / "src", module, row, column, bits)
    index = json.loads((src / "model.safetensors.index.json").read_text())["weight_map"]
    words = (
        f"'{index[f'{module}.weight']}': weight '{module}.weight': {value} at row {row}, "
        f"column {column}, expected finite values"
    )
    for way in ({"workers": 1, "spare": 0}, {"workers": 5, "spare": 9}):
        settings = tight(src, scheme, way)
        with pytest.raises(DataError) as e:
            in_time(lambda: fp8convert.quantize(src, fast_path / "dst", scheme, **settings))  # noqa: B023
        assert str(e.value) == words
        assert e.value.exit_code == 1
        assert not (fast_path / "dst").exists()
        assert temporaries(fast_path) == []


def test_a_number_in_a_row_wider_than_a_scratch(fast_path: Path) -> None:
    shape = (3, 600_032)
    array = np.zeros(shape, np.float32)
    array[1, 600_001] = np.nan
    tensor = {f"{MLP}.down_proj.weight": ("F32", shape, array.tobytes())}
    src = write(fast_path / "src", [tensor])
    with pytest.raises(DataError, match="nan at row 1, column 600001, expected finite"):
        fp8convert.quantize(src, fast_path / "dst", "mxfp4")


@pytest.mark.parametrize(
    ("leaf", "data", "words"),
    [
        ("weight", b"\x7f", "a NaN code at row 0, column 4"),
        ("weight_scale_inv", b"\0\0\xc0\x7f", "scale nan at block row 0, column 1, expected"),
        ("weight_scale_inv", b"\0\0\x80\xbf", "scale -1.0 at block row 0, column 1, expected"),
    ],
)
def test_damage_in_what_is_copied(leaf: str, data: bytes, words: str, fast_path: Path) -> None:
    """Its bytes are looked at all the same."""
    src = sources.fp8_f32().write(fast_path / "src")
    name = f"{sources.EXPERT}.0.up_proj.weight"
    poke(src, name.removesuffix("weight") + leaf, 4, data)
    with pytest.raises(DataError, match=words) as e:
        fp8convert.quantize(src, fast_path / "dst", "fp8-block")
    assert f"weight '{name}'" in str(e.value)
    assert not (fast_path / "dst").exists()


def poke(folder: Path, name: str, at: int, data: bytes) -> None:
    """Overwrite bytes of a stored tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index[name]
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    begin = start + json.loads(raw[8:start])[name]["data_offsets"][0] + at
    raw[begin : begin + len(data)] = data
    file.write_bytes(raw)


@pytest.mark.parametrize("how", ["touched", "grown", "truncated"])
def test_a_source_that_changes(
    how: str, small: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only partners of what is written are in that shard."""
    src = Path(shutil.copytree(small, fast_path / "src"))
    shard = src / "model-00002-of-00002.safetensors"
    real, reads = SourceFile.read, itertools.count(1)

    def change() -> None:
        state = shard.stat()
        if how != "touched":
            os.truncate(shard, state.st_size + (1 if how == "grown" else -9000))
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))

    def read(self: SourceFile, *args: Any) -> None:
        if self.name == shard.name and next(reads) == 2:  # it is open, and was as planned
            change()
        real(self, *args)

    monkeypatch.setattr(SourceFile, "read", read)
    with pytest.raises(FormatError, match=shard.name):
        in_time(lambda: fp8convert.quantize(src, fast_path / "dst", "fp8-tensor", workers=2))
    assert next(reads) > 2
    assert not (fast_path / "dst").exists()
    assert temporaries(fast_path) == []
