"""DeepSeek-V4: its config, and every weight of the published V4-Flash, at three sizes.

Sources: config.json of deepseek-ai/DeepSeek-V4-Flash; names, shapes and dtypes as in its
inference/model.py. Dense linears are e4m3 with one e8m0 scale per 128x128; routed experts are
e2m1, two a byte (int8), with one e8m0 scale per 32 inputs. A scale is the weight's sibling
``.scale``; ``hc_*_scale`` tensors are no such thing. There are no rows or columns left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, plain
from .tokenizer import small_files

# Exactly the published config.json, which is the `full` size.
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": 129280,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],  # the last one is the MTP layer's
}

# All three kinds of attention, a layer that routes by token id, and the MTP layer.
TINY: dict[str, Any] = {
    "compress_ratios": [0, 4, 128, 0],
    "head_dim": 128,
    "hidden_size": 256,
    "index_head_dim": 128,
    "index_n_heads": 2,
    "index_topk": 16,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hash_layers": 1,
    "num_hidden_layers": 3,
    "o_groups": 2,
    "o_lora_rank": 128,
    "q_lora_rank": 128,
    "sliding_window": 32,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    "compress_ratios": [0, 4, 128, 4, 128, 0],
    "hidden_size": 2048,
    "index_n_heads": 16,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hash_layers": 1,
    "num_hidden_layers": 5,
    "o_lora_rank": 256,
    "q_lora_rank": 512,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_500_000),
    "small": (SMALL, 160_000_000),
    "full": ({}, 3_520_000_000),
}

FP8 = Storage(
    Part("", "F8_E4M3", "e4m3"), (Part(".scale", "F8_E8M0", "e4m3 exponents", (128, 128)),)
)
FP4 = Storage(
    Part("", "I8", "e2m1, one zero", (1, 2)),
    (Part(".scale", "F8_E8M0", "e2m1 exponents", (1, 32)),),
)


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny, small, or full (sparse). Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("deepseek-v4", SIZES, size)
    config = PUBLISHED | changed
    ids = plain("I64", f"below {config['n_routed_experts']}")
    storages = {**PLAIN, "gain": plain("F32", "gain"), "ids": ids, "linear": FP8, "expert": FP4}
    return Sample(
        config,
        tuple(_model(config)),
        storages,
        small_files(),
        shard_bytes,
        size == "full",
        coded_keys=frozenset({"quantization_config", "expert_dtype"}),
    )


def _model(c: dict[str, Any]) -> Iterator[Weight]:
    """Every weight; the MTP module shares the embedding and the head, and repeats neither."""
    table, layers = (c["vocab_size"], c["hidden_size"]), c["num_hidden_layers"]
    yield Weight("embed.weight", table, "matrix")
    for n in range(layers):
        yield from _layer(f"layers.{n}.", c, c["compress_ratios"][n], n < c["num_hash_layers"])
    yield Weight("norm.weight", (c["hidden_size"],), "norm")
    yield Weight("head.weight", table, "matrix")
    yield from _hyper("hc_head_", c, c["hc_mult"], 1)
    for n in range(c["num_nextn_predict_layers"]):
        yield from _mtp(f"mtp.{n}.", c, c["compress_ratios"][layers + n])


def _mtp(at: str, c: dict[str, Any], ratio: int) -> Iterator[Weight]:
    hidden = c["hidden_size"]
    for name in ("e_proj", "h_proj"):
        yield Weight(f"{at}{name}.weight", (hidden, hidden), "linear")
    for name in ("enorm", "hnorm", "norm"):
        yield Weight(f"{at}{name}.weight", (hidden,), "norm")
    yield from _hyper(f"{at}hc_head_", c, c["hc_mult"], 1)
    yield from _layer(at, c, ratio, hashed=False)


def _layer(at: str, c: dict[str, Any], ratio: int, hashed: bool) -> Iterator[Weight]:
    streams = c["hc_mult"]
    for block in ("attn", "ffn"):
        yield Weight(f"{at}{block}_norm.weight", (c["hidden_size"],), "norm")
        yield from _hyper(f"{at}hc_{block}_", c, (2 + streams) * streams, 3)
    yield from _attention(f"{at}attn.", c)
    if ratio:
        yield from _compressor(f"{at}attn.compressor.", c, ratio, c["head_dim"])
    if ratio == 4:
        yield from _indexer(f"{at}attn.indexer.", c)
    yield from _moe(f"{at}ffn.", c, hashed)


def _hyper(at: str, c: dict[str, Any], rows: int, scales: int) -> Iterator[Weight]:
    """The tensors of one hyper-connection, all float32."""
    yield Weight(f"{at}fn", (rows, c["hc_mult"] * c["hidden_size"]), "bias")
    yield Weight(f"{at}base", (rows,), "bias")
    yield Weight(f"{at}scale", (scales,), "gain")


def _attention(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, rank, width = c["hidden_size"], c["q_lora_rank"], c["head_dim"]
    heads, groups, o_rank = c["num_attention_heads"], c["o_groups"], c["o_lora_rank"]
    yield Weight(f"{at}attn_sink", (heads,), "bias")
    yield Weight(f"{at}wq_a.weight", (rank, hidden), "linear")
    yield Weight(f"{at}q_norm.weight", (rank,), "norm")
    yield Weight(f"{at}wq_b.weight", (heads * width, rank), "linear")
    yield Weight(f"{at}wkv.weight", (width, hidden), "linear")
    yield Weight(f"{at}kv_norm.weight", (width,), "norm")
    yield Weight(f"{at}wo_a.weight", (groups * o_rank, heads * width // groups), "linear")
    yield Weight(f"{at}wo_b.weight", (hidden, groups * o_rank), "linear")


def _compressor(at: str, c: dict[str, Any], ratio: int, width: int) -> Iterator[Weight]:
    """Windows of 4 overlap, so each position has two halves."""
    rows = 2 * width if ratio == 4 else width
    yield Weight(f"{at}ape", (ratio, rows), "bias")
    yield Weight(f"{at}wkv.weight", (rows, c["hidden_size"]), "matrix")
    yield Weight(f"{at}wgate.weight", (rows, c["hidden_size"]), "matrix")
    yield Weight(f"{at}norm.weight", (width,), "norm")


def _indexer(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    heads, width = c["index_n_heads"], c["index_head_dim"]
    yield Weight(f"{at}wq_b.weight", (heads * width, c["q_lora_rank"]), "linear")
    yield Weight(f"{at}weights_proj.weight", (heads, c["hidden_size"]), "matrix")
    yield from _compressor(f"{at}compressor.", c, 4, width)


def _moe(at: str, c: dict[str, Any], hashed: bool) -> Iterator[Weight]:
    """A layer that routes by token id has a table of ids where others have a bias."""
    experts, width = c["n_routed_experts"], c["moe_intermediate_size"]
    yield Weight(f"{at}gate.weight", (experts, c["hidden_size"]), "matrix")
    if hashed:
        yield Weight(f"{at}gate.tid2eid", (c["vocab_size"], c["num_experts_per_tok"]), "ids")
    else:
        yield Weight(f"{at}gate.bias", (experts,), "bias")
    yield from _mlp(f"{at}shared_experts.", c, width * c["n_shared_experts"], "linear")
    for expert in range(experts):
        yield from _mlp(f"{at}experts.{expert}.", c, width, "expert")


def _mlp(at: str, c: dict[str, Any], width: int, kind: str) -> Iterator[Weight]:
    hidden = c["hidden_size"]
    yield Weight(f"{at}w1.weight", (width, hidden), kind)
    yield Weight(f"{at}w2.weight", (hidden, width), kind)
    yield Weight(f"{at}w3.weight", (width, hidden), kind)
