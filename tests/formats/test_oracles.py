"""The formulas of this package against tools that are not ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import (
    AutoAWQConverter,
    FP8BlockDequantizer,
    ModelOptNvfp4Converter,
)
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from . import (
    awq,
    bad,
    compressed_tensors_,
    deepseek_ranks,
    deepseek_v4,
    fp8_scales,
    gpt_oss,
    gptq,
    mistral,
    modelopt,
)
from .case import Case, Tensors
from .catalogue import all_cases
from .formulas import E2M1, TABLES, fields, nibbles, values, words

CASES = all_cases()
BF16, F32 = torch.bfloat16, torch.float32


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrize over cases, by id."""
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Same dtype, shape and bytes."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    plain = torch.contiguous_format
    raw = [t.clone(memory_format=plain).reshape(-1).view(torch.uint8) for t in (ours, theirs)]
    assert torch.equal(*raw), f"{int((ours != theirs).sum())} of {ours.numel()} differ"


def every_code(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("dtype", TABLES, ids=str)
def test_tables_are_those_of_torch_and_ml_dtypes(dtype: torch.dtype) -> None:
    ours = values(every_code(dtype))
    name = str(dtype).removeprefix("torch.")
    theirs = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32)
    for other in (every_code(dtype).to(F32), torch.from_numpy(theirs)):
        nan = other.isnan()
        assert torch.equal(nan, ours.isnan())
        assert_same(ours[~nan], other[~nan])


def test_e2m1_is_that_of_ml_dtypes() -> None:
    theirs = np.arange(16, dtype=np.uint8).astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert_same(E2M1, torch.from_numpy(theirs.astype(np.float32)))


@each([*CASES, *deepseek_ranks.cases()])
def test_cases_are_whole(case: Case, tmp_path: Path) -> None:
    stored = case.stored
    if case not in deepseek_ranks.cases():
        assert len(stored) == sum(len(shard) for shard in case.shards)
    assert not case.dropped & case.expected.keys()
    assert case.decoded <= case.expected.keys()
    for name, tensor in case.expected.items():
        if name in case.decoded:
            assert tensor.dtype == F32
            assert tensor.isfinite().all()
            assert tensor.to(BF16).isfinite().all()
            assert tensor.count_nonzero() or tensor.numel() < 2
        elif case not in deepseek_ranks.cases():
            assert_same(tensor, stored[name])
    untouched = case.expected.keys() - case.decoded
    parts = stored.keys() - untouched - case.decoded
    assert parts == case.dropped
    assert {BF16, F32} <= {case.expected[name].dtype for name in untouched} or "native" in case.id
    for number, shard in enumerate(case.shards):
        file = tmp_path / f"{number}.safetensors"
        save_file(shard, file)
        for name, tensor in load_file(file).items():
            assert_same(tensor, shard[name])


@each([case for case in CASES if len(case.shards) > 1])
def test_some_part_is_not_beside_its_weight(case: Case) -> None:
    def modules(shard: Tensors) -> set[str]:
        coded = shard.keys() & (case.dropped | case.decoded)
        return {re.sub(r"(\.|_)[^.]*?$", "", name.rpartition(".")[0] or name) for name in coded}

    assert modules(case.shards[0]) & modules(case.shards[1])


def test_ids_are_unique() -> None:
    ids = [case.id for case in [*CASES, *deepseek_ranks.cases()]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("dtype", [d for d in TABLES if d != torch.float8_e8m0fnu], ids=str)
def test_every_finite_code_occurs(dtype: torch.dtype) -> None:
    seen = {
        int(code)
        for case in CASES
        for name, tensor in case.stored.items()
        if tensor.dtype == dtype and name in case.decoded
        for code in tensor.view(torch.uint8).unique()
    }
    assert seen == set(torch.arange(256)[TABLES[dtype].isfinite()].tolist())


# compressed-tensors


def scheme_of(case: Case, module: str) -> tuple[QuantizationScheme, str]:
    """The scheme and format of a module, chosen as the library's ``targets`` say."""
    config = case.config.get("text_config", case.config)["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    for section in parsed.config_groups.values():
        assert isinstance(section, QuantizationScheme)
        if any(
            target == "Linear" or re.match(target.removeprefix("re:"), module)
            for target in section.targets
        ):
            return section, section.format or parsed.format
    raise AssertionError(module)


def parts_of(case: Case, module: str) -> Tensors:
    """A module's stored tensors under their local names."""
    return {
        name.removeprefix(f"{module}."): tensor
        for name, tensor in case.stored.items()
        if name.rpartition(".")[0] == module
    }


def wide(parts: Tensors) -> Tensors:
    """Floating scales as F32, so that the library computes in F32."""
    return {
        name: tensor.to(F32) if tensor.dtype in (BF16, torch.float16) else tensor
        for name, tensor in parts.items()
    }


COMPRESSED = [case for case in compressed_tensors_.cases() if "actorder" not in case.id]


@each(COMPRESSED)
def test_compressed_tensors_decompresses_the_same(case: Case) -> None:
    for name in case.decoded:
        module = name.removesuffix(".weight")
        scheme, format = scheme_of(case, module)
        parts = parts_of(case, module)
        compressor = BaseCompressor.get_value_from_registry(format)
        assert set(compressor.compression_param_names(scheme)) <= parts.keys()
        theirs = compressor.decompress(wide(parts), scheme)["weight"]
        assert_same(case.expected[name].to(theirs.dtype), theirs)
        if "fp4" in format:
            numbers = unpack_fp4_from_uint8(
                parts["weight_packed"], *case.expected[name].shape, dtype=F32
            )
            scale = parts["weight_scale"]
            scale = 2.0 ** (scale.to(F32) - 127) if scale.dtype == torch.uint8 else scale.to(F32)
            theirs = dequantize(
                numbers,
                scale,
                args=scheme.weights,
                dtype=F32,
                global_scale=parts.get("weight_global_scale"),
            )
            assert_same(case.expected[name], theirs)


@each(COMPRESSED)
def test_compressed_tensors_in_its_own_dtypes_rounds_once(case: Case) -> None:
    """With BF16 scales the library computes in BF16; that is the F32 product rounded once."""
    for name in case.decoded:
        module = name.removesuffix(".weight")
        scheme, format = scheme_of(case, module)
        parts = parts_of(case, module)
        if parts["weight_scale"].dtype == torch.float16:
            continue  # rounded to F16 first: not the same
        compressor = BaseCompressor.get_value_from_registry(format)
        theirs = compressor.decompress(parts, scheme)["weight"]
        assert_same(case.expected[name].to(BF16), theirs.to(BF16))


@each([case for case in COMPRESSED if "pack-int" in case.id or "/int8" in case.id])
def test_compressed_tensors_compresses_to_the_same_bytes(case: Case) -> None:
    for name in case.decoded:
        module = name.removesuffix(".weight")
        scheme, format = scheme_of(case, module)
        stored = parts_of(case, module)
        compressor = BaseCompressor.get_value_from_registry(format)
        given = {"weight": case.expected[name], "weight_scale": stored["weight_scale"].to(F32)}
        if "weight_zero_point" in stored:
            given["weight_zero_point"] = unpacked_zero(stored, scheme)
        made = compressor.compress(given, scheme)
        for part in ("weight", "weight_packed", "weight_zero_point"):
            assert (part in made) == (part in stored)
            if part in made:
                assert_same(stored[part], made[part])


def unpacked_zero(stored: Tensors, scheme: QuantizationScheme) -> torch.Tensor:
    """The zero point as I8, of the scale's shape."""
    zero = stored["weight_zero_point"]
    if zero.dtype == torch.int8:
        return zero
    assert scheme.weights is not None
    shape = stored["weight_scale"].shape
    return unpack_from_int32(zero, scheme.weights.num_bits, shape, packed_dim=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 3, 8, 45, 96])
def test_words_are_packed_as_compressed_tensors_packs_them(bits: int, columns: int) -> None:
    half = 1 << bits - 1
    code = torch.arange(5 * columns).reshape(5, columns) * 7 % (2 * half)
    theirs = pack_to_int32((code - half).to(torch.int8), bits)
    assert_same(words(code, bits), theirs)
    assert torch.equal(fields(theirs, bits, columns), code)


@each([case for case in compressed_tensors_.cases() if "actorder" in case.id])
def test_g_idx_by_sorting_columns(case: Case) -> None:
    """As compressed-tensors before 0.20: sort the columns by group, dequantize, sort them back."""
    for name in case.decoded:
        parts = parts_of(case, name.removesuffix(".weight"))
        g_idx = parts["weight_g_idx"].long()
        asymmetric = "weight_zero_point" in parts
        args = QuantizationArgs(
            num_bits=4, group_size=32, strategy="group", symmetric=not asymmetric
        )
        shape = torch.Size(parts["weight_shape"].tolist())
        code = unpack_from_int32(parts["weight_packed"], 4, shape)
        zero = None
        if asymmetric:
            scheme = QuantizationScheme(targets=["Linear"], weights=args)
            zero = unpacked_zero(parts, scheme)
        order = torch.argsort(g_idx, stable=True)
        theirs = dequantize(code[:, order], parts["weight_scale"].to(F32), zero, args)
        assert_same(case.expected[name], theirs[:, torch.argsort(order)])


# transformers


def fp8_pairs() -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """FP8 and packed weights with their scale and our value."""
    for case in [*deepseek_v4.cases(), *fp8_scales.cases(), *mistral.cases()]:
        stored = case.stored
        for name in sorted(case.decoded):
            stem = name.removesuffix("weight")
            for scale in (
                f"{name}_scale_inv",
                f"{stem}scale",
                f"{stem}qscale_weight",
                f"{stem}weight_scale",
            ):
                if scale in stored:
                    yield f"{case.id}:{name}", stored[name], stored[scale], case.expected[name]
                    break
            else:
                raise AssertionError(name)


def test_transformers_dequantizes_the_same() -> None:
    compared = 0
    for label, code, scale, ours in fp8_pairs():
        if scale.ndim >= 2 and not (
            ours.shape[-2] % scale.shape[-2] == 0 and ours.shape[-1] % scale.shape[-1] == 0
        ):
            continue  # ragged: transformers derives the block from the shapes and refuses
        if scale.ndim >= 2:
            block = [-(-a // b) for a, b in zip(ours.shape[-2:], scale.shape[-2:], strict=True)]
            declared = {1, 32, 128, *ours.shape[-2:]}
            if not set(block) <= declared:
                continue  # transformers takes 192 rows of 2 blocks for blocks of 96
        theirs = Fp8Dequantize(None)._dequantize_one(code, scale, F32)
        if code.dtype == torch.int8:  # transformers has -0.0 for code 8, DeepSeek +0.0
            theirs = torch.where(nibbles(code) == 8, torch.zeros(()), theirs)
        assert ours.shape == theirs.shape, label
        assert_same(ours, theirs)
        compared += 1
    assert compared > 40


def test_compressed_tensors_dequantizes_ragged_blocks_the_same() -> None:
    compared = 0
    for case in fp8_scales.cases():
        if "128x128" not in case.id and "f32" not in case.id:
            continue
        for name in case.decoded:
            scale = case.stored[f"{name}_scale_inv"]
            tool = FP8BlockDequantizer(weight_block_size=(128, 128), dtype=F32)
            theirs = tool._create_dequantized_weight(case.stored[name], scale)
            assert_same(case.expected[name], theirs)
            compared += 1
    assert compared > 20


def test_gpt_oss_is_what_transformers_makes_of_it() -> None:
    (case,) = gpt_oss.cases()
    for name in case.decoded:
        blocks, scales = case.stored[f"{name}_blocks"], case.stored[f"{name}_scales"]
        assert_same(case.expected[name], convert_moe_packed_tensors(blocks, scales, dtype=F32))
        theirs = convert_moe_packed_tensors(blocks, scales)
        assert_same(case.expected[name].to(BF16), theirs)


def test_overflow_is_only_where_it_says() -> None:
    case = fp8_scales.overflow()
    in_f32, rounded = 0, 0
    for name in case.decoded:
        ours = case.expected[name]
        theirs = case.stored[name].to(F32) * case.stored[f"{name}_scale_inv"]
        assert_same(ours, theirs)
        in_f32 += int(ours.isinf().sum())
        rounded += int((ours.to(BF16).isinf() & ours.isfinite()).sum())
    assert in_f32
    assert rounded


# ModelOpt


@each(modelopt.cases())
def test_modelopt_by_its_own_formula(case: Case) -> None:
    """qtensor/{fp8,nvfp4}_tensor.py: scales spread over the elements, one product."""
    for name in case.decoded:
        code, ours = case.stored[name], case.expected[name]
        scale = case.stored.get(f"{name}_scale")
        if scale is None:
            continue  # V4's own forms, compared under their family
        second = case.stored.get(f"{name}_scale_2")
        if second is not None:
            assert code.dtype == torch.uint8
            number, factor = E2M1[nibbles(code)], scale.to(F32) * second
        else:
            number = code.to(F32)
            factor = 2.0 ** (scale.to(F32) - 127) if scale.dtype == torch.uint8 else scale
        if factor.ndim == 4:
            factor = factor[:, 0, :, 0]
            factor = factor.repeat_interleave(128, 0).repeat_interleave(128, 1)
            factor = factor[: ours.shape[0], : ours.shape[1]]
        elif factor.ndim == 2:
            factor = factor.repeat_interleave(ours.shape[1] // factor.shape[1], 1)
        elif factor.ndim == 1:
            factor = factor[:, None]
        assert_same(ours, number * factor)


def test_modelopt_nvfp4_through_compressed_tensors() -> None:
    """Its converter stores 1 / weight_scale_2 and divides by it: exact for powers of two."""
    case = next(case for case in modelopt.cases() if case.id == "modelopt/nvfp4")
    module = "model.layers.0.mlp.experts.1.up_proj"
    parts = {f"{module}.{part}": t for part, t in parts_of(case, module).items()}
    converter = ModelOptNvfp4Converter(targets=["re:.*experts.*"])
    made = converter.process(dict(parts))
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    ours = case.expected[f"{module}.weight"]
    numbers = unpack_fp4_from_uint8(made[f"{module}.weight_packed"], *ours.shape, dtype=F32)
    theirs = dequantize(
        numbers,
        made[f"{module}.weight_scale"].to(F32),
        args=args,
        global_scale=made[f"{module}.weight_global_scale"],
        dtype=F32,
    )
    assert_same(ours, theirs)


# AWQ and GPTQ


@each(awq.cases())
def test_awq_through_compressed_tensors(case: Case) -> None:
    converter = AutoAWQConverter.from_autoawq_config(case.config["quantization_config"])
    (scheme,) = converter._build_quant_config().config_groups.values()
    assert isinstance(scheme, QuantizationScheme)
    made = converter.process(dict(case.stored))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for name in case.decoded:
        module = name.removesuffix(".weight")
        parts = {
            part.removeprefix(f"{module}.weight"): tensor
            for part, tensor in made.items()
            if part.startswith(f"{module}.weight")
        }
        local = wide({f"weight{part}": tensor for part, tensor in parts.items()})
        assert_same(case.expected[name], compressor.decompress(local, scheme)["weight"])


@each([*gptq.cases(), gptq.negative_scales()])
def test_gptq_by_shifts_and_compressed_tensors(case: Case) -> None:
    """Unpacked by shifts as AutoGPTQ does, then dequantized by compressed-tensors."""
    config = case.config["quantization_config"]
    bits, v2 = config["bits"], config.get("checkpoint_format") == "gptq_v2"
    mask, half = (1 << bits) - 1, 1 << bits - 1
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    for name in case.decoded:
        parts = parts_of(case, name.removesuffix(".weight"))
        down = parts["qweight"][:, None, :] >> shifts[None, :, None] & mask
        across = parts["qzeros"][:, :, None] >> shifts[None, None, :] & mask
        code = down.reshape(-1, down.shape[-1]).T - half  # [out, in]
        zero = across.reshape(across.shape[0], -1).T - half + (0 if v2 else 1)  # [out, groups]
        if config["sym"]:
            assert not zero.any()
        order = torch.argsort(parts["g_idx"], stable=True)
        size = code.shape[1] // zero.shape[1]
        args = QuantizationArgs(
            num_bits=bits, group_size=size, strategy="group", symmetric=config["sym"]
        )
        theirs = dequantize(
            code[:, order].to(torch.int16), parts["scales"].T.to(F32), zero.to(torch.int16), args
        )
        assert_same(case.expected[name], theirs[:, torch.argsort(order)])


# DeepSeek's rank files


@each(deepseek_ranks.cases())
def test_rank_files_join(case: deepseek_ranks.RankCase) -> None:
    ranks = len(case.files)
    assert list(case.files) == [f"model{r}-mp{ranks}.safetensors" for r in range(ranks)]
    assert set(case.joined) == set().union(*case.files.values())
    assert len(case.joined) == len(case.source)
    axes = dict(deepseek_ranks.rename(name) for name in case.source)
    for name, whole in case.joined.items():
        held = [file[name] for file in case.files.values() if name in file]
        if ".experts." in name:
            assert len(held) == 1
            assert_same(held[0], whole)
        elif (axis := axes[name]) is None:
            for tensor in held:
                assert_same(tensor, whole)
        else:
            raw = [t.view(torch.uint8) if t.element_size() == 1 else t for t in held]
            assert_same(torch.cat(raw, dim=axis).view(whole.dtype), whole)


def test_ranks_cut_on_block_edges() -> None:
    """Each file alone decodes to its part: no cut falls inside a block."""
    for case in deepseek_ranks.cases():
        for file in case.files.values():
            for name, code in file.items():
                if code.dtype == torch.float8_e4m3fn:
                    scale = file[name.removesuffix("weight") + "scale"]
                    assert scale.shape == tuple(-(-n // 128) for n in code.shape)


# The bad ones


def test_bad_ones_are_one_step_from_good_ones(tmp_path: Path) -> None:
    every = bad.bad_cases()
    assert len({item.id for item in every}) == len(every)
    good = {case.id.partition("/")[0] for case in CASES} | {"undeclared"}
    assert good == {item.id.partition("/")[0] for item in every}
    for item in every:
        assert item.words
        assert all(word == word.lower() for word in item.words)
        for shard in item.shards:
            save_file(shard, tmp_path / "x.safetensors")


def test_good_ones_are_left_as_they_were() -> None:
    """Building the bad ones must not touch what they were made from."""
    before = {case.id: {n: t.clone() for n, t in case.stored.items()} for case in CASES}
    configs = {case.id: repr(case.config) for case in CASES}
    bad.bad_cases.cache_clear()
    bad.bad_cases()
    for case in CASES:
        assert repr(case.config) == configs[case.id]
        for name, tensor in case.stored.items():
            assert_same(tensor, before[case.id][name])
