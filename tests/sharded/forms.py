"""How a linear layer is stored: values of every form, and what a config declares of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ..quantized.oracle import Part, seed_of
from .arrays import part, words

# Values, of every name its own


def plain(name: str, *shape: int, tag: str = "BF16") -> Part:
    """Numbers like a weight's."""
    x = seed_of(name).standard_normal(shape, np.float32) * np.float32(0.05)
    kind = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}[tag]
    return part(tag, x.astype(kind))


def table(name: str, below: int, *shape: int) -> Part:
    """I64."""
    return part("I64", seed_of(name).integers(0, below, shape))


def codes(name: str, rows: int, columns: int, tag: str = "F8_E4M3") -> Part:
    """8-bit codes that are numbers."""
    raw = seed_of(name).integers(0, 256, (rows, columns)).astype(np.uint8)
    if tag == "F8_E4M3":
        raw[(raw & 0x7F) == 0x7F] = 1
    return part(tag, raw)


def scales(name: str, *shape: int, tag: str = "F32") -> Part:
    """Positive, full mantissas; of E8M0, exponents around 2**-10."""
    rng = seed_of(name)
    if tag in ("F8_E8M0", "U8"):
        return part(tag, rng.integers(112, 120, shape).astype(np.uint8))
    x = rng.uniform(1e-4, 2e-3, shape).astype(np.float32)
    if tag == "F8_E4M3":
        x = (x * 1e5).astype(ml_dtypes.float8_e4m3fn)
    elif tag == "BF16":
        x = x.astype(ml_dtypes.bfloat16)
    return part(tag, np.asarray(x))


# Forms: how a linear layer [rows, columns] is stored

Parts = Iterator[tuple[str, Part]]
Form = Callable[[str, int, int], Parts]


def bf16(module: str, rows: int, columns: int) -> Parts:
    """Unquantized."""
    yield f"{module}.weight", plain(module, rows, columns)


def blocks(block: int, tag: str = "F32", leaf: str = "weight_scale_inv") -> Form:
    """FP8 with one scale a block, ragged ones too."""

    def form(module: str, rows: int, columns: int) -> Parts:
        yield f"{module}.weight", codes(module, rows, columns)
        grid = (-(-rows // block), -(-columns // block))
        yield f"{module}.{leaf}", scales(module, *grid, tag=tag)

    return form


def static(module: str, rows: int, columns: int) -> Parts:
    """Mistral's: one scale a weight, one for its input."""
    yield f"{module}.weight", codes(module, rows, columns)
    yield f"{module}.weight_scale_inv", scales(module, tag="BF16")
    yield f"{module}.activation_scale", scales(module + "a", tag="BF16")


def channel(module: str, rows: int, columns: int) -> Parts:
    """compressed-tensors FP8, a scale a row."""
    yield f"{module}.weight", codes(module, rows, columns)
    yield f"{module}.weight_scale", scales(module, rows, 1, tag="BF16")


def int4(module: str, rows: int, columns: int) -> Parts:
    """compressed-tensors pack-quantized in groups of 32; the shape as Kimi-K2-Thinking has it."""
    yield f"{module}.weight_packed", _words(module, rows, columns // 8)
    yield f"{module}.weight_scale", scales(module, rows, columns // 32, tag="BF16")
    yield f"{module}.weight_shape", part("I32", np.array([rows, columns], np.int32))


def nvfp4(module: str, rows: int, columns: int) -> Parts:
    """compressed-tensors NVFP4."""
    yield f"{module}.weight_packed", codes(module, rows, columns // 2, "U8")
    yield f"{module}.weight_scale", scales(module, rows, columns // 16, tag="F8_E4M3")
    yield f"{module}.weight_global_scale", part("F32", np.array([3001.5], np.float32))


def awq(module: str, rows: int, columns: int) -> Parts:
    """AutoAWQ: [in, out], eight outputs a word, groups of 32 inputs."""
    yield f"{module}.qweight", _words(module, columns, rows // 8)
    yield f"{module}.qzeros", _words(module + "z", columns // 32, rows // 8)
    yield f"{module}.scales", plain(module + "s", columns // 32, rows, tag="F16")


def gptq(mixed: bool) -> Form:
    """GPTQ: eight inputs a word; where they are ``mixed``, any may be in any group."""

    def form(module: str, rows: int, columns: int) -> Parts:
        yield f"{module}.qweight", _words(module, columns // 8, rows)
        zeros = words(_words(module + "z", columns // 32, rows // 8)) & 0x77777777
        yield f"{module}.qzeros", part("I32", zeros)  # 15 stands for 0 or for 16
        yield f"{module}.scales", plain(module + "s", columns // 32, rows, tag="F16")
        group = np.arange(columns, dtype=np.int32) // 32
        yield f"{module}.g_idx", part("I32", seed_of(module).permutation(group) if mixed else group)

    return form


def _words(name: str, *shape: int) -> Part:
    return part("I32", seed_of(name).integers(0, 1 << 32, shape).astype(np.uint32))


def modelopt(module: str, rows: int, columns: int) -> Parts:
    """ModelOpt's NVFP4: two scales that multiply, and one for the input."""
    yield f"{module}.weight", codes(module, rows, columns // 2, "U8")
    yield f"{module}.weight_scale", scales(module, rows, columns // 16, tag="F8_E4M3")
    yield f"{module}.weight_scale_2", scales(module)
    yield f"{module}.input_scale", scales(module + "i")


def mxfp4(module: str, rows: int, columns: int) -> Parts:
    """DeepSeek V4's experts."""
    yield f"{module}.weight", codes(module, rows, columns // 2, "I8")
    yield f"{module}.scale", scales(module, rows, columns // 32, tag="F8_E8M0")


def fp8_config(block: int | None, **more: Any) -> dict[str, Any]:
    """The native declaration."""
    size = None if block is None else [block, block]
    scheme = "static" if block is None else "dynamic"
    return {"activation_scheme": scheme, "quant_method": "fp8", "weight_block_size": size, **more}


def compressed(format: str, **weights: Any) -> dict[str, Any]:
    """compressed-tensors' declaration of one group."""
    section = {"dynamic": False, "observer": "minmax", "symmetric": True, **weights}
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"],
             "weights": section}  # fmt: skip
    return {"config_groups": {"group_0": group}, "format": format, "ignore": ["lm_head"],
            "quant_method": "compressed-tensors", "quantization_status": "compressed"}  # fmt: skip


AWQ = {"bits": 4, "group_size": 32, "modules_to_not_convert": None, "quant_method": "awq",
       "version": "gemm", "zero_point": True}  # fmt: skip
GPTQ = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "lm_head": False,
        "quant_method": "gptq", "checkpoint_format": "gptq"}  # fmt: skip
CHANNEL = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
INT4 = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)
NVFP4 = compressed(
    "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
)
