"""DeepSeek-V3.2 against transformers: what its indexer adds to DeepSeek-V3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fp8convert.errors import FormatError, SchemeError
from fp8convert.reference.weights import Weights

from . import v3
from .test_deepseek_v3 import BF16, FLOAT32
from .v3 import TOKENS, V32, Case, check, given, opened, relative, same

TOPK = V32["index_topk"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return v3.case(tmp_path_factory.mktemp("v32"), V32)


def test_states_and_logits_are_those_of_transformers(model: Case) -> None:
    """40 tokens, of which a query sees 6. No choice is so near that float32 could turn it."""
    assert v3.router_margin(v3.router_scores(model.oracle)) > FLOAT32
    ours = opened(model)
    found, wanted = (v3.index_scores(run) for run in (partial(v3.given, ours), model.oracle))
    assert [len(scores) for scores in (found, wanted)] == [3, 3]  # MTP's are a token less
    assert v3.moved(found, wanted) < FLOAT32 * max(float(s.max()) for s in wanted)
    assert v3.index_safety(wanted, found, TOPK) > 1
    assert ours.mtp == 1
    check(given(ours), v3.expected(model.oracle) + v3.expected_mtp(model), FLOAT32)


def test_what_is_chosen_matters(model: Case) -> None:
    """Attention to all tokens is DeepSeek-V3's, and is something else."""
    sparse = given(opened(model))
    full = given(opened(model, index_topk=TOKENS.shape[1]))
    assert same(full, given(opened(model, model_type="deepseek_v3")))
    assert relative(full[3], sparse[3]) > 0.1
    assert relative(given(opened(model, index_topk=TOPK + 1))[3], sparse[3]) > 0.02
    first = [state[:, :TOPK] for state in sparse[:4]]  # which see all there is
    check(first, [state[:, :TOPK] for state in full[:4]], FLOAT32)


def test_both_forms_of_attention_are_the_same(model: Case) -> None:
    ours = opened(model)
    check(given(v3.absorbed(ours)), given(ours), FLOAT32)


@pytest.mark.parametrize("cut", [False, True], ids=["whole indexer", "indexer cut by heads"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_the_whole(model: Case, ranks: int, cut: bool) -> None:
    parts = [v3.rank_tensors(model, rank, ranks, "owner") for rank in range(ranks)]
    if cut:
        for rank, part in enumerate(parts):
            for name in [n for n in part if n.endswith(("wq_b.weight", "weights_proj.weight"))]:
                part[name] = part[name].chunk(ranks)[rank].contiguous()
    heads = V32["index_n_heads"] // (ranks if cut else 1)
    assert parts[1]["model.layers.0.self_attn.indexer.weights_proj.weight"].shape[0] == heads
    first, *others = v3.on_ranks(model, parts)
    check(first, given(opened(model)), FLOAT32)
    assert all(same(other, first) for other in others)


def test_the_config_of_transformers_says_the_same(model: Case) -> None:
    saved = json.loads((model.folder.parent / "made" / "config.json").read_text())
    assert saved["mlp_layer_types"] == ["dense", "sparse", "sparse", "sparse"]
    saved |= {"num_hidden_layers": 3, "mlp_layer_types": saved["mlp_layer_types"][:3]}
    saved |= {"num_nextn_predict_layers": 1}
    del saved["first_k_dense_replace"]
    other = v3.build(saved, Weights(v3.Memory(model.tensors), "fp32"))
    assert same(given(other), given(opened(model)))


def test_bf16_is_as_near_as_transformers_bf16(tmp_path: Path) -> None:
    """As of DeepSeek-V3. Two layers and eight tokens: choices of the indexer are often near, and
    here no rounding of scores, as transformers has it, makes another one."""
    made = v3.case(tmp_path, V32 | {"num_hidden_layers": 2}, seed=4, change=v3.as_bf16)
    tokens = TOKENS[:1, :8]
    other = v3.transformers(made.folder, torch.bfloat16)
    exact, rounded = v3.router_scores(made.oracle, tokens), v3.router_scores(other, tokens)
    noise = v3.moved([scores for _, scores in rounded], [scores for _, scores in exact])
    assert v3.router_margin(exact) > 5 * noise
    indexed = [v3.index_scores(run, tokens) for run in (made.oracle, other)]
    assert v3.index_safety(*indexed, TOPK) > 3
    ours, theirs = given(opened(made, "bf16"), tokens)[:3], v3.expected(other, tokens)
    wanted = v3.expected(made.oracle, tokens)
    check(ours, wanted, BF16)
    check(ours, theirs, 2 * BF16)
    for mine, yours, right in zip(ours, theirs, wanted, strict=True):
        assert relative(mine, right) < relative(yours, right)


def test_shares_of_heads_are_not_rounded(model: Case) -> None:
    """In BF16 either: the published code has weights_proj in float32."""
    name = "model.layers.0.self_attn.indexer.weights_proj.weight"
    rounded = model.tensors | {name: model.tensors[name].bfloat16().float()}
    first, other = (
        v3.index_scores(partial(given, v3.build(V32, Weights(v3.Memory(tensors), "bf16"))))[0]
        for tensors in (model.tensors, rounded)
    )
    assert v3.moved([first], [other]) > 0


@pytest.mark.parametrize("part", ["wq_b.weight", "wk.weight", "k_norm.bias", "weights_proj.weight"])
def test_a_missing_weight_is_named(model: Case, part: str) -> None:
    name = rf"model\.layers\.1\.self_attn\.indexer\.{part}"
    with pytest.raises(SchemeError, match=rf"weight '{name}' is missing"):
        given(opened(model, without=f"^{name}$"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"indexer_rope_interleave": True}, "indexer_rope_interleave"),
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"index_topk": 0}, "index_topk"),
        ({"index_n_heads": None}, "index_n_heads"),
        ({"index_head_dim": 4}, "index_head_dim"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ],
    ids=str,
)
def test_what_it_is_not_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        v3.build(V32 | fields, Weights(v3.Memory({}), "fp32"))
