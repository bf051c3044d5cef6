"""DeepSeek's own layout as it is written: names both ways, axes, and the arguments of its model.

The oracles are what ``inference/convert.py`` of DeepSeek-V3, V3.2 and V4 does, as a plain loop over
its mapping, and the JSON files that are published beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fp8convert
from fp8convert.errors import SchemeError
from fp8convert.layouts.deepseek import RANK_FILE, DeepSeek, rank_file
from fp8convert.layouts.model_args import model_args, untold
from fp8convert.layouts.shares import WHOLE, Share
from fp8convert.samples import deepseek_v3, deepseek_v4

from .oracle import load

Shape = tuple[int, ...]
Weights = list[tuple[str, Shape]]
V3_CONFIG, FLASH = deepseek_v3.PUBLISHED, deepseek_v4.PUBLISHED
UE8M0 = V3_CONFIG["quantization_config"] | {"scale_fmt": "ue8m0"}
V31_CONFIG = V3_CONFIG | {"quantization_config": UE8M0}
INDEXER = {"index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048}
V32_CONFIG = V31_CONFIG | {"model_type": "deepseek_v32", **INDEXER}
# What the published config.json of these has otherwise.
KIMI = V3_CONFIG | {
    "first_k_dense_replace": 1, "model_type": "kimi_k2", "n_group": 1, "n_routed_experts": 384,
    "num_attention_heads": 64, "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 50000.0, "topk_group": 1, "vocab_size": 163840,
}  # fmt: skip
PRO = FLASH | {
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0], "hidden_size": 7168, "index_topk": 1024,
    "moe_intermediate_size": 3072, "n_routed_experts": 384, "num_attention_heads": 128,
    "num_hidden_layers": 61, "o_groups": 16, "q_lora_rank": 1536, "routed_scaling_factor": 2.5,
}  # fmt: skip
# V2-Lite has no query compression; its config.json as far as the layout goes.
LITE: dict[str, Any] = {
    "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "model_type": "deepseek_v2", "moe_intermediate_size": 1408, "n_group": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
                     "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1,
    "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip

CODED = ("linear", "mlp", "expert")


def listing(config: dict[str, Any]) -> Iterator[tuple[str, Shape, bool]]:
    """Every weight of a model at its full size: name, shape, whether it has a scale."""
    v4 = config["model_type"] == "deepseek_v4"
    for w in (deepseek_v4._model if v4 else deepseek_v3.model)(config):
        yield w.name, w.shape, w.kind in CODED
        if w.name.endswith("q_a_proj.weight") and "index_topk" in config:
            yield from indexer(w.name.removesuffix("q_a_proj.weight"), config)


def indexer(at: str, c: dict[str, Any]) -> Iterator[tuple[str, Shape, bool]]:
    """V3.2's, of FORMATS."""
    width, heads = c["index_head_dim"], c["index_n_heads"]
    yield f"{at}indexer.wq_b.weight", (heads * width, c["q_lora_rank"]), True
    yield f"{at}indexer.wk.weight", (width, c["hidden_size"]), True
    yield f"{at}indexer.weights_proj.weight", (heads, c["hidden_size"]), False
    yield f"{at}indexer.k_norm.weight", (width,), False
    yield f"{at}indexer.k_norm.bias", (width,), False


def tensors(config: dict[str, Any]) -> Iterator[str]:
    """The names of all stored tensors."""
    scale = ".scale" if config["model_type"] == "deepseek_v4" else ".weight_scale_inv"
    for name, _, coded in listing(config):
        yield name
        if coded:
            yield name.removesuffix(".weight") + scale


def layout(config: dict[str, Any]) -> DeepSeek:
    return DeepSeek.of(config, (name for name, _, _ in listing(config)))


MODELS = {
    "V3": V3_CONFIG, "V3.1": V31_CONFIG, "V3.2": V32_CONFIG, "Kimi-K2": KIMI,
    "V4-Flash": FLASH, "V4-Pro": PRO,
}  # fmt: skip
V3_KIN = [name for name in MODELS if not name.startswith("V4")]

V3_MAPPING: dict[str, tuple[str, int | None]] = {
    "embed_tokens": ("embed", 0), "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None), "q_proj": ("wq", 0),
    "q_a_proj": ("wq_a", None), "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None),
    "kv_b_proj": ("wkv_b", 0), "o_proj": ("wo", 1), "gate": ("gate", None),
    "gate_proj": ("w1", 0), "down_proj": ("w2", 1), "up_proj": ("w3", 0), "norm": ("norm", None),
    "lm_head": ("head", 0), "wq_b": ("wq_b", None), "wk": ("wk", None),
    "k_norm": ("k_norm", None), "weights_proj": ("weights_proj", None),
}  # fmt: skip
V4_AXES = {
    "embed": 0, "head": 0, "wq_b": 0, "wo_a": 0, "wo_b": 1, "attn_sink": 0, "weights_proj": 0
}  # fmt: skip
MTP = f".layers.{V3_CONFIG['num_hidden_layers']}."


def converted_v3(name: str) -> tuple[str, int | None]:
    name = name.removeprefix("model.").replace("self_attn", "attn").replace("mlp", "ffn")
    name = name.replace("weight_scale_inv", "scale").replace("e_score_correction_bias", "bias")
    parts = name.split(".")
    parts[-2], axis = V3_MAPPING[parts[-2]]
    return ".".join(parts), axis


def converted_v4(name: str) -> tuple[str, int | None]:
    parts = name.split(".")
    bare = any(x in name for x in ("hc", "attn_sink", "tid2eid", "ape"))
    return name, V4_AXES.get(parts[-1] if bare else parts[-2])


@pytest.mark.parametrize("model", MODELS)
def test_names_and_axes_are_those_of_the_published_script(model: str) -> None:
    config = MODELS[model]
    found, v4 = layout(config), model.startswith("V4")
    experts, seen = config["n_routed_experts"], set()
    for name, shape, _ in listing(config):
        if MTP in name:
            continue
        ours, axis = (converted_v4 if v4 else converted_v3)(name)
        assert found.renamed(name) == ours
        share = found.share(name, shape)
        assert share is not None, name
        if ".experts." in name:
            number = int(name.split(".")[-3])
            assert (share.axis, share.expert, share.units) == (None, number, experts)
            seen.add(number)
            continue
        assert (share.axis, share.expert) == (axis, None), name
        assert (share == WHOLE) == (axis is None)
        if axis is not None:
            for ranks in (n for n in (1, 2, 4, 8) if share.fits(n)):
                each = shape[axis] // ranks
                cuts = [share.range(shape[axis], rank, ranks) for rank in range(ranks)]
                assert cuts == [(r * each, (r + 1) * each) for r in range(ranks)]
    assert seen == set(range(experts))


@pytest.mark.parametrize("model", MODELS)
def test_every_name_comes_back(model: str) -> None:
    names = list(tensors(MODELS[model]))
    found = layout(MODELS[model])
    ours = [found.renamed(name) for name in names]
    assert len(set(ours)) == len(names) > 60_000
    again = DeepSeek.of(MODELS[model], ours)  # as unshard has it, from the files of the ranks
    assert [again.original(name) for name in ours] == names


@pytest.mark.parametrize("model", V3_KIN)
def test_scales_are_called_after_their_weights(model: str) -> None:
    found = layout(MODELS[model])
    for name in tensors(MODELS[model]):
        if name.endswith(".weight_scale_inv") and MTP not in name:
            assert found.renamed(name) == converted_v3(name)[0]


UNITS = [
    (V3_CONFIG, "lm_head.weight", (129280, 7168), "vocab_size", 129280),
    (V3_CONFIG, "model.layers.0.self_attn.q_b_proj.weight", (24576, 1536),
     "num_attention_heads", 128),
    (V3_CONFIG, "model.layers.0.self_attn.o_proj.weight", (7168, 16384),
     "num_attention_heads", 128),
    (V3_CONFIG, "model.layers.0.mlp.down_proj.weight", (7168, 18432), "intermediate_size", 18432),
    (V3_CONFIG, "model.layers.3.mlp.shared_experts.up_proj.weight", (2048, 7168),
     "moe_intermediate_size x n_shared_experts", 2048),
    (LITE, "model.layers.0.self_attn.q_proj.weight", (3072, 2048), "num_attention_heads", 16),
    (LITE, "model.layers.1.mlp.shared_experts.down_proj.weight", (2048, 2816),
     "moe_intermediate_size x n_shared_experts", 2816),
    (FLASH, "layers.2.attn.wo_a.weight", (8192, 4096), "o_groups", 8),
    (FLASH, "layers.2.attn.wo_b.weight", (4096, 8192), "o_groups", 8),
    (FLASH, "mtp.0.attn.attn_sink", (64,), "num_attention_heads", 64),
    (FLASH, "layers.2.attn.indexer.wq_b.weight", (8192, 1024), "index_n_heads", 64),
    (PRO, "layers.2.attn.indexer.weights_proj.weight", (64, 7168), "index_n_heads", 64),
]  # fmt: skip


def of(config: dict[str, Any]) -> DeepSeek:
    v4 = config["model_type"] == "deepseek_v4"
    name = "layers.0.attn.attn_sink" if v4 else "model.layers.0.self_attn.kv_b_proj.weight"
    return DeepSeek.of(config, ["x", name])


@pytest.mark.parametrize(("config", "name", "shape", "field", "units"), UNITS)
def test_units(config: dict[str, Any], name: str, shape: Shape, field: str, units: int) -> None:
    share = of(config).share(name, shape)
    assert share is not None
    assert (share.of, share.units) == (field, units)


def test_a_routed_expert_is_whole_on_its_rank() -> None:
    share = of(KIMI).share("model.layers.9.mlp.experts.383.up_proj.weight", (2048, 7168))
    assert share == Share(units=384, of="n_routed_experts", expert=383)
    assert [share.range(1, rank, 8) for rank in range(8)] == [None] * 7 + [(0, 1)]


HF = "model.layers.61."
KEPT = {  # an MTP layer's own names, if it is not left out
    f"{HF}embed_tokens.weight": ("layers.61.embed.weight", 0),
    f"{HF}shared_head.head.weight": ("layers.61.shared_head.head.weight", 0),
    f"{HF}shared_head.norm.weight": ("layers.61.shared_head.norm.weight", None),
    f"{HF}eh_proj.weight": ("layers.61.eh_proj.weight", None),
    f"{HF}enorm.weight": ("layers.61.enorm.weight", None),
    f"{HF}hnorm.weight": ("layers.61.hnorm.weight", None),
    f"{HF}mlp.gate.e_score_correction_bias": ("layers.61.ffn.gate.bias", None),
    f"{HF}self_attn.q_b_proj.weight": ("layers.61.attn.wq_b.weight", 0),
}


def test_an_mtp_layer_of_v3() -> None:
    found = layout(V3_CONFIG)
    shapes = {name: shape for name, shape, _ in listing(V3_CONFIG) if MTP in name}
    assert shapes.keys() > KEPT.keys()
    for name, (ours, axis) in KEPT.items():
        share = found.share(name, shapes[name])
        assert share is not None
        assert (found.renamed(name), share.axis) == (ours, axis)
    assert all(found.share(name, shape) for name, shape in shapes.items())
    assert found.mtp == "drop"
    assert not any(found.dropped(name) for name in shapes)


def test_an_mtp_layer_of_v4() -> None:
    found = of(FLASH)
    assert found.mtp == "keep"
    assert found.dropped("mtp.0.embed.weight")
    assert found.dropped("mtp.12.head.weight")
    names = [
        "embed.weight",
        "head.weight",
        "mtp.0.norm.weight",
        "mtp.0.hc_head_fn",
        "mtp.embed.weight",
    ]
    assert not any(map(found.dropped, names))


def test_only_the_grouped_projection_of_v4_is_wanted_plain() -> None:
    found = layout(FLASH)
    plain = [name for name, _, _ in listing(FLASH) if found.plain(name)]
    wanted = FLASH["num_hidden_layers"] + FLASH["num_nextn_predict_layers"]
    assert len(plain) == wanted
    assert all(name.split(".")[-2] == "wo_a" for name in plain)
    assert not any(of(V3_CONFIG).plain(name) for name, _, _ in listing(V3_CONFIG))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="torch before 2.8")
def test_experts_of_v4_are_stored_as_the_published_script_has_them(tmp_path: Path) -> None:
    name, packed = "layers.0.ffn.experts.7.w1.weight", torch.arange(64, dtype=torch.int8)
    wanted = packed.reshape(4, 16).view(torch.float4_e2m1fn_x2)
    save_file({name: wanted}, tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])[name]
    dtype, shape = of(FLASH).stored_as(name, "I8", (4, 16))
    assert (dtype, list(shape)) == (header["dtype"], header["shape"]) == ("F4", [4, 32])
    for other in ("layers.0.ffn.shared_experts.w1.weight", "layers.0.ffn.experts.7.w1.scale"):
        assert of(FLASH).stored_as(other, "I8", (4, 16)) == ("I8", (4, 16))
    assert of(FLASH).stored_as(name, "F8_E4M3", (4, 16)) == ("F8_E4M3", (4, 16))
    assert of(V3_CONFIG).stored_as(name, "I8", (4, 16)) == ("I8", (4, 16))


UNKNOWN = [
    (V3_CONFIG, "model.layers.0.self_attn.rotary_emb.inv_freq"),
    (V3_CONFIG, "model.layers.0.mlp.experts.gate_up_proj"),
    (V3_CONFIG, "model.layers.#.mlp.gate.weight"),
    (V3_CONFIG, "model.layers.1234567.mlp.gate.weight"),
    (V3_CONFIG, "model.layers.0.q_b_proj.weight"),
    (V3_CONFIG, "language_model.model.norm.weight"),
    (V3_CONFIG, "layers.0.attn.attn_sink"),
    (V3_CONFIG, ""),
    (FLASH, "layers.0.engram.embed.weight"),
    (FLASH, "mtp.2.markov_head.head.weight"),
    (FLASH, "layers.0.e_proj.weight"),
    (FLASH, "model.layers.0.self_attn.q_b_proj.weight"),
]


@pytest.mark.parametrize(("config", "name"), UNKNOWN)
def test_a_name_that_is_not_known(config: dict[str, Any], name: str) -> None:
    found = of(config)
    assert found.share(name, (128, 128)) is None
    assert found.renamed(name) == name
    assert found.original(f"{name}.scale") == f"{name}.scale"


def without(config: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != field}


WRONG: list[tuple[dict[str, Any], str, Shape, list[str]]] = [
    (V3_CONFIG, "model.layers.0.self_attn.q_b_proj.weight", (100, 1536),
     ["[100, 1536]", "expected 24,576", "num_attention_heads"]),
    (V3_CONFIG, "model.layers.0.self_attn.o_proj.weight", (16384,),
     ["[16384]", "along axis 1", "num_attention_heads"]),
    (V3_CONFIG, "model.embed_tokens.weight", (129408, 7168),
     ["[129408, 7168]", "expected 129,280", "vocab_size"]),
    (V3_CONFIG, "model.layers.3.mlp.shared_experts.gate_proj.weight", (4096, 7168),
     ["expected 2,048", "moe_intermediate_size x n_shared_experts"]),
    (V3_CONFIG, "model.layers.3.mlp.experts.256.gate_proj.weight", (2048, 7168),
     ["experts.256", "n_routed_experts is 256"]),
    (FLASH, "layers.0.attn.wo_a.weight", (8191, 4096), ["[8191, 4096]", "o_groups"]),
    (FLASH, "layers.0.attn.attn_sink", (0,), ["[0]", "num_attention_heads"]),
    (without(V3_CONFIG, "intermediate_size"), "model.layers.0.mlp.up_proj.weight", (18432, 7168),
     ["intermediate_size in config.json"]),
    (V3_CONFIG | {"n_shared_experts": 0}, "model.layers.3.mlp.shared_experts.up_proj.weight",
     (2048, 7168), ["n_shared_experts in config.json"]),
    (V3_CONFIG | {"vocab_size": "129280"}, "lm_head.weight", (129280, 7168), ["vocab_size"]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "name", "shape", "wanted"), WRONG)
def test_a_shape_that_the_config_does_not_have(
    config: dict[str, Any], name: str, shape: Shape, wanted: list[str]
) -> None:
    with pytest.raises(SchemeError) as caught:
        of(config).share(name, shape)
    message = str(caught.value)
    assert f"weight '{name}'" in message
    assert [text for text in wanted if text not in message] == [], message


OTHERS = [
    ({"model_type": "llama"}, ["model.layers.0.self_attn.q_proj.weight"]),
    ({"model_type": "glm_moe_dsa"}, ["model.layers.0.self_attn.kv_b_proj.weight"]),
    ({"model_type": "deepseek_v41"}, ["layers.0.attn.attn_sink"]),
    ({}, ["model.layers.0.self_attn.kv_b_proj.weight"]),
    ({"model_type": ["deepseek_v3"]}, ["model.layers.0.self_attn.kv_b_proj.weight"]),
    (FLASH, ["model.layers.0.self_attn.sinks"]),  # as transformers saves V4
    (V3_CONFIG, ["layers.0.attn.attn_sink", "layers.0.attn.wkv.weight"]),
    (V3_CONFIG, []),
]


@pytest.mark.parametrize(("config", "names"), OTHERS)
def test_any_other_model_is_refused(config: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(SchemeError, match=r"layout deepseek is DeepSeek's own, .*--layout hf"):
        DeepSeek.of(config, names)


def test_files_are_named_as_they_are_read() -> None:
    found = RANK_FILE.fullmatch(rank_file(3, 16))
    assert found is not None
    assert (found["rank"], found["ranks"]) == ("3", "16")


def test_an_mtp_layer_that_was_kept_is_joined(tmp_path: Path) -> None:
    """Its tables are cut as the model's are."""
    generator = torch.Generator().manual_seed(5)
    whole = {
        ours: torch.randn((64, 64), generator=generator).bfloat16() for ours, _ in KEPT.values()
    }
    (tmp_path / "src").mkdir()
    for rank in range(2):
        mine = {
            ours: whole[ours] if axis is None else whole[ours].chunk(2, axis)[rank].contiguous()
            for ours, axis in KEPT.values()
        }
        coded = {"layers.0.attn.wkv_a.weight": torch.ones(64, 64).to(torch.float8_e4m3fn),
                 "layers.0.attn.wkv_a.scale": torch.ones(1, 1)}  # fmt: skip
        save_file(mine | coded, tmp_path / "src" / rank_file(rank, 2))
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst")
    found = load(tmp_path / "dst")
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


# Published beside inference/generate.py, but for batch and sequence lengths.
ARGS_671B = {
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61,
    "n_dense_layers": 3, "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "n_activated_experts": 8, "n_expert_groups": 8, "n_limited_groups": 4, "route_scale": 2.5,
    "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip
ARGS_V31 = ARGS_671B | {"scale_fmt": "ue8m0"}
ARGS_V32 = ARGS_V31 | {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
ARGS_16B = {
    "vocab_size": 102400, "dim": 2048, "inter_dim": 10944, "moe_inter_dim": 1408, "n_layers": 27,
    "n_dense_layers": 1, "n_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
    "n_activated_experts": 6, "route_scale": 1.0, "q_lora_rank": 0, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "mscale": 0.707,
}  # fmt: skip
ARGS_FLASH = {
    "vocab_size": 129280, "dim": 4096, "moe_inter_dim": 2048, "n_layers": 43, "n_hash_layers": 3,
    "n_heads": 64, "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 6,
    "score_func": "sqrtsoftplus", "route_scale": 1.5, "swiglu_limit": 10.0, "q_lora_rank": 1024,
    "head_dim": 512, "rope_head_dim": 64, "o_groups": 8, "o_lora_rank": 1024, "window_size": 128,
    "original_seq_len": 65536, "rope_theta": 10000, "rope_factor": 16, "beta_fast": 32,
    "beta_slow": 1, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "hc_mult": 4,
    "hc_sinkhorn_iters": 20, "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4",
    "compress_rope_theta": 160000, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}  # fmt: skip
# The fields of ModelArgs that no published JSON sets, and their defaults.
V3_DEFAULTS = {"original_seq_len": 4096, "rope_theta": 10000, "rope_factor": 40, "beta_fast": 32,
               "beta_slow": 1, "mscale": 1.0}  # fmt: skip
LITE_DEFAULTS = V3_DEFAULTS | {"n_expert_groups": 1, "n_limited_groups": 1, "score_func": "softmax",
                               "dtype": "bf16"}  # fmt: skip
V4_DEFAULTS = {"n_mtp_layers": 1, "norm_eps": 1e-06, "hc_eps": 1e-06}
PUBLISHED: list[tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = [
    (V3_CONFIG, "fp8", V3_DEFAULTS, ARGS_671B),
    (V31_CONFIG, "fp8", V3_DEFAULTS, ARGS_V31),
    (V32_CONFIG, "fp8", V3_DEFAULTS, ARGS_V32),
    (LITE, "bf16", LITE_DEFAULTS, ARGS_16B),
    (FLASH, "fp8", V4_DEFAULTS, ARGS_FLASH),
]


@pytest.mark.parametrize(
    ("config", "dtype", "defaults", "published"),
    PUBLISHED,
    ids=["671B", "v3.1", "671B_v3.2", "16B", "V4-Flash"],
)
def test_model_args_are_the_published_ones(
    config: dict[str, Any], dtype: Any, defaults: dict[str, Any], published: dict[str, Any]
) -> None:
    """Beside them are only fields of the same ModelArgs, with the values that they have anyway."""
    assert model_args(config, dtype) == defaults | published
    assert json.loads(json.dumps(model_args(config, dtype))) == defaults | published
    assert untold(config) == []


def test_model_args_of_bf16_weights() -> None:
    assert model_args(V3_CONFIG, "bf16") == model_args(V3_CONFIG, "fp8") | {"dtype": "bf16"}
    flash = model_args(FLASH, "bf16")
    assert flash["dtype"] == "bf16"
    assert flash["scale_fmt"] == "ue8m0"  # the cache is quantized whatever the weights are
    assert "expert_dtype" not in flash
    assert "expert_dtype" not in model_args(FLASH | {"expert_dtype": "fp8"}, "fp8")


def test_model_args_of_other_models_come_from_their_config() -> None:
    kimi = model_args(KIMI, "fp8")
    assert (kimi["n_heads"], kimi["n_expert_groups"], kimi["route_scale"]) == (64, 1, 2.827)
    assert (kimi["rope_theta"], kimi["rope_factor"], kimi["beta_fast"]) == (50000.0, 32.0, 1.0)
    pro = model_args(PRO, "fp8")
    assert (pro["dim"], pro["o_groups"], pro["index_topk"]) == (7168, 16, 1024)
    assert len(pro["compress_ratios"]) == pro["n_layers"] + pro["n_mtp_layers"]


def test_what_the_config_lacks_is_left_out() -> None:
    assert "n_limited_groups" not in model_args(without(V3_CONFIG, "topk_group"), "fp8")
    assert model_args({"model_type": "deepseek_v4"}, "fp8") == {"dtype": "fp8"}
    dropped = model_args(FLASH | {"num_nextn_predict_layers": 0}, "fp8")
    assert dropped["n_mtp_layers"] == 0


def test_rope_without_yarn() -> None:
    """V3's code scales by 40 unless it is told otherwise, V4's does not scale."""
    assert model_args(V3_CONFIG | {"rope_scaling": None}, "fp8")["rope_factor"] == 1.0
    flash = model_args(FLASH | {"rope_scaling": None}, "fp8")
    assert not flash.keys() & {"rope_factor", "original_seq_len"}


def test_the_softmax_is_scaled_by_mscale_all_dim() -> None:
    both = V3_CONFIG["rope_scaling"] | {"mscale": 2.0, "mscale_all_dim": 0.5}
    assert model_args(V3_CONFIG | {"rope_scaling": both}, "fp8")["mscale"] == 0.5


UNTOLD = [
    (V3_CONFIG | {"rms_norm_eps": 1e-05}, "rms_norm_eps is '1e-05'"),
    (V3_CONFIG | {"moe_layer_freq": 2}, "moe_layer_freq is '2'"),
    (V3_CONFIG | {"hidden_size": 2048}, "routers with a bias for 7168 only"),
    (V3_CONFIG | {"tie_word_embeddings": True}, "tie_word_embeddings"),
    (V3_CONFIG | {"rope_scaling": V3_CONFIG["rope_scaling"] | {"mscale": 2.0}}, "mscale"),
    (FLASH | {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is not YaRN"),
    (FLASH | {"n_shared_experts": 2}, "n_shared_experts is '2'"),
]


@pytest.mark.parametrize(("config", "wanted"), UNTOLD)
def test_what_the_published_code_cannot_be_told(config: dict[str, Any], wanted: str) -> None:
    (said,) = untold(config)
    assert wanted in said


def test_model_args_of_any_other_model_are_refused() -> None:
    with pytest.raises(SchemeError, match="no model_type 'llama'"):
        model_args({"model_type": "llama"}, "fp8")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_the_published_code_takes_whole_blocks(ranks: int) -> None:
    for config in (V3_CONFIG, V32_CONFIG, KIMI, FLASH, PRO):
        assert of(config).limits(ranks) is None


def test_more_ranks_than_the_shared_experts_have_blocks() -> None:
    said = of(V3_CONFIG).limits(32)
    assert said is not None
    assert "32 ranks do not divide the 16 blocks across shared experts" in said
    assert said.endswith("it takes 1, 2, 4, 8, 16")
    assert "16 blocks across shared experts" in (of(V3_CONFIG).limits(3) or "")
    wider = V3_CONFIG | {"moe_intermediate_size": 4096, "intermediate_size": 32768}
    assert of(wider).limits(32) is None
    assert "of fewer, it takes none" in (of(V3_CONFIG | {"intermediate_size": 100}).limits(2) or "")
    assert "85.5 blocks across dense layers" in (
        of(LITE | {"moe_intermediate_size": 8192}).limits(2) or ""
    )
    assert of(PRO).limits(256) is not None
