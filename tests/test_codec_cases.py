"""The cases of the conformance suite: a new codec adds one here and inherits every test.

A case says how a weight's numbers (codes, scales, zero points) are stored; what they are worth is
one formula for all, written with torch and the published tables, and shares no code with ours.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fp8convert.codecs
from fp8convert.codecs.awq import Awq
from fp8convert.codecs.base import Codec, Findings, Rect, Span, Stored
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Block, Fp8Block, Int8Block
from fp8convert.codecs.gpt_oss import GptOss
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.packed_int import PackedInt
from fp8convert.codecs.raw import Raw
from fp8convert.codecs.transposed import Excerpt
from fp8convert.codecs.window import Window
from fp8convert.dtypes import DTYPES

from .formats import make
from .formats.awq import pack as awq_pack
from .formats.formulas import E2M1, E2M1_DEEPSEEK, TABLES, exponents, pack_nibbles, values, words

Shape = tuple[int, ...]
Parts = list[torch.Tensor]

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
TAGS = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64",
    torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8", torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
torch.set_num_threads(1)  # tensors are small here: threads would only wait for each other
EXPONENTS = (torch.uint8, torch.float8_e8m0fnu)


class Numbers(NamedTuple):
    """What a weight is made of, in the orientation of the decoded weight [..., o, i].

    ``codes`` are unsigned; ``scales`` as stored, and ``zeros`` int64, are [..., down, across];
    ``groups`` [i] is the group of each column where they were reordered.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    whole: torch.Tensor | None = None
    groups: torch.Tensor | None = None


Pack = Callable[[Numbers], Parts]


@dataclass(frozen=True)
class Case:
    """A codec and how it stores numbers. ``multiple``: what rows and columns must divide by."""

    codec: Codec
    pack: Pack
    table: torch.Tensor  # float32 value of each code
    block: Block
    scale: torch.dtype = torch.float32
    zeros: range | None = None  # zero points there may be
    zero: int = 0  # the zero point of a code without one stored
    multiple: tuple[int, int] = (1, 1)
    axes: tuple[int, ...] = (2, 3)  # how many a weight may have
    whole: str = ""  # what a global scale does: "multiply", "divide"
    reordered: bool = False

    @property
    def legal(self) -> torch.Tensor:
        """The codes that a weight may have."""
        return torch.arange(len(self.table))[self.table.isfinite()]

    @property
    def is_float(self) -> bool:
        """Whether codes are floats: their scales are above zero."""
        return self.zeros is None and not self.zero and self.codec.name != "int8-block"

    def fitting(self, *shapes: Shape) -> list[Shape]:
        """``shapes`` with as many axes as the codec has, rounded up to what it must divide by."""
        found = []
        for *lead, o, i in shapes:
            if len(lead) + 2 not in self.axes:
                lead = [2] if self.axes == (3,) else []
            rounded = (-(-n // m) * m for n, m in zip((o, i), self.multiple, strict=True))
            found.append((*lead, *rounded))
        return list(dict.fromkeys(found))

    def blocks(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        o, i = (b or max(n, 1) for b, n in zip(self.block, shape[-2:], strict=True))
        return o, i

    def grid(self, shape: Shape) -> Shape:
        """The shape of scales."""
        counts = (-(-n // b) for n, b in zip(shape[-2:], self.blocks(shape), strict=True))
        return (*shape[:-2], *counts)

    def numbers(self, shape: Shape, seed: str = "") -> Numbers:
        """Random ones, every code among them if there is room."""
        grid, name = self.grid(shape), f"{seed}{shape}"
        at = make.integers(name, 0, len(self.legal), *shape)
        zeros = None
        if self.zeros:
            zeros = make.integers(f"{name}z", self.zeros.start, self.zeros.stop, *grid)
        whole = make.scales(f"{name}g", 1) * 7e3 if self.whole else None
        groups = None
        if self.reordered:
            order = torch.randperm(shape[-1], generator=make.generator(name))
            groups = order // self.blocks(shape)[1]
        scales = self.scales(name, grid)
        if not self.is_float and shape[-2] % 3 == 0:  # AutoRound's full-range rule gives such
            scales.reshape(-1)[1::3] *= -1  # not in all: they take another path of the kernels
        return Numbers(self.legal[at], scales, zeros, whole, groups)

    def scales(self, name: str, grid: Shape) -> torch.Tensor:
        """Random ones, as stored."""
        if self.scale in EXPONENTS:
            return make.powers(name, *grid, low=90, high=131).view(self.scale)
        if self.scale == torch.float8_e4m3fn:
            raw = make.integers(name, 1, 0x7F, *grid)
            return raw.to(torch.uint8).view(self.scale)
        return make.scales(name, *grid, dtype=self.scale)

    def factors(self, n: Numbers) -> torch.Tensor:
        """float32 scales, with the global one."""
        plain = exponents(n.scales) if self.scale in EXPONENTS else values(n.scales)
        if n.whole is None:
            return plain
        return plain * n.whole if self.whole == "multiply" else plain / n.whole

    def value(self, n: Numbers) -> torch.Tensor:
        """The published formula: ``(code - zero point) * scale`` in float32."""
        coded = self.table[n.codes]
        if n.zeros is not None:
            coded = coded - self._spread(n.zeros.float(), n)
        elif self.zero:
            coded = coded - self.zero
        return coded * self._spread(self.factors(n), n)

    def _spread(self, grid: torch.Tensor, n: Numbers) -> torch.Tensor:
        """One number for each element, from one for each block."""
        (o, i), (down, across) = n.codes.shape[-2:], self.blocks(tuple(n.codes.shape))
        columns = torch.arange(i) // across if n.groups is None else n.groups
        return grid[..., torch.arange(o) // down, :][..., columns]


# --- how each codec stores numbers ---------------------------------------------------------------


def fp8(block: Block, code: str = "e4m3fn", scale: torch.dtype = torch.float32) -> Case:
    kind = {
        "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
        "e4m3fnuz": torch.float8_e4m3fnuz, "e5m2fnuz": torch.float8_e5m2fnuz,
    }[code]  # fmt: skip
    return Case(
        Fp8Block(block, code),
        lambda n: [n.codes.to(torch.uint8).view(kind), n.scales],
        TABLES[kind],
        block,
        scale,
    )


def int8(block: Block, zero_points: bool, scale: torch.dtype = torch.float32) -> Case:
    def pack(n: Numbers) -> Parts:
        zeros = [] if n.zeros is None else [n.zeros.to(torch.int8)]
        return [n.codes.to(torch.uint8).view(torch.int8), n.scales, *zeros]

    signed = torch.arange(256).to(torch.uint8).view(torch.int8).float()
    zeros = range(-128, 128) if zero_points else None
    return Case(Int8Block(block, zero_points=zero_points), pack, signed, block, scale, zeros)


def fp4(scale: torch.dtype, kept: torch.dtype = torch.uint8, whole: str = "") -> Case:
    group = 16 if whole else 32
    signed = kept == torch.uint8

    def pack(n: Numbers) -> Parts:
        more = [] if n.whole is None else [n.whole]
        return [pack_nibbles(n.codes).view(kept), n.scales, *more]

    codec = Fp4Block(group, whole or "none", signed)
    table = E2M1 if signed else E2M1_DEEPSEEK
    return Case(codec, pack, table, (1, group), scale, multiple=(1, group), whole=whole)


def packed(bits: int, group: int | None, *extra: str, scale: torch.dtype = torch.bfloat16) -> Case:
    def pack(n: Numbers) -> Parts:
        more = {"shape": torch.tensor(n.codes.shape)}
        if n.zeros is not None:
            more["zeros"] = words(n.zeros.T, bits).T.contiguous()
        if n.groups is not None:
            more["groups"] = n.groups.to(torch.int32)
        return [words(n.codes, bits), n.scales, *(more[role] for role in extra)]

    return Case(
        PackedInt(bits, group, extra), pack, torch.arange(1 << bits).float(), (1, group), scale,
        zeros=range(1 << bits) if "zeros" in extra else None, zero=1 << bits - 1,
        multiple=(1, group or 32 // bits), axes=(2,), reordered="groups" in extra,
    )  # fmt: skip


def gpt_oss() -> Case:
    def pack(n: Numbers) -> Parts:
        blocks = pack_nibbles(n.codes.transpose(1, 2)).unflatten(2, (-1, 16))
        return [blocks.contiguous(), n.scales.transpose(1, 2).contiguous()]

    return Case(GptOss(), pack, E2M1, (32, 1), torch.uint8, multiple=(32, 1), axes=(3,))


def gptq(bits: int, minus_one: bool, *, group: int = 32, shuffled: bool | None = None) -> Case:
    """``shuffled``: whether the stored groups are reordered, None without any."""

    def pack(n: Numbers) -> Parts:
        assert n.zeros is not None
        parts = [words(n.codes, bits).T, n.scales.T, words((n.zeros - int(minus_one)).T, bits)]
        groups = torch.arange(n.codes.shape[1]) // group if n.groups is None else n.groups
        parts += [] if shuffled is None else [groups.to(torch.int32)]
        return [p.contiguous() for p in parts]

    return Case(
        Gptq(bits, group, minus_one, shuffled is not None), pack,
        torch.arange(1 << bits).float(), (1, group), torch.float16,
        zeros=range(int(minus_one), 1 << bits), multiple=(32 // bits, group), axes=(2,),
        reordered=bool(shuffled),
    )  # fmt: skip


def awq(zero_points: bool, group: int = 32) -> Case:
    def pack(n: Numbers) -> Parts:
        zeros = [] if n.zeros is None else [awq_pack(n.zeros.T)]
        return [p.contiguous() for p in (awq_pack(n.codes.T), n.scales.T, *zeros)]

    return Case(
        Awq(group, zero_points), pack, torch.arange(16).float(), (1, group), torch.float16,
        zeros=range(16) if zero_points else None, zero=8, multiple=(8, group), axes=(2,),
    )  # fmt: skip


BF16, F16, E8M0, NV = torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn
CODED = {
    "fp8-128": fp8((128, 128)),
    "fp8-32-e8m0": fp8((32, 32), scale=E8M0),
    "fp8-mx-u8": fp8((1, 32), scale=torch.uint8),
    "fp8-row-bf16": fp8((1, None), scale=BF16),
    "fp8-matrix-f16": fp8((None, None), scale=F16),
    "fp8-matrix": fp8((None, None)),
    "fp8-odd-block": fp8((3, 5)),
    "fp8-wider-than-a-tile": fp8((7000, 7000)),
    "e5m2-128": fp8((128, 128), "e5m2"),
    "e4m3fnuz-128-bf16": fp8((128, 128), "e4m3fnuz", BF16),
    "e5m2fnuz-row": fp8((1, None), "e5m2fnuz"),
    "int8-row": int8((1, None), False, BF16),
    "int8-group-asym": int8((1, 32), True),
    "int8-matrix-asym": int8((None, None), True, F16),
    "int8-square-asym": int8((16, 32), True),
    "mxfp4": fp4(torch.uint8),
    "mxfp4-e8m0": fp4(E8M0),
    "mxfp4-unsigned-zero": fp4(E8M0, torch.int8),
    "nvfp4-multiply": fp4(NV, whole="multiply"),
    "nvfp4-divide": fp4(NV, whole="divide"),
    "packed-4": packed(4, 32, "shape"),
    "packed-4-asym": packed(4, 32, "zeros", "shape", scale=F16),
    "packed-4-row": packed(4, None, "shape", scale=torch.float32),
    "packed-4-row-asym": packed(4, None, "zeros"),
    "packed-4-reordered": packed(4, 32, "groups", "shape"),
    "packed-4-reordered-asym": packed(4, 32, "zeros", "groups", "shape"),
    "packed-8": packed(8, 32),
    "packed-8-asym": packed(8, 32, "zeros", "shape"),
    "packed-8-reordered-asym": packed(8, 32, "zeros", "groups"),
    "gpt-oss": gpt_oss(),
    "gptq-4-v1": gptq(4, True),
    "gptq-4-v2": gptq(4, False),
    "gptq-4-v1-trivial": gptq(4, True, shuffled=False),
    "gptq-4-v1-shuffled": gptq(4, True, shuffled=True),
    "gptq-8-v1": gptq(8, True, shuffled=False),
    "gptq-8-v2-shuffled": gptq(8, False, shuffled=True),
    "awq": awq(True),
    "awq-without-zeros": awq(False),
}  # fmt: skip


# --- running a codec -----------------------------------------------------------------------------


def to_bytes(t: torch.Tensor) -> np.ndarray:
    plain = t.contiguous().flatten() if t.numel() > 1 else t.flatten()[:1].reshape(()).clone()[None]
    return plain.view(torch.uint8).numpy()


def stored(parts: Sequence[torch.Tensor]) -> tuple[Stored, ...]:
    """The parts as if each were alone in a shard of its own."""
    return tuple(
        Stored(f"part{n}", TAGS[p.dtype], tuple(p.shape), n, 0, p.numel() * p.element_size())
        for n, p in enumerate(parts)
    )


def span_bytes(raw: np.ndarray, span: Span) -> np.ndarray:
    """The bytes of ``span``, its runs joined."""
    at = span.begin + np.arange(span.times)[:, None] * span.stride
    return raw[(at + np.arange(span.end - span.begin)).reshape(-1)]


def decode(
    codec: Codec, parts: Sequence[torch.Tensor], rects: Iterable[Rect], target: str = "BF16"
) -> tuple[bytes, Findings]:
    """Decode rectangle by rectangle, giving the codec only the bytes of its own spans."""
    known, raw = stored(parts), [to_bytes(p) for p in parts]
    dtype = DTYPES[codec.out_dtype(known, target)]
    out, total = [], Findings()
    for rect in rects:
        spans = codec.spans(known, rect)
        data = [span_bytes(r, s) for r, s in zip(raw, spans, strict=True)]
        piece = np.full((rect.r1 - rect.r0) * (rect.c1 - rect.c0), 77, dtype.numpy)
        found = codec.decode(known, rect, data, piece, target)
        total.damage = total.damage or found.damage
        total.overflowed += found.overflowed
        out.append(piece.tobytes())
    return b"".join(out), total


_MADE: dict[tuple[int, Shape], tuple[Parts, torch.Tensor]] = {}


def made(case: Case, shape: Shape) -> tuple[Parts, torch.Tensor]:
    """A random weight of a case in CODED as it is stored, and its value; once for all tests."""
    if (id(case), shape) not in _MADE:
        n = case.numbers(shape)
        _MADE[id(case), shape] = case.pack(n), case.value(n)
    return _MADE[id(case), shape]


def whole(codec: Codec, parts: Sequence[torch.Tensor]) -> Iterator[Rect]:
    """Everything at once: expert by expert."""
    grid = codec.grid(stored(parts))
    return grid.split(Rect(0, grid.rows, 0, grid.columns))


def rounded(value: torch.Tensor, target: str = "BF16") -> bytes:
    """What decoding must give for a float32 value."""
    return to_bytes(value.to(TORCH[target])).tobytes()


def infinite(raw: bytes, target: str) -> int:
    """How many elements are infinite."""
    kind, bits = {"BF16": ("u2", 0x7F80), "F16": ("u2", 0x7C00), "F32": ("u4", 0x7F800000)}[target]
    bare = np.frombuffer(raw, kind)
    return int(np.count_nonzero(bare << 1 == bits << 1))


def with_last(t: torch.Tensor, value: Any) -> torch.Tensor:
    """``t`` but for its last element."""
    changed = t.clone()
    changed.reshape(-1)[-1] = value
    return changed


# --- the table itself ----------------------------------------------------------------------------


def concrete_codecs() -> set[type[Codec]]:
    """Every codec class of the package that can be made."""
    found: set[type[Codec]] = set()
    for module in pkgutil.iter_modules(fp8convert.codecs.__path__):
        space = vars(importlib.import_module(f"fp8convert.codecs.{module.name}"))
        found |= {c for c in space.values() if inspect.isclass(c) and issubclass(c, Codec)}
    return {c for c in found if not inspect.isabstract(c)}


def test_every_codec_has_a_case() -> None:
    """But for those that others make of their slices: see ``test_codec_cut``."""
    assert concrete_codecs() - {type(c.codec) for c in CODED.values()} == {Raw, Window, Excerpt}


def test_names_are_unique_and_rules_are_said() -> None:
    names = [c.name for c in concrete_codecs()]
    assert len(set(names)) == len(names)
    assert all(c.rule for c in concrete_codecs())


@pytest.mark.parametrize("case", CODED.values(), ids=CODED.keys())
def test_codec_describes_itself(case: Case) -> None:
    """As JSON with its name; a role for every part; equal codecs are equal, and hashable."""
    codec = case.codec
    facts = codec.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["codec"] == codec.name
    parts = case.pack(case.numbers(case.fitting((32, 64))[0]))
    assert len(codec.roles) == len(parts)
    assert len(set(codec.roles)) == len(parts)
    assert codec == replace(codec)  # type: ignore[type-var]
    assert hash(codec) == hash(replace(codec))  # type: ignore[type-var]
    assert codec.coded
    assert codec.out_dtype(stored(parts), "F16") == "F16"


def test_raw_describes_itself() -> None:
    assert Raw().to_dict() == {"codec": "raw"}
    assert Raw().roles == ("data",)
    assert not Raw().coded
