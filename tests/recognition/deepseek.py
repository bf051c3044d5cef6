"""DeepSeek V3 to V4.1, and Kimi K2, which has V3's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .facts import Fact, Json, Row, bf16, block_fp8, deepseek_fp4, mx_fp8, raw

FP8: Json = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
UE8M0 = FP8 | {"scale_fmt": "ue8m0"}
SCHEME = {"scheme": "fp8-block", "block": [128, 128]}


def v3(experts: int = 256, heads: int = 128, vocabulary: int = 129280) -> list[Row]:
    """A dense layer's MLP, a layer's attention, one expert. 576 rows are four and a half blocks."""
    at = "model.layers.3"
    return [
        bf16("model.embed_tokens.weight", vocabulary, 7168),
        bf16("lm_head.weight", vocabulary, 7168),
        block_fp8("model.layers.0.mlp.gate_proj", 18432, 7168),
        block_fp8("model.layers.0.mlp.down_proj", 7168, 18432),
        bf16(f"{at}.input_layernorm.weight", 7168),
        block_fp8(f"{at}.self_attn.q_a_proj", 1536, 7168),
        bf16(f"{at}.self_attn.q_a_layernorm.weight", 1536),
        block_fp8(f"{at}.self_attn.q_b_proj", 192 * heads, 1536),
        block_fp8(f"{at}.self_attn.kv_a_proj_with_mqa", 576, 7168),
        block_fp8(f"{at}.self_attn.kv_b_proj", 256 * heads, 512),
        block_fp8(f"{at}.self_attn.o_proj", 7168, 128 * heads),
        bf16(f"{at}.mlp.gate.weight", experts, 7168),
        raw(f"{at}.mlp.gate.e_score_correction_bias", "F32", experts),
        block_fp8(f"{at}.mlp.shared_experts.up_proj", 2048, 7168),
        block_fp8(f"{at}.mlp.experts.{experts - 1}.down_proj", 7168, 2048),
    ]


V3_MTP = [
    bf16("model.layers.61.enorm.weight", 7168),
    bf16("model.layers.61.eh_proj.weight", 7168, 14336),
    bf16("model.layers.61.shared_head.head.weight", 129280, 7168),
    block_fp8("model.layers.61.mlp.experts.0.gate_proj", 2048, 7168),
]
V32_INDEXER = [
    block_fp8("model.layers.3.self_attn.indexer.wq_b", 8192, 1536),
    block_fp8("model.layers.3.self_attn.indexer.wk", 128, 7168),
    bf16("model.layers.3.self_attn.indexer.weights_proj.weight", 64, 7168),
    raw("model.layers.3.self_attn.indexer.k_norm.weight", "F32", 128),
    raw("model.layers.3.self_attn.indexer.k_norm.bias", "F32", 128),
]


def v4_block(
    at: str,
    hidden: int,
    width: int,
    heads: int,
    latent: int,
    experts: int,
    groups: int,
    ratio: int = 0,
    hashed: bool = False,
    expert: Callable[[str, int, int], Row] = deepseek_fp4,
    scale: str = "F8_E8M0",
) -> Iterator[Row]:
    """A layer. ``ratio``: 0 window only, 128 with a compressor, 4 with an indexer as well."""

    def dense(module: str, down: int, across: int) -> Row:
        return block_fp8(f"{at}.{module}", down, across, scale=scale, leaf="scale")

    yield bf16(f"{at}.attn_norm.weight", hidden)
    yield bf16(f"{at}.ffn_norm.weight", hidden)
    for part in ("attn", "ffn"):
        yield raw(f"{at}.hc_{part}_fn", "F32", 24, 4 * hidden)
        yield raw(f"{at}.hc_{part}_base", "F32", 24)
        yield raw(f"{at}.hc_{part}_scale", "F32", 3)
    yield raw(f"{at}.attn.attn_sink", "F32", heads)
    yield bf16(f"{at}.attn.q_norm.weight", latent)
    yield bf16(f"{at}.attn.kv_norm.weight", 512)
    yield dense("attn.wq_a", latent, hidden)
    yield dense("attn.wq_b", 512 * heads, latent)
    yield dense("attn.wkv", 512, hidden)
    yield dense("attn.wo_a", 1024 * groups, 512 * heads // groups)
    yield dense("attn.wo_b", hidden, 1024 * groups)
    if ratio:
        yield from v4_compressor(f"{at}.attn.compressor", hidden, 512, ratio)
    if ratio == 4:
        yield dense("attn.indexer.wq_b", 8192, latent)
        yield bf16(f"{at}.attn.indexer.weights_proj.weight", 64, hidden)
        yield from v4_compressor(f"{at}.attn.indexer.compressor", hidden, 128, ratio)
    yield bf16(f"{at}.ffn.gate.weight", experts, hidden)
    if hashed:
        yield raw(f"{at}.ffn.gate.tid2eid", "I64", 129280, 6)
    else:
        yield raw(f"{at}.ffn.gate.bias", "F32", experts)
    for leaf, down, across in (("w1", width, hidden), ("w2", hidden, width), ("w3", width, hidden)):
        yield dense(f"ffn.shared_experts.{leaf}", down, across)
        yield expert(f"{at}.ffn.experts.0.{leaf}", down, across)


def v4_compressor(at: str, hidden: int, head: int, ratio: int) -> Iterator[Row]:
    """Two halves where windows overlap, at ratio 4."""
    width = 2 * head if ratio == 4 else head
    yield raw(f"{at}.ape", "F32", ratio, width)
    yield bf16(f"{at}.wkv.weight", width, hidden)
    yield bf16(f"{at}.wgate.weight", width, hidden)
    yield bf16(f"{at}.norm.weight", head)


def v4_head(hidden: int) -> Iterator[Row]:
    """Everything outside layers. ``hc_head_scale`` is no scale of codes."""
    yield bf16("embed.weight", 129280, hidden)
    yield bf16("head.weight", 129280, hidden)
    yield bf16("norm.weight", hidden)
    yield from v4_streams("", hidden)


def v4_streams(at: str, hidden: int) -> Iterator[Row]:
    """Where the streams become one again."""
    yield raw(f"{at}hc_head_fn", "F32", 4, 4 * hidden)
    yield raw(f"{at}hc_head_base", "F32", 4)
    yield raw(f"{at}hc_head_scale", "F32", 1)


def v4_mtp(hidden: int) -> Iterator[Row]:
    """Around the layer of the MTP module."""
    for leaf in ("e_proj", "h_proj"):
        yield block_fp8(f"mtp.0.{leaf}", hidden, hidden, scale="F8_E8M0", leaf="scale")
    for leaf in ("enorm", "hnorm", "norm"):
        yield bf16(f"mtp.0.{leaf}.weight", hidden)
    yield from v4_streams("mtp.0.", hidden)


def v4_flash() -> list[Row]:
    """One layer of each kind: window and hash router, indexer, compressor and learned router."""
    size = (4096, 2048, 64, 1024, 256, 8)
    return [
        *v4_head(4096),
        *v4_block("layers.0", *size, ratio=0, hashed=True),
        *v4_block("layers.2", *size, ratio=4, hashed=True),
        *v4_block("layers.3", *size, ratio=128),
        *v4_block("mtp.0", *size),
        *v4_mtp(4096),
    ]


def v4_pro() -> list[Row]:
    """As Flash, but no layer is without a compressor."""
    size = (7168, 3072, 128, 1536, 384, 16)
    return [
        *v4_head(7168),
        *v4_block("layers.0", *size, ratio=128, hashed=True),
        *v4_block("layers.2", *size, ratio=4, hashed=True),
        *v4_block("layers.3", *size, ratio=128),
        *v4_block("mtp.0", *size),
        *v4_mtp(7168),
    ]


def v4_flash_base() -> list[Row]:
    """FP8 experts, and every scale F32."""

    def expert(module: str, down: int, across: int) -> Row:
        return block_fp8(module, down, across, leaf="scale")

    size = (4096, 2048, 64, 1024, 256, 8)
    return [
        *v4_head(4096),
        *v4_block("layers.2", *size, ratio=4, hashed=True, expert=expert, scale="F32"),
    ]


def v41() -> list[Row]:
    """Blocks of 32 x 32, and tables of embeddings with an exponent per 32 of a row."""

    def dense(module: str, down: int, across: int) -> Row:
        return block_fp8(module, down, across, scale="F8_E8M0", leaf="scale", size=32)

    return [
        bf16("embed.weight", 129280, 5120),
        dense("layers.0.attn.wq_a", 1280, 5120),
        dense("layers.0.attn.wq_b", 32768, 1280),
        dense("layers.0.attn.wo_b", 5120, 8192),
        raw("layers.0.attn.attn_sink", "F32", 64),
        dense("layers.0.ffn.shared_experts.w1", 2304, 5120),
        deepseek_fp4("layers.0.ffn.experts.0.w1", 2304, 5120),
        deepseek_fp4("layers.0.ffn.experts.383.w2", 5120, 2304),
        bf16("layers.0.ffn.gate.weight", 384, 5120),
        raw("layers.0.ffn.gate.bias_vl", "F32", 384),
        dense("layers.1.engram.wkv", 25600, 6144),
        mx_fp8("layers.1.engram.embed", 384006168, 256, "F8_E8M0", "scale"),
        bf16("layers.1.engram.q_weight", 4, 5120),
        bf16("layers.2.attn.compressor.wkv.weight", 1024, 5120),
        dense("mtp.0.main_proj", 5120, 15360),
        bf16("mtp.2.markov_head.embed.weight", 129280, 256),
        bf16("mtp.2.confidence_head.proj.weight", 1, 5376),
        bf16("vision.blocks.0.mlp.w1.weight", 5632, 1024),
    ]


def _v3(name: str, quantization: Json, rows: list[Row], model: str = "deepseek_v3") -> Fact:
    config = {"model_type": model, "torch_dtype": "bfloat16", "quantization_config": quantization}
    return Fact(f"config.json of {name}", SCHEME, rows, config)


def _v4(name: str, rows: list[Row], expert: str) -> Fact:
    config = {
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "expert_dtype": expert,
        "quantization_config": UE8M0,
    }
    return Fact(f"config.json of {name}", SCHEME, rows, config)


def facts() -> Iterator[Fact]:
    """Those that DeepSeek and Moonshot publish in blocks."""
    yield _v3("deepseek-ai/DeepSeek-V3", FP8, v3() + V3_MTP)
    yield _v3("deepseek-ai/DeepSeek-R1", FP8, v3() + V3_MTP)
    yield _v3("deepseek-ai/DeepSeek-V3.1", UE8M0, v3() + V3_MTP)
    yield _v3("deepseek-ai/DeepSeek-V3.2", UE8M0, v3() + V32_INDEXER, "deepseek_v32")
    k2 = v3(experts=384, heads=64, vocabulary=163840)
    yield _v3("moonshotai/Kimi-K2-Instruct", FP8, k2, "kimi_k2")
    yield _v4("deepseek-ai/DeepSeek-V4-Flash", v4_flash(), "fp4")
    yield _v4("deepseek-ai/DeepSeek-V4-Pro", v4_pro(), "fp4")
    yield _v4("deepseek-ai/DeepSeek-V4-Flash-Base", v4_flash_base(), "fp8")
    yield Fact(
        "config.json of deepseek-ai/DeepSeek-V4.1-Flash",
        {"scheme": "fp8-block", "block": [32, 32]},
        v41(),
        {
            "model_type": "deepseek_v41",
            "dtype": "bfloat16",
            "quantization_config": {
                "activation_scheme": "dynamic",
                "expert_dtype": "fp4",
                "quant_method": "fp8",
                "scale_fmt": "ue8m0",
                "weight_block_size": [32, 32],
            },
            "text_config": {"model_type": "deepseek_v41_text"},
        },
    )
