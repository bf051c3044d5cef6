"""Which weights are quantized: against what publishers code, what engines build, and by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers.quantizers.quantizers_utils import should_convert_module

from fp8convert import classes, schemes
from fp8convert.choice import Choice, choose
from fp8convert.codecs.base import Stored
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.raw import Raw
from fp8convert.configout import compressed_config
from fp8convert.declared import declared
from fp8convert.errors import SchemeError, UsageError
from fp8convert.schemes.weight import Weight

from .recognition.catalogue import all_facts
from .recognition.facts import SHARDS, Fact, stored

FACTS = all_facts()


def plain(name: str, *shape: int, dtype: str = "BF16") -> Weight:
    return Weight(name, Raw(), (Stored(name, dtype, shape or (256, 256), 0, 0, 1),))


def coded(name: str, *shape: int) -> Weight:
    parts = plain(name, *shape, dtype="F8_E4M3").parts
    return Weight(name, Fp8Block((128, 128)), (*parts, *plain(f"{name}_scale_inv", 2, 2).parts))


def fits(weight: Weight) -> str | None:
    return None


def chosen(
    names: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    like: Collection[str] | None = None,
) -> Choice:
    """The choice among matrices with these names."""
    return choose([plain(name) for name in names], include, exclude, like, fits)


def at(module: str, names: str) -> list[str]:
    """``names`` in ``module``, with ``.weight``."""
    return [f"{module}{name}.weight" for name in names.split()]


# By hand: linears, matrices that stay (in the ignore list), and what is not spoken of.
V3 = "model.layers.3."
V4 = "layers.2."
QWEN = "model.layers.0."
FAMILIES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "DeepSeek V3, Kimi K2": (
        at(f"{V3}self_attn.", "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj")
        + at(f"{V3}mlp.experts.255.", "gate_proj up_proj down_proj")
        + at(f"{V3}mlp.shared_experts.", "gate_proj up_proj down_proj")
        + at("model.layers.0.mlp.", "gate_proj up_proj down_proj")
        + at("model.layers.61.mlp.experts.0.", "gate_proj up_proj down_proj"),
        at("", "lm_head")
        + at(V3, "mlp.gate")
        + at("model.layers.61.", "eh_proj shared_head.head mlp.gate"),
        at("model.", "embed_tokens layers.61.embed_tokens"),
    ),
    "DeepSeek V3.2, GLM-5": (
        at(f"{V3}self_attn.indexer.", "wq_b wk"),
        at(f"{V3}self_attn.", "indexer.weights_proj indexers_proj"),
        [],
    ),
    "DeepSeek V4": (
        at(f"{V4}attn.", "wq_a wq_b wkv wo_a wo_b indexer.wq_b")
        + at(f"{V4}ffn.", "shared_experts.w1 shared_experts.w2 experts.0.w1 experts.0.w2")
        + at("mtp.0.", "e_proj h_proj attn.wq_a ffn.experts.0.w3"),
        at(f"{V4}attn.", "compressor.wkv compressor.wgate indexer.weights_proj")
        + at(f"{V4}attn.indexer.compressor.", "wkv wgate")
        + at("", "head")
        + at("", f"{V4}ffn.gate mtp.0.ffn.gate"),
        at("", "embed"),
    ),
    "DeepSeek V4.1": (
        at("", "layers.1.engram.wkv mtp.0.main_proj layers.0.ffn.experts.0.w1"),
        at("", "mtp.2.confidence_head.proj layers.2.attn.compressor.wkv vision.blocks.0.mlp.w1")
        + at("aligner.", "w1"),
        at("", "layers.1.engram.embed mtp.2.markov_head.embed"),
    ),
    "Qwen3": (
        at(f"{QWEN}self_attn.", "q_proj k_proj v_proj o_proj")
        + at(f"{QWEN}mlp.", "gate_proj up_proj down_proj"),
        at("", "lm_head"),
        at("model.", "embed_tokens"),
    ),
    "Qwen3 MoE, next": (
        at(f"{QWEN}mlp.experts.127.", "gate_proj up_proj down_proj")
        + at(f"{QWEN}mlp.shared_expert.", "gate_proj up_proj down_proj")
        + at(f"{QWEN}linear_attn.", "in_proj_qkv in_proj_z in_proj_qkvz out_proj"),
        at(f"{QWEN}mlp.", "gate shared_expert_gate")
        + at(f"{QWEN}linear_attn.", "in_proj_a in_proj_b in_proj_ba")
        + at("mtp.", "fc"),
        [],
    ),
    "MiniMax M2, Mixtral": (
        at(f"{QWEN}block_sparse_moe.experts.7.", "w1 w2 w3")
        + at(f"{QWEN}self_attn.", "q_proj o_proj index_q_proj index_k_proj"),
        at(f"{QWEN}block_sparse_moe.", "gate"),
        [],
    ),
    "Llama and Mistral, their own names": (
        at("layers.0.attention.", "wq wk wv wo") + at("layers.0.feed_forward.", "w1 w2 w3"),
        at("", "output"),
        at("", "tok_embeddings"),
    ),
    "Llama 4, Pixtral, Kimi K2.5": (
        at("language_model.model.layers.0.feed_forward.shared_expert.", "gate_proj down_proj"),
        at("language_model.", "lm_head model.layers.0.feed_forward.router")
        + at(
            "", "multi_modal_projector.linear_1 mm_projector.proj.0 vision_tower.blocks.0.attn.qkv"
        )
        + at("vision_model.", "layers.0.self_attn.q_proj patch_embedding.linear")
        + at("", "vision_encoder.transformer.layers.0.attention.wq patch_merger.merging_layer")
        + at("", "model.visual.blocks.0.mlp.fc1 audio_tower.layers.0.fc1"),
        at("", "language_model.model.embed_tokens vision_model.positional_embedding_vlm"),
    ),
    "Bert and its heads": (
        at("bert.encoder.layer.0.attention.self.", "query key value")
        + at("bert.encoder.layer.0.", "attention.output.dense intermediate.dense output.dense")
        + at("bert.pooler.", "dense"),
        at("cls.predictions.", "transform.dense decoder") + at("", "classifier qa_outputs"),
        at("bert.embeddings.", "word_embeddings position_embeddings token_type_embeddings"),
    ),
    "T5, GPT-2, Mamba": (
        at("encoder.block.0.layer.0.SelfAttention.", "q k v o")
        + at("", "h.0.attn.c_attn h.0.mlp.c_fc backbone.layers.0.mixer.in_proj"),
        at("backbone.layers.0.mixer.", "x_proj dt_proj") + at("", "score"),
        at("", "shared model.shared transformer.wte transformer.wpe")
        + at("encoder.block.0.layer.0.SelfAttention.", "relative_attention_bias"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_convention_of_a_family(family: str) -> None:
    linears, stay, unspoken = FAMILIES[family]
    names = [name for row in zip_longest(stay, unspoken, linears) for name in row if name]
    found = chosen(names)
    assert sorted(found.chosen) == sorted(linears)
    assert sorted(found.kept) == sorted(stay)
    assert list(found.kept) == [name for name in names if name in stay]  # stored order
    assert (found.notes, found.warnings) == ((), ())


def zip_longest(*lists: list[str]) -> Iterator[list[str]]:
    for i in range(max(map(len, lists))):
        yield [names[i] for names in lists if i < len(names)]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("model.layers.0.mlp.up_proj.bias", (256, 256), "BF16"),
        ("model.layers.0.mlp.up_proj.weight", (256,), "BF16"),
        ("model.layers.0.mlp.up_proj.weight", (256, 3, 14, 14), "BF16"),
        ("model.layers.0.mlp.up_proj.weight", (256, 256), "I8"),
        ("model.layers.0.mlp.up_proj.weight", (256, 256), "F64"),
        ("layers.0.hc_attn_fn", (24, 256), "F32"),
        ("layers.0.ffn.gate.tid2eid", (256, 6), "I64"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (32, 256), "BF16"),
    ],
)
def test_what_can_never_be_quantized(name: str, shape: tuple[int, ...], dtype: str) -> None:
    weights = [plain("a.weight"), plain(name, *shape, dtype=dtype)]
    found = choose(weights, (), (), None, fits)
    assert found.chosen == {"a.weight"}
    assert found.kept == ((name,) if dtype in ("I8", "F64") else ())
    with pytest.raises(SchemeError, match=r"no weight to quantize: there is no .*matrix"):
        choose(weights[1:], ("*",), (), None, fits)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_plain_and_coded_weights_are_alike(dtype: str) -> None:
    rows = FAMILIES["DeepSeek V3, Kimi K2"]
    names = [name for group in rows for name in group]
    was = choose([plain(n, dtype=dtype) for n in names], (), (), None, fits)
    assert choose([coded(n) for n in names], (), (), None, fits) == was


# Facts of published checkpoints. Where less is coded there, what is ours alone; where more, theirs.
def read(fact: Fact) -> tuple[Weight, ...]:
    tensors = stored(fact.parts)
    said = declared(fact.config, fact.sidecars)
    return schemes.detect(said, tensors).read(tensors, SHARDS).weights


AGREE = [
    *(f"deepseek-ai/DeepSeek-{v}" for v in ("V3", "R1", "V3.1", "V3.2", "V4-Flash", "V4-Pro")),
    "deepseek-ai/DeepSeek-V4-Flash-Base", "moonshotai/Kimi-K2-Instruct",
    "Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-30B-A3B-FP8", "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3-32B-FP8-Static-PerTensor", "nvidia/Qwen3-235B-A22B-NVFP4",
    "MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.7", "MiniMaxAI/MiniMax-M3",
    *(f"zai-org/GLM-{v}-FP8" for v in ("5", "5.1", "5.2", "5.3")),
    "cleman273/affine-devstral", "nvidia/Llama-3.1-70B-Instruct-FP8",
    "RedHatAI/DeepSeek-V4-Flash-NVFP4-FP8", "nvidia/DeepSeek-V4-Flash-NVFP4",
]  # fmt: skip
DISAGREE: dict[str, tuple[set[str], set[str]]] = {
    "deepseek-ai/DeepSeek-V4.1-Flash": (set(), {"layers.1.engram.embed.weight"}),
    "Qwen/Qwen3.8-2.4T-A95B-FP8": (  # only routed experts
        {
            "model.layers.0.linear_attn.out_proj.weight",
            "model.layers.3.self_attn.q_proj.weight",
            "model.layers.0.mlp.shared_expert.up_proj.weight",
        },
        set(),
    ),
    "nvidia/Qwen3.6-35B-A3B-NVFP4": (
        {"mtp.layers.0.self_attn.q_proj.weight"},
        {"lm_head.weight"},
    ),
    "openai/gpt-oss-120b": (
        {"model.layers.0.self_attn.q_proj.weight"},
        {f"model.layers.0.mlp.experts.{leaf}_proj" for leaf in ("gate_up", "down")},
    ),
}


def differences(name: str) -> tuple[set[str], set[str]]:
    """What is quantized only here, and only as published."""
    fact = FACTS[name]
    ours = choose(read(fact), (), (), None, fits).chosen
    theirs = {row.name for row in fact.coded}
    return set(ours - theirs), theirs - ours


@pytest.mark.parametrize("name", AGREE)
def test_what_publishers_code_is_quantized_and_nothing_else(name: str) -> None:
    assert differences(name) == (set(), set())


@pytest.mark.parametrize("name", DISAGREE)
def test_where_publishers_code_other_weights(name: str) -> None:
    assert differences(name) == DISAGREE[name]


@pytest.fixture
def no_routers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(classes.PARTS, "gate")
    classes._kind.cache_clear()
    yield
    classes._kind.cache_clear()


@pytest.mark.usefixtures("no_routers")
def test_a_rule_that_forgets_routers_would_be_noticed() -> None:
    assert differences("Qwen/Qwen3-235B-A22B-FP8") == ({"model.layers.0.mlp.gate.weight"}, set())
    assert differences("deepseek-ai/DeepSeek-V3")[0] == {"model.layers.3.mlp.gate.weight"}


CODED = {name for name, fact in FACTS.items() if any(len(row.shape) == 2 for row in fact.coded)}


@pytest.mark.parametrize("name", sorted(CODED))
def test_another_checkpoint_is_followed_to_the_letter(name: str) -> None:
    fact = FACTS[name]
    like = {row.name for row in fact.coded if len(row.shape) == 2}
    found = choose(read(fact), (), (), like, fits)
    assert found.chosen == like
    matrices = [r.name for r in fact.rows if r.name.endswith(".weight") and len(r.shape) in (2, 3)]
    tables = [n for n in matrices if "embed" in n.split(".")[-2]]
    assert list(found.kept) == [n for n in matrices if n not in like and n not in tables]


LISTED = {  # modules that published configs list, of those with rows here
    "Qwen/Qwen3-235B-A22B-FP8": ["model.layers.0.mlp.gate"],
    "MiniMaxAI/MiniMax-M2.7": ["lm_head", "model.layers.0.block_sparse_moe.gate"],
    "zai-org/GLM-5-FP8": ["model.layers.3.mlp.gate", "model.layers.78.eh_proj"],
    "Qwen/Qwen3.8-2.4T-A95B-FP8": [
        "lm_head",
        "model.layers.0.linear_attn.conv1d",
        "model.layers.0.linear_attn.in_proj_a",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate",
        "mtp.fc",
    ],
    "openai/gpt-oss-120b": ["model.layers.0.mlp.router"],
    "nvidia/Kimi-K2.5-NVFP4": ["language_model.lm_head"],
}


@pytest.mark.parametrize("name", LISTED)
def test_what_publishers_list_as_not_quantized_is_ignored(name: str) -> None:
    said = FACTS[name].config["quantization_config"]
    published = [*said.get("modules_to_not_convert", ()), *said.get("ignore", ())]
    ignored = choose(read(FACTS[name]), (), (), None, fits).ignored
    for module in LISTED[name]:
        layer = module.replace(".0.", ".*.")
        assert {module, layer, module.rpartition(".")[2]} & set(published), module
        assert module in ignored


# Patterns.
NAMES = (
    at("", "model.embed_tokens lm_head")
    + at("model.layers.0.self_attn.", "q_proj k_proj v_proj o_proj")
    + at("model.layers.0.mlp.", "gate gate_proj up_proj down_proj")
    + at("model.layers.10.self_attn.", "o_proj")
)
O_PROJ = {"model.layers.0.self_attn.o_proj.weight", "model.layers.10.self_attn.o_proj.weight"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["lm_head"], {"lm_head.weight"}),
        (["lm_head.weight"], {"lm_head.weight"}),
        (["*.o_proj"], O_PROJ),
        (["*o_proj.weight"], O_PROJ),
        (["model.layers.?.*.o_proj"], {"model.layers.0.self_attn.o_proj.weight"}),
        (["*.layers.1[0-9].*"], {"model.layers.10.self_attn.o_proj.weight"}),
        (["lm_head", "*.10.*"], {"lm_head.weight", "model.layers.10.self_attn.o_proj.weight"}),
    ],
)
def test_include_replaces_the_convention(patterns: list[str], expected: set[str]) -> None:
    found = chosen(NAMES, patterns)
    assert found.chosen == expected
    assert found.warnings == ()
    assert list(found.kept) == [n for n in NAMES[1:] if n not in expected]


def test_exclude_takes_away_from_every_choice() -> None:
    linears = set(NAMES) - {"model.embed_tokens.weight", "lm_head.weight",
                            "model.layers.0.mlp.gate.weight"}  # fmt: skip
    assert chosen(NAMES, (), ["*.o_proj"]).chosen == linears - O_PROJ
    assert chosen(NAMES, (), ["lm_head"]).chosen == linears  # was not chosen: no error
    assert chosen(NAMES, ["*.o_proj", "lm_head"], ["*.10.*"]).chosen == {
        "lm_head.weight",
        "model.layers.0.self_attn.o_proj.weight",
    }
    like = [*O_PROJ, "model.layers.0.mlp.down_proj.weight", "not.here.weight"]
    assert chosen(NAMES, (), ["*.10.*"], like).chosen == set(like[:3]) - {
        "model.layers.10.self_attn.o_proj.weight"
    }


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["q_proj", "*.Q_PROJ", "*norm*", "lm_head*weight.weight", "["])
def test_a_pattern_that_matches_nothing(option: str, pattern: str) -> None:
    """It names what was tried, and how names look."""
    names = [*NAMES, "model.norm.weight"]
    weights = [plain(n, *(() if "norm" not in n else (256,))) for n in names]
    given: dict[str, Any] = {"include": (), "exclude": (), option: ("*", pattern)}
    with pytest.raises(UsageError) as error:
        choose(weights, given["include"], given["exclude"], None, fits)
    assert f"--{option} '{pattern}' matches none of 11 weights" in str(error.value)
    assert "'model.embed_tokens.weight'" in str(error.value)
    assert "'model.layers.10.self_attn.o_proj.weight'" in str(error.value)


def test_like_and_include_are_two_answers_to_one_question() -> None:
    with pytest.raises(UsageError, match="give --like or --include, not both"):
        chosen(NAMES, ["*"], (), [])


@pytest.mark.parametrize("like", [[], ["layers.0.attn.wq_a.weight"], ["model.norm.weight"]])
def test_like_a_checkpoint_of_another_model(like: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--like: .*'model\.embed_tokens\.weight'"):
        chosen(NAMES, (), (), like)


@pytest.mark.parametrize(
    ("names", "exclude"), [(["lm_head.weight", "model.embed_tokens.weight"], ()), (NAMES, ["*"])]
)
def test_nothing_left_to_quantize(names: list[str], exclude: Sequence[str]) -> None:
    with pytest.raises(SchemeError, match="no weight to quantize"):
        chosen(names, (), exclude)


def test_what_engines_read_unquantized_is_only_chosen_with_a_warning() -> None:
    found = chosen(NAMES, ["*"])
    assert found.chosen == set(NAMES)
    embedding, router = found.warnings
    assert "weight 'model.embed_tokens.weight', which engines expect unquantized" in embedding
    assert "weight 'model.layers.0.mlp.gate.weight', which engines expect unquantized" in router
    assert chosen(NAMES, (), (), NAMES).warnings == ()  # as another has it


def test_names_are_escaped_in_messages() -> None:
    with pytest.raises(UsageError) as error:
        chosen(["\x1b[2J.weight"], ["\x1b*x"])
    assert "\x1b" not in str(error.value)
    found = choose([plain("\x1b.weight"), plain("a.weight")], (), (), None, only("\x1b", "why"))
    assert "\x1b" not in "".join(found.notes)


# What a codec cannot hold, and what is fused with it.
def only(part: str, why: str) -> Any:
    return lambda weight: why if part in weight.name else None


PARTNERS = {
    "model.layers.0.self_attn.{}.weight": ["q_proj k_proj v_proj", "q_a_proj kv_a_proj_with_mqa"],
    "layers.0.attention.{}.weight": ["wq wk wv", "wq_a wkv wkv_a"],
    "layers.2.attn.indexer.compressor.{}.weight": ["wkv wgate"],
    "model.layers.0.mlp.experts.7.{}.weight": ["gate_proj up_proj", "w1 w3"],
    "model.layers.0.linear_attn.{}.weight": ["in_proj_qkv in_proj_z", "in_proj_b in_proj_a"],
    "{}.weight": ["gate_proj up_proj"],
    "encoder.layer.0.attention.self.{}.weight": ["query key value"],  # vLLM's bert: qkv_proj
}
ALONE = [
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "layers.0.feed_forward.w2.weight",
    "encoder.layer.0.attention.output.dense.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.my_q_proj.weight",
    "q_proj",
    "",
]


@pytest.mark.parametrize("form", PARTNERS)
def test_partners(form: str) -> None:
    for group in PARTNERS[form]:
        names = tuple(form.format(leaf) for leaf in group.split())
        for name in names:
            assert classes.partners(name) == names


@pytest.mark.parametrize("name", ALONE)
def test_without_partners(name: str) -> None:
    assert classes.partners(name) == ()


def test_partners_of_what_does_not_fit_stay_with_it() -> None:
    found = choose(
        [plain(name) for name in NAMES], (), (), None, only("k_proj", "300 columns, expected 16 n")
    )
    attention = "model.layers.0.self_attn"
    assert found.chosen == {*O_PROJ, *at("model.layers.0.mlp.", "gate_proj up_proj down_proj")}
    assert found.notes == (
        f"not quantized: weight '{attention}.k_proj.weight': 300 columns, expected 16 n",
        f"not quantized either: 2 weights, such as '{attention}.q_proj.weight': engines read what "
        "they fuse in one precision",
    )
    assert set(at(f"{attention}.", "q_proj k_proj v_proj")) < set(found.kept)
    assert found.warnings == ()


def experts(layers: int, count: int) -> list[str]:
    leaves = "gate_proj up_proj down_proj"
    return [
        name
        for layer in range(layers)
        for n in range(count)
        for name in at(f"model.layers.{layer}.mlp.experts.{n}.", leaves)
    ]


def test_the_experts_of_a_layer_stay_together() -> None:
    weights = [plain(name) for name in [*NAMES, *experts(3, 4)]]
    found = choose(weights, (), (), None, only("layers.1.mlp.experts.2.down_proj", "too odd"))
    left = {name for name in experts(3, 4) if ".1." in name.partition(".experts.")[0]}
    assert len(left) == 12
    assert found.kept[-12:] == tuple(n for n in experts(3, 4) if n in left)
    assert left.isdisjoint(found.chosen)
    assert {n for n in experts(3, 4) if n not in left} < found.chosen
    assert "(routed experts)" not in found.notes[0]  # one weight needs no group
    assert "not quantized either: 11 weights" in found.notes[1]


def test_a_note_for_each_reason_and_group_whatever_their_number() -> None:
    weights = [plain(name) for name in [*NAMES, *experts(60, 10)]]
    found = choose(weights, (), (), None, only("down_proj", "ragged"))
    assert [note.partition(", such as")[0] for note in found.notes] == [
        "not quantized: 600 weights (routed experts)",
        "not quantized: weight 'model.layers.0.mlp.down_proj.weight': ragged",
        "not quantized either: 1,200 weights",
    ]
    every = choose(weights, (), (), None, lambda w: w.name if ".experts." in w.name else None)
    assert len(every.notes) < 20
    assert "more reasons" in every.notes[-1]


def test_fused_experts_are_reported() -> None:
    """Of gpt-oss and Llama 4 (no ``.weight``), and of Step (with it); even if no codec minds."""
    stacks = ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"]
    weights = [plain(name, 32, 64, 64) for name in stacks]
    weights += [plain("model.layers.1.moe.up_proj.weight", 32, 64, 64), plain("a.weight")]
    weights += [plain("model.layers.0.linear_attn.conv1d.weight", 64, 1, 4)]
    found = choose(weights, (), (), None, fits)
    assert found.chosen == {"a.weight"}
    assert found.notes == (
        f"not quantized: 2 weights (routed experts), such as '{stacks[0]}': 3 axes, expected two",
        "not quantized: weight 'model.layers.1.moe.up_proj.weight': 3 axes, expected two",
    )
    assert found.kept == tuple(w.name for w in weights if w.name != "a.weight")
    with pytest.raises(SchemeError, match=r"no weight to quantize; not quantized: .*3 axes"):
        choose(weights[:3], (), (), None, fits)


@pytest.mark.parametrize(
    ("exclude", "groups", "taken", "left"),
    [
        ("*.k_proj", "1 group", "q_proj", "k_proj"),
        ("*.mlp.up_proj", "1 group", "gate_proj", "up_proj"),
        ("*.experts.*.down_proj", "3 groups", "gate_proj", "down_proj"),
        ("*.1.mlp.experts.3.*", "1 group", "experts.0.gate_proj", "experts.3.gate_proj"),
    ],
)
def test_a_pattern_that_splits_what_is_fused(
    exclude: str, groups: str, taken: str, left: str
) -> None:
    (warning,) = chosen([*NAMES, *experts(3, 4)], (), [exclude]).warnings
    assert warning.startswith(f"{groups} of fused weights quantized in part, such as ")
    assert warning.index(f"{taken}.weight") < warning.index(f"{left}.weight")


@pytest.mark.parametrize("exclude", ["*.mlp.*", "*.experts.*", "*.self_attn.*", "*.o_proj"])
def test_whole_groups_may_be_left_out(exclude: str) -> None:
    assert chosen([*NAMES, *experts(3, 4)], (), [exclude]).warnings == ()


# The list of what is not quantized, as engines read it.
def test_modules_to_ignore() -> None:
    assert chosen(NAMES).ignored == ("lm_head", "model.layers.0.mlp.gate")
    assert chosen(NAMES, ["*_proj"]).ignored == ("lm_head", "model.layers.0.mlp.gate")
    assert chosen(NAMES[2:], ()).ignored == ("model.layers.0.mlp.gate", "lm_head")  # tied
    assert chosen(NAMES, ["*_proj", "lm_head"]).ignored == ("model.layers.0.mlp.gate",)
    assert chosen(["head.weight", "layers.0.attn.wo_b.weight"]).ignored == ("head",)


@pytest.mark.parametrize("leaves", ["w1 w3 w2", "gate_proj up_proj down_proj"])
def test_experts_to_ignore_have_the_names_that_vllm_asks_for(leaves: str) -> None:
    """``CompressedTensorsMoEMethod`` tries these, whatever the names on disk."""
    moe = "model.layers.0.block_sparse_moe.experts"
    names = [*NAMES, *at(f"{moe}.0.", leaves), *at(f"{moe}.1.", leaves)]
    ignored = chosen(names, (), [f"{moe}.*"]).ignored
    asked = [f"{moe}.0.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")]
    assert set(asked) < set(ignored)
    assert len(ignored) == len(set(ignored))
    assert not set(asked) & set(chosen(names).ignored)
    assert f"{moe}.0.gate_proj" not in chosen(names, (), [f"{moe}.1.*"]).ignored


TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "num_key_value_heads": 2}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
       "v_head_dim": 8, "n_routed_experts": 8, "first_k_dense_replace": 1, "n_group": 2,
       "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}  # fmt: skip
MODELS = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 16, "tie_word_embeddings": True},
    "Qwen3MoeForCausalLM": {"head_dim": 16, **MOE},
    "DeepseekV3ForCausalLM": MLA,
    "BertModel": {},
    "BertForMaskedLM": {},
    "RobertaForMaskedLM": {},
    "T5ForConditionalGeneration": {},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    kind = getattr(transformers, request.param)
    return kind(kind.config_class(**TINY, **MODELS[request.param]))


def saved(model: Any, folder: Path) -> list[Weight]:
    """The weights as transformers writes them."""
    model.save_pretrained(folder)
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]
    return [plain(n, *e["shape"], dtype=e["dtype"]) for n, e in sorted(entries.items())]


def test_transformers_makes_every_linear_that_is_chosen_quantized_and_no_other(
    model: Any, tmp_path: Path
) -> None:
    """By compressed-tensors, as transformers calls it, and by its own FP8: all of ``Linear`` but
    what is ignored. Experts are no modules of their own in transformers, and are left out here."""
    found = choose(saved(model, tmp_path), (), (), None, fits)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    said = QuantizationConfig.model_validate(compressed_config("fp8-channel", None, found.ignored))
    apply_quantization_config(model, said, show_progress=False)
    made = {n for n in linears if hasattr(model.get_submodule(n), "quantization_scheme")}
    expected = {n.removesuffix(".weight") for n in found.chosen if ".experts." not in n}
    assert made == expected
    assert {n for n in linears if should_convert_module(n, list(found.ignored))} == expected
    assert made < linears or type(model).__name__ == "BertModel"
