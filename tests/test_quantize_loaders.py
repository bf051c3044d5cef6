"""``quantize``: the libraries that its outputs are meant for read them on a CPU, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert

from .oracle import Tensors, load
from .quantized import oracle, readers, sources
from .quantized.sources import Runs, Source, as_part

COMPRESSED = tuple(scheme for scheme in oracle.SCHEMES if not scheme.startswith("fp8-block"))
NATIVE: list[tuple[str, dict[str, Any]]] = [
    ("fp8-block", {}),
    ("fp8-block", {"block": (32, 32)}),
    ("fp8-block-ue8m0", {}),
    ("fp8-block-ue8m0", {"scale_dtype": "e8m0"}),
]
VOCABULARY, HIDDEN = 64, 256


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with sources.runs(tmp_path_factory.mktemp("quantize")) as made:
        yield made


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers as transformers saves it, in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("llama") / "src"
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def quantized(
    llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """The folder that a scheme makes of the Llama, and every value of it by the package."""
    done: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("outputs")

    def make(scheme: str, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
        key = f"{scheme}{sorted(options.items())}"
        if key not in done:
            folder = root / f"output-{len(done)}"
            fp8convert.quantize(llama, folder, scheme, workers=2, **options)
            done[key] = folder
        return done[key], values_of(done[key])

    return make


def values_of(folder: Path) -> Tensors:
    """What ``open_checkpoint`` reads: float32 for coded weights and BF16."""
    checkpoint = fp8convert.open_checkpoint(folder)
    return {name: torch.from_numpy(checkpoint.read(name).copy()) for name in checkpoint.names()}


def differing(theirs: Tensors, ours: Tensors) -> list[str]:
    """Names missing, extra, or not our values rounded to their dtype, bit for bit."""
    names = theirs.keys() | ours.keys()
    return sorted(
        n
        for n in names
        if n not in theirs
        or n not in ours
        or as_part(ours[n].to(theirs[n].dtype)) != as_part(theirs[n])
    )


# compressed-tensors


def decompressed(folder: Path, dtype: torch.dtype) -> Tensors:
    """Every module through the compressor of its format; floating scales widened for float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    parsed = QuantizationConfig.model_validate(readers.config(folder)["quantization_config"])
    (section,) = parsed.config_groups.values()
    assert isinstance(section, QuantizationScheme)
    compressor = BaseCompressor.get_value_from_registry(section.format or parsed.format)
    leaves = compressor.compression_param_names(section)
    tensors = load(folder)
    out: Tensors = {}
    for first in [name for name in tensors if f".{leaves[0]}" in name]:
        module = first.removesuffix(leaves[0])
        if f"{module}weight_scale" not in tensors:
            continue
        parts = {leaf: tensors.pop(module + leaf) for leaf in leaves}
        if dtype == torch.float32 and parts["weight_scale"].dtype in (
            torch.bfloat16,
            torch.float16,
        ):
            parts["weight_scale"] = parts["weight_scale"].to(dtype)
        out[f"{module}weight"] = compressor.decompress(parts, section)["weight"].to(dtype)
    for name, tensor in tensors.items():
        assert not name.endswith(("scale", "packed", "shape")), f"{name} is left over"
        out[name] = tensor
    return out


@pytest.mark.parametrize("scheme", COMPRESSED)
@pytest.mark.parametrize(
    "source", [sources.plain("BF16"), sources.plain("F16"), sources.fp8_f32()], ids=lambda s: s.id
)
def test_compressed_tensors_decompresses(source: Source, scheme: str, runs: Runs) -> None:
    folder = runs(source, scheme)
    ours = values_of(folder)
    wide = scheme in ("nvfp4", "mxfp4", "mxfp8")  # they compute in BF16, whatever is asked
    theirs = decompressed(folder, torch.bfloat16 if wide else torch.float32)
    assert differing(theirs, ours) == []


@pytest.mark.parametrize("scheme", COMPRESSED)
def test_compressed_tensors_own_dequantizer(scheme: str, quantized: Any) -> None:
    """The tool that turns such checkpoints back into BF16, by the config.

    It goes by names, so it has to be told of embeddings, which no config lists: they are no Linear.
    """
    from compressed_tensors.entrypoints.convert.converters.ct_dequantizer import (
        CompressedTensorsDequantizer,
    )

    folder, ours = quantized(scheme)
    tool = CompressedTensorsDequantizer(folder, ignore=["model.embed_tokens"])
    assert differing(tool.validate(load(folder)), ours) == []


@pytest.mark.parametrize(("scheme", "options"), NATIVE, ids=str)
def test_compressed_tensors_dequantizes_native_blocks(
    scheme: str, options: dict[str, Any], quantized: Any, runs: Runs
) -> None:
    from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

    block = options.get("block", (128, 128))
    plain = runs(sources.plain("BF16"), scheme, **options)
    for folder, ours in (quantized(scheme, **options), (plain, values_of(plain))):
        for dtype in (torch.bfloat16, torch.float32):
            tool = FP8BlockDequantizer.from_pretrained(folder, weight_block_size=block, dtype=dtype)
            assert differing(tool.validate(load(folder)), ours) == []


# transformers


def loaded(folder: Path, *, dequantize: bool) -> Any:
    """The model, all of whose keys were found and used; on request dense from the start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = dequantize
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.bfloat16, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], (kind, info[kind])
    return model.eval()


def weights_of(model: Any, names: Tensors) -> Tensors:
    """Parameters; what decompressing leaves beside them are not weights."""
    found = dict(model.state_dict())
    extra = found.keys() - names.keys()
    assert all(n.endswith(("_scale", "_shape", "_zero_point", "global_scale")) for n in extra)
    return {name: tensor for name, tensor in found.items() if name not in extra}


@pytest.mark.parametrize("scheme", COMPRESSED)
def test_transformers_loads_and_dequantizes(scheme: str, quantized: Any) -> None:
    folder, ours = quantized(scheme)
    model = loaded(folder, dequantize=True)
    assert differing(weights_of(model, ours), ours) == []


@pytest.mark.parametrize("scheme", COMPRESSED)
def test_transformers_runs_what_is_compressed(scheme: str, quantized: Any) -> None:
    """Loaded as it is stored; the first forward pass decompresses."""
    folder, ours = quantized(scheme)
    model = loaded(folder, dequantize=False)
    with torch.no_grad():
        logits = model(torch.arange(12)[None] % VOCABULARY).logits
    assert logits.shape == (1, 12, VOCABULARY)
    assert logits.isfinite().all()
    assert differing(weights_of(model, ours), ours) == []


@pytest.mark.parametrize(("scheme", "options"), NATIVE, ids=str)
def test_transformers_dequantizes_native_blocks(
    scheme: str, options: dict[str, Any], quantized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its FP8 quantizer asks for accelerate, which loading on a CPU does not use."""
    from transformers.quantizers import quantizer_finegrained_fp8

    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
    folder, ours = quantized(scheme, **options)
    model = loaded(folder, dequantize=True)
    assert differing(weights_of(model, ours), ours) == []


# Controls


def test_control_another_scale_is_noticed(quantized: Any) -> None:
    folder, ours = quantized("fp8-channel")
    theirs = decompressed(folder, torch.bfloat16)
    assert differing(theirs, ours) == []
    name = "model.layers.1.mlp.up_proj.weight"
    ours[name][3, 7] *= 1.01
    assert differing(theirs, ours) == [name]


def test_control_a_missing_scale_is_noticed(quantized: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder, _ = quantized("fp8-channel")
    tensors = load(folder)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(AssertionError, match="missing_keys"):
        loaded(tmp_path, dequantize=False)
