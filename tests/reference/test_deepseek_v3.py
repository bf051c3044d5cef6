"""DeepSeek-V3 against transformers, against itself in other forms, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers.modeling_layers import MtpModel

from fp8convert import to_bf16
from fp8convert.errors import FormatError, SchemeError
from fp8convert.reference.run import open_model, steps
from fp8convert.reference.weights import Weights

from . import v3
from .v3 import TOKENS, V3, Case, check, given, opened, relative, same

FLOAT32 = 1e-5
# BF16 keeps 8 bits: a rounding moves a value by 2^-9 at most, and some 15 on the way through each
# of three layers, in either direction, by sqrt(45) as much, to which random weights add a little.
BF16 = 16 * 2**-9
SHORT = TOKENS[:, :10]
# With all that can be left out, or differ: one group, no latent of queries, no YaRN, halves turned.
PLAIN = {
    "attention_bias": False, "first_k_dense_replace": 0, "n_group": 1, "n_shared_experts": None,
    "norm_topk_prob": False, "num_nextn_predict_layers": 0, "q_lora_rank": None,
    "rope_interleave": False, "rope_scaling": None, "tie_word_embeddings": True, "topk_group": 1,
}  # fmt: skip
KIMI = {
    "attention_bias": False, "model_type": "kimi_k2", "n_group": 1, "n_shared_experts": 2,
    "topk_group": 1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "groups and biases": V3,
    "kimi": V3 | KIMI,
    "plain": V3 | PLAIN | {"n_shared_experts": 1},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return v3.case(tmp_path_factory.mktemp("v3"), CASES[request.param])


@pytest.fixture(scope="module")
def v3_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return v3.case(tmp_path_factory.mktemp("v3"), V3)


def test_states_and_logits_are_those_of_transformers(model: Case) -> None:
    """40 positions, where YaRN stretches a context of 16; every group and expert is chosen once."""
    assert v3.router_margin(v3.router_scores(model.oracle)) > FLOAT32
    ours = opened(model)
    wanted = v3.expected(model.oracle)
    assert ours.mtp == model.config["num_nextn_predict_layers"]
    check(given(ours), wanted + (v3.expected_mtp(model) if ours.mtp else []), FLOAT32)
    assert [ours.kind(n) for n in range(3)] == [
        "moe" if hasattr(layer.mlp, "gate") else "dense" for layer in model.oracle.model.layers
    ]


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_the_router_is_that_of_transformers(model: Case, compute: str) -> None:
    """In float32 where all else is BF16; also where every score is below 0, a group's that is out
    must not be chosen for being masked."""
    x = torch.randn(50, 48, generator=torch.Generator().manual_seed(1))
    gate = model.oracle.model.layers[1].mlp.gate
    for lower in (0, 5):
        bias = gate.e_score_correction_bias - lower
        tensors = model.tensors | {"model.layers.1.mlp.gate.e_score_correction_bias": bias}
        ours = v3.build(model.config, Weights(v3.Memory(tensors), compute))
        found = ours.route("model.layers.1.mlp.", x)
        with torch.no_grad(), patch.object(gate, "e_score_correction_bias", bias):
            wanted = gate(x)
        by_expert = [
            torch.zeros(50, 16).scatter(1, chosen, share)
            for chosen, share in (found, (wanted[2], wanted[1]))
        ]
        torch.testing.assert_close(*by_expert, rtol=1e-5, atol=0)


def test_both_forms_of_attention_are_the_same(model: Case) -> None:
    ours = opened(model)
    check(given(v3.absorbed(ours)), given(ours), FLOAT32)


@pytest.mark.parametrize("experts", ["owner", "cut"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_the_whole(model: Case, ranks: int, experts: str) -> None:
    parts = [v3.rank_tensors(model, rank, ranks, experts) for rank in range(ranks)]
    assert parts[0]["model.layers.1.self_attn.kv_b_proj.weight"].shape[0] == 4 * 26 // ranks
    first, *others = v3.on_ranks(model, parts)
    check(first, given(opened(model)), FLOAT32)
    assert all(same(other, first) for other in others)


def test_the_config_of_transformers_says_the_same(model: Case) -> None:
    saved = json.loads((model.folder.parent / "made" / "config.json").read_text())
    assert "rope_parameters" in saved
    assert "rope_scaling" not in saved
    saved |= {k: model.config[k] for k in ("model_type", "num_hidden_layers")}
    other = v3.build(saved, Weights(v3.Memory(model.tensors), "fp32"))
    assert same(given(other), given(opened(model)))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": None},
        {"rope_scaling": v3.YARN | {"mscale_all_dim": 0}},
        {"rope_scaling": v3.YARN | {"mscale": 1.3}},
        {"rope_interleave": False},
        {"topk_group": 1},
        {"norm_topk_prob": False},
        {"routed_scaling_factor": 1.0},
    ],
    ids=str,
)
def test_every_field_matters(v3_case: Case, fields: dict[str, Any]) -> None:
    """Or the comparison with transformers would not see it."""
    right, wrong = given(opened(v3_case))[3], given(opened(v3_case, **fields))[3]
    assert relative(wrong, right) > 0.02


def test_plain_rope_has_no_correction_whatever_else_is_said(v3_case: Case) -> None:
    said = v3.YARN | {"rope_type": "default"}
    found, plain = (given(opened(v3_case, rope_scaling=r)) for r in (said, None))
    assert same(found, plain)


def test_bf16_is_as_near_as_transformers_bf16(tmp_path: Path) -> None:
    """To transformers in float32. No choice of a router is near enough to be another one."""
    made = v3.case(tmp_path, V3, seed=3, change=v3.as_bf16)
    other = v3.transformers(made.folder, torch.bfloat16)
    exact, rounded = v3.router_scores(made.oracle, SHORT), v3.router_scores(other, SHORT)
    noise = v3.moved([scores for _, scores in rounded], [scores for _, scores in exact])
    assert v3.router_margin(exact) > 10 * noise
    ours, theirs = given(opened(made, "bf16"), SHORT)[:4], v3.expected(other, SHORT)
    wanted = v3.expected(made.oracle, SHORT)
    check(ours, wanted, BF16)
    check(ours, theirs, 2 * BF16)
    for mine, yours, right in zip(ours, theirs, wanted, strict=True):
        assert relative(mine, right) < relative(yours, right)
    assert [state.dtype for state in ours] == [torch.bfloat16] * 3 + [torch.float32]


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_fp8_is_its_bf16_copy_bit_for_bit(
    tiny_fp8: Path, tiny_bf16: Path, tmp_path: Path, compute: str
) -> None:
    """Hidden 192, latents and keys of 576 rows: ragged in both directions."""
    to_bf16(str(tiny_fp8), str(tmp_path / "bf16"))
    ours = open_model(tiny_fp8, compute)
    assert ours.w.shape("model.layers.0.self_attn.kv_a_proj_with_mqa.weight") == (576, 192)
    found = given(ours, TOKENS)
    assert len(found) == 6  # three layers, logits, MTP's state and logits
    assert same(found, given(open_model(tmp_path / "bf16", compute), TOKENS))
    assert same(found, given(open_model(tiny_bf16, compute), TOKENS))


def test_the_sample_in_transformers(tiny_fp8: Path, tiny_bf16: Path) -> None:
    """From FP8, which transformers cannot read, to what it has from BF16, with its own MTP."""
    theirs = v3.transformers(tiny_bf16)
    assert v3.router_margin(v3.router_scores(theirs)) > 1e-6
    found = given(open_model(tiny_fp8, "fp32"))
    check(found[:4], v3.expected(theirs), FLOAT32)
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3.*"]
    mtp = MtpModel.from_pretrained(theirs).eval()
    with torch.no_grad():
        last = theirs.model(TOKENS, use_cache=False).last_hidden_state[:, :-1]
        places = torch.arange(1, TOKENS.shape[1])[None]
        state = mtp.forward_layer(0, last, places, None, input_ids=TOKENS[:, 1:])
        check(found[5:], [mtp._project_to_logits(state)], FLOAT32)


def test_fp8_compute_rounds_activations(tiny_fp8: Path) -> None:
    """E4M3 keeps 4 bits: 2^-5 at most for each activation, in every product."""
    exact, rounded = (given(open_model(tiny_fp8, c), SHORT) for c in ("bf16", "fp8"))
    for a, b in zip(rounded, exact, strict=True):
        assert 2**-7 < relative(a, b) < 2**-3


def test_what_mtp_has_of_its_own_is_used(v3_case: Case) -> None:
    """Copies of the tables change nothing; others do."""
    at, tensors = "model.layers.3.", dict(v3_case.tensors)
    copies = {
        f"{at}embed_tokens.weight": tensors["model.embed_tokens.weight"],
        f"{at}shared_head.head.weight": tensors["lm_head.weight"],
    }
    right = given(opened(v3_case))
    run = lambda more: given(v3.build(V3, Weights(v3.Memory(tensors | more), "fp32")))  # noqa: E731
    assert same(run(copies), right)
    for name, table in copies.items():
        found = run(copies | {name: table.flip(0)})
        assert same(found[:4], right[:4])
        assert relative(found[5], right[5]) > 0.1


@pytest.mark.parametrize(
    ("without", "fields"),
    [(r"layers\.3\.", {}), ("$^", {"num_nextn_predict_layers": 0})],
)
def test_no_mtp_without_its_weights_or_its_field(
    v3_case: Case, without: str, fields: dict[str, Any]
) -> None:
    ours = opened(v3_case, without=without, **fields)
    assert ours.mtp == 0
    assert same(given(ours), given(opened(v3_case))[:4])


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_a_layernorm.weight",
        "model.layers.0.self_attn.q_a_proj.bias",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.bias",
        "model.layers.2.self_attn.kv_b_proj.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
        "model.layers.2.mlp.experts.[0-9]+.gate_proj.weight",
        "model.layers.2.mlp.experts.[0-9]+.up_proj.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.hnorm.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.layers.3.self_attn.q_b_proj.weight",
    ],
)
def test_a_missing_weight_is_named(v3_case: Case, name: str) -> None:
    with pytest.raises(SchemeError, match=rf"weight '{name}' is missing"):
        given(opened(v3_case, without=f"^{name}$"), SHORT)


def test_a_bias_that_the_config_denies_is_named(v3_case: Case) -> None:
    with pytest.raises(SchemeError, match=r"layers\.0\.self_attn\.q_a_proj\.bias"):
        given(opened(v3_case, attention_bias=False), SHORT)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("self_attn.q_b_proj.weight", (60, 28)),
        ("self_attn.kv_b_proj.weight", (20, 104)),
        ("self_attn.kv_a_proj_with_mqa.weight", (27, 48)),
        ("mlp.gate.weight", (15, 48)),
        ("mlp.gate.e_score_correction_bias", (4,)),
    ],
)
def test_a_wrong_shape_is_named(v3_case: Case, name: str, shape: tuple[int, ...]) -> None:
    tensors = v3_case.tensors | {f"model.layers.1.{name}": torch.zeros(shape)}
    with pytest.raises(FormatError, match=rf"layers\.1\.{name}'? is \[{shape[0]}"):
        given(v3.build(V3, Weights(v3.Memory(tensors), "fp32")), SHORT)


def test_a_rank_with_other_heads_is_named(v3_case: Case) -> None:
    """Which has as many rows as fits a rank of two, but not the heads of its queries."""
    parts = [v3.rank_tensors(v3_case, rank, 2, "owner") for rank in range(2)]
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    for rows, expected in ((78, "2 heads of 26"), (60, "2 heads of 26")):
        parts[1][name] = v3_case.tensors[name][:rows]
        with pytest.raises(FormatError, match=rf"{name}' has {rows} rows .* {expected}"):
            v3.on_ranks(v3_case, parts)
    parts[1]["model.layers.1.self_attn.q_b_proj.weight"] = torch.zeros(50, 28)
    with pytest.raises(FormatError, match=r"has 50 rows .* whole heads of 20"):
        v3.on_ranks(v3_case, parts)


def test_one_token_has_no_next(v3_case: Case) -> None:
    found = given(opened(v3_case), TOKENS[:, :1])
    assert found[3].shape == (2, 1, 96)
    assert [state.shape for state in found[4:]] == [(2, 0, 48), (2, 0, 96)]
    check(found[:4], [state[:, :1] for state in given(opened(v3_case))[:4]], FLOAT32)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"topk_method": "group_limited_greedy"}, "topk_method"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"n_group": 5}, "n_group"),
        ({"n_group": 16, "topk_group": 16}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types"),
        ({"mlp_layer_types": ["dense", "sparse", "hash"]}, "mlp_layer_types"),
    ],
    ids=str,
)
def test_what_it_is_not_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        v3.build(V3 | fields, Weights(v3.Memory({}), "fp32"))


def test_a_count_of_layers_takes_no_memory(v3_case: Case) -> None:
    """One that is far from those that are there, which running them would find."""
    ours = opened(v3_case, num_hidden_layers=100_000)
    assert ours.kind(99_999) == "moe"
    with pytest.raises(SchemeError, match=r"layers\.4\.input_layernorm\.weight' is missing"):
        list(steps(ours, SHORT))
    with pytest.raises(FormatError, match="expected at most 100,000"):
        opened(v3_case, num_hidden_layers=1 << 50)


def test_every_second_layer_may_be_dense(v3_case: Case) -> None:
    """As the published modeling code counts: a multiple of moe_layer_freq has experts."""
    ours = opened(v3_case, num_hidden_layers=6, first_k_dense_replace=1, moe_layer_freq=2)
    assert [ours.kind(n) for n in range(6)] == ["dense", "dense", "moe", "dense", "moe", "dense"]
