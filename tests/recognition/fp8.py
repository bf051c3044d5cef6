"""Blocks of FP8 from everybody else, Mistral's FP8, and gpt-oss."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Fact, Json, Row, bf16, block_fp8, gpt_oss, mistral_fp8, mx_fp8, raw

BLOCKS = {"scheme": "fp8-block", "block": [128, 128]}


def fp8(*listed: str, fmt: str | None = "e4m3", key: str = "modules_to_not_convert") -> Json:
    """A declaration with what it lists as not converted."""
    found: Json = {"activation_scheme": "dynamic", "quant_method": "fp8"}
    found |= {} if fmt is None else {"fmt": fmt}
    found |= {key: list(listed)} if listed else {}
    return found | {"weight_block_size": [128, 128]}


def fact(name: str, model: str, quantization: Json, rows: list[Row], **more: Json) -> Fact:
    """A checkpoint that says so at the top of its config."""
    config = {"model_type": model, "dtype": "bfloat16", "quantization_config": quantization}
    scheme = more.get("scheme", BLOCKS)
    return Fact(f"config.json of {name}", scheme, rows, config)


def qwen3_dense() -> list[Row]:
    """BF16 scales, and nothing listed."""
    at = "model.layers.0"
    return [
        bf16("model.embed_tokens.weight", 151936, 5120),
        block_fp8(f"{at}.self_attn.q_proj", 8192, 5120, scale="BF16"),
        block_fp8(f"{at}.self_attn.k_proj", 1024, 5120, scale="BF16"),
        bf16(f"{at}.self_attn.k_norm.weight", 128),
        block_fp8(f"{at}.mlp.down_proj", 5120, 25600, scale="BF16"),
        bf16("lm_head.weight", 151936, 5120),
    ]


def qwen3_moe(hidden: int, width: int) -> list[Row]:
    """The router and norms are listed by module."""
    at = "model.layers.0"
    return [
        bf16(f"{at}.input_layernorm.weight", hidden),
        block_fp8(f"{at}.self_attn.q_proj", 4096, hidden, scale="BF16"),
        bf16(f"{at}.mlp.gate.weight", 128, hidden),
        block_fp8(f"{at}.mlp.experts.0.gate_proj", width, hidden, scale="BF16"),
        block_fp8(f"{at}.mlp.experts.127.down_proj", hidden, width, scale="BF16"),
    ]


QWEN3_LISTED = (
    "lm_head",
    "model.layers.0.input_layernorm",
    "model.layers.0.mlp.gate",
    "model.layers.0.post_attention_layernorm",
)


def qwen38() -> list[Row]:
    """Only routed experts are coded."""
    at = "model.layers.0"
    return [
        bf16("lm_head.weight", 248320, 8192),
        bf16(f"{at}.linear_attn.conv1d.weight", 20480, 1, 4),
        bf16(f"{at}.linear_attn.in_proj_a.weight", 128, 8192),
        bf16(f"{at}.linear_attn.out_proj.weight", 8192, 16384),
        raw(f"{at}.linear_attn.A_log", "F32", 128),
        bf16("model.layers.3.self_attn.q_proj.weight", 32768, 8192),
        bf16(f"{at}.mlp.gate.weight", 512, 8192),
        bf16(f"{at}.mlp.shared_expert.up_proj.weight", 2048, 8192),
        bf16(f"{at}.mlp.shared_expert_gate.weight", 1, 8192),
        block_fp8(f"{at}.mlp.experts.0.up_proj", 2048, 8192, scale="BF16"),
        block_fp8(f"{at}.mlp.experts.511.down_proj", 8192, 2048, scale="BF16"),
        bf16("mtp.fc.weight", 8192, 16384),
        block_fp8("mtp.layers.0.mlp.experts.0.gate_proj", 2048, 8192, scale="BF16"),
    ]


QWEN38_LISTED = (
    "lm_head",
    "model.embed_tokens",
    "model.layers.0.linear_attn.conv1d",
    "model.layers.0.linear_attn.in_proj_a",
    "model.layers.0.linear_attn.out_proj",
    "model.layers.0.mlp.gate",
    "model.layers.0.mlp.shared_expert.up_proj",
    "model.layers.0.mlp.shared_expert_gate",
    "model.layers.3.self_attn.q_proj",
    "mtp.fc",
    "mtp.layers.0.mlp.gate",
)


def minimax() -> list[Row]:
    """``gate`` alone must not mean ``gate_proj``; the router is F32."""
    at = "model.layers.0"
    return [
        bf16("lm_head.weight", 200064, 3072),
        block_fp8(f"{at}.self_attn.q_proj", 6144, 3072),
        block_fp8(f"{at}.self_attn.o_proj", 3072, 6144),
        bf16(f"{at}.self_attn.q_norm.weight", 6144),
        raw(f"{at}.block_sparse_moe.gate.weight", "F32", 256, 3072),
        raw(f"{at}.block_sparse_moe.e_score_correction_bias", "F32", 256),
        block_fp8(f"{at}.block_sparse_moe.experts.0.w1", 1536, 3072),
        block_fp8(f"{at}.block_sparse_moe.experts.255.w2", 3072, 1536),
    ]


MINIMAX_LISTED = ("gate", "e_score_correction_bias", "lm_head")


def glm() -> list[Row]:
    """DeepSeek's attention with an indexer; the last layer is MTP."""
    at = "model.layers.3"
    return [
        bf16("model.embed_tokens.weight", 154880, 6144),
        block_fp8(f"{at}.self_attn.q_a_proj", 2048, 6144),
        block_fp8(f"{at}.self_attn.q_b_proj", 16384, 2048),
        block_fp8(f"{at}.self_attn.kv_a_proj_with_mqa", 576, 6144),
        block_fp8(f"{at}.self_attn.kv_b_proj", 28672, 512),
        block_fp8(f"{at}.self_attn.indexer.wq_b", 4096, 2048),
        block_fp8(f"{at}.self_attn.indexer.wk", 128, 6144),
        bf16(f"{at}.self_attn.indexer.weights_proj.weight", 32, 6144),
        bf16(f"{at}.self_attn.indexer.k_norm.weight", 128),
        bf16(f"{at}.self_attn.indexer.k_norm.bias", 128),
        bf16(f"{at}.mlp.gate.weight", 256, 6144),
        raw(f"{at}.mlp.gate.e_score_correction_bias", "F32", 256),
        block_fp8(f"{at}.mlp.shared_experts.up_proj", 2048, 6144),
        block_fp8(f"{at}.mlp.experts.255.down_proj", 6144, 2048),
        bf16("model.layers.78.eh_proj.weight", 6144, 12288),
        block_fp8("model.layers.78.mlp.experts.0.gate_proj", 2048, 6144),
    ]


GLM_LISTED = (
    "lm_head",
    "model.embed_tokens",
    "model.layers.3.input_layernorm",
    "model.layers.3.self_attn.indexer.k_norm",
    "model.layers.3.self_attn.indexer.k_norm.bias",  # a tensor, not a module
    "model.layers.3.self_attn.indexers_proj",  # no such module: it is indexer.weights_proj
    "model.layers.3.mlp.gate",
    "model.layers.3.mlp.gate.e_score_correction_bias",
    "model.layers.78.eh_proj",
    "model.norm",
)


def step() -> list[Row]:
    """Routed experts alone are coded, stacked in one tensor; everything else is BF16."""
    at = "model.layers.3"
    return [
        bf16(f"{at}.self_attn.q_proj.weight", 8192, 4096),
        bf16(f"{at}.share_expert.up_proj.weight", 1280, 4096),
        bf16(f"{at}.moe.gate.weight", 288, 4096),
        raw(f"{at}.moe.router_bias", "F32", 288),
        block_fp8(f"{at}.moe.gate_proj", 288, 1280, 4096),
        block_fp8(f"{at}.moe.down_proj", 288, 4096, 1280),
    ]


def devstral() -> list[Row]:
    """A scale a matrix."""
    at = "model.layers.0"
    return [
        bf16("model.embed_tokens.weight", 131072, 12288),
        mistral_fp8(f"{at}.self_attn.q_proj", 12288, 12288),
        mistral_fp8(f"{at}.mlp.down_proj", 12288, 28672),
        bf16(f"{at}.input_layernorm.weight", 12288),
        bf16("lm_head.weight", 131072, 12288),
    ]


def minimax_m3() -> list[Row]:
    """Exponents in U8, a row of 32 each."""
    at = "language_model.model.layers.3"

    def mx(module: str, down: int, across: int) -> Row:
        return mx_fp8(f"{at}.{module}", down, across, "U8", "weight_scale_inv")

    return [
        mx("self_attn.q_proj", 8192, 6144),
        mx("self_attn.index_q_proj", 512, 6144),
        mx("block_sparse_moe.experts.0.w1", 3072, 6144),
        raw(f"{at}.block_sparse_moe.gate.weight", "F32", 128, 6144),
        bf16("language_model.lm_head.weight", 200064, 6144),
    ]


def gpt(experts: int) -> list[Row]:
    """Fused experts: gate and up interleaved."""
    at = "model.layers.0"
    return [
        bf16("model.embed_tokens.weight", 201088, 2880),
        bf16(f"{at}.self_attn.q_proj.weight", 4096, 2880),
        bf16(f"{at}.self_attn.sinks", 64),
        bf16(f"{at}.mlp.router.weight", experts, 2880),
        gpt_oss(f"{at}.mlp.experts.gate_up_proj", experts, 5760, 2880),
        bf16(f"{at}.mlp.experts.gate_up_proj_bias", experts, 5760),
        gpt_oss(f"{at}.mlp.experts.down_proj", experts, 2880, 2880),
        bf16(f"{at}.mlp.experts.down_proj_bias", experts, 2880),
    ]


def facts() -> Iterator[Fact]:
    """``quant_method`` is ``fp8`` or ``mxfp4``."""
    yield fact("Qwen/Qwen3-32B-FP8", "qwen3", fp8(), qwen3_dense())
    for name, hidden, width in (("30B-A3B", 2048, 768), ("235B-A22B", 4096, 1536)):
        rows = qwen3_moe(hidden, width)
        yield fact(f"Qwen/Qwen3-{name}-FP8", "qwen3_moe", fp8(*QWEN3_LISTED), rows)
    declared = fp8(*QWEN38_LISTED, fmt=None) | {"weight_per_tensor": False, "act_per_tensor": False}
    yield fact("Qwen/Qwen3.8-2.4T-A95B-FP8", "qwen3_5_moe_text", declared, qwen38())
    for name, fmt in (("M2", None), ("M2.7", "float8_e4m3fn")):
        declared = fp8(*MINIMAX_LISTED, fmt=fmt)
        yield fact(f"MiniMaxAI/MiniMax-{name}", "minimax_m2", declared, minimax())
    for name in ("5", "5.1", "5.2", "5.3"):
        yield fact(f"zai-org/GLM-{name}-FP8", "glm_moe_dsa", fp8(*GLM_LISTED), glm())
    yield fact("stepfun-ai/Step-3.7-Flash-FP8", "step3p7", fp8(fmt=None), step())
    static = {
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    }
    whole = {"scheme": "fp8-block", "block": None}
    yield fact("cleman273/affine-devstral", "ministral3", static, devstral(), scheme=whole)
    mx = {
        "activation_scheme": "dynamic",
        "quant_method": "mxfp8",
        "ignored_layers": ["lm_head", "language_model.model.layers.3.block_sparse_moe.gate"],
        "weight_block_size": [1, 32],
    }
    rows = minimax_m3()
    groups = {"scheme": "fp8-block", "block": [1, 32]}
    yield fact("MiniMaxAI/MiniMax-M3", "minimax_m3_vl", mx, rows, scheme=groups)
    for name, experts in (("20b", 32), ("120b", 128)):
        listed = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
        declared = {"quant_method": "mxfp4", "modules_to_not_convert": [*listed, "lm_head"]}
        mxfp4 = {"scheme": "mxfp4"}
        yield fact(f"openai/gpt-oss-{name}", "gpt_oss", declared, gpt(experts), scheme=mxfp4)
