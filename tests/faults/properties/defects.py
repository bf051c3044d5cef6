"""One defect in a random checkpoint: each must be refused, by ``to-bf16``, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import fp8convert
from fp8convert.options import ToBf16

from ...quantized.oracle import NUMPY, Part
from .checkpoints import INDEX, Checkpoint, checkpoints
from .codings import TABLES, Coded, as_part
from .ways import WAYS, Way, place

EXPONENTS = ("U8", "F8_E8M0")
FLOATS = ("F32", "F16", "BF16")
Spoil = Callable[[Checkpoint, Coded], "Checkpoint | None"]


def _with(found: Checkpoint, **tensors: Part | None) -> Checkpoint:
    return replace(found, tensors={**found.tensors, **tensors})  # type: ignore[dict-item]


def _without(found: Checkpoint, name: str) -> Checkpoint | None:
    files = tuple(tuple(n for n in names if n != name) for names in found.layout.files)
    if not all(files):
        return None  # a file without tensors is another thing
    tensors = {n: t for n, t in found.tensors.items() if n != name}
    return replace(found, tensors=tensors, layout=replace(found.layout, files=files))


def _first_scale(found: Checkpoint, one: Coded, value: float, byte: int) -> Checkpoint | None:
    tag, shape, data = found.tensors[one.scale]
    if tag in EXPONENTS or tag == "F8_E4M3":
        return _with(found, **{one.scale: (tag, shape, bytes([byte]) + data[1:])})
    raw = np.frombuffer(data, NUMPY[tag]).copy()
    raw[0] = value
    return _with(found, **{one.scale: as_part(tag, raw.reshape(shape))})


def nan_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The first scale is no number."""
    tag = found.tensors[one.scale][0]
    return _first_scale(found, one, np.nan, 0x7F if tag == "F8_E4M3" else 255)


def infinite_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The first scale is infinite, if its dtype can be."""
    if found.tensors[one.scale][0] not in FLOATS:
        return None
    return _first_scale(found, one, np.inf, 0)


def negative_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The first scale of floats is below 0."""
    assert found.form
    tag = found.tensors[one.scale][0]
    if tag in EXPONENTS or found.form.signed:
        return None
    return _first_scale(found, one, -1.0, 0xB8)


def zero_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The first scale is 0, and the first code is not."""
    assert found.form
    tag, value = found.tensors[one.scale][0], one.value.reshape(-1)
    if tag not in FLOATS or found.form.signed or not value[0]:
        return None
    return _first_scale(found, one, 0.0, 0)


def nan_code(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The last code of 8-bit floats is no number."""
    tag, shape, data = found.tensors[one.codes]
    if tag not in TABLES:
        return None
    odd = int(np.flatnonzero(~np.isfinite(TABLES[tag]))[-1])
    return _with(found, **{one.codes: (tag, shape, data[:-1] + bytes([odd]))})


def no_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The scale is not there."""
    return _without(found, one.scale)


def no_codes(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The codes are not there."""
    return _without(found, one.codes)


def longer_scale(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """One more row of scales, or three instead of one."""
    tag, shape, data = found.tensors[one.scale]
    rows = shape[0] if shape else 1
    row = data[: len(data) // rows]
    wrong = (rows + 2, *shape[1:])
    return _with(found, **{one.scale: (tag, wrong, data + 2 * row)})


def other_scale_dtype(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """Scales as I64."""
    _, shape, _ = found.tensors[one.scale]
    return _with(found, **{one.scale: as_part("I64", np.ones(shape, np.int64))})


def undeclared(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The config does not say that anything is coded."""
    config = {k: v for k, v in found.config.items() if k != "quantization_config"}
    return replace(found, config=config)


def unknown_method(found: Checkpoint, one: Coded) -> Checkpoint | None:
    """The config says what nobody knows."""
    said = {**found.config["quantization_config"], "quant_method": "fp99"}
    return replace(found, config={**found.config, "quantization_config": said})


SPOILS: tuple[Spoil, ...] = (
    nan_scale, infinite_scale, negative_scale, zero_scale, nan_code, no_scale, no_codes,
    longer_scale, other_scale_dtype, undeclared, unknown_method,
)  # fmt: skip


# Of files


def _change(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def shorter(src: Path, file: Path) -> None:
    """The last byte of a file with data is missing."""
    _change(file, lambda data: data[:-1])


def longer(src: Path, file: Path) -> None:
    """One byte too many."""
    _change(file, lambda data: data + b"\0")


def gone(src: Path, file: Path) -> None:
    """A shard is not there."""
    file.unlink()


def other_length(src: Path, file: Path) -> None:
    """The header ends a byte early."""
    _change(file, lambda data: (int.from_bytes(data[:8], "little") - 1).to_bytes(8, "little")
            + data[8:])  # fmt: skip


def twice(src: Path, file: Path) -> None:
    """All tensors of a shard in another one as well, which the index has one of them in."""
    (src / "zz.safetensors").write_bytes(file.read_bytes())
    index = _index(src)
    name = next(n for n, f in index["weight_map"].items() if f == file.name)
    index["weight_map"][name] = "zz.safetensors"
    (src / INDEX).write_text(json.dumps(index))


def unlisted(src: Path, file: Path) -> None:
    """A tensor of a shard that the index does not list."""
    index = _index(src)
    name = next(n for n, f in index["weight_map"].items() if f == file.name)
    del index["weight_map"][name]
    (src / INDEX).write_text(json.dumps(index))


def listed(src: Path, file: Path) -> None:
    """A tensor that the index lists, but no shard has."""
    index = _index(src)
    index["weight_map"]["not.there.weight"] = file.name
    (src / INDEX).write_text(json.dumps(index))


def _index(src: Path) -> Any:
    return json.loads((src / INDEX).read_text())


BREAKS: tuple[Callable[[Path, Path], None], ...] = (shorter, longer, gone, other_length)
INDEX_BREAKS = (twice, unlisted, listed)


@dataclass(frozen=True)
class Damage:
    """A checkpoint, and what is wrong with it."""

    found: Checkpoint
    spoil: str
    file: int
    way: Way


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Exactly one defect, that this checkpoint can have."""
    found = draw(checkpoints(safe=True))
    names = [f.__name__ for f in (*BREAKS, *(INDEX_BREAKS if found.layout.indexed else ()))]
    made = []
    for spoil in SPOILS:
        spoilt = spoil(found, draw(st.sampled_from(found.coded)))
        if spoilt is not None:
            made.append((spoil.__name__, spoilt))
    if draw(st.integers(0, 2)):
        name, spoilt = draw(st.sampled_from(made))
        return Damage(spoilt, name, 0, draw(WAYS))
    file = draw(st.integers(0, len(found.layout.files) - 1))
    name = draw(st.sampled_from(names))
    assume(name != twice.__name__ or len(found.layout.files[file]) > 1)
    return Damage(found, name, file, draw(WAYS))


def damage(case: Damage) -> None:
    """It is refused, without a word of Python's, and no output appears."""
    with place() as folder:
        src = case.found.write(folder / "src")
        for change in (*BREAKS, *INDEX_BREAKS):
            if change.__name__ == case.spoil:
                change(src, src / case.found.layout.names[case.file])
        with pytest.raises(fp8convert.Fp8ConvertError) as caught:
            case.way.run(src, folder / "dst", ToBf16())
        assert caught.value.exit_code == 1
        assert str(caught.value)
        assert not (folder / "dst").exists()
