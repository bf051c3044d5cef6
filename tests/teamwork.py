"""Plans of rank files made by hand, and their bytes by slicing arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fp8convert.catalogue import Catalogue, open_catalogue
from fp8convert.codecs.base import Stored
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.raw import Raw
from fp8convert.dtypes import DTYPES
from fp8convert.encoding.lossless import decodable, encoding, way
from fp8convert.encoding.targets import Target
from fp8convert.engine import Engine
from fp8convert.header import numel
from fp8convert.journal import Record
from fp8convert.options import ToBf16
from fp8convert.plan import Item, Plan, Task
from fp8convert.planner import task
from fp8convert.publish import Staging, opened
from fp8convert.quantizer import needs_of
from fp8convert.schemes.weight import Weight
from fp8convert.settings import Settings
from fp8convert.teams import least_tile

from .mini import Tensor, write_shards
from .quantized import oracle

Array = npt.NDArray[Any]
BLOCK = (128, 32)  # of the coded weight
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "o": ("BF16", (301, 4096)),
    "far": ("F32", (37, 20_000)),  # rows farther apart than runs are read together
    "d": ("F8_E4M3", (530, 4096)),
    "d_scale_inv": ("F32", (5, 128)),
    "q": ("BF16", (1360, 256)),
    "gate": ("BF16", (260, 1024)),
    "norm": ("F32", (777,)),
    "kv": ("BF16", (128, 2048)),
    "stack": ("BF16", (3, 130, 1024)),
    "table": ("BF16", (701, 300)),
    "dense": ("BF16", (260, 5200)),
    "left": ("BF16", (200, 1000)),  # files of two ranks, cut for other numbers
    "right": ("BF16", (200, 1500)),
    **{f"expert{n}": ("BF16", (90 + n, 500)) for n in range(40)},
}
SHARDS = 5


def make_source(folder: Path, seed: int = 1) -> dict[str, Array]:
    """Write the checkpoint, 13 MB; its tensors as arrays of unsigned integers, or of floats."""
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, *facts) for name, facts in SHAPES.items()}
    names = list(SHAPES)
    shards: list[dict[str, Tensor]] = [
        {n: (*SHAPES[n], found[n].tobytes()) for n in names[k::SHARDS]} for k in range(SHARDS)
    ]
    write_shards(folder, shards, {"model_type": "llama", "torch_dtype": "bfloat16"})
    return found


def _values(rng: np.random.Generator, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "F8_E4M3":
        codes = rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)  # no NaN
        return codes.astype(np.uint8)
    if name == "d_scale_inv":
        return rng.uniform(1e-4, 2, shape).astype(np.float32)
    if name == "dense":
        return rng.normal(size=shape).astype(ml_dtypes.bfloat16)
    width = DTYPES[dtype].bits // 8
    return np.frombuffer(rng.bytes(width * numel(shape)), f"<u{width}").reshape(shape)


def columns(s: Stored, lo: int, hi: int) -> Stored:
    """A slice along the last axis."""
    width, row = DTYPES[s.dtype].bits // 8, s.shape[-1]
    if (lo, hi) == (0, row):
        return s
    begin, run = s.begin + lo * width, (hi - lo) * width
    shape = (*s.shape[:-1], hi - lo)
    end = begin + run * numel(s.shape[:-1])
    return s._replace(shape=shape, begin=begin, end=end, run=run, pitch=row * width)


def side_by_side(pieces: list[Stored], lo: int, hi: int) -> Stored:
    """A slice along the last axis of matrices that are beside each other."""
    found, at = [], 0
    for p in pieces:
        a, b = max(lo - at, 0), min(hi - at, p.shape[1])
        at += p.shape[1]
        if a < b:
            found.append(columns(p, a, b))
    if len(found) == 1:
        return found[0]
    shape, size = (found[0].shape[0], hi - lo), sum(p.end - p.begin for p in found)
    return Stored("x", found[0].dtype, shape, found[0].shard, 0, size, tuple(found), 1)


def middle(s: Stored, lo: int, hi: int) -> Stored:
    """A slice along the second of three axes."""
    a, b, c = s.shape
    flat = s._replace(shape=(a, b * c))
    return columns(flat, lo * c, hi * c)._replace(shape=(a, hi - lo, c))


def rows(s: Stored, lo: int, hi: int) -> Stored:
    """A slice along the first axis."""
    row = (s.end - s.begin) // s.shape[0]
    return s._replace(
        shape=(hi - lo, *s.shape[1:]), begin=s.begin + lo * row, end=s.begin + hi * row
    )


def padded(s: Stored, height: int, value: int) -> Stored:
    """With rows of a constant byte behind it."""
    row = numel(s.shape[1:]) * DTYPES[s.dtype].bits // 8
    more = height - s.shape[0]
    pad = Stored(s.name, s.dtype, (more, *s.shape[1:]), ~value, 0, more * row)
    pieces = tuple(p for p in (s, pad) if p.shape[0])
    if len(pieces) == 1:
        return pieces[0]
    shape, end = (height, *s.shape[1:]), height * row
    return Stored(s.name, s.dtype, shape, s.shard, 0, end, pieces)


class Ranks:
    """Files for ``count`` ranks of what :func:`make_source` has written into ``folder``."""

    def __init__(self, folder: Path, count: int, arrays: dict[str, Array]) -> None:
        self.catalogue: Catalogue = open_catalogue(folder)
        self.count, self.arrays = count, arrays
        self.expected: list[dict[str, bytes]] = [{} for _ in range(count)]
        self.items: list[list[Item]] = [[] for _ in range(count)]

    def part(self, size: int, rank: int, unit: int = 1) -> tuple[int, int]:
        """A rank's share of ``size``, in whole units: some ranks have more than others."""
        units = -(-size // unit)
        lo, hi = (n * units // self.count * unit for n in (rank, rank + 1))
        return lo, min(hi, size)

    def add(self, rank: int, name: str, stored: Stored, array: Array) -> None:
        """A tensor that is kept."""
        item = Item(Weight(name, Raw(), (stored,)), stored.dtype, 0, stored.end - stored.begin)
        self.items[rank].append(item)
        self.expected[rank][name] = array.tobytes()

    def add_all(self) -> Ranks:
        """Of every kind something."""
        for rank in range(self.count):
            self._add_kept(rank)
            self._add_decoded(rank)
            self._add_encoded(rank)
        return self

    def _add_kept(self, rank: int) -> None:
        of, arrays = self.catalogue.tensors, self.arrays
        for name, unit in (("o", 1), ("far", 1), ("d_scale_inv", 1), ("stack", 2)):
            lo, hi = self.part(arrays[name].shape[-1], rank, unit)
            self.add(rank, name, columns(of[name], lo, hi), arrays[name][..., lo:hi])
        lo, hi = self.part(2500, rank)
        both = np.concatenate([arrays["left"], arrays["right"]], axis=1)
        self.add(rank, "both", side_by_side([of["left"], of["right"]], lo, hi), both[:, lo:hi])
        lo, hi = self.part(130, rank)
        self.add(rank, "middle", middle(of["stack"], lo, hi), arrays["stack"][:, lo:hi])
        for name in ("gate", "norm"):
            self.add(rank, name, of[name], arrays[name])
        lo, hi = self.part(1360, rank)
        self.add(rank, "q", rows(of["q"], lo, hi), arrays["q"][lo:hi])
        half = rank * 2 // self.count * 64  # the same for several ranks
        self.add(rank, "kv", rows(of["kv"], half, half + 64), arrays["kv"][half : half + 64])
        height = -(-701 // self.count)
        lo, hi = min(rank * height, 701), min((rank + 1) * height, 701)
        table = padded(rows(of["table"], lo, hi), height, 0x3C)
        pad = np.full((height - (hi - lo), 300), 0x3C3C, "<u2")
        self.add(rank, "table", table, np.concatenate([arrays["table"][lo:hi], pad]))
        for n in range(rank, 40, self.count):
            self.add(rank, f"expert{n}", of[f"expert{n}"], arrays[f"expert{n}"])

    def _add_decoded(self, rank: int) -> None:
        of, (br, bc) = self.catalogue.tensors, BLOCK
        k0, k1 = self.part(128, rank)
        codes, scales = columns(of["d"], k0 * bc, k1 * bc), columns(of["d_scale_inv"], k0, k1)
        weight = Weight("d", Fp8Block(BLOCK), (codes, scales))
        self.items[rank].append(Item(weight, "BF16", 0, 2 * numel(codes.shape)))
        mine = self.arrays["d"][:, k0 * bc : k1 * bc]
        values = mine.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        around = np.repeat(np.repeat(self.arrays["d_scale_inv"][:, k0:k1], br, 0)[:530], bc, 1)
        found = (values * around[:, : mine.shape[1]]).astype(ml_dtypes.bfloat16)
        self.expected[rank]["d"] = found.tobytes()

    def _add_encoded(self, rank: int) -> None:
        lo, hi = self.part(5200, rank, 128)
        piece = columns(self.catalogue.tensors["dense"], lo, hi)
        weight, to = Weight("dense.weight", Raw(), (piece,)), Target("fp8-block")
        made = encoding(weight, to, False, way([weight], to, powers=False), ())
        self.items[rank] += [
            Item(decodable(weight), p.dtype, 0, p.nbytes, made, k) for k, p in enumerate(made.parts)
        ]
        x = np.ascontiguousarray(self.arrays["dense"][:, lo:hi]).astype(np.float32)
        for leaf, (_, _, data) in oracle.quantized(x, "fp8-block", "BF16").items():
            self.expected[rank][f"dense.{leaf}"] = data

    def tasks(self, team: int = 0) -> list[Task]:
        """One a rank."""
        made = [task(f"rank{rank}", list(items)) for rank, items in enumerate(self.items)]
        return [replace(t, team=team) for t in made]


class Run:
    """Runs of ``tasks`` into one staging folder, one after the other."""

    def __init__(self, catalogue: Catalogue, tasks: list[Task], target: Path) -> None:
        self.catalogue, self.tasks = catalogue, tasks
        source = tuple((s.name, s.size, s.header_sha256) for s in catalogue.shards)
        needs = needs_of([i for t in tasks for i in t.items])
        needs = needs._replace(tile=max(needs.tile, least_tile(tasks)))
        self.plan = Plan("test", ToBf16(), {}, source, tuple(tasks), {}, (), (), (), (),
                         needs=needs)  # fmt: skip
        self.staging = Staging(target, self.plan)

    def __call__(
        self, settings: Settings, tasks: list[Task] | None = None, seen: list[Engine] | None = None
    ) -> list[Record]:
        """Write ``tasks``, or all; ``seen`` gets the engine."""
        with opened(self.staging):
            self.staging.begin(self.catalogue.fingerprint)
            engine = Engine(self.catalogue, self.staging, settings.fitted(self.plan.needs))
            if seen is not None:
                seen.append(engine)
            return engine.run(self.tasks if tasks is None else tasks)

    def check(self, expected: list[dict[str, bytes]]) -> None:
        """Every file has its header, and ``expected`` tensors."""
        for t, tensors in zip(self.tasks, expected, strict=True):
            data = (self.staging.out / t.file).read_bytes()
            assert len(data) == t.size
            assert data[: len(t.header)] == t.header
            found = {i.name: data[i.begin : i.begin + i.nbytes] for i in t.items}
            assert found.keys() == tensors.keys()
            assert [name for name in found if found[name] != tensors[name]] == [], t.file


class Counted:
    """Counts bytes that positioned reads of shards move."""

    def __init__(self, patch: Callable[..., None]) -> None:
        import os
        import threading

        from fp8convert.fileio import SourceFile

        self.nbytes, here, lock = 0, threading.local(), threading.Lock()
        real = os.preadv

        def preadv(*args: Any) -> int:
            got = real(*args)
            if getattr(here, "inside", False):
                with lock:
                    self.nbytes += got
            return got

        def inside(method: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                here.inside = True
                try:
                    method(*args)
                finally:
                    here.inside = False

            return call

        patch(os, "preadv", preadv)
        patch(SourceFile, "read", inside(SourceFile.read))
        patch(SourceFile, "gather", inside(SourceFile.gather))
