"""``quantize``: every scheme from every kind of source, all bytes against the oracle's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fp8convert

from .quantized import oracle, readers, sources
from .quantized.oracle import FORMATS, SCHEMES
from .quantized.readers import Stored, parts_of
from .quantized.sources import Runs, Source

WEIGHTS: dict[str, dict[str, Any]] = {
    "fp8-channel": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "fp8-tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "int8-channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int4-group": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "nvfp4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    "mxfp4": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    "mxfp8": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32},
}
EMBEDDINGS = ("embed_tokens", "embed")
PLAIN = [sources.plain(dtype) for dtype in sources.PLAIN]
# Coded sources, and the schemes that hold none of their weights in the very same codes and grid.
CODED: list[tuple[Source, tuple[str, ...]]] = [
    (sources.fp8_f32(), SCHEMES[1:]),
    (sources.fp8_bf16(), ("fp8-block-ue8m0", "fp8-channel", "nvfp4")),
    (sources.fp8_power(), ("fp8-channel", "int8-channel", "int4-group", "nvfp4", "mxfp4")),
    (sources.fp8_e8m0(), ("fp8-channel", "int8-channel")),
    (sources.v4(), ("fp8-channel", "int8-channel", "int4-group")),
    (sources.mxfp4(), ("fp8-block", "fp8-channel", "int8-channel", "int4-group")),
    (sources.modelopt_nvfp4(), ("fp8-block", "fp8-channel", "int4-group", "mxfp4", "mxfp8")),
    (sources.int4(), ("fp8-block", "fp8-tensor", "int8-channel", "int4-group", "nvfp4", "mxfp8")),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with sources.runs(tmp_path_factory.mktemp("quantize")) as made:
        yield made


def check(source: Source, folder: Path, scheme: str, **options: Any) -> None:
    """Bytes, index, config, warnings, and the way back."""
    stored = readers.stored(folder)
    expected = source.expected(scheme, **options)
    assert readers.differing(stored, expected) == []
    readers.check_index(folder)
    check_config(source, folder, scheme, stored, **options)
    fitting = source.fitting(scheme, options.get("group", 128))
    count, some = readers.unquantized(folder)
    assert count == len(source.values) - len(fitting)
    assert set(some) <= source.values.keys() - set(fitting)
    check_the_way_back(folder, stored, fitting, options.get("block", (128, 128)))


def check_the_way_back(
    folder: Path, stored: Stored, names: list[str], block: tuple[int, int]
) -> None:
    """The package reads what it wrote: the value of every weight, bit for bit."""
    checkpoint = fp8convert.open_checkpoint(folder)
    for name in names:
        ours = checkpoint.read(name)
        theirs = oracle.decoded(parts_of(stored, name), block)
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes(), name


def unquantized(stored: Stored) -> set[str]:
    """Modules of the matrices that were left as they are, embeddings left out."""
    dtypes = ("BF16", "F16", "F32")
    kept = {n for n, (tag, shape, _) in stored.items() if len(shape) == 2 and tag in dtypes}
    modules = {name.removesuffix(".weight") for name in kept if name.endswith(".weight")}
    return {name for name in modules if name.rpartition(".")[2] not in EMBEDDINGS}


def check_config(source: Source, folder: Path, scheme: str, stored: Stored, **options: Any) -> None:
    """The declaration as the contract has it; the rest as it was."""
    config = readers.config(folder)
    declared = config.pop("quantization_config")
    before = {k: v for k, v in source.config.items() if k != "quantization_config"}
    for either in (config, before):
        for key in ("torch_dtype", "dtype", "expert_dtype"):
            either.pop(key, None)
    assert config == before
    if not scheme.startswith("fp8-block"):
        check_compressed_tensors(declared, scheme, stored, options.get("group"))
        return
    assert set(declared.pop("modules_to_not_convert")) == unquantized(stored)
    assert declared == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(options.get("block", (128, 128))),
    } | ({"scale_fmt": "ue8m0"} if scheme.endswith("ue8m0") else {})


def check_compressed_tensors(
    declared: dict[str, Any], scheme: str, stored: Stored, group: int | None
) -> None:
    """As the library itself understands it."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    parsed = QuantizationConfig.model_validate(declared)
    assert declared["quant_method"] == "compressed-tensors"
    assert parsed.format == declared["format"] == FORMATS[scheme]
    assert parsed.quantization_status == "compressed"
    (section,) = parsed.config_groups.values()
    assert isinstance(section, QuantizationScheme)
    assert section.targets == ["Linear"]
    assert section.weights is not None
    found = section.weights.model_dump()
    expected = WEIGHTS[scheme] | ({"group_size": group} if group else {})
    assert {key: found[key] for key in expected} == expected
    assert section.weights.symmetric
    assert not section.weights.dynamic
    assert set(parsed.ignore or ()) == unquantized(stored)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("source", PLAIN, ids=lambda s: s.id)
def test_plain_sources(source: Source, scheme: str, runs: Runs) -> None:
    check(source, runs(source, scheme), scheme)


@pytest.mark.parametrize(
    ("source", "scheme"),
    [(source, scheme) for source, schemes in CODED for scheme in schemes],
    ids=lambda x: x if isinstance(x, str) else x.id,
)
def test_coded_sources(source: Source, scheme: str, runs: Runs) -> None:
    check(source, runs(source, scheme), scheme)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("fp8-block", {"block": (32, 32)}),
    ("fp8-block", {"block": (1, 128)}),
    ("fp8-block-ue8m0", {"block": (32, 32)}),
    ("fp8-block-ue8m0", {"scale_dtype": "e8m0"}),
    ("fp8-block-ue8m0", {"block": (32, 32), "scale_dtype": "e8m0"}),
    ("int4-group", {"group": 32}),
    ("int4-group", {"group": 64}),
    ("int4-group", {"group": 128}),
]


@pytest.mark.parametrize(("scheme", "options"), OPTIONS, ids=str)
def test_blocks_groups_and_scale_dtypes(scheme: str, options: dict[str, Any], runs: Runs) -> None:
    source = sources.plain("BF16")
    check(source, runs(source, scheme, **options), scheme, **options)


def test_v4_names_keep_their_scales_names(runs: Runs) -> None:
    source = sources.v4()
    stored = readers.stored(runs(source, "fp8-block-ue8m0", scale_dtype="e8m0"))
    for name, x in source.values.items():
        parts = parts_of(stored, name)
        assert parts.keys() == {"weight", "scale"}
        assert parts["scale"][:2] == ("F8_E8M0", tuple(-(-n // 128) for n in x.shape))


def test_what_is_excluded_stays(runs: Runs) -> None:
    source = sources.plain("BF16")
    stored = readers.stored(runs(source, "fp8-block", exclude=("*o_proj*",)))
    expected = source.expected("fp8-block")
    for name, x in source.values.items():
        if "o_proj" in name:
            del expected[f"{name}_scale_inv"]
            expected[name] = oracle.part(x, "BF16")
    assert readers.differing(stored, expected) == []


@pytest.mark.parametrize("how", ["plain", "mse"])
@pytest.mark.parametrize(
    ("scheme", "leaf"), [("fp8-tensor", "weight_scale"), ("nvfp4", "weight_global_scale")]
)
def test_fused_weights_share_a_scale(scheme: str, leaf: str, how: str, runs: Runs) -> None:
    stored = readers.stored(runs(sources.plain("BF16"), scheme, scale_search=how))
    for module, leaves in (
        ("model.layers.0.self_attn", ("q_proj", "k_proj", "v_proj")),
        ("model.layers.0.mlp", ("gate_proj", "up_proj")),
        ("model.layers.1.mlp.experts.1", ("gate_proj", "up_proj")),
    ):
        assert len({stored[f"{module}.{name}.{leaf}"] for name in leaves}) == 1
    others = {stored[f"model.layers.1.mlp.experts.{n}.down_proj.{leaf}"] for n in (0, 1)}
    assert len(others) == 2


@pytest.mark.parametrize("dtype", sources.PLAIN)
def test_small_numbers_have_a_finite_global_scale(dtype: str, runs: Runs) -> None:
    """2688 / amax is beyond the dtype of the weight: what is stored must still hold the weight."""
    source = sources.small(dtype)
    folder = runs(source, "nvfp4")
    stored = readers.stored(folder)
    check_the_way_back(folder, stored, list(source.values), (1, 16))
    for name, x in source.values.items():
        (scale,) = oracle.array(stored[f"{name}_global_scale"])
        assert np.isfinite(scale)
        assert oracle.errors(x, oracle.decoded(parts_of(stored, name)))["snr_db"] > 15


@pytest.mark.parametrize("subnormal", [2.0**-149, 2.0**-130])
def test_numbers_that_are_not_normalized_may_be_taken_for_longer(
    subnormal: float, runs: Runs
) -> None:
    """Short ones beside them then have the plain scale: less exact, as docs and report say."""
    x = torch.full((1, 32), 1.75)
    x[0, 1:4] = torch.tensor([6.0, -0.75, subnormal])
    name = "model.layers.0.self_attn.o_proj.weight"
    source = sources.simple(f"subnormal {subnormal}", {name: x, "model.norm.weight": x[0]}, "F32")
    kept = {"model.norm.weight": x[0]}
    source = replace(source, values={name: source.values[name]}, kept=kept)
    folder = runs(source, "fp8-block")
    assert readers.differing(readers.stored(folder), source.expected("fp8-block")) == []
    (scale,) = oracle.array(readers.stored(folder)[f"{name}_scale_inv"]).reshape(-1)
    assert scale == np.float32(6) / np.float32(448)
    assert not readers.reported(folder)[name]["exact"]


@pytest.mark.parametrize(("scheme", "name"), [("mxfp4", "o_proj"), ("nvfp4", "kv_b_proj")])
def test_strict_refuses_what_does_not_fit(
    scheme: str, name: str, runs: Runs, fast_path: Path
) -> None:
    src = runs.source(sources.plain("BF16"))
    with pytest.raises(fp8convert.Fp8ConvertError, match=rf"layers\.1\.self_attn\.{name}"):
        fp8convert.quantize(src, fast_path / "dst", scheme, strict=True)
    assert not (fast_path / "dst").exists()
    fp8convert.quantize(src, fast_path / "dst", "fp8-block", strict=True)


# A scale for which the codes err less


def errors_of(source: Source, folder: Path, scheme: str) -> dict[str, npt.NDArray[np.float64]]:
    """Squared error of every block; one scale for all that is fused is one block."""
    stored = readers.stored(folder)
    out: dict[str, npt.NDArray[np.float64]] = {}
    for name in source.fitting(scheme):
        x = source.values[name]
        block = oracle.block_of(scheme, x.shape)
        error = oracle.squared_error(x, oracle.decoded(parts_of(stored, name)), block)
        key = sources.partners(name) if scheme == "fp8-tensor" else name
        out[key] = out.get(key, np.float64(0)) + error
    return out


# Their scales are powers of two, and that of the plain rule is the best one for such weights.
AS_GOOD = ("fp8-block-ue8m0", "mxfp8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mse_is_never_worse_on_any_block(scheme: str, runs: Runs) -> None:
    for source in (sources.plain("BF16"), sources.gaussians(), sources.fp8_f32()):
        plain, mse = (
            errors_of(source, runs(source, scheme, scale_search=how), scheme)
            for how in ("plain", "mse")
        )
        for name, error in mse.items():  # summed in another order
            assert (error <= plain[name] * (1 + 1e-12)).all(), name
        sums = [sum(float(e.sum()) for e in errors.values()) for errors in (mse, plain)]
        if source.id == "gaussians" and scheme not in AS_GOOD:
            assert sums[0] < sums[1]
        if source.id == "plain-bf16" and scheme != "fp8-block-ue8m0":
            assert any((error < plain[name] * (1 - 1e-9)).any() for name, error in mse.items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mse_reads_back(scheme: str, runs: Runs) -> None:
    source = sources.plain("BF16")
    folder = runs(source, scheme, scale_search="mse")
    names = source.fitting(scheme)
    check_the_way_back(folder, readers.stored(folder), names, (128, 128))
    readers.check_index(folder)


# Controls


@pytest.mark.parametrize("scheme", SCHEMES)
def test_control_a_changed_byte_is_noticed(scheme: str, runs: Runs, tmp_path: Path) -> None:
    source = sources.gaussians()
    folder = runs(source, scheme)
    expected = source.expected(scheme)
    assert readers.differing(readers.stored(folder), expected) == []
    name = sorted(expected)[-1]
    shard = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    file = tmp_path / "x.safetensors"
    data = bytearray((folder / shard).read_bytes())
    _, _, part = expected[name]
    data[data.rindex(part) + len(part) // 2] ^= 1
    file.write_bytes(data)
    changed = readers.stored(folder) | readers.shard(file)
    assert readers.differing(changed, expected) == [name]


def test_control_the_way_back_notices_another_block(runs: Runs) -> None:
    source = sources.plain("BF16")
    folder = runs(source, "fp8-block", block=(32, 32))
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    stored = readers.stored(folder)
    check_the_way_back(folder, stored, [name], (32, 32))
    with pytest.raises(AssertionError):
        check_the_way_back(folder, stored, [name], (32, 33))


def test_control_mse_notices_a_worse_scale() -> None:
    (x, *_) = sources.gaussians().values.values()
    parts = oracle.quantized(x, "fp8-channel", "BF16")
    scale = oracle.array(parts["weight_scale"])
    block = oracle.block_of("fp8-channel", x.shape)
    code = oracle.codes(x, oracle.over_elements(scale * np.float32(8), block, x.shape), "e4m3")
    worse = parts | {
        "weight": oracle.part(code, "F8_E4M3"),
        "weight_scale": oracle.part(scale * np.float32(8), "F32"),
    }
    errors = [oracle.squared_error(x, oracle.decoded(p), block) for p in (parts, worse)]
    assert (errors[1] > errors[0]).any()
