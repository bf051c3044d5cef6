"""NVIDIA ModelOpt: declared in the config, beside it, or in both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .deepseek import V3_MTP, v4_block, v4_head
from .facts import (
    Fact,
    Json,
    Part,
    Row,
    bf16,
    modelopt_fp8,
    modelopt_nvfp4,
    raw,
)

BESIDE = "hf_quant_config.json"
NVFP4 = {"scheme": "modelopt", "algorithm": "NVFP4"}


def sidecar(algorithm: str, excluded: list[str], **more: Any) -> dict[str, Json]:
    """``hf_quant_config.json``."""
    inner = {"quant_algo": algorithm, "exclude_modules": excluded, **more}
    return {BESIDE: {"producer": {"name": "modelopt"}, "quantization": inner}}


def embedded(algorithm: str, ignored: list[str], **more: Any) -> Json:
    """``quantization_config`` of later versions."""
    inputs = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    group = {"input_activations": inputs, "targets": ["Linear"], "weights": inputs}
    return {
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "producer": {"name": "modelopt"},
        "quant_algo": algorithm,
        **more,
    }


def cache(at: str) -> tuple[Part, ...]:
    """Scales of the KV cache, named after the projections."""
    names = (f"{at}.k_proj.k_scale", f"{at}.v_proj.v_scale")
    return tuple((name, "F32", ()) for name in names)


def llama(hidden: int, width: int, heads: int, vocabulary: int) -> list[Row]:
    """A scale a matrix; the head is BF16."""
    at = "model.layers.0"
    return [
        bf16("model.embed_tokens.weight", vocabulary, hidden),
        modelopt_fp8(f"{at}.self_attn.q_proj", 128 * heads, hidden),
        modelopt_fp8(f"{at}.self_attn.k_proj", 1024, hidden),
        modelopt_fp8(f"{at}.mlp.down_proj", hidden, width),
        bf16(f"{at}.input_layernorm.weight", hidden),
        bf16("lm_head.weight", vocabulary, hidden),
    ]


def deepseek(
    attention: bool, output: bool = True, prefix: str = "", experts: int = 256
) -> list[Row]:
    """MLPs and experts in NVFP4; ``output``: o_proj too."""
    at = f"{prefix}model.layers.3"
    make = modelopt_nvfp4 if output else _bf16_linear
    rows = [
        bf16(f"{prefix}lm_head.weight", 129280, 7168),
        modelopt_nvfp4(f"{prefix}model.layers.0.mlp.gate_proj", 18432, 7168),
        modelopt_nvfp4(f"{prefix}model.layers.0.mlp.down_proj", 7168, 18432),
        bf16(f"{at}.input_layernorm.weight", 7168),
        bf16(f"{at}.self_attn.kv_a_proj_with_mqa.weight", 576, 7168),
        bf16(f"{at}.mlp.gate.weight", experts, 7168),
        raw(f"{at}.mlp.gate.e_score_correction_bias", "F32", experts),
        modelopt_nvfp4(f"{at}.mlp.shared_experts.up_proj", 2048, 7168),
        modelopt_nvfp4(f"{at}.mlp.experts.{experts - 1}.down_proj", 7168, 2048),
    ]
    return [*rows, make(f"{at}.self_attn.o_proj", 7168, 16384)] if attention else rows


def _bf16_linear(module: str, down: int, across: int) -> Row:
    return bf16(f"{module}.weight", down, across)


V3_LISTED = [
    "lm_head",
    "model.embed_tokens",
    "model.norm",
    "model.layers.3.input_layernorm",
    "model.layers.3.mlp.gate",
    "model.layers.3.self_attn*",
    "model.layers.61*",
]
MLA_LISTED = [
    "lm_head",
    "model.layers.3.self_attn.kv_a_proj_with_mqa",
    "model.layers.3.self_attn.kv_b_proj",
    "model.layers.3.self_attn.q_a_proj",
    "model.layers.3.self_attn.q_b_proj",
]


def glm() -> list[Row]:
    """Attention is BF16, MLPs and experts NVFP4."""
    at = "model.layers.3"
    return [
        bf16(f"{at}.self_attn.o_proj.weight", 6144, 16384),
        bf16(f"{at}.self_attn.indexer.wk.weight", 128, 6144),
        modelopt_nvfp4("model.layers.0.mlp.up_proj", 12288, 6144),
        modelopt_nvfp4(f"{at}.mlp.experts.0.gate_proj", 2048, 6144),
        bf16("model.layers.78.mlp.experts.0.gate_proj.weight", 2048, 6144),
    ]


def minimax() -> list[Row]:
    """Experts only."""
    at = "model.layers.0"
    return [
        bf16(f"{at}.self_attn.q_proj.weight", 6144, 3072),
        raw(f"{at}.block_sparse_moe.gate.weight", "F32", 256, 3072),
        modelopt_nvfp4(f"{at}.block_sparse_moe.experts.0.w1", 1536, 3072),
        modelopt_nvfp4(f"{at}.block_sparse_moe.experts.255.w2", 3072, 1536),
    ]


def qwen3() -> list[Row]:
    """Attention too; the router and head are BF16."""
    at = "model.layers.0"
    return [
        bf16("lm_head.weight", 151936, 4096),
        modelopt_nvfp4(f"{at}.self_attn.q_proj", 8192, 4096),
        bf16(f"{at}.mlp.gate.weight", 128, 4096),
        modelopt_nvfp4(f"{at}.mlp.experts.127.down_proj", 4096, 1536),
    ]


def qwen36() -> list[Row]:
    """FP8 attention, NVFP4 experts and head (weights only: no scales of inputs), MTP in BF16."""
    at = "model.language_model.layers"
    return [
        modelopt_nvfp4("lm_head", 248320, 2048, inputs=False),
        modelopt_fp8(f"{at}.0.linear_attn.in_proj_qkv", 8192, 2048),
        modelopt_fp8(f"{at}.0.linear_attn.out_proj", 2048, 4096),
        bf16(f"{at}.0.linear_attn.conv1d.weight", 8192, 1, 4),
        modelopt_fp8(f"{at}.3.self_attn.q_proj", 8192, 2048),
        bf16(f"{at}.0.mlp.gate.weight", 256, 2048),
        modelopt_nvfp4(f"{at}.0.mlp.experts.0.gate_proj", 512, 2048, inputs=False),
        modelopt_nvfp4(f"{at}.0.mlp.shared_expert.down_proj", 2048, 512, inputs=False),
        bf16("mtp.layers.0.self_attn.q_proj.weight", 8192, 2048),
        bf16("model.visual.blocks.0.attn.qkv.weight", 3456, 1152),
    ]


QWEN36_LAYERS = {
    "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    "model.language_model.layers.0.linear_attn.out_proj": {"quant_algo": "FP8"},
    "model.language_model.layers.0.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
}


def v4() -> list[Row]:
    """DeepSeek's own forms, but NVFP4 experts; those of MTP stay MXFP4."""
    size = (4096, 2048, 64, 1024, 256, 8)
    return [
        *v4_head(4096),
        *v4_block("layers.2", *size, ratio=4, hashed=True, expert=modelopt_nvfp4),
        *v4_block("mtp.0", *size),
    ]


def _beside(name: str, model: str, said: dict[str, Json], rows: list[Row], **more: Any) -> Fact:
    """``config.json`` says nothing."""
    return Fact(
        f"{BESIDE} of {name}",
        more.pop("scheme", NVFP4),
        rows,
        {"model_type": model, "torch_dtype": "bfloat16"},
        said,
        where=f"{BESIDE}: quantization",
        **more,
    )


def facts() -> Iterator[Fact]:
    """ModelOpt's, in every place where it declares."""
    fp8 = {"scheme": "modelopt", "algorithm": "FP8"}
    attention = cache("model.layers.0.self_attn")
    said = sidecar("FP8", ["lm_head"], kv_cache_quant_algo="FP8")
    rows = llama(8192, 28672, 64, 128256)
    name = "nvidia/Llama-3.1-70B-Instruct-FP8"
    yield _beside(name, "llama", said, rows, scheme=fp8, cache=attention)

    inputs = {"dynamic": False, "num_bits": 8, "type": "float"}
    yield Fact(  # neither a method nor targets
        "config.json of Qwen/Qwen3-32B-FP8-Static-PerTensor",
        fp8,
        llama(5120, 25600, 64, 151936),
        {
            "model_type": "qwen3",
            "quantization_config": {
                "config_groups": {"group_0": {"input_activations": inputs, "weights": inputs}},
                "ignore": ["lm_head"],
                "kv_cache_scheme": "FP8",
                "producer": {"name": "modelopt", "version": "0.31.0"},
                "quant_algo": "FP8",
            },
        },
        said,
        cache=attention,
    )

    more: Json = {"group_size": 16, "kv_cache_quant_algo": None}
    said = sidecar("NVFP4", V3_LISTED, **more)
    rows = deepseek(attention=False)
    yield _beside("nvidia/DeepSeek-V3-0324-NVFP4", "deepseek_v3", said, rows)
    rows = [*deepseek(attention=False), *[r for r in V3_MTP if r.codec is None]]
    yield _beside("nvidia/DeepSeek-R1-0528-FP4", "deepseek_v3", said, rows)
    more["kv_cache_quant_algo"] = "FP8"
    said = sidecar("NVFP4", [*MLA_LISTED, "model.layers.61*"], **more)
    yield _beside("nvidia/DeepSeek-V3.1-NVFP4", "deepseek_v3", said, deepseek(attention=True))
    indexer = "model.layers.3.self_attn.indexer"
    said = sidecar("NVFP4", [*MLA_LISTED, f"{indexer}*", "model.layers.61*"], **more)
    rows = [*deepseek(attention=True), bf16(f"{indexer}.wq_b.weight", 8192, 1536)]
    yield _beside("nvidia/DeepSeek-V3.2-NVFP4", "deepseek_v32", said, rows)
    listed = [*MLA_LISTED, f"{indexer}*", "model.layers.3.self_attn.o_proj", "model.layers.78*"]
    yield _beside("nvidia/GLM-5-NVFP4", "glm_moe_dsa", sidecar("NVFP4", listed, **more), glm())
    said = sidecar("NVFP4", ["model.layers.0.mlp.gate", "lm_head"], **more)
    scales = cache("model.layers.0.self_attn")
    yield _beside("nvidia/Qwen3-235B-A22B-NVFP4", "qwen3_moe", said, qwen3(), cache=scales)

    listed = ["lm_head", "model.layers.0.block_sparse_moe.gate", "model.layers.0.self_attn*"]
    yield Fact(
        "config.json of nvidia/MiniMax-M2.5-NVFP4",
        NVFP4,
        minimax(),
        {
            "model_type": "minimax_m2",
            "quantization_config": embedded("NVFP4", listed, quant_method="modelopt"),
        },
        sidecar("NVFP4", listed, **more),
        cache=cache("model.layers.0.self_attn"),
    )
    listed = [
        "language_model.lm_head",
        "language_model.model.layers.3.self_attn*",
        "mm_projector*",
        "vision_tower*",
    ]
    yield Fact(
        "config.json of nvidia/Kimi-K2.5-NVFP4",
        NVFP4,
        deepseek(attention=True, output=False, prefix="language_model.", experts=384),
        {
            "model_type": "kimi_k25",
            "quantization_config": embedded("NVFP4", listed, quant_method="modelopt"),
            "text_config": {"model_type": "deepseek_v3"},
        },
    )
    mixed = {"scheme": "modelopt", "algorithm": "MIXED_PRECISION"}
    layers = {"quantized_layers": QWEN36_LAYERS}
    listed = ["mtp.layers.0*", "mtp*"]
    yield Fact(
        "config.json of nvidia/Qwen3.6-35B-A3B-NVFP4",
        mixed,
        qwen36(),
        {
            "model_type": "qwen3_5_moe",
            "quantization_config": embedded(
                "MIXED_PRECISION", listed, quant_method="modelopt", **layers
            ),
            "text_config": {"model_type": "qwen3_5_moe_text"},
        },
        sidecar("MIXED_PRECISION", listed, **layers),
    )
    layers = {
        "quantized_layers": {"layers.2.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    }
    listed = ["*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"]
    yield Fact(  # DeepSeek's declaration with ModelOpt's inside
        "config.json of nvidia/DeepSeek-V4-Flash-NVFP4",
        {"scheme": "fp8-block", "block": [128, 128]},
        v4(),
        {
            "expert_dtype": "fp4",
            "model_type": "deepseek_v4",
            "quantization_config": embedded(
                "MIXED_PRECISION",
                listed,
                activation_scheme="dynamic",
                fmt="e4m3",
                moe_quant_algo="NVFP4",
                quant_method="fp8",
                scale_fmt="ue8m0",
                weight_block_size=[128, 128],
                **layers,
            ),
        },
        sidecar("MIXED_PRECISION", listed, **layers),
    )
