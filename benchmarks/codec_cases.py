"""One tile of a weight in every form that a codec reads, with a peer's decoding of the same tile.

Codes are random over all a format has but NaN and infinity, scales such that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fp8convert.codecs.awq import Awq
from fp8convert.codecs.base import Codec, Stored
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block, Int8Block
from fp8convert.codecs.gpt_oss import GptOss
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.packed_int import PackedInt

from . import codec_peers as peers

Array = NDArray[Any]
Part = tuple[str, Array]  # safetensors dtype, bits
SHAPE = ROWS, COLUMNS = 512, 8192  # a tile of 8 MiB in BF16
NANS = {"F8_E4M3": (0x7F, 0x7F), "F8_E5M2": (0x7C, 0x7C), "F8_E4M3FNUZ": (0xFF, 0x80)}
TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "BF16": torch.bfloat16,
}


class Peer(NamedTuple):
    """Another decoder of the tile, to BF16. ``zeros_differ``: it has -0.0 for our +0.0."""

    label: str
    decode: Callable[[], torch.Tensor]
    zeros_differ: bool = False


class Case(NamedTuple):
    """A weight by its codec; ``data`` are the bytes of ``parts``."""

    title: str
    codec: Codec
    parts: tuple[Stored, ...]
    data: tuple[Array, ...]
    peer: Peer


def _case(title: str, codec: Codec, parts: Sequence[Part], peer: Peer) -> Case:
    stored = tuple(Stored(r, d, a.shape, 0, 0, a.nbytes)
                   for r, (d, a) in zip(codec.roles, parts, strict=True))  # fmt: skip
    if wrong := codec.check(stored):
        raise ValueError(f"{title}: {wrong}")
    return Case(title, codec, stored, tuple(a.reshape(-1).view(np.uint8) for _, a in parts), peer)


def _tensors(parts: Sequence[Part]) -> list[torch.Tensor]:
    found = []
    for dtype, array in parts:
        tensor = torch.from_numpy(array.view(np.int16) if dtype == "BF16" else array)
        found.append(tensor.view(TORCH[dtype]) if dtype in TORCH else tensor)
    return found


class Draw:
    """Random parts, always the same ones."""

    def __init__(self) -> None:
        self.source = np.random.default_rng(0)

    def bytes(self, *shape: int, low: int = 0, high: int = 256) -> Array:
        """uint8 of ``[low, high)``."""
        return self.source.integers(low, high, shape, np.uint8)

    def codes(self, dtype: str, *shape: int) -> Part:
        """Finite codes."""
        mask, least = NANS[dtype]
        found = self.bytes(*shape)
        odd = (found == least) if mask == 0xFF else (found & mask) >= least
        found[odd] = 1
        return dtype, found

    def scales(self, dtype: str, *shape: int) -> Part:
        """Small positive numbers, such that no product overflows."""
        if dtype in ("U8", "F8_E8M0"):
            return dtype, self.bytes(*shape, low=112, high=124)
        if dtype == "F8_E4M3":
            return dtype, self.bytes(*shape, low=1, high=0x7F)
        values = self.source.uniform(1e-5, 1e-2, shape).astype(np.float32)
        if dtype == "BF16":
            return dtype, (values.view(np.uint32) >> 16).astype(np.uint16)
        return dtype, values.astype(np.float16) if dtype == "F16" else values

    def words(self, *shape: int) -> Part:
        """I32, every bit random."""
        return "I32", self.bytes(*shape[:-1], 4 * shape[-1]).view(np.int32)


def cases() -> Iterator[Case]:
    """All, one at a time."""
    draw = Draw()
    yield from _eight_bit(draw)
    yield from _fp4(draw)
    yield from _packed(draw)
    yield from _transposed(draw)


def _eight_bit(draw: Draw) -> Iterator[Case]:
    forms: tuple[tuple[str, Fp8Block, str, str], ...] = (
        ("fp8, 128 x 128, F32 scales", Fp8Block((128, 128)), "F8_E4M3", "F32"),
        ("fp8, 32 x 32, E8M0", Fp8Block((32, 32)), "F8_E4M3", "F8_E8M0"),
        ("fp8, 1 x 32, U8 exponents", Fp8Block((1, 32)), "F8_E4M3", "U8"),
        ("fp8, a row, BF16 scales", Fp8Block((1, None)), "F8_E4M3", "BF16"),
        ("fp8, a matrix, F32 scale", Fp8Block((None, None)), "F8_E4M3", "F32"),
        ("e5m2, 128 x 128", Fp8Block((128, 128), "e5m2"), "F8_E5M2", "F32"),
        ("e4m3fnuz, 128 x 128", Fp8Block((128, 128), "e4m3fnuz"), "F8_E4M3FNUZ", "F32"),
    )
    for title, codec, dtype, scale in forms:
        grid = (-(-n // (b or n)) for n, b in zip(SHAPE, codec.block, strict=True))
        parts = [draw.codes(dtype, *SHAPE), draw.scales(scale, *grid)]
        yield _case(title, codec, parts, Peer("transformers", peers.fine_grained(*_tensors(parts))))
    for zero_points in (False, True):
        title = f"int8, a row, BF16 scales{', zero points' if zero_points else ''}"
        parts = [("I8", draw.bytes(*SHAPE)), draw.scales("BF16", ROWS, 1)]
        parts += [("I8", draw.bytes(ROWS, 1))] if zero_points else []
        signed = [t.view(torch.int8) if t.dtype == torch.uint8 else t for t in _tensors(parts)]
        decode = peers.compressed(peers.Form("int-quantized", 8), *signed)
        codec8 = Int8Block((1, None), zero_points=zero_points)
        yield _case(title, codec8, parts, Peer("compressed-tensors", decode))


def _fp4(draw: Draw) -> Iterator[Case]:
    packed = (ROWS, COLUMNS // 2)
    parts = [("U8", draw.bytes(*packed)), draw.scales("U8", ROWS, COLUMNS // 32)]
    decode = peers.compressed(peers.Form("mxfp4-pack-quantized", 4, 32), *_tensors(parts))
    yield _case("MXFP4, U8", Fp4Block(32), parts, Peer("compressed-tensors", decode))

    parts = [("I8", draw.bytes(*packed)), draw.scales("F8_E8M0", ROWS, COLUMNS // 32)]
    codes, scales = _tensors(parts)
    decode = peers.fine_grained(codes.view(torch.int8), scales)
    peer = Peer("transformers", decode, zeros_differ=True)
    yield _case("FP4, I8, one zero", Fp4Block(32, signed_zero=False), parts, peer)

    grid = (ROWS, COLUMNS // 16)
    parts = [("U8", draw.bytes(*packed)), draw.scales("F8_E4M3", *grid), draw.scales("F32", 1)]
    peer = Peer("torch", peers.nvfp4(*_tensors(parts)))
    yield _case("NVFP4, multiplied", Fp4Block(16, "multiply"), parts, peer)
    parts[2] = ("F32", 1 / parts[2][1])
    decode = peers.compressed(peers.Form("nvfp4-pack-quantized", 4, 16), *_tensors(parts))
    peer = Peer("compressed-tensors", decode)
    yield _case("NVFP4, divided", Fp4Block(16, "divide"), parts, peer)


def _packed(draw: Draw) -> Iterator[Case]:
    forms = ((4, 32, False), (4, 128, False), (4, 32, True), (4, 128, True), (8, 128, False))
    for bits, group, zero_points in forms:
        parts = [
            draw.words(ROWS, COLUMNS * bits // 32),
            draw.scales("BF16", ROWS, COLUMNS // group),
        ]
        parts += [draw.words(ROWS * bits // 32, COLUMNS // group)] if zero_points else []
        title = f"packed int{bits}, group {group}{', zero points' if zero_points else ''}"
        codec = PackedInt(bits, group, ("zeros",) if zero_points else ())
        decode = peers.compressed(peers.Form("pack-quantized", bits, group), *_tensors(parts))
        yield _case(title, codec, parts, Peer("compressed-tensors", decode))
    group = 128
    parts = [draw.words(ROWS, COLUMNS // 8), draw.scales("BF16", ROWS, COLUMNS // group)]
    parts.append(("I32", _shuffled(draw, group)))
    peer = Peer("compressed-tensors, torch", peers.packed_shuffled(*_tensors(parts)))
    yield _case("packed int4, g_idx shuffled", PackedInt(4, group, ("groups",)), parts, peer)


def _transposed(draw: Draw) -> Iterator[Case]:
    parts = [("U8", draw.bytes(1, 5760, 90, 16)), draw.scales("U8", 1, 5760, 90)]
    peer = Peer("transformers", peers.gpt_oss(704, *_tensors(parts)))
    yield _case("MXFP4 transposed (gpt-oss)", GptOss(), parts, peer)

    group, groups = 128, COLUMNS // 128
    parts = [
        draw.words(COLUMNS, ROWS // 8), draw.scales("F16", groups, ROWS),
        draw.words(groups, ROWS // 8),
    ]  # fmt: skip
    decode = peers.awq(group, *_tensors(parts))
    yield _case("AWQ, group 128", Awq(group), parts, Peer("AutoAWQ's formula, torch", decode))

    for bits in (4, 8):
        for shuffled in (False, True):
            zeros = draw.bytes(groups, ROWS * bits // 8, high=255)
            zeros[(zeros & 15 == 15) | (zeros >> 4 == 15)] = 7  # stored less one: 15 is refused
            parts = [
                draw.words(COLUMNS * bits // 32, ROWS), draw.scales("F16", groups, ROWS),
                ("I32", zeros.view(np.int32)),
                ("I32", _shuffled(draw, group) if shuffled else _plain(group)),
            ]  # fmt: skip
            title = f"GPTQ int{bits}, group 128{', g_idx shuffled' if shuffled else ''}"
            peer = Peer("AutoGPTQ's formula, torch", peers.gptq(bits, *_tensors(parts)))
            yield _case(title, Gptq(bits, group, True, True), parts, peer)


def _plain(group: int) -> Array:
    found: Array = np.arange(COLUMNS, dtype=np.int32) // np.int32(group)
    return found


def _shuffled(draw: Draw, group: int) -> Array:
    found: Array = draw.source.permutation(_plain(group))
    return found
