"""The oracle of quantizing against compressed-tensors, torch and loops over single numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

from .formats import formulas
from .quantized import oracle, sources
from .quantized.oracle import F32, FORMATS, over_elements
from .quantized.sources import as_part

DTYPES = sources.PLAIN
ARGS: dict[str, dict[str, object]] = {
    "fp8-channel": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "fp8-tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "int8-channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int4-group": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "nvfp4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
              "scale_dtype": torch.float8_e4m3fn},
    "mxfp4": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32,
              "scale_dtype": torch.uint8},
    "mxfp8": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32,
              "scale_dtype": torch.uint8},
}  # fmt: skip
# Numbers that neither overflow the dtype of a scale nor are rounded up to its smallest.
ORDINARY = (sources.gaussian(0.02), sources.outlier, sources.gaussian(3), sources.gaussian(0.1))
MIDPOINTS = (
    sources.e4m3_midpoints,
    sources.e2m1_midpoints,
    sources.int8_midpoints,
    sources.int4_midpoints,
)


def matrix(dtype: str, patterns: tuple[sources.Pattern, ...] = ORDINARY) -> torch.Tensor:
    """Without -0.0, whose sign compressed-tensors drops in four bits."""
    return sources.patterned("oracle", 64, 256, (1, 256), patterns).to(DTYPES[dtype]) + 0.0


def as_f32(x: torch.Tensor) -> F32:
    return np.ascontiguousarray(x.to(torch.float32).numpy())


def args_of(scheme: str) -> QuantizationArgs:
    return QuantizationArgs.model_validate(ARGS[scheme])


def groups(x: torch.Tensor, scheme: str) -> torch.Tensor:
    """What shares a scale, along the last axis."""
    if scheme == "fp8-tensor":
        return x.reshape(1, 1, -1)
    size = args_of(scheme).group_size or x.shape[1]
    return x.reshape(x.shape[0], -1, size)


def qparams(x: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """compressed-tensors' scale of every group, and the global one, in the dtype of ``x``."""
    whole = generate_gparam(x.min(), x.max()) if scheme == "nvfp4" else None
    parts = groups(x, scheme)
    low, high = parts.amin(dim=-1), parts.amax(dim=-1)
    scale, _ = calculate_qparams(low, high, args_of(scheme), global_scale=whole)
    return scale, whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ARGS)
def test_scales_and_codes_are_those_of_compressed_tensors(scheme: str, dtype: str) -> None:
    x = matrix(dtype)
    ours = oracle.quantized(as_f32(x), scheme, dtype)
    scale, whole = qparams(x, scheme)
    local = {"weight": x.to(torch.float32), "weight_scale": scale.to(torch.float32)}
    if scheme == "fp8-tensor":
        local["weight_scale"] = local["weight_scale"].reshape(1)
    if whole is not None:
        local["weight_global_scale"] = whole
    section = QuantizationScheme(targets=["Linear"], weights=args_of(scheme))
    theirs = BaseCompressor.get_value_from_registry(FORMATS[scheme]).compress(local, section)
    if scheme == "int4-group":
        theirs["weight_scale"] = scale
    assert ours.keys() == theirs.keys()
    for leaf, stored in ours.items():
        assert stored == as_part(theirs[leaf]), leaf


@pytest.mark.parametrize("scheme", ["fp8-channel", "int8-channel", "int4-group", "mxfp4", "mxfp8"])
def test_midpoints_are_rounded_as_compressed_tensors_rounds_them(scheme: str) -> None:
    x = matrix("F32", MIDPOINTS)
    ours = oracle.quantized(as_f32(x), scheme, "F32")
    scale = torch.from_numpy(oracle.array(ours["weight_scale"]).copy())
    if scheme.startswith("mx"):
        scale = formulas.exponents(scale)
    section = QuantizationScheme(targets=["Linear"], weights=args_of(scheme))
    compressor = BaseCompressor.get_value_from_registry(FORMATS[scheme])
    theirs = compressor.compress({"weight": x, "weight_scale": scale}, section)
    for leaf, stored in ours.items():
        assert stored == as_part(theirs[leaf]), leaf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ARGS)
def test_decoding_is_that_of_compressed_tensors(scheme: str, dtype: str) -> None:
    parts = oracle.quantized(as_f32(matrix(dtype)), scheme, dtype)
    local = {leaf: torch.from_numpy(oracle.array(stored).copy().view(
        {"F8_E4M3": np.uint8, "BF16": np.uint16}.get(stored[0], oracle.NUMPY[stored[0]])
    )) for leaf, stored in parts.items()}  # fmt: skip
    for leaf, (tag, _, _) in parts.items():
        if tag == "F8_E4M3":
            local[leaf] = local[leaf].view(torch.float8_e4m3fn)
        if tag in ("BF16", "F16"):
            local[leaf] = local[leaf].view(DTYPES[tag]).to(torch.float32)
    section = QuantizationScheme(targets=["Linear"], weights=args_of(scheme))
    compressor = BaseCompressor.get_value_from_registry(FORMATS[scheme])
    theirs = compressor.decompress(local, section)["weight"]
    ours = torch.from_numpy(oracle.decoded(parts)).to(theirs.dtype)
    assert as_part(ours) == as_part(theirs)


# Elements, one number at a time


def nearest(x: float, table: list[float]) -> int:
    """The code of the nearest magnitude; of two as near the even one; in exact arithmetic."""
    distance = [(abs(Fraction(abs(x)) - Fraction(value)), code & 1) for code, value in
                enumerate(table)]  # fmt: skip
    code = distance.index(min(distance))
    return code | (len(table) + len(table) % 2 if np.signbit(x) else 0)


@pytest.mark.parametrize(("element", "count"), [("e4m3", 127), ("e2m1", 8)])
def test_elements_by_exact_distance(element: str, count: int) -> None:
    function = {"e4m3": formulas.e4m3fn, "e2m1": formulas.e2m1}[element]
    table = [function(code) for code in range(count)]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(table)]
    around = np.array([*table, *middle], np.float32)
    x = np.concatenate(
        [around, np.nextafter(around, np.float32(0)), np.nextafter(around, np.float32(1e9))]
    )
    x = np.concatenate([x, -x, np.array([-0.0, 1e30, -1e30, 2e-45], np.float32)])
    ours = oracle.codes(x, np.ones_like(x), element)
    expected = [nearest(float(np.clip(v, -table[-1], table[-1])), table) for v in x]
    assert ours.tolist() == expected


def test_codes_are_those_of_torch() -> None:
    x = torch.from_numpy(sources.gaussian(100)(oracle.seed_of("torch"), 4096)).clamp(-448, 448)
    theirs = x.to(torch.float8_e4m3fn).view(torch.uint8)
    ours = oracle.codes(x.numpy(), np.ones(4096, np.float32), "e4m3")
    assert ours.tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounding_is_that_of_torch(dtype: str) -> None:
    x = torch.from_numpy(sources.gaussian(100)(oracle.seed_of("round"), 4096))
    x = torch.cat([x, torch.tensor([1 + 2**-8, 1 + 2**-11, 3e-39, 6.1e-5, 3e-8, 3.3e38])])
    theirs = x.to(DTYPES[dtype]).to(torch.float32).numpy()
    assert oracle.rounded(x.numpy(), dtype).tobytes() == theirs.tobytes()


# Blocks, one at a time


def block_cases() -> list[tuple[F32, tuple[int, int]]]:
    extreme = sources.EXTREME["F32"]
    rows = ((300, 200, (128, 128)), (129, 130, (128, 128)), (96, 70, (32, 32)), (7, 5, (1, 5)))
    return [(sources.patterned(f"b{r}", r, c, b, extreme).numpy(), b) for r, c, b in rows]


@pytest.mark.parametrize("power_of_two", [False, True])
def test_block_scales_by_a_loop(power_of_two: bool) -> None:
    short = 0
    for x, block in block_cases():
        ours = oracle.block_scale(x, block, power_of_two)
        for r in range(ours.shape[0]):
            for c in range(ours.shape[1]):
                rows = slice(r * block[0], (r + 1) * block[0])
                place = x[rows, c * block[1] : (c + 1) * block[1]]
                expected, was_short = scale_of(place, power_of_two)
                assert ours[r, c] == expected
                short += was_short
    assert bool(short) is not power_of_two  # there the plain rule is that power


def scale_of(x: F32, power_of_two: bool) -> tuple[float, bool]:
    """The rule in Python's numbers."""
    amax = float(np.abs(x).max())
    if amax == 0:
        return 1.0, False
    plain = max(float(np.float32(amax) / np.float32(448)), 2.0**-126)
    if power_of_two:
        plain = next(2.0**k for k in range(-126, 128) if 2.0**k >= plain)
    power = next(2.0**k for k in range(-126, 128) if amax <= 448 * 2.0**k)
    numbers = [Fraction(float(v)) for v in x.reshape(-1) if v]
    odd = [v.numerator // (v.numerator & -v.numerator) for v in numbers]
    if not all(abs(n) < 16 for n in odd):
        return plain, False
    errors = []
    for scale in (plain, power):
        with np.errstate(under="ignore", over="ignore"):
            code = np.clip(x / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn)
            back = code.astype(np.float32) * np.float32(scale)
        pairs = zip(x.reshape(-1), back.reshape(-1), strict=True)
        errors.append(sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in pairs))
    return (power, True) if errors[1] < errors[0] else (plain, False)


@pytest.mark.parametrize(("element", "less"), [("e2m1", 2), ("e4m3", 8)])
def test_mx_exponents_by_a_loop(element: str, less: int) -> None:
    """``generate_mx_scales`` in words, where its power of two is taken or no short values are."""
    x = sources.patterned("mx", 64, 96, (1, 32), sources.EXTREME["F32"]).numpy()
    ours = oracle.mx_exponent(x, element)
    changed = 0
    for r in range(64):
        for c in range(3):
            group = x[r, c * 32 : c * 32 + 32]
            amax = float(np.abs(group).max())
            if amax == 0:
                assert ours[r, c] == 127
                continue
            e = next(k for k in range(127, -151, -1) if 2.0**k <= amax)
            byte = min(max(127 + e + (amax / 2.0**e >= 1.75) - less, 1), 254)
            largest = {"e2m1": 6, "e4m3": 448}[element]
            if ours[r, c] != byte:
                changed += 1
                assert oracle.is_short(group[None], (1, 32), element).all()
                assert amax <= largest * 2.0 ** (int(ours[r, c]) - 127)
    assert changed or element == "e2m1"


def test_nvfp4_of_nothing_and_of_almost_nothing() -> None:
    """compressed-tensors takes a global scale of 1 where 2688 / amax is infinite."""
    zero = np.zeros((2, 32), np.float32)
    parts = oracle.quantized(zero, "nvfp4", "BF16")
    assert oracle.array(parts["weight_global_scale"]).tolist() == [1.0]
    assert set(oracle.array(parts["weight_scale"]).astype(np.float32).reshape(-1)) == {1.0}
    assert not any(parts["weight_packed"][2])
    tiny = torch.full((1, 16), 1e-38)
    assert generate_gparam(tiny.min(), tiny.max()).item() == 1.0
    assert oracle.nvfp4_global(float(tiny.max()), "F32") == 1.0


def test_fp8_blocks_decode_as_formulas_says() -> None:
    x, block = block_cases()[0]
    parts = oracle.quantized(x, "fp8-block", "F32", block=block)
    code = torch.from_numpy(np.frombuffer(parts["weight"][2], np.uint8).copy().reshape(x.shape))
    scale = torch.from_numpy(oracle.array(parts["weight_scale_inv"]).copy())
    theirs = formulas.by_block(formulas.values(code.view(torch.float8_e4m3fn)), scale, block)
    assert oracle.decoded(parts, block).tobytes() == theirs.numpy().tobytes()


def test_over_elements_and_blocks_are_inverse() -> None:
    scale = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    wide = over_elements(scale, (32, 16), (40, 35))
    assert wide.shape == (40, 35)
    assert oracle.over_blocks(np.maximum, wide, (32, 16)).tolist() == scale.tolist()
    assert wide[31, 15] == 1
    assert wide[32, 34] == 6


# Sources


@pytest.mark.parametrize("source", [sources.plain(d) for d in DTYPES], ids=lambda s: s.id)
def test_plain_sources_have_every_hard_block(source: sources.Source) -> None:
    every = np.concatenate([x.reshape(-1) for x in source.values.values()])
    assert np.isfinite(every).all()
    assert (np.signbit(every) & (every == 0)).any()
    smallest = {"F16": 2.0**-14}.get(source.dtype, 2.0**-126)
    assert ((np.abs(every) < smallest) & (every != 0)).any()
    assert (np.abs(every) > {"F16": 2e4}.get(source.dtype, 1e29)).any()
    for scheme in oracle.SCHEMES:
        for name in source.fitting(scheme):
            x = source.values[name]
            block = oracle.block_of(scheme, x.shape)
            assert np.isfinite(oracle.over_blocks(np.maximum, np.abs(x), block)).all()
    assert len(source.fitting("mxfp4")) < len(source.values)


def test_coded_sources_are_what_they_say() -> None:
    v4 = sources.v4()
    for name, exact in ((sources.NEAR, True), (sources.FAR, False)):
        x = v4.values[f"{name}.weight"]
        back = oracle.decoded(oracle.quantized(x, "fp8-block", "BF16"))
        assert oracle.errors(x, back)["exact"] is exact
    power = oracle.array(
        as_part(sources.fp8_power().coded[f"{sources.EXPERT}.0.up_proj.weight_scale_inv"])
    )
    assert (np.frexp(power)[0] == 0.5).all()


def test_errors_by_hand() -> None:
    x, y = np.array([[3, 4]], np.float32), np.array([[3, 4.5]], np.float32)
    assert oracle.errors(x, x) == {"exact": True}
    found = oracle.errors(x, y)
    assert found["max_abs"] == 0.5
    assert found["relative_rms"] == pytest.approx(0.1)
    assert found["snr_db"] == pytest.approx(20)
