"""Odd sources of ``quantize``: mixtures among fused weights, damage in what is only copied, ranks,
buffers that hold little, models whose linears are stored turned, other checkpoints to go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8convert import Fp8ConvertError, quantize, to_bf16
from fp8convert.errors import DataError, SchemeError, UsageError

from .checkpoints import FP8_CONFIG, codes, scales
from .test_ranks import cut, write

Q, K, V, OUT = (f"model.layers.0.self_attn.{leaf}_proj.weight" for leaf in "qkvo")
LLAMA: dict[str, Any] = {"model_type": "llama", "torch_dtype": "bfloat16"}
MX4: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
NV4: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
MIB = 1 << 20


def one(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**weights, "symmetric": True}, "format": form}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}}
    return {**LLAMA, "quantization_config": said}


def gaussian(rows: int, columns: int, seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * scale


def nibbles(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(1, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)


# --- weights that engines fuse, and that come from different formats ---------------------------


def mxfp4(name: str) -> dict[str, torch.Tensor]:
    exponents = torch.full((64, 2), 120, dtype=torch.uint8)
    return {f"{name}_packed": nibbles(64, 64), f"{name}_scale": exponents}


def nvfp4(name: str, whole: float) -> dict[str, torch.Tensor]:
    local = torch.ones(64, 4).to(torch.float8_e4m3fn)
    return {f"{name}_packed": nibbles(64, 64), f"{name}_scale": local,
            f"{name}_global_scale": torch.tensor([whole])}  # fmt: skip


PLAIN = {K: gaussian(64, 64, 1).bfloat16(), V: gaussian(64, 64, 2).bfloat16()}
MIXTURES = {
    "BF16 and F32": ({Q: gaussian(64, 64, 3, 0.5), **PLAIN}, LLAMA),
    "MXFP4 and BF16": ({**mxfp4(Q), **PLAIN}, compressed("mxfp4-pack-quantized", MX4)),
    "NVFP4 and BF16": ({**nvfp4(Q, 50.0), **PLAIN}, compressed("nvfp4-pack-quantized", NV4)),
}


@pytest.mark.parametrize("search", ["plain", "mse"])
@pytest.mark.parametrize("scheme", ["nvfp4", "fp8-tensor"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_fused_weights_of_different_formats_get_one_scale(
    mixture: str, scheme: str, search: str, tmp_path: Path
) -> None:
    """As engines need it; and nobody's error is that of another's scale."""
    tensors, config = MIXTURES[mixture]
    source = one(tmp_path / "source", tensors, config)
    manifest = quantize(source, tmp_path / "out", scheme, scale_search=search)
    found = load_file(tmp_path / "out" / "model.safetensors")
    leaf = "global_scale" if scheme == "nvfp4" else "scale"
    assert len({found[f"{name}_{leaf}"].item() for name in (Q, K, V)}) == 1
    bound = 0.2 if scheme == "nvfp4" else 0.05  # of their formats' own errors: 0.1 and 0.03
    for said in manifest.data["quantized"].values():
        assert said["exact"] or said["relative_rms"] < bound


def test_fused_weights_that_are_all_copied_keep_their_own(tmp_path: Path) -> None:
    tensors = {**nvfp4(Q, 1000.0), **nvfp4(K, 500.0), **nvfp4(V, 500.0)}
    source = one(tmp_path / "source", tensors, compressed("nvfp4-pack-quantized", NV4))
    quantize(source, tmp_path / "out", "nvfp4", require_exact=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], t) for name, t in tensors.items())


# --- what is copied is looked through as if it were decoded ------------------------------------


def packed_int4(shape: list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    words = torch.arange(64 * 8, dtype=torch.int32).reshape(64, 8) * 12345
    return {f"{OUT}_packed": words, f"{OUT}_scale": torch.full((64, 2), 0.5, dtype=torch.bfloat16),
            f"{OUT}_shape": torch.tensor(shape, dtype=dtype)}  # fmt: skip


def fp8(scale: float) -> dict[str, torch.Tensor]:
    return {OUT: codes(64, 64), f"{OUT}_scale_inv": torch.full((1, 1), scale)}


DAMAGED = {
    "zero global": ("nvfp4", nvfp4(OUT, 0.0), compressed("nvfp4-pack-quantized", NV4),
                    "global scale 0"),
    "zero local": ("nvfp4", {**nvfp4(OUT, 1.0),
                             f"{OUT}_scale": torch.zeros(64, 4).to(torch.float8_e4m3fn)},
                   compressed("nvfp4-pack-quantized", NV4), "scale 0"),
    "zero scale": ("fp8-block", fp8(0.0), FP8_CONFIG, "scale 0"),
    "NaN scale": ("fp8-block", fp8(float("nan")), FP8_CONFIG, "scale nan"),
    "infinite scale": ("fp8-block", fp8(float("inf")), FP8_CONFIG, "scale inf"),
    "negative scale": ("fp8-block", fp8(-1.0), FP8_CONFIG, "scale -1"),
    "false shape": ("int4-group", packed_int4([64, 128], torch.int64),
                    compressed("pack-quantized", INT4), "64, 128"),
    "NaN exponent": ("mxfp4", {**mxfp4(OUT), f"{OUT}_scale": torch.full((64, 2), 255).byte()},
                     compressed("mxfp4-pack-quantized", MX4), "scale nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_in_what_would_be_copied(case: str, tmp_path: Path) -> None:
    scheme, tensors, config, words = DAMAGED[case]
    source = one(tmp_path / "source", tensors, config)
    options: dict[str, Any] = {"group": 32} if scheme == "int4-group" else {}
    with pytest.raises(DataError, match=words):
        quantize(source, tmp_path / "out", scheme, **options)
    assert not (tmp_path / "out").exists()


def test_scales_that_a_config_falsely_calls_powers_of_two(tmp_path: Path) -> None:
    said = {**FP8_CONFIG["quantization_config"], "scale_fmt": "ue8m0"}
    source = one(tmp_path / "s", fp8(0.3), {**FP8_CONFIG, "quantization_config": said})
    with pytest.raises(DataError, match=r"scale 0\.3.*expected a power of two"):
        quantize(source, tmp_path / "out", "fp8-block-ue8m0")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_stored_shape_of_packed_integers(dtype: torch.dtype, tmp_path: Path) -> None:
    """I64, as compressed-tensors writes it, whatever the source has; the rest byte by byte."""
    tensors = packed_int4([64, 64], dtype)
    source = one(tmp_path / "source", tensors, compressed("pack-quantized", INT4))
    quantize(source, tmp_path / "out", "int4-group", group=32, require_exact=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found[f"{OUT}_shape"].dtype == torch.int64
    assert found[f"{OUT}_shape"].tolist() == [64, 64]
    assert torch.equal(found[f"{OUT}_packed"], tensors[f"{OUT}_packed"])
    assert torch.equal(found[f"{OUT}_scale"], tensors[f"{OUT}_scale"])


# --- reads that are larger than what is written ----------------------------------------------


@pytest.mark.parametrize("scheme", ["fp8-channel", "fp8-tensor", "nvfp4", "mxfp4", "fp8-block"])
def test_copies_on_many_ranks_are_read_within_the_buffer(scheme: str, tmp_path: Path) -> None:
    """A weight that is whole on each of 16 ranks takes 16 times its bytes to read."""
    generator = torch.Generator().manual_seed(3)
    whole = {
        "layers.0.attn.wq_a.weight": codes(1536, 1792),
        "layers.0.attn.wq_a.scale": scales(1536, 1792),
        "layers.0.attn.wq_b.weight": codes(2048, 256),
        "layers.0.attn.wq_b.scale": scales(2048, 256),
        "layers.0.attn_norm.weight": torch.rand(1792, generator=generator).bfloat16(),
    }
    axes = {"wq_a": None, "wq_b": 0, "attn_norm": None}
    config = {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
    source = write(tmp_path / "ranks", cut(whole, 16, axes), config)
    manifest = quantize(source, tmp_path / "out", scheme, workers=2)
    assert len(manifest.data["quantized"]) == 2
    if scheme == "fp8-block":  # the only one without rounding
        before, after = tmp_path / "before", tmp_path / "after"
        to_bf16(source, before)
        to_bf16(tmp_path / "out", after)
        tensors = [
            {k: t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}
            for folder in (before, after)
        ]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(t, tensors[1][k]) for k, t in tensors[0].items())


@pytest.mark.parametrize("scheme", ["fp8-tensor", "int4-group", "nvfp4", "mxfp4", "fp8-block"])
def test_the_least_memory_that_is_taken_is_enough(scheme: str, tmp_path: Path) -> None:
    source = one(tmp_path / "source", {OUT: gaussian(1100, 1024)}, LLAMA)
    with pytest.raises(UsageError, match="expected at least") as refused:
        quantize(source, tmp_path / "out", scheme, workers=1, memory=226 * MIB)
    assert not list(tmp_path.glob(".out*")), "refused before anything was made"
    least = int(str(refused.value).rsplit(maxsplit=2)[1])
    quantize(source, tmp_path / "out", scheme, workers=1, memory=least * MIB)
    quantize(source, tmp_path / "usual", scheme)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "usual" / file).read_bytes()


# --- models and other checkpoints --------------------------------------------------------------


def test_linears_that_a_model_keeps_turned_are_not_encoded(tmp_path: Path) -> None:
    """GPT-2's Conv1D is [in, out], and no class that loaders quantize."""
    name = "transformer.h.0.attn.c_attn.weight"
    source = one(tmp_path / "gpt2", {name: gaussian(64, 192)}, {"model_type": "gpt2"})
    with pytest.raises(SchemeError, match="Conv1D"):
        quantize(source, tmp_path / "out", "fp8-channel")
    other = one(tmp_path / "bigcode", {name: gaussian(64, 192)}, {"model_type": "gpt_bigcode"})
    assert name in quantize(other, tmp_path / "out", "fp8-channel").data["quantized"]


def test_like_reads_what_is_coded_in_another(tmp_path: Path) -> None:
    other = one(tmp_path / "other", {**fp8(0.5), K: gaussian(64, 64)}, FP8_CONFIG)
    source = one(tmp_path / "source", {OUT: gaussian(64, 64), K: gaussian(64, 64, 1)}, LLAMA)
    manifest = quantize(source, tmp_path / "out", "fp8-block", like=other)
    assert list(manifest.data["quantized"]) == [OUT]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert K.removesuffix(".weight") in config["quantization_config"]["modules_to_not_convert"]


def test_like_a_broken_checkpoint(tmp_path: Path) -> None:
    other = one(tmp_path / "other", {**fp8(0.5), K: codes(64, 64)}, FP8_CONFIG)
    source = one(tmp_path / "source", {OUT: gaussian(64, 64), K: gaussian(64, 64, 1)}, LLAMA)
    with pytest.raises(SchemeError, match=r"--like .*k_proj"):
        quantize(source, tmp_path / "out", "fp8-block", like=other)


def test_like_a_checkpoint_of_more(tmp_path: Path) -> None:
    more = {Q: codes(64, 64), f"{Q}_scale_inv": torch.ones(1, 1)}
    other = one(tmp_path / "other", {**fp8(0.5), **more}, FP8_CONFIG)
    source = one(tmp_path / "source", {OUT: gaussian(64, 64)}, LLAMA)
    manifest = quantize(source, tmp_path / "out", "fp8-block", like=other)
    assert any("q_proj" in line and "not here" in line for line in manifest.data["warnings"])
    with pytest.raises(Fp8ConvertError, match="not here"):
        quantize(source, tmp_path / "strict", "fp8-block", like=other, strict=True)


def test_a_source_without_a_config(tmp_path: Path) -> None:
    source = one(tmp_path / "source", {OUT: gaussian(64, 64)}, {})
    with pytest.raises(SchemeError, match=r"config\.json is missing or empty"):
        quantize(source, tmp_path / "out", "fp8-block")
