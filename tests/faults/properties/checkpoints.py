"""Random checkpoints for hypothesis: any form, shapes, raw tensors, any cut into files."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...quantized.oracle import Part
from ...quantized.readers import Stored
from ...sharded.arrays import WIDTHS, nbytes
from .codings import CODES, SCALES, Coded, Form, Kinds, as_part
from .forms import FORMS

INDEX = "model.safetensors.index.json"
COMPANIONS = {"tokenizer.json": b"{}\n", "LICENSE": b"MIT\n", "merges.txt": b"a b\n"}
ODD = ("weight", "bias", "данные", "a b", 'q"uo\\te', "\u2028", "tab\t", "😀", "../x", "%s{}",
       "\x7f", "", "x" * 200)  # fmt: skip
RAW_TAGS = ("BF16", "F16", "F32", "F64", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8",
            "BOOL")  # fmt: skip
SHOWN = 600  # characters
INTEGERS_IN_CODES = ("I8", "U8", "I16", "U16", "I32", "U32")


@dataclass(frozen=True)
class Layout:
    """How tensors lie in files: ``files`` are names in the order of their data."""

    files: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    indexed: bool
    spaces: int = 0  # behind the header, which need not be aligned
    reverse: bool = False  # the header's entries the other way round than the data
    metadata: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, and what its coded weights decode to."""

    id: str
    config: dict[str, Any]
    tensors: Stored
    layout: Layout
    coded: tuple[Coded, ...] = ()
    companions: dict[str, bytes] = field(default_factory=lambda: dict(COMPANIONS))
    form: Form | None = None
    dropped: tuple[str, ...] = ()  # scales of activations, which mean nothing without codes

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        """Without the bytes."""
        rows = ", ".join(f"{n!r}: {t[0]} {list(t[1])}" for n, t in self.tensors.items())
        return f"<{self.id}; {rows[:SHOWN]}; {str(self.layout)[:SHOWN]}>"

    def write(self, folder: Path) -> Path:
        """As files."""
        folder.mkdir(parents=True)
        for names, file in zip(self.layout.files, self.layout.names, strict=True):
            write_shard(folder / file, {n: self.tensors[n] for n in names}, self.layout)
        if self.layout.indexed:
            (folder / INDEX).write_text(json.dumps(self.index))
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        for name, data in self.companions.items():
            (folder / name).write_bytes(data)
        return folder

    @property
    def index(self) -> dict[str, Any]:
        """model.safetensors.index.json."""
        pairs = zip(self.layout.files, self.layout.names, strict=True)
        where = {name: file for names, file in pairs for name in names}
        return {"metadata": {"total_size": nbytes(self.tensors)}, "weight_map": where}

    @property
    def raw(self) -> Stored:
        """What is no part of a coded weight."""
        parts = {name for one in self.coded for name in one.parts} | {*self.dropped}
        return {n: t for n, t in self.tensors.items() if n not in parts}


def write_shard(file: Path, tensors: Stored, layout: Layout) -> None:
    """One safetensors file, in this order."""
    header: dict[str, Any] = {}
    at = 0
    for name, (tag, shape, data) in tensors.items():
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    if layout.reverse:
        header = dict(reversed(header.items()))
    if layout.metadata:
        header = {"__metadata__": {"format": "pt", "made by": "a test"}, **header}
    text = json.dumps(header, ensure_ascii=layout.reverse).encode() + b" " * layout.spaces
    body = b"".join(data for _, _, data in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


# Strategies


def sides(step: int, most: int = 300) -> st.SearchStrategy[int]:
    """Of a matrix: 1, small, at and beside the sizes of blocks; multiples of ``step``."""
    edges = [n for n in (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 256, 257) if n <= most]
    if step == 1:
        return st.integers(1, 40) | st.sampled_from(edges)
    return st.integers(1, max(most // step, 1)).map(lambda n: n * step)


@st.composite
def shapes(draw: st.DrawFn, step: tuple[int, int], most: int = 300) -> tuple[int, int]:
    """Rows and columns; no more than one of them is large. Some rows are longer than a tile."""
    if not draw(st.integers(0, 9)) and most >= 300:
        return step[0], draw(st.integers(2000, 9000)) // step[1] * step[1]
    rows = draw(sides(step[0], most))
    return rows, draw(sides(step[1], most if rows <= 130 else 130))


@st.composite
def raws(draw: st.DrawFn, finite: bool) -> Stored:
    """Tensors that pass as they are: every dtype, 0-d, without elements, under odd names."""
    found: Stored = {}
    for number in range(draw(st.integers(0, 4))):
        tag = draw(st.sampled_from(RAW_TAGS))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 17, 64]), max_size=3).map(tuple))
        name = f"raw.{number}.{draw(st.sampled_from(ODD))}"
        if tag in INTEGERS_IN_CODES and len(shape) > 1:
            name += ".table"  # a matrix of them that is called weight may be codes
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        found[name] = _raw(rng, tag, shape, finite)
    return found


def _raw(rng: np.random.Generator, tag: str, shape: tuple[int, ...], finite: bool) -> Part:
    size = int(np.prod(shape)) * WIDTHS.get(tag, 8)
    raw = np.frombuffer(rng.bytes(size), np.uint8)
    if tag == "BOOL":
        raw = raw & 1
    if finite and tag in ("BF16", "F16", "F32", "F64"):
        raw = raw.copy()
        raw[WIDTHS[tag] - 1 :: WIDTHS[tag]] &= 0xBF  # the exponent's first bit
    return tag, shape, raw.tobytes()


@st.composite
def layouts(draw: st.DrawFn, names: Sequence[str]) -> Layout:
    """Any order, any assignment to up to five files."""
    order = draw(st.permutations(names))
    count = draw(st.integers(1, min(5, len(order))))
    homes = [*range(count), *(draw(st.integers(0, count - 1)) for _ in order[count:])]
    files = tuple(
        tuple(n for n, h in zip(order, homes, strict=True) if h == k) for k in range(count)
    )
    indexed = draw(st.booleans())
    if indexed and draw(st.booleans()):
        called = tuple(f"{chr(122 - k)} part {k}.safetensors" for k in range(count))
    elif count == 1 and not indexed:
        called = ("model.safetensors",)
    else:
        called = tuple(f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count))
    return Layout(files, called, indexed, draw(st.integers(0, 9)), draw(st.booleans()),
                  draw(st.booleans()))  # fmt: skip


@st.composite
def weights(draw: st.DrawFn, form: Form, safe: bool, most: int = 5) -> tuple[Coded, ...]:
    """Random matrices of one form."""
    found = []
    for number in range(draw(st.integers(1, most))):
        some = form if form.other is None or draw(st.booleans()) else form.other
        rows, columns = draw(shapes(some.step))
        kinds = Kinds(
            draw(st.sampled_from(CODES)), draw(st.sampled_from(SCALES[:1] if safe else SCALES))
        )
        rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
        found.append(some.code(f"model.layers.{number}.mlp", rng, rows, columns, kinds))
    return tuple(found)


@st.composite
def _dropped(draw: st.DrawFn, coded: tuple[Coded, ...]) -> Stored:
    """Scales of activations and of the KV cache, one number each."""
    found: Stored = {}
    for one in coded:
        if one.name.endswith(".weight") and not draw(st.integers(0, 3)):
            leaf = draw(st.sampled_from(["input_scale", "activation_scale", "k_scale", "v_scale"]))
            shape = draw(st.sampled_from([(), (1,)]))
            number = np.array([0.25], np.float32).reshape(shape)
            found[one.name.removesuffix("weight") + leaf] = as_part("F32", number)
    return found


@st.composite
def checkpoints(draw: st.DrawFn, safe: bool = False) -> Checkpoint:
    """A checkpoint of any form. ``safe``: no number in it or of it is infinite or no number."""
    form = draw(FORMS)
    coded = draw(weights(form, safe))
    raw = draw(raws(finite=safe))
    dropped = draw(_dropped(coded))
    biases = [c for c in coded if c.name.endswith(".weight") and draw(st.booleans())]
    rng = np.random.default_rng(len(biases))
    for one in biases:
        name = one.name.removesuffix("weight") + "bias"
        raw[name] = _raw(rng, "F16", (one.value.shape[0],), safe)
    tensors = {n: t for one in coded for n, t in one.parts.items()} | raw | dropped
    config = {"model_type": "odd", "torch_dtype": draw(st.sampled_from(["bfloat16", "float16"])),
              "quantization_config": form.declared, "extra": {"a": [1, None, "ü"]}}  # fmt: skip
    layout = draw(layouts(list(tensors)))
    return Checkpoint(form.id, config, tensors, layout, coded, form=form,
                      dropped=tuple(dropped))  # fmt: skip
