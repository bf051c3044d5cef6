"""Small checkpoints of several shards to quantize, and what each of their weights decodes to.

Plain ones are full of blocks that a quantizer gets wrong: zeros, -0.0, tiny and huge numbers, one
outlier, midpoints between two codes, a largest value at the edge where an MX exponent steps.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from ..checkpoints import write
from ..formats import fp8_scales, make
from ..formats.case import Builder, Case, Tensors
from ..formats.compressed_tensors_ import MXFP4, config, group, ints, weights
from ..formats.deepseek_v4 import CONFIG as V4
from ..formats.formulas import E2M1_DEEPSEEK, by_block, exponents, nibbles, pack_nibbles, values
from ..formats.modelopt import config as modelopt_config
from ..formats.modelopt import inline, nvfp4
from . import oracle
from .oracle import F32, Part, seed_of
from .readers import Stored

TAGS = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Weights that engines fuse share the scale of a whole matrix.
FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("wq_a", "wkv"),
)


def as_part(tensor: torch.Tensor) -> Part:
    """A tensor as a file has it."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return TAGS[tensor.dtype], tuple(tensor.shape), raw


@dataclass(frozen=True)
class Source:
    """A checkpoint; ``values`` are the float32 weights that a quantizer takes on by default."""

    id: str
    config: dict[str, Any]
    shards: Sequence[Tensors]
    values: dict[str, F32]
    dtype: str
    """D of the contract: the dtype of a plain weight, BF16 of a coded one."""
    kept: Tensors
    """Every tensor that passes as it is."""
    coded: Tensors = field(default_factory=dict)
    """The stored parts of coded weights."""

    def write(self, folder: Path) -> Path:
        """As files."""
        return write(folder, self.shards, self.config)

    def partners_amax(self, name: str) -> float:
        """The largest magnitude among the weights that are fused with ``name``."""
        module, leaf = name.removesuffix(".weight").rsplit(".", 1)
        leaves = next((leaves for leaves in FUSED if leaf in leaves), (leaf,))
        every = [self.values.get(f"{module}.{other}.weight") for other in leaves]
        return max(float(np.abs(x).max()) for x in every if x is not None)

    def expected(self, scheme: str, **options: Any) -> Stored:
        """Every tensor that quantizing by the plain rule must write."""
        out = {name: as_part(t) for name, t in self.kept.items()}
        fitting = set(self.fitting(scheme, options.get("group", 128)))
        for name, x in self.values.items():
            if name not in fitting:
                out[name] = oracle.part(x, self.dtype)
                continue
            module = name.removesuffix("weight")
            amax = self.partners_amax(name)
            parts = oracle.quantized(x, scheme, self.dtype, amax, **options)
            out |= {module + leaf: part for leaf, part in parts.items()}
        return out

    def fitting(self, scheme: str, group: int = 128) -> list[str]:
        """The weights that ``scheme`` can hold, if it can hold all they are fused with."""
        size = oracle.group_of(scheme, group)
        fits: dict[str, bool] = {}
        for name, x in self.values.items():
            fits[fused(name)] = fits.get(fused(name), True) and not x.shape[1] % size
        return [name for name in self.values if fits[fused(name)]]


def fused(name: str) -> str:
    """The same for weights that must be in one precision: q, k and v; all experts of a layer."""
    return name.partition(".experts.")[0] if ".experts." in name else partners(name)


def partners(name: str) -> str:
    """The same for weights that an engine makes one matrix of."""
    module, leaf = name.removesuffix(".weight").rsplit(".", 1)
    leaves = next((leaves for leaves in FUSED if leaf in leaves), (leaf,))
    return f"{module}.{leaves[0]}"


# Blocks that are hard

Pattern = Callable[[np.random.Generator, int], F32]


def _signed(rng: np.random.Generator, magnitudes: Sequence[float], n: int) -> F32:
    chosen = rng.choice(np.array(magnitudes, np.float32), n)
    return np.asarray(chosen * rng.choice([-1, 1], n).astype(np.float32))


def _with_first(x: F32, first: float) -> F32:
    x[0] = first
    return x


def gaussian(scale: float) -> Pattern:
    """What weights look like."""
    return lambda rng, n: (rng.standard_normal(n) * scale).astype(np.float32)


def outlier(rng: np.random.Generator, n: int) -> F32:
    """One value a hundred thousand times the rest, not of few bits."""
    x = gaussian(1e-3)(rng, n)
    x[int(rng.integers(n))] = -101.5
    return x


def zeros(rng: np.random.Generator, n: int) -> F32:
    """Only +0.0."""
    return np.zeros(n, np.float32)


def negative_zeros(rng: np.random.Generator, n: int) -> F32:
    """-0.0 beside numbers."""
    x = gaussian(0.02)(rng, n)
    x[1::3] = -0.0
    return x


def e4m3_midpoints(rng: np.random.Generator, n: int) -> F32:
    """Halfway between two codes, under a scale of 1: also between subnormals, and at 0."""
    table = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return _with_first(_signed(rng, (table[:-1] + table[1:]) / 2, n), 448)


def e2m1_midpoints(rng: np.random.Generator, n: int) -> F32:
    """Halfway between two of the eight magnitudes."""
    return _with_first(_signed(rng, [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], n), 6)


def int8_midpoints(rng: np.random.Generator, n: int) -> F32:
    """n + 1/2 under a scale of 1; the first is 127.5, which is kept to 127."""
    return _with_first(_signed(rng, np.arange(127) + 0.5, n), -127.5)


def int4_midpoints(rng: np.random.Generator, n: int) -> F32:
    """The same for four bits."""
    return _with_first(_signed(rng, np.arange(8) + 0.5, n), -7.5)


def short(first: float, low: int) -> Pattern:
    """Three mantissa bits, down to 2**low: a power of two fits them better than amax / 448."""

    def make(rng: np.random.Generator, n: int) -> F32:
        mantissas = 1 + rng.integers(0, 8, n) / 8
        x = mantissas * np.exp2(rng.integers(low, 5, n)) * rng.choice([-1, 1], n)
        return _with_first(np.clip(x, -first, first).astype(np.float32), first)

    return make


def shortest(rng: np.random.Generator, n: int) -> F32:
    """One mantissa bit, as e2m1 has: exact under a power of two."""
    x = _signed(rng, [0.5, 1, 1.5, 2, 3, 4], n)
    return _with_first(x, 4)


def mx_edge(top: float) -> Pattern:
    """The largest value is at or beside 1.75 times a power of two."""

    def make(rng: np.random.Generator, n: int) -> F32:
        x = (rng.uniform(-1, 1, n) * 0.03).astype(np.float32)
        return _with_first(x, top / 32)

    return make


GENTLE: tuple[Pattern, ...] = (
    gaussian(0.02),
    zeros,
    negative_zeros,
    outlier,
    e4m3_midpoints,
    e2m1_midpoints,
    int8_midpoints,
    int4_midpoints,
    short(26, -8),
    short(28, -12),
    shortest,
    mx_edge(1.75),
    mx_edge(1.7421875),
    mx_edge(1.9921875),
    mx_edge(1.5078125),
)
EXTREME: dict[str, tuple[Pattern, ...]] = {
    "F32": (*GENTLE, gaussian(1e-30), gaussian(1e-39), gaussian(1e30), gaussian(1e-44)),
    "BF16": (*GENTLE, gaussian(1e-30), gaussian(1e-39), gaussian(1e30)),
    "F16": (*GENTLE, gaussian(1e-6), gaussian(1e-7), gaussian(1e4)),
}


def patterned(
    name: str, rows: int, columns: int, grain: tuple[int, int], patterns: Sequence[Pattern]
) -> torch.Tensor:
    """A matrix whose blocks of ``grain`` follow the patterns in turn."""
    out = np.empty((rows, columns), np.float32)
    rng = seed_of(name)
    count = 0
    for r in range(0, rows, grain[0]):
        for c in range(0, columns, grain[1]):
            place = out[r : r + grain[0], c : c + grain[1]]
            place[...] = patterns[count % len(patterns)](rng, place.size).reshape(place.shape)
            count += 1
    return torch.from_numpy(out)


def normal(name: str, rows: int, columns: int, scale: float = 0.02) -> torch.Tensor:
    """Gaussian float32."""
    return torch.from_numpy(gaussian(scale)(seed_of(name), rows * columns).reshape(rows, columns))


# Plain checkpoints


def _plain_weights(dtype: str) -> Tensors:
    """Matrices of a Llama layer and of a DeepSeek layer, float32."""
    extreme = EXTREME[dtype]
    a, m = "model.layers.0.self_attn", "model.layers.0.mlp"
    b, e = "model.layers.1.self_attn", "model.layers.1.mlp"
    rows: tuple[tuple[str, int, int, tuple[int, int], Sequence[Pattern]], ...] = (
        (f"{a}.q_proj", 256, 256, (256, 256), GENTLE[:1]),
        (f"{a}.k_proj", 128, 256, (1, 16), GENTLE[:4]),
        (f"{a}.v_proj", 128, 256, (128, 256), GENTLE[:1]),
        (f"{a}.o_proj", 256, 256, (1, 32), GENTLE),
        (f"{m}.gate_proj", 384, 256, (128, 128), GENTLE[:6]),
        (f"{m}.up_proj", 384, 256, (1, 16), GENTLE),
        (f"{m}.down_proj", 256, 384, (1, 128), extreme),
        (f"{b}.q_a_proj", 96, 256, (96, 256), GENTLE[:1]),
        (f"{b}.kv_a_proj_with_mqa", 576, 256, (32, 32), GENTLE),
        (f"{b}.kv_b_proj", 129, 130, (128, 128), GENTLE[1:]),
        (f"{b}.o_proj", 300, 200, (128, 128), extreme[8:]),
        (f"{e}.shared_experts.down_proj", 1, 500, (1, 128), GENTLE[2:]),
        (f"{e}.experts.0.gate_proj", 64, 256, (1, 256), GENTLE),
        (f"{e}.experts.0.up_proj", 64, 256, (1, 64), GENTLE),
        (f"{e}.experts.0.down_proj", 256, 96, (1, 96), extreme),
        (f"{e}.experts.1.gate_proj", 64, 256, (64, 256), (e4m3_midpoints,)),
        (f"{e}.experts.1.up_proj", 64, 256, (64, 256), GENTLE[:1]),
        (f"{e}.experts.1.down_proj", 64, 64, (64, 64), (e2m1_midpoints,)),
        (f"{e}.experts.2.down_proj", 64, 64, (64, 64), (zeros,)),
    )
    return {f"{name}.weight": patterned(name, *more) for name, *more in rows}


def _unquantized(dtype: torch.dtype) -> Tensors:
    """What stays: one and four dimensions, embeddings, the head, the router, another dtype."""
    out = {
        "lm_head.weight": normal("head", 64, 256).to(dtype),
        "model.embed_tokens.weight": normal("embed", 64, 256).to(dtype),
        "model.norm.weight": normal("norm", 1, 256)[0].to(dtype),
        "model.layers.0.input_layernorm.weight": normal("norm0", 1, 256)[0].to(dtype),
        "model.layers.0.self_attn.q_proj.bias": normal("bias", 1, 256)[0].to(dtype),
        "model.layers.1.mlp.gate.weight": normal("router", 8, 256).to(dtype),
        "model.layers.1.mlp.gate.e_score_correction_bias": make.f32("bias", 8),
        "model.vision.patch.weight": normal("patch", 8, 48).reshape(8, 3, 4, 4).to(dtype),
    }
    return {name: tensor.contiguous() for name, tensor in out.items()}


def dealt(tensors: Tensors, shards: int = 3) -> list[Tensors]:
    """Names in turn, so that q, k and v are in different files."""
    out: list[Tensors] = [{} for _ in range(shards)]
    for number, name in enumerate(sorted(tensors)):
        out[number % shards][name] = tensors[name]
    return out


@functools.cache
def plain(dtype: str) -> Source:
    """A model that is not quantized, all of ``dtype``."""
    made = {name: t.to(PLAIN[dtype]) for name, t in _plain_weights(dtype).items()}
    kept = _unquantized(PLAIN[dtype])
    settings = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 256,
        "model_type": "deepseek_v3",
        "num_hidden_layers": 2,
        "torch_dtype": str(PLAIN[dtype]).removeprefix("torch."),
    }
    return Source(
        id=f"plain-{dtype.lower()}",
        config=settings,
        shards=dealt(made | kept),
        values={name: t.to(torch.float32).numpy() for name, t in made.items()},
        dtype=dtype,
        kept=kept,
    )


def simple(id: str, weights: Tensors, dtype: str) -> Source:
    """A model of nothing but these weights."""
    return Source(
        id=id,
        config={"model_type": "llama", "torch_dtype": str(PLAIN[dtype]).removeprefix("torch.")},
        shards=dealt(weights, 2),
        values={name: t.to(torch.float32).numpy() for name, t in weights.items()},
        dtype=dtype,
        kept={},
    )


@functools.cache
def gaussians() -> Source:
    """BF16 weights that look like weights, for comparing errors."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
    made = {f"model.layers.0.{name}.weight": normal(name, 128, 384) for name in names}
    return simple("gaussians", {n: t.to(torch.bfloat16) for n, t in made.items()}, "BF16")


@functools.cache
def small(dtype: str) -> Source:
    """Weights so small that their reciprocal is large for their dtype."""
    scale = 1e-3 if dtype == "F16" else 1e-37
    names = ("self_attn.o_proj", "mlp.down_proj")
    made = {f"model.layers.0.{name}.weight": normal(name, 32, 64, scale) for name in names}
    return simple(f"small-{dtype}", {n: t.to(PLAIN[dtype]) for n, t in made.items()}, dtype)


# Coded checkpoints


def of_case(case: Case) -> Source:
    """A case of tests/formats."""
    return Source(
        id=case.id,
        config=case.config,
        shards=case.shards,
        values={name: case.expected[name].numpy() for name in sorted(case.decoded)},
        dtype="BF16",
        kept={name: t for name, t in case.expected.items() if name not in case.decoded},
        coded={n: t for n, t in case.stored.items() if n in case.dropped | case.decoded},
    )


def _start() -> Builder:
    builder = Builder()
    builder.keep_all(make.bystanders(256))
    return builder


LAYER = "model.layers.0"
EXPERT = f"{LAYER}.mlp.experts"
FP8_SHAPES = (
    (f"{LAYER}.self_attn.q_a_proj", 96, 256),
    (f"{LAYER}.self_attn.kv_b_proj", 300, 200),
    (f"{LAYER}.self_attn.o_proj", 129, 130),
    (f"{LAYER}.mlp.down_proj", 1, 500),
    (f"{EXPERT}.0.gate_proj", 576, 256),
    (f"{EXPERT}.0.up_proj", 576, 256),
    (f"{EXPERT}.0.down_proj", 256, 384),
)


def native(
    id: str,
    scale: Callable[[str, int, int], tuple[torch.Tensor, torch.Tensor]],
    settings: dict[str, Any],
    shapes: Iterable[tuple[str, int, int]] = FP8_SHAPES,
) -> Source:
    """FP8 in blocks of 128x128; ``scale`` gives a grid as stored and as float32."""
    builder = _start()
    for module, rows, columns in shapes:
        weight = make.codes(module, rows, columns)
        stored, wide = scale(module, -(-rows // 128), -(-columns // 128))
        name = f"{module}.weight"
        parts = {name: weight, f"{name}_scale_inv": stored}
        builder.code(name, parts, by_block(values(weight), wide, (128, 128)))
    return of_case(builder.case(id, settings, "plain loop over blocks"))


def _f32(module: str, *grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = make.scales(module, *grid)
    return scale, scale


def _bf16(module: str, *grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = make.scales(module, *grid, dtype=torch.bfloat16)
    return scale, scale.to(torch.float32)


def _powers(module: str, *grid: int) -> torch.Tensor:
    """Around 2**-12, as those of weights are."""
    return make.integers(module, 110, 120, *grid).to(torch.uint8)


def _power_f32(module: str, *grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = exponents(_powers(module, *grid))
    return scale, scale


def _e8m0(module: str, *grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    power = _powers(module, *grid)
    return power.view(torch.float8_e8m0fnu), exponents(power)


@functools.cache
def fp8_f32() -> Source:
    """DeepSeek-V3: F32 scales of full mantissas."""
    return native("fp8-f32", _f32, fp8_scales.config())


@functools.cache
def fp8_power() -> Source:
    """DeepSeek-V3.1: F32 scales that are powers of two."""
    return native("fp8-power", _power_f32, fp8_scales.config(scale_fmt="ue8m0"))


@functools.cache
def fp8_bf16() -> Source:
    """Qwen3: BF16 scales."""
    return native("fp8-bf16", _bf16, fp8_scales.config(fmt="absent"))


@functools.cache
def fp8_e8m0() -> Source:
    """F8_E8M0 scales."""
    return native("fp8-e8m0", _e8m0, fp8_scales.config(scale_fmt="ue8m0"))


NEAR, FAR = "layers.1.ffn.experts.0.w1", "layers.1.ffn.experts.1.w1"


def mx_expert(builder: Builder, module: str, rows: int, columns: int, spread: int) -> None:
    """A V4 expert whose exponents are at most ``spread`` apart; codes 8 are +0.0."""
    code = make.integers(module, 0, 16, rows, columns)
    power = make.integers(module + "p", 0, spread + 1, rows, columns // 32).to(torch.uint8) + 108
    packed = pack_nibbles(code).view(torch.int8)
    value = by_block(E2M1_DEEPSEEK[nibbles(packed)], exponents(power), (1, 32))
    parts = {f"{module}.weight": packed, f"{module}.scale": power.view(torch.float8_e8m0fnu)}
    builder.code(f"{module}.weight", parts, value)


@functools.cache
def v4() -> Source:
    """DeepSeek-V4: FP8 dense layers, FP4 experts; those of FAR spread too far for one block."""
    builder = Builder()
    builder.keep_all(
        {
            "embed.weight": make.bf16("embed", 8, 256),
            "head.weight": make.bf16("head", 8, 256),
            "norm.weight": make.bf16("norm", 256),
            "layers.1.ffn.gate.weight": make.bf16("gate", 2, 256),
            "layers.1.ffn.gate.bias": make.f32("gate.bias", 2),
        }
    )
    for module, rows, columns in (("layers.0.attn.wq_a", 256, 256), ("layers.0.attn.wkv", 96, 256)):
        scale = _powers(module, -(-rows // 128), -(-columns // 128))
        weight = make.codes(module, rows, columns)
        parts = {f"{module}.weight": weight, f"{module}.scale": scale.view(torch.float8_e8m0fnu)}
        value = by_block(values(weight), exponents(scale), (128, 128))
        builder.code(f"{module}.weight", parts, value)
    for module, spread in ((NEAR, 6), ("layers.1.ffn.experts.0.w3", 6), (FAR, 24)):
        mx_expert(builder, module, 256, 256, spread)
    mx_expert(builder, "layers.1.ffn.experts.0.w2", 256, 128, 3)
    return of_case(builder.case("v4", V4, "plain loop over blocks"))


@functools.cache
def mxfp4() -> Source:
    """compressed-tensors MXFP4."""
    builder = _start()
    for number in range(2):
        for leaf, rows, columns in (("gate_proj", 48, 256), ("up_proj", 48, 256)):
            _ct_mx(builder, f"{EXPERT}.{number}.{leaf}", rows, columns)
    return of_case(builder.case("mxfp4", config("mxfp4-pack-quantized", group(MXFP4)), ""))


def _ct_mx(builder: Builder, module: str, rows: int, columns: int) -> None:
    code = make.integers(module, 0, 16, rows, columns)
    power = make.integers(module + "p", 112, 120, rows, columns // 32).to(torch.uint8)
    packed = pack_nibbles(code)
    table = E2M1_DEEPSEEK.clone()
    table[8] = -0.0
    value = by_block(table[code], exponents(power), (1, 32))
    parts = {f"{module}.weight_packed": packed, f"{module}.weight_scale": power}
    builder.code(f"{module}.weight", parts, value)


@functools.cache
def modelopt_nvfp4() -> Source:
    """ModelOpt NVFP4: one second scale is a power of two, the others are not."""
    builder = _start()
    nvfp4(builder, f"{EXPERT}.0.down_proj", 48, 256)
    nvfp4(builder, f"{EXPERT}.1.down_proj", 48, 256, second=torch.tensor(2.0**-9))
    nvfp4(builder, f"{LAYER}.self_attn.o_proj", 64, 128)
    return of_case(builder.case("modelopt-nvfp4", modelopt_config(inline("NVFP4", 4)), ""))


@functools.cache
def int4() -> Source:
    """compressed-tensors ``pack-quantized``, four bits in groups of 32."""
    builder = _start()
    for number in range(2):
        module = f"{EXPERT}.{number}.down_proj"
        ints(builder, module, 48, 256, "group", bits=4, size=32, packed=True)
    section = group(weights(4, "int", "group", group_size=32))
    return of_case(builder.case("int4", config("pack-quantized", section), ""))


# Running


class Runs:
    """Quantizes every source once for each set of options; outputs are read only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, Path] = {}
        self._tried = 0

    def source(self, source: Source) -> Path:
        """The folder of ``source``."""
        folder = self.root / "sources" / source.id.replace("/", "-")
        return folder if folder.exists() else source.write(folder)

    def __call__(self, source: Source, scheme: str, **options: Any) -> Path:
        """The output folder."""
        import fp8convert

        key = f"{source.id} {scheme} {sorted(options.items())}"
        if key not in self._done:
            self._tried += 1  # a run that was refused may leave something under its own name
            folder = self.root / f"output-{self._tried}"
            fp8convert.quantize(self.source(source), folder, scheme, workers=2, **options)
            self._done[key] = folder
        return self._done[key]


@contextlib.contextmanager
def runs(fallback: Path) -> Iterator[Runs]:
    """In memory where there is room: some disks take half a second to sync a file."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 512 << 20
    root = Path(tempfile.mkdtemp(prefix="fp8convert-test-", dir=memory)) if roomy else fallback
    try:
        yield Runs(root)
    finally:
        if roomy:
            shutil.rmtree(root)
