"""What others make of the same stored tensors, to BF16 on the CPU: libraries, published formulas.

Each function prepares a call that decodes once; what it takes are tensors as a checkpoint has them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Call = Callable[[], torch.Tensor]
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Form(NamedTuple):
    """One of compressed-tensors' formats; without a group a scale is a row's."""

    format: str
    bits: int
    group: int | None = None

    @property
    def scheme(self) -> Any:
        """The library's own description of it, of weights alone."""
        library = importlib.import_module("compressed_tensors.quantization")  # has no types
        plain = "group" if self.group else "channel"
        arguments = library.QuantizationArgs(
            num_bits=self.bits,
            type="int" if "fp4" not in self.format else "float",
            strategy="tensor_group" if self.format.startswith("nvfp4") else plain,
            group_size=self.group,
            symmetric=True,
        )
        return library.QuantizationScheme(targets=["Linear"], weights=arguments)


def compressed(form: Form, codes: torch.Tensor, scales: torch.Tensor, *more: torch.Tensor) -> Call:
    """compressed-tensors' decompressor; ``more`` is a zero point or a global scale."""
    library = importlib.import_module("compressed_tensors.compressors")
    compressor = library.BaseCompressor.get_value_from_registry(form.format)
    packed = form.format != "int-quantized"
    parts = {"weight_packed" if packed else "weight": codes, "weight_scale": scales}
    scheme, float4 = form.scheme, form.format == "nvfp4-pack-quantized"
    for tensor in more:
        parts["weight_global_scale" if float4 else "weight_zero_point"] = tensor
        scheme.weights.symmetric = float4
    if form.format == "pack-quantized":
        parts["weight_shape"] = torch.tensor([codes.shape[0], codes.shape[1] * 32 // form.bits])

    def decode() -> torch.Tensor:
        weight: torch.Tensor = compressor.decompress(parts, scheme)["weight"]
        return weight.to(torch.bfloat16)

    return decode


def fine_grained(codes: torch.Tensor, scales: torch.Tensor) -> Call:
    """transformers' dequantizer of blocks of any size, and of packed FP4."""
    module = importlib.import_module("transformers.integrations.finegrained_fp8")
    dequantize = module.Fp8Dequantize(None)._dequantize_one
    return lambda: dequantize(codes, scales, torch.bfloat16)


def gpt_oss(rows: int, blocks: torch.Tensor, scales: torch.Tensor) -> Call:
    """transformers' converter of gpt-oss experts, of the first ``rows`` of each."""
    module = importlib.import_module("transformers.integrations.mxfp4")
    some, few = blocks[:, :, : rows // 32].contiguous(), scales[:, :, : rows // 32].contiguous()
    return lambda: module.convert_moe_packed_tensors(some, few)


def nvfp4(codes: torch.Tensor, scales: torch.Tensor, whole: torch.Tensor) -> Call:
    """ModelOpt's formula: the scales' product, spread, times the codes' values."""

    def decode() -> torch.Tensor:
        pairs = torch.stack([codes & 15, codes >> 4], -1)
        values = E2M1[pairs.to(torch.int32)].reshape(*scales.shape, 16)
        product = values * (scales.float() * whole)[..., None]
        return product.to(torch.bfloat16).reshape(codes.shape[0], -1)

    return decode


def packed_shuffled(codes: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor) -> Call:
    """compressed-tensors' unpacking, then a scale for each column."""
    module = "compressed_tensors.compressors.pack_quantized.helpers"
    unpack = importlib.import_module(module).unpack_from_int32
    shape = torch.Size((codes.shape[0], 8 * codes.shape[1]))

    def decode() -> torch.Tensor:
        values: torch.Tensor = unpack(codes, 4, shape)
        return (values.float() * scales.float()[:, groups]).to(torch.bfloat16)

    return decode


def awq(group: int, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> Call:
    """AutoAWQ's ``dequantize_gemm``, in float32, turned as the weight is."""
    shifts = torch.arange(0, 32, 4)

    def unpacked(words: torch.Tensor) -> torch.Tensor:
        nibbles = (words[:, :, None] >> shifts[None, None, :]).to(torch.int8) & 15
        return nibbles[:, :, AWQ_ORDER].reshape(words.shape[0], -1)

    def decode() -> torch.Tensor:
        offset = unpacked(zeros).repeat_interleave(group, 0)
        factor = scales.float().repeat_interleave(group, 0)
        return ((unpacked(codes) - offset) * factor).T.to(torch.bfloat16).contiguous()

    return decode


def gptq(
    bits: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    groups: torch.Tensor,
) -> Call:
    """AutoGPTQ's ``qlinear_cuda`` without a kernel, in float32, turned as the weight is."""
    shifts, mask = torch.arange(0, 32, bits, dtype=torch.int32), (1 << bits) - 1

    def decode() -> torch.Tensor:
        across = (zeros[:, :, None] >> shifts[None, None, :]).to(torch.int16) & mask
        down = (codes[:, None, :] >> shifts[None, :, None]).to(torch.int16) & mask
        offset = across.reshape(zeros.shape[0], -1) + 1
        weight = down.reshape(-1, codes.shape[1]) - offset[groups]
        return (scales.float()[groups] * weight).T.to(torch.bfloat16).contiguous()

    return decode
