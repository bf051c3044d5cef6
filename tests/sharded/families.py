"""Llama, Mistral, Qwen, GLM, MiniMax and gpt-oss, tiny, in their published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..quantized.oracle import seed_of
from .arrays import part
from .forms import (
    AWQ,
    CHANNEL,
    GPTQ,
    Form,
    awq,
    bf16,
    blocks,
    channel,
    fp8_config,
    gptq,
    scales,
    static,
)
from .model import Builder, Source, config_of, moe, mtp

# Eight heads of 32 and blocks of 32: up to eight ranks cut through no block. hidden is no multiple.
DENSE: dict[str, Any] = {
    "head_dim": 32, "hidden_size": 80, "intermediate_size": 256, "num_attention_heads": 8,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 64,
}  # fmt: skip
MOE = DENSE | {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}


def dense(
    kind: str, name: str, form: Form, quantization: dict[str, Any] | None,
    bias: tuple[str, ...] = (), normed: bool = False, **more: Any,
) -> Source:  # fmt: skip
    """Llama, and those that are built like it."""
    c = config_of(kind, name, DENSE, **more)
    if quantization:
        c["quantization_config"] = quantization
    made = Builder(form)
    made.tables(c)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, c["hidden_size"])
        made.attention(f"{at}.self_attn", c, bias)
        if normed:
            for leaf in ("q_norm", "k_norm"):
                made.plain(f"{at}.self_attn.{leaf}.weight", c["head_dim"])
        made.mlp(f"{at}.mlp", c["hidden_size"], c["intermediate_size"])
    return Source(kind, c, made.tensors)


def llama() -> Source:
    """FP8 in blocks."""
    source = dense("llama", "Llama", blocks(32), fp8_config(32, fmt="e4m3"))
    return replace(source, id="llama-fp8")


def rows_of_192(width: int = 192, heads: int = 4, head: int = 64) -> Source:
    """The example of FORMATS: two ranks have 96 rows each of gate and up, in blocks of 128."""
    source = dense("llama", "Llama", blocks(128), fp8_config(128, fmt="e4m3"),
                   intermediate_size=width, num_attention_heads=heads, num_key_value_heads=heads,
                   head_dim=head, vocab_size=66 if heads == 6 else 64)  # fmt: skip
    return replace(source, id=f"llama-{width}")


def rows_of_384() -> Source:
    """Three ranks are legal, two are not."""
    return rows_of_192(384, 6, 128)


def llama_bf16() -> Source:
    """Unquantized."""
    return replace(dense("llama", "Llama", bf16, None), id="llama-bf16")


def llama_awq() -> Source:
    """Four bits, transposed."""
    return replace(dense("llama", "Llama", awq, AWQ, hidden_size=96), id="llama-awq")


def llama_gptq() -> Source:
    """The same by GPTQ: groups in order."""
    return replace(dense("llama", "Llama", gptq(False), GPTQ, hidden_size=96), id="llama-gptq")


def qwen2_gptq() -> Source:
    """Inputs in any group: whoever has some of them has all scales."""
    said = {**GPTQ, "desc_act": True}
    bias = ("q_proj", "k_proj", "v_proj")
    source = dense("qwen2", "Qwen2", gptq(True), said, bias, hidden_size=96)
    return replace(source, id="qwen2-gptq-mixed")


def llama_tied() -> Source:
    """No head of its own, and a vocabulary that eight does not divide."""
    source = dense("llama", "Llama", bf16, None, tie_word_embeddings=True, vocab_size=60)
    return replace(source, id="llama-tied")


def mistral() -> Source:
    """One scale a weight."""
    return dense("ministral3", "Ministral3", static, fp8_config(None))


def qwen2() -> Source:
    """Biases on q, k and v."""
    return dense("qwen2", "Qwen2", bf16, None, ("q_proj", "k_proj", "v_proj"))


def qwen3() -> Source:
    """BF16 scales, a norm over each head."""
    return dense("qwen3", "Qwen3", blocks(32, "BF16"), fp8_config(32), normed=True)


def qwen2_moe() -> Source:
    """A shared expert with a gate of its own, unquantized."""
    c = config_of("qwen2_moe", "Qwen2Moe", MOE, shared_expert_intermediate_size=128)
    made = Builder(bf16)
    made.tables(c)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, c["hidden_size"])
        made.attention(f"{at}.self_attn", c, ("q_proj", "k_proj", "v_proj"))
        made.plain(f"{at}.mlp.gate.weight", c["num_experts"], c["hidden_size"])
        made.plain(f"{at}.mlp.shared_expert_gate.weight", 1, c["hidden_size"])
        made.mlp(f"{at}.mlp.shared_expert", c["hidden_size"], 128)
        for e in range(c["num_experts"]):
            made.mlp(f"{at}.mlp.experts.{e}", c["hidden_size"], c["moe_intermediate_size"])
    return Source("qwen2_moe", c, made.tensors)


def qwen3_moe() -> Source:
    """The first layer is dense."""
    c = config_of("qwen3_moe", "Qwen3Moe", MOE, mlp_only_layers=[0], decoder_sparse_step=1)
    c["quantization_config"] = fp8_config(32, fmt="e4m3", modules_to_not_convert=["lm_head"])
    made = Builder(blocks(32, "BF16"))
    made.tables(c)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, c["hidden_size"])
        made.attention(f"{at}.self_attn", c)
        for leaf in ("q_norm", "k_norm"):
            made.plain(f"{at}.self_attn.{leaf}.weight", c["head_dim"])
        qwen_mlp(made, f"{at}.mlp", c, routed=n > 0)
    return Source("qwen3_moe", c, made.tensors)


def qwen_mlp(made: Builder, at: str, c: Mapping[str, Any], routed: bool) -> None:
    """Dense, or a router and its experts."""
    if not routed:
        made.mlp(at, c["hidden_size"], c["intermediate_size"])
        return
    made.plain(f"{at}.gate.weight", c["num_experts"], c["hidden_size"])
    for e in range(c["num_experts"]):
        made.mlp(f"{at}.experts.{e}", c["hidden_size"], c["moe_intermediate_size"])


def glm4_moe(form: Form = channel, quantization: dict[str, Any] | None = None) -> Source:
    """compressed-tensors with a scale a row; biases, a shared expert, an MTP layer."""
    base = {k: v for k, v in MOE.items() if k != "num_experts"}
    c = config_of("glm4_moe", "Glm4Moe", base, attention_bias=True, first_k_dense_replace=1,
                n_routed_experts=8, n_shared_experts=1, num_nextn_predict_layers=1,
                use_qk_norm=True)  # fmt: skip
    c["quantization_config"] = quantization or CHANNEL
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    made = Builder(form)
    made.tables(c)
    for n in range(3):
        at = f"model.layers.{n}"
        made.norms(at, hidden)
        made.attention(f"{at}.self_attn", c, ("q_proj", "k_proj", "v_proj"))
        for leaf in ("q_norm", "k_norm"):
            made.plain(f"{at}.self_attn.{leaf}.weight", c["head_dim"])
        if n == 0:
            made.mlp(f"{at}.mlp", hidden, c["intermediate_size"])
            continue
        moe(made, f"{at}.mlp", c, hidden, width)
        if n == 2:
            mtp(made, at, c)
    return Source("glm4_moe", c, made.tensors)


def minimax_m2() -> Source:
    """Names like Mixtral's, an F32 router, norms over all heads."""
    base = {k: v for k, v in DENSE.items() if k != "intermediate_size"}
    c = config_of("minimax_m2", "MiniMaxM2", base, intermediate_size=64, num_local_experts=8,
                num_experts_per_tok=2, qk_norm_type="per_layer")  # fmt: skip
    skipped = ["gate", "e_score_correction_bias", "lm_head"]
    c["quantization_config"] = fp8_config(32, fmt="float8_e4m3fn", modules_to_not_convert=skipped)
    hidden = c["hidden_size"]
    made = Builder(blocks(32))
    made.tables(c)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, hidden)
        made.attention(f"{at}.self_attn", c)
        made.plain(f"{at}.self_attn.q_norm.weight", 256)
        made.plain(f"{at}.self_attn.k_norm.weight", 64)
        made.plain(f"{at}.block_sparse_moe.gate.weight", 8, hidden, tag="F32")
        made.plain(f"{at}.block_sparse_moe.e_score_correction_bias", 8, tag="F32")
        for e in range(8):
            for leaf, rows, columns in (("w1", 64, hidden), ("w2", hidden, 64), ("w3", 64, hidden)):
                made.linear(f"{at}.block_sparse_moe.experts.{e}.{leaf}", rows, columns)
    return Source("minimax_m2", c, made.tensors)


def gpt_oss(width: int = 96) -> Source:
    """MXFP4; the widths are odd multiples of 32."""
    c = config_of("gpt_oss", "GptOss", DENSE, intermediate_size=width, hidden_size=160,
                num_local_experts=8, num_experts_per_tok=2, attention_bias=True)  # fmt: skip
    c["quantization_config"] = {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                   "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    }  # fmt: skip
    hidden = c["hidden_size"]
    made = Builder(bf16)
    made.tables(c)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, hidden)
        made.attention(f"{at}.self_attn", c, ("q_proj", "k_proj", "v_proj", "o_proj"))
        made.plain(f"{at}.self_attn.sinks", 8)
        made.plain(f"{at}.mlp.router.weight", 8, hidden)
        made.plain(f"{at}.mlp.router.bias", 8)
        for leaf, rows, columns in (
            ("gate_up_proj", 2 * width, hidden),
            ("down_proj", hidden, width),
        ):
            stem = f"{at}.mlp.experts.{leaf}"
            raw = seed_of(stem).integers(0, 256, (8, rows, columns // 32, 16)).astype(np.uint8)
            made.tensors[f"{stem}_blocks"] = part("U8", raw)
            made.tensors[f"{stem}_scales"] = scales(stem, 8, rows, columns // 32, tag="U8")
            made.plain(f"{stem}_bias", 8, rows)
    return Source(f"gpt_oss-{width}", c, made.tensors)
