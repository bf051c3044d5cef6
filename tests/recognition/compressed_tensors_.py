"""compressed-tensors: Kimi, RedHatAI, poolside, Meta."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .facts import (
    Fact,
    Json,
    Row,
    bf16,
    block_fp8,
    channel_fp8,
    packed_int4,
    packed_mxfp4,
    packed_nvfp4,
    raw,
)


def weights(kind: str, bits: int, strategy: str, **more: Any) -> Json:
    """A group's ``weights`` as compressed-tensors writes them."""
    found: Json = {"actorder": None, "block_structure": None, "dynamic": False, "group_size": None}
    found |= {"num_bits": bits, "strategy": strategy, "symmetric": True, "type": kind}
    return found | more


def declaration(form: str, groups: list[Json], ignore: list[str], **more: Any) -> Json:
    """``quantization_config``."""
    return {
        "config_groups": {f"group_{n}": group for n, group in enumerate(groups)},
        "format": form,
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        **more,
    }


def scheme(*groups: tuple[str, int, list[int | None]]) -> Json:
    """What the scheme says of itself."""
    rows = [{"type": k, "bits": b, "block": block, "symmetric": True} for k, b, block in groups]
    return {"scheme": "compressed-tensors", "groups": rows}


KIMI_IGNORE = [
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",  # dense layers: not mlp.experts.N.gate_proj
]
INT4 = declaration(
    "pack-quantized",
    [{"targets": ["Linear"], "weights": weights("int", 4, "group", group_size=32)}],
    ["lm_head", *KIMI_IGNORE],
    kv_cache_scheme=None,
)


def kimi_int4(prefix: str) -> list[Row]:
    """Routed experts are INT4, the rest BF16."""
    at = f"{prefix}model.layers.1"
    return [
        bf16(f"{prefix}lm_head.weight", 163840, 7168),
        bf16(f"{prefix}model.layers.0.mlp.gate_proj.weight", 18432, 7168),
        bf16(f"{at}.self_attn.q_a_proj.weight", 1536, 7168),
        bf16(f"{at}.mlp.gate.weight", 384, 7168),
        raw(f"{at}.mlp.gate.e_score_correction_bias", "F32", 384),
        bf16(f"{at}.mlp.shared_experts.up_proj.weight", 2048, 7168),
        packed_int4(f"{at}.mlp.experts.0.gate_proj", 2048, 7168),
        packed_int4(f"{at}.mlp.experts.383.down_proj", 7168, 2048),
    ]


def kimi_k3() -> list[Row]:
    """Routed experts are MXFP4 in a narrower space, the rest BF16."""
    at = "language_model.model.layers.1"
    return [
        bf16("language_model.lm_head.weight", 163840, 7168),
        bf16("language_model.model.layers.0.mlp.gate_proj.weight", 33792, 7168),
        bf16(f"{at}.block_sparse_moe.routed_expert_down_proj.weight", 3584, 7168),
        bf16(f"{at}.block_sparse_moe.routed_expert_norm.weight", 3584),
        bf16(f"{at}.block_sparse_moe.gate.weight", 896, 7168),
        packed_mxfp4(f"{at}.block_sparse_moe.experts.0.w1", 3072, 3584),
        packed_mxfp4(f"{at}.block_sparse_moe.experts.895.w2", 3584, 3072),
        bf16("vision_tower.patch_embed.proj.weight", 1152, 3, 14, 14),
    ]


def v4_nvfp4() -> list[Row]:
    """Attention in blocks of FP8, experts in NVFP4."""
    at = "model.layers.2"

    def dense(module: str, down: int, across: int) -> Row:
        return block_fp8(f"{at}.{module}", down, across, scale="BF16", leaf="weight_scale")

    return [
        bf16("model.embed.weight", 129280, 4096),
        dense("attn.fused_wqa_wkv", 1536, 4096),
        dense("attn.wq_b", 32768, 1024),
        dense("attn.wo_b", 4096, 8192),
        raw(f"{at}.attn.attn_sink", "F32", 64),
        raw(f"{at}.hc_attn_scale", "F32", 3),
        bf16(f"{at}.attn.compressor.wkv.weight", 1024, 4096),
        bf16(f"{at}.ffn.gate.weight", 256, 4096),
        raw(f"{at}.ffn.gate.tid2eid", "I64", 129280, 6),
        packed_nvfp4(f"{at}.ffn.experts.0.gate_proj", 2048, 4096),
        packed_nvfp4(f"{at}.ffn.experts.255.down_proj", 4096, 2048),
        packed_nvfp4(f"{at}.ffn.shared_experts.up_proj", 2048, 4096),
    ]


def laguna(hidden: int, width: int, heads: int, shared: bool) -> list[Row]:
    """Experts in blocks of FP8; attention and router are BF16."""
    at = "model.layers.1"

    def dense(module: str, down: int, across: int) -> Row:
        return block_fp8(f"{at}.mlp.{module}", down, across, scale="BF16", leaf="weight_scale")

    return [
        bf16("lm_head.weight", 100352, hidden),
        bf16(f"{at}.self_attn.q_proj.weight", 128 * heads, hidden),
        bf16(f"{at}.self_attn.g_proj.weight", heads, hidden),
        bf16(f"{at}.mlp.gate.weight", 256, hidden),
        raw(f"{at}.mlp.gate.e_score_correction_bias", "F32", 256),
        dense("experts.0.gate_proj", width, hidden),
        dense("experts.255.down_proj", hidden, width),
        dense("shared_expert.up_proj", width, hidden)
        if shared
        else bf16(f"{at}.mlp.shared_expert.up_proj.weight", width, hidden),
    ]


LAGUNA_GROUP = {
    "format": "float-quantized",
    "targets": ["Linear"],
    "weights": weights("float", 8, "block", block_structure=[128, 128]),
}
LAGUNA_IGNORE = [
    "lm_head",
    r"re:.*\.self_attn\.q_proj$",
    r"re:.*\.self_attn\.g_proj$",
    r"re:.*\.mlp\.gate$",
]
HADAMARD = {  # in the weights already: nothing is left to do at run time
    "config_groups": {
        "R1": {
            "apply": [
                {"location": "weight_output", "inverse": False, "targets": ["re:.*o_proj$"]},
                {"location": "weight_input", "inverse": True, "targets": ["re:.*q_proj$"]},
            ],
            "head_dim": 128,
            "precision": "torch.float64",
            "type": "hadamard",
        }
    }
}


def maverick() -> list[Row]:
    """A scale a row."""
    at = "language_model.model.layers.1"
    return [
        bf16("language_model.lm_head.weight", 202048, 5120),
        bf16(f"{at}.self_attn.q_proj.weight", 5120, 5120),
        bf16(f"{at}.feed_forward.router.weight", 128, 5120),
        channel_fp8(f"{at}.feed_forward.experts.0.gate_proj", 8192, 5120),
        channel_fp8(f"{at}.feed_forward.shared_expert.down_proj", 5120, 8192),
    ]


def _nested(name: str, model: str, inner: Json, rows: list[Row], made: Json) -> Fact:
    """Declared in ``text_config``."""
    config = {"model_type": model, "dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    config["text_config"] = {"dtype": "bfloat16", "quantization_config": inner}
    where = "config.json: text_config.quantization_config"
    return Fact(f"config.json of {name}", made, rows, config, where=where)


def facts() -> Iterator[Fact]:
    """``quant_method`` is ``compressed-tensors``."""
    int4 = scheme(("int", 4, [1, 32]))
    yield Fact(
        "config.json of moonshotai/Kimi-K2-Thinking",
        int4,
        kimi_int4(""),
        {"model_type": "kimi_k2", "torch_dtype": "bfloat16", "quantization_config": INT4},
    )
    rows = kimi_int4("language_model.")
    yield _nested("moonshotai/Kimi-K2.5", "kimi_k25", INT4, rows, int4)
    mxfp4 = declaration(
        "mxfp4-pack-quantized",
        [
            {
                "format": "mxfp4-pack-quantized",
                "targets": ["Linear"],
                "weights": weights(
                    "float", 4, "group", group_size=32, scale_dtype="torch.uint8", zp_dtype=None
                ),
            }
        ],
        [*KIMI_IGNORE, "re:.*lm_head.*", "re:.*vision_tower.*", "re:.*mm_projector.*"],
    )
    made = scheme(("float", 4, [1, 32]))
    yield _nested("moonshotai/Kimi-K3", "kimi_k3", mxfp4, kimi_k3(), made)
    mixed = declaration(
        "mixed-precision",
        [
            {
                "format": "float-quantized",
                "targets": ["re:.*attn.*(fused_wqa_wkv|wq_b|wo_a|wo_b)$"],
                "weights": weights("float", 8, "block", block_structure=[128, 128]),
            },
            {
                "format": "nvfp4-pack-quantized",
                "targets": ["re:.*ffn.*(gate|up|down)_proj$"],
                "weights": weights("float", 4, "tensor_group", group_size=16),
            },
        ],
        [],
        sparsity_config={},
        transform_config={},
    )
    yield Fact(
        "config.json of RedHatAI/DeepSeek-V4-Flash-NVFP4-FP8",
        scheme(("float", 8, [128, 128]), ("float", 4, [1, 16])),
        v4_nvfp4(),
        {"model_type": "deepseek_v4", "expert_dtype": "fp4", "quantization_config": mixed},
    )
    cache = {"num_bits": 8, "strategy": "tensor", "symmetric": True, "type": "float"}
    at = "model.layers.1.self_attn"
    scales = tuple((f"{at}.{leaf}", "BF16", (1,)) for leaf in ("k_scale", "v_scale"))
    for name, rows, more, merged in (
        ("XS.2", laguna(2048, 512, 48, shared=True), [], HADAMARD),
        (
            "S-2.1",
            laguna(3072, 1024, 72, shared=False),
            ["model.layers.0.mlp.gate_proj", r"re:.*\.mlp\.shared_expert\.up_proj$"],
            {},
        ),
    ):
        declared = declaration(
            "float-quantized",
            [LAGUNA_GROUP],
            LAGUNA_IGNORE + more,
            kv_cache_scheme=cache,
            transform_config=merged,
        )
        yield Fact(
            f"config.json of poolside/Laguna-{name}-FP8",
            scheme(("float", 8, [128, 128])),
            rows,
            {"model_type": "laguna", "quantization_config": declared},
            cache=scales,
        )
    yield Fact(
        "vllm issue 16474, on meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        scheme(("float", 8, [1, None])),
        maverick(),
        {
            "model_type": "llama4",
            "quantization_config": declaration(
                "float-quantized",
                [{"targets": ["Linear"], "weights": weights("float", 8, "channel")}],
                ["re:.*lm_head", "re:.*self_attn", "re:.*router"],
            ),
        },
    )
