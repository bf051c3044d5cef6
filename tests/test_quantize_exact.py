"""``quantize``: what it promises to be exact is, and what it reports of the rest is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fp8convert

from .checkpoints import write
from .formats import compressed_tensors_, formulas, fp8_scales
from .formats.case import Case
from .quantized import oracle, readers, sources
from .quantized.oracle import F32
from .quantized.readers import parts_of
from .quantized.sources import FAR, NEAR, Runs, Source, as_part

FP8: list[Callable[[], Source]] = [
    sources.fp8_f32,
    sources.fp8_power,
    sources.fp8_bf16,
    sources.fp8_e8m0,
]
by_id: Callable[[Any], str] = lambda x: getattr(x, "__name__", str(x))  # noqa: E731


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with sources.runs(tmp_path_factory.mktemp("quantize")) as made:
        yield made


def values_of(folder: Path, source: Source, block: tuple[int, int] = (128, 128)) -> dict[str, F32]:
    """Every quantized weight, through the oracle's decoder."""
    stored = readers.stored(folder)
    return {name: oracle.decoded(parts_of(stored, name), block) for name in source.values}


def assert_exact(folder: Path, source: Source, block: tuple[int, int] = (128, 128)) -> None:
    """Every value is the source's, and the manifest says so."""
    for name, y in values_of(folder, source, block).items():
        np.testing.assert_array_equal(y, source.values[name], err_msg=name)
    assert readers.reported(folder) == {name: {"exact": True} for name in source.values}


def as_f32(tensor: torch.Tensor) -> bytes:
    """A scale of any dtype, widened."""
    exponents = tensor.dtype in (torch.uint8, torch.float8_e8m0fnu)
    wide = formulas.exponents(tensor) if exponents else tensor.to(torch.float32)
    return as_part(wide)[2]


# The same codec and grid: copied


@pytest.mark.parametrize("make", FP8, ids=by_id)
def test_blocks_of_128_keep_their_bytes(make: Callable[[], Source], runs: Runs) -> None:
    source = make()
    folder = runs(source, "fp8-block")
    stored = readers.stored(folder)
    for name in source.values:
        parts = parts_of(stored, name)
        assert parts["weight"] == as_part(source.coded[name])
        scale = source.coded[f"{name}_scale_inv"]
        assert parts["weight_scale_inv"] == ("F32", tuple(scale.shape), as_f32(scale))
    assert_exact(folder, source)


def of(cases: list[Case], id: str) -> Source:
    """A case of tests/formats."""
    return sources.of_case(next(case for case in cases if case.id == id))


COMPRESSED = compressed_tensors_.cases()
COPIED: list[tuple[Source, str, dict[str, Any]]] = [
    (of(COMPRESSED, "compressed-tensors/float-channel-kv"), "fp8-channel", {}),
    (of(COMPRESSED, "compressed-tensors/float-tensor"), "fp8-tensor", {}),
    (of(COMPRESSED, "compressed-tensors/int8-channel"), "int8-channel", {}),
    (sources.int4(), "int4-group", {"group": 32}),
    (of(COMPRESSED, "compressed-tensors/nvfp4"), "nvfp4", {}),
    (of(COMPRESSED, "compressed-tensors/mxfp4"), "mxfp4", {}),
    (of(COMPRESSED, "compressed-tensors/mxfp8"), "mxfp8", {}),
    (of(COMPRESSED, "compressed-tensors/float-block"), "fp8-block", {}),
    (of(fp8_scales.cases(), "fp8/u8-1x32"), "mxfp8", {}),
    (of(fp8_scales.cases(), "fp8/e8m0-32x32"), "fp8-block", {"block": (32, 32)}),
]
OTHER_NAMES = {"weight_scale": "weight_scale_inv", "weight_scale_inv": "weight_scale"}


@pytest.mark.parametrize(
    ("source", "scheme", "options"), COPIED, ids=lambda x: x.id if isinstance(x, Source) else str(x)
)
def test_a_like_source_keeps_its_bytes(
    source: Source, scheme: str, options: dict[str, Any], runs: Runs
) -> None:
    """But for scales of BF16 and E8M0 where the scheme has F32: those are widened."""
    folder = runs(source, scheme, require_exact=True, **options)
    stored = readers.stored(folder)
    for name in source.values:
        before = parts_of(source.coded, name)
        for leaf, part in parts_of(stored, name).items():
            was = before[leaf] if leaf in before else before[OTHER_NAMES[leaf]]
            if part[0] == "F32" and was.dtype != torch.float32:
                assert part == ("F32", tuple(was.shape), as_f32(was)), (name, leaf)
            else:
                assert part[1:] == as_part(was)[1:], (name, leaf)
    for name, y in values_of(folder, source, options.get("block", (128, 128))).items():
        assert y.tobytes() == source.values[name].tobytes(), name
    assert readers.reported(folder) == {name: {"exact": True} for name in source.values}
    assert readers.copied(folder) == source.values.keys()


# A finer grid takes the scales of the coarser one


@pytest.mark.parametrize("make", FP8, ids=by_id)
@pytest.mark.parametrize("block", [(32, 32), (64, 128), (1, 128)], ids=str)
def test_finer_blocks_are_exact(
    make: Callable[[], Source], block: tuple[int, int], runs: Runs
) -> None:
    source = make()
    folder = runs(source, "fp8-block", block=block, require_exact=True)
    stored = readers.stored(folder)
    for name, x in source.values.items():
        parts = parts_of(stored, name)
        assert parts["weight"] == as_part(source.coded[name])
        given = as_f32(source.coded[f"{name}_scale_inv"])
        grid = tuple(-(-n // 128) for n in x.shape)
        wide = oracle.over_elements(
            np.frombuffer(given, np.float32).reshape(grid), (128, 128), x.shape
        )
        assert parts["weight_scale_inv"] == oracle.part(wide[:: block[0], :: block[1]], "F32")
    assert_exact(folder, source, block)


POWERS: list[Callable[[], Source]] = [sources.fp8_power, sources.fp8_e8m0]


@pytest.mark.parametrize("make", POWERS, ids=by_id)
@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("fp8-block-ue8m0", {}),
        ("fp8-block-ue8m0", {"scale_dtype": "e8m0"}),
        ("fp8-block-ue8m0", {"block": (32, 32)}),
        ("fp8-block-ue8m0", {"block": (32, 32), "scale_dtype": "e8m0"}),
    ],
    ids=str,
)
def test_powers_of_two_stay_exact(
    make: Callable[[], Source], scheme: str, options: dict[str, Any], runs: Runs
) -> None:
    source = make()
    folder = runs(source, scheme, require_exact=True, **options)
    assert_exact(folder, source, options.get("block", (128, 128)))


@pytest.mark.parametrize("make", POWERS, ids=by_id)
def test_powers_of_two_become_mxfp8_exactly(make: Callable[[], Source], runs: Runs) -> None:
    source = make()
    folder = runs(source, "mxfp8")
    stored, reported = readers.stored(folder), readers.reported(folder)
    fitting = source.fitting("mxfp8")
    assert reported == {name: {"exact": True} for name in fitting}
    for name in fitting:
        np.testing.assert_array_equal(oracle.decoded(parts_of(stored, name)), source.values[name])


# FP4 experts


def test_mx_experts_in_fp8_blocks(runs: Runs) -> None:
    """Exact where the exponents are near; said where they are not; the dense layers are copied."""
    source = sources.v4()
    folder = runs(source, "fp8-block")
    values, reported = values_of(folder, source), readers.reported(folder)
    for name, x in source.values.items():
        assert reported[name]["exact"] is np.array_equal(values[name], x)
        assert reported[name]["exact"] is (name != f"{FAR}.weight")
    assert readers.reported(folder)[f"{NEAR}.weight"] == {"exact": True}
    check_reported(folder, source)


def test_mx_experts_stay_what_they_are(runs: Runs) -> None:
    source = sources.v4()
    folder = runs(source, "mxfp4")
    values, reported = values_of(folder, source), readers.reported(folder)
    for name in (n for n in source.values if "experts" in n):
        np.testing.assert_array_equal(values[name], source.values[name])
        assert reported[name] == {"exact": True}


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp8", "mxfp4", "fp8-block", "fp8-block-ue8m0"])
def test_mxfp4_is_exact_in_finer_floats(scheme: str, runs: Runs) -> None:
    source = sources.mxfp4()
    folder = runs(source, scheme, require_exact=True)
    assert_exact(folder, source)
    for name, y in values_of(folder, source).items():
        assert y.tobytes() == source.values[name].tobytes(), name  # -0.0 too


def test_modelopt_nvfp4_keeps_its_codes(runs: Runs) -> None:
    """It divides by 1 / weight_scale_2, which rounds, but for powers of two."""
    source = sources.modelopt_nvfp4()
    folder = runs(source, "nvfp4")
    stored, reported = readers.stored(folder), readers.reported(folder)
    exact = 0
    for name in source.values:
        module = name.removesuffix("weight")
        parts = parts_of(stored, name)
        assert parts["weight_packed"] == as_part(source.coded[name])
        assert parts["weight_scale"] == as_part(source.coded[f"{module}weight_scale"])
        second = source.coded[f"{module}weight_scale_2"].reshape(1)
        assert parts["weight_global_scale"] == as_part(1 / second)
        exact += reported[name]["exact"]
    assert 0 < exact < len(source.values)
    check_reported(folder, source)


# What is reported


def check_reported(folder: Path, source: Source) -> None:
    """The manifest's numbers against the oracle's, in float64."""
    reported = readers.reported(folder)
    stored = readers.stored(folder)
    quantized = [name for name in source.values if stored.get(name, ("",))[0] != source.dtype]
    assert sorted(reported) == sorted(quantized)
    for name in quantized:
        y = oracle.decoded(parts_of(stored, name))
        expected = oracle.errors(source.values[name], y)
        assert reported[name].keys() == expected.keys(), name
        snr = expected.pop("snr_db", 0.0)  # two decimals; five digits of the others
        assert reported[name].pop("snr_db", 0.0) == pytest.approx(snr, abs=0.0051), name
        assert reported[name] == pytest.approx(expected, rel=5.1e-5), name


@pytest.mark.parametrize("scheme", oracle.SCHEMES)
@pytest.mark.parametrize(
    "source", [sources.plain("BF16"), sources.plain("F16"), sources.fp8_f32()], ids=lambda s: s.id
)
def test_errors_are_reported(source: Source, scheme: str, runs: Runs) -> None:
    check_reported(runs(source, scheme), source)


def test_control_a_wrong_report_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.gaussians()
    folder = runs(source, "fp8-channel")
    check_reported(folder, source)
    found = readers.reported(folder)
    found[min(found)]["max_abs"] *= 1.0002  # five digits are given
    monkeypatch.setattr(readers, "reported", lambda _: found)
    with pytest.raises(AssertionError):
        check_reported(folder, source)


def test_require_exact_refuses_and_leaves_nothing(runs: Runs, fast_path: Path) -> None:
    src = runs.source(sources.plain("BF16"))
    with pytest.raises(fp8convert.Fp8ConvertError):
        fp8convert.quantize(src, fast_path / "dst", "fp8-block", require_exact=True)
    assert not (fast_path / "dst").exists()


def test_require_exact_passes_what_is_exact(fast_path: Path) -> None:
    """A BF16 checkpoint that was FP8 once."""
    short = formulas.by_block(
        formulas.values(
            torch.arange(0, 120, dtype=torch.uint8).repeat(128, 2).view(torch.float8_e4m3fn)
        ),
        torch.tensor([[2.0**-9, 2.0**-7]]),
        (128, 128),
    )
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = {name: short.to(torch.bfloat16)}
    assert torch.equal(tensors[name].to(torch.float32), short)
    config = {"model_type": "llama", "torch_dtype": "bfloat16"}
    src = write(fast_path / "src", [tensors], config)
    folder = fast_path / "dst"
    fp8convert.quantize(src, folder, "fp8-block-ue8m0", require_exact=True)
    back = oracle.decoded(parts_of(readers.stored(folder), name))
    np.testing.assert_array_equal(back, short.numpy())
    assert readers.reported(folder) == {name: {"exact": True}}


# What is refused


BAD = "model.layers.0.mlp.down_proj.weight"


def with_value(dtype: torch.dtype, value: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A plain checkpoint with one number that is none."""
    weight = sources.normal("bad", 64, 256).to(dtype)
    weight[3, 5] = value
    good = sources.normal("good", 64, 256).to(dtype)
    tensors = {BAD: weight, "model.layers.1.mlp.down_proj.weight": good}
    return tensors, {"model_type": "llama"}


def with_code() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """FP8 with a NaN code."""
    weight = torch.ones(64, 256).to(torch.float8_e4m3fn)
    weight.view(torch.uint8)[3, 5] = 0x7F
    return {BAD: weight, f"{BAD}_scale_inv": torch.ones(1, 2)}, fp8_scales.config()


REFUSED: list[tuple[str, Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]]]] = [
    ("bf16-nan", lambda: with_value(torch.bfloat16, float("nan"))),
    ("bf16-inf", lambda: with_value(torch.bfloat16, float("-inf"))),
    ("f16-inf", lambda: with_value(torch.float16, float("inf"))),
    ("f16-nan", lambda: with_value(torch.float16, float("nan"))),
    ("f32-nan", lambda: with_value(torch.float32, float("nan"))),
    ("f32-inf", lambda: with_value(torch.float32, float("inf"))),
    ("fp8-nan", with_code),
]


@pytest.mark.parametrize("scheme", oracle.SCHEMES)
@pytest.mark.parametrize(("id", "make"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_number_is_refused_by_name(
    id: str,
    make: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]],
    scheme: str,
    fast_path: Path,
) -> None:
    tensors, config = make()
    src = write(fast_path / "src", [tensors], config)
    with pytest.raises(fp8convert.Fp8ConvertError, match=BAD.replace(".", r"\.")) as caught:
        fp8convert.quantize(src, fast_path / "dst", scheme)
    assert caught.value.exit_code == 1
    assert not (fast_path / "dst").exists()
