"""Cut rules of layout ``hf``: every tensor of every architecture, and what is refused.

What is expected is in ``sharded/plans.py``, and in the tensor-parallel plans that transformers has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fp8convert.errors import SchemeError
from fp8convert.layouts.families import FAMILIES
from fp8convert.layouts.parallel import Parallel, fields
from fp8convert.layouts.shares import WHOLE, Share
from fp8convert.samples import FAMILIES as SAMPLES
from fp8convert.samples.spec import Sample

from .sharded import plans, tiny
from .sharded.plans import Cut

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]
EXPERTS = ("owner", "cut")
COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Config, Shapes]]:
    """Config and shapes of a tiny model, made once."""
    made: dict[str, tuple[Config, Shapes]] = {}

    def get(model: str) -> tuple[Config, Shapes]:
        if model not in made:
            config, tensors = tiny.write(model, tmp_path_factory.mktemp(model))
            made[model] = config, {name: tuple(t.shape) for name, t in tensors.items()}
        return made[model]

    return get


Published = Callable[[str], tuple[Config, Shapes]]


def shapes_of(sample: Sample) -> Shapes:
    """Decoded: what is stored transposed is [experts, in, out]."""

    def decoded(shape: tuple[int, ...], turned: bool) -> tuple[int, ...]:
        return (*shape[:-2], shape[-1], shape[-2]) if turned else shape

    return {w.name: decoded(w.shape, sample.storages[w.kind].turned) for w in sample.weights}


def anonymous(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)


def check(config: Config, shapes: Shapes, table: str, experts: str) -> None:
    """Every tensor is shared as ``table`` says, and ``table`` says nothing of others."""
    layout = Parallel.of(config, experts)
    expected = plans.read(table, experts)
    assert {anonymous(name) for name in shapes} == expected.keys()
    for name, shape in shapes.items():
        cut = expected[anonymous(name)]
        assert layout.share(name, shape) == share_of(cut, name, shape, config), name
        assert layout.adds(name) == cut.adds, name


def share_of(cut: Cut, name: str, shape: tuple[int, ...], config: Config) -> Share:
    """``cut`` with the numbers of ``config``."""
    of = next(f for f in COUNTS if f in config) if cut.of == "experts" else cut.of
    if not of:
        return Share()
    units = config[of]
    if ".shared_experts." in name:
        units *= config["n_shared_experts"]
    if cut.axis is None:
        (number,) = re.findall(r"experts\.(\d+)\.", name)
        return Share(None, units, of, expert=int(number))
    assert shape[cut.axis] % units == 0
    return Share(cut.axis, units, of, repeat=of == "num_key_value_heads")


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("model", plans.EXPECTED)
def test_every_tensor_that_transformers_writes(
    model: str, experts: str, published: Published
) -> None:
    check(*published(model), plans.EXPECTED[model], experts)


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("family", SAMPLES)
def test_every_tensor_of_the_samples(family: str, experts: str) -> None:
    """With their MTP layers, DeepSeek-V4's own names, and gpt-oss' codes."""
    sample = SAMPLES[family]("tiny")
    check(dict(sample.config), shapes_of(sample), plans.SAMPLED[family], experts)


def test_there_is_a_test_for_every_architecture() -> None:
    sampled = {SAMPLES[family]("tiny").config["model_type"] for family in plans.SAMPLED}
    assert plans.EXPECTED.keys() == tiny.MODELS.keys()
    assert plans.EXPECTED.keys() | sampled == FAMILIES.keys()


# What the styles of transformers' plans mean for a weight.
STYLES = {
    "colwise": 0, "colwise_gather_output": 0, "packed_colwise": 0, "embedding_rowwise": 0,
    "rowwise": 1, "rowwise_split_input": 1,
    "replicated_with_grad_allreduce": None, "mla_kv_a_proj": None,
}  # fmt: skip
# In memory experts are fused, in files they are not.
FUSED = {
    "mlp.experts.gate_up_proj": r"(mlp|block_sparse_moe)\.experts\.\d+\.(gate_proj|up_proj|w1|w3)",
    "mlp.experts.down_proj": r"(mlp|block_sparse_moe)\.experts\.\d+\.(down_proj|w2)",
}


def pattern(module: str) -> str:
    """Of the weights that an entry of a plan is about."""
    layers, _, inside = module.rpartition("*.")
    at = r"model\.layers\.\d+\." if layers else r"model\."
    return at + FUSED.get(inside, re.escape(inside)) + r"\.weight"


@pytest.mark.parametrize("model", tiny.MODELS)
def test_transformers_cuts_the_same_axes(model: str, published: Published) -> None:
    from transformers import AutoConfig

    config, shapes = published(model)
    layout = Parallel.of(config, "cut")
    for module, style in AutoConfig.for_model(model).base_model_tp_plan.items():
        if style == "moe_tp_experts":
            continue  # the module around them
        names = [n for n in shapes if re.fullmatch(pattern(module), n)]
        axes = {share.axis for n in names if (share := layout.share(n, shapes[n]))}
        if (model, module) != ("deepseek_v2", "layers.*.self_attn.q_proj"):  # q_b_proj instead
            assert axes == {STYLES[style]}, module


def llama(**more: Any) -> Config:
    config = {
        "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32000,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    return config | more


Q, K, OUT = (f"model.layers.1.self_attn.{x}_proj.weight" for x in "qko")


def test_kv_heads_repeat_where_there_are_more_ranks() -> None:
    layout = Parallel.of(llama(), "owner")
    q, k = layout.share(Q, (1024, 1024)), layout.share(K, (256, 1024))
    assert q
    assert k
    assert [k.range(256, r, 8) for r in range(8)] == [(0, 128)] * 4 + [(128, 256)] * 4
    assert [q.range(1024, r, 8) for r in range(8)] == [(128 * r, 128 * r + 128) for r in range(8)]
    assert [n for n in range(1, 17) if k.fits(n)] == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert [n for n in range(1, 17) if q.fits(n)] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("more", "name", "shape", "said"),
    [
        ({"num_attention_heads": 7}, Q, (1024, 1024),
         "is [1024, 1024], expected 1022 along axis 0: num_attention_heads is 7, "
         "hidden_size / num_attention_heads is 146"),
        ({"head_dim": 64}, Q, (1024, 1024),
         "expected 512 along axis 0: num_attention_heads is 8, head_dim is 64"),
        ({"head_dim": None}, OUT, (1024, 512),
         "expected 1024 along axis 1: num_attention_heads is 8"),
        ({}, K, (128, 1024), "expected 256 along axis 0: num_key_value_heads is 2"),
        ({}, OUT, (1024,), "is [1024], expected 1024 along axis 1"),
        ({}, "model.layers.0.mlp.up_proj.weight", (2815, 1024),
         "expected 2816 along axis 0: intermediate_size is 2816"),
        ({}, "lm_head.weight", (32001, 1024), "expected 32000 along axis 0: vocab_size is 32000"),
        ({"vocab_size": None}, "lm_head.weight", (32000, 1024), "config.json has no vocab_size: "),
        ({"intermediate_size": "8"}, "model.layers.0.mlp.up_proj.weight", (8, 8),
         "intermediate_size is '8', expected a positive integer"),
        ({"num_attention_heads": 0}, Q, (1024, 1024),
         "num_attention_heads is '0', expected a positive integer"),
        ({"num_attention_heads": True}, Q, (1024, 1024), "expected a positive integer"),
    ],
)  # fmt: skip
def test_shapes_that_the_config_does_not_expect(
    more: Config, name: str, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(SchemeError) as e:
        Parallel.of(llama(**more), "owner").share(name, shape)
    assert said in str(e.value)
    assert name in str(e.value)


def test_the_width_of_a_head_may_differ_from_hidden_by_heads() -> None:
    layout = Parallel.of(llama(head_dim=64), "owner")
    assert layout.share(Q, (512, 1024)) == Share(0, 8, "num_attention_heads")
    assert layout.share(OUT, (1024, 512)) == Share(1, 8, "num_attention_heads")


def test_without_kv_heads_every_head_has_its_own() -> None:
    layout = Parallel.of(llama(num_key_value_heads=None), "owner")
    assert layout.share(K, (1024, 1024)) == Share(0, 8, "num_attention_heads", repeat=True)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "mistral3", "text_config": {"model_type": "bert"}},
         "'mistral3' and 'bert'"),
        ({"model_type": "mistral3", "text_config": []}, "'mistral3'"),
    ],
)  # fmt: skip
def test_unknown_architectures(config: Config, said: str) -> None:
    with pytest.raises(SchemeError, match=r"deepseek_v2, deepseek_v3.*qwen3_moe") as e:
        Parallel.of(config, "owner")
    assert said in str(e.value)


def test_the_number_of_layers_is_needed() -> None:
    with pytest.raises(SchemeError, match=r"config\.json has no num_hidden_layers"):
        Parallel.of(llama(num_hidden_layers=None), "owner")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.qkv_proj.weight",  # fused
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_norm.weight",  # Qwen3's
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.0.xself_attn.q_proj.weight",
        "model.layers.0.block.self_attn.q_proj.weight",
        "model.layers.x.self_attn.q_proj.weight",
        "model.layers.1234567.self_attn.q_proj.weight",
        "model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",  # of a wrapper, which this is not
        "vision_tower.patch_conv.weight",
        "model.layers.2.self_attn.q_proj.weight",  # there are two layers, and no MTP
        "mtp.0.self_attn.q_proj.weight",
        "model.layers.0.embed_tokens.weight",
        "self_attn.q_proj.weight",
        "model.embed_tokens.bias",
        "model.",
        "",
        "\n",
    ],
)
def test_unknown_names(name: str) -> None:
    layout = Parallel.of(llama(), "owner")
    assert layout.share(name, (1024, 1024)) is None
    assert not layout.adds(name)


def test_a_base_model_has_names_without_model() -> None:
    layout = Parallel.of(llama(), "owner")
    assert layout.share("layers.1.self_attn.k_proj.weight", (256, 1024)) == layout.share(
        K, (256, 1024)
    )


def qwen3_moe(experts: str) -> Parallel:
    sample = SAMPLES["qwen3-fp8"]("tiny")
    return Parallel.of(dict(sample.config), experts)


AT = "model.layers.0.mlp.experts."


def test_an_expert_is_whole_on_its_owner() -> None:
    share = qwen3_moe("owner").share(f"{AT}5.up_proj.weight", (96, 192))
    assert share is not None
    assert [share.range(96, r, 4) for r in range(4)] == [None, (0, 96), None, None]
    cut = qwen3_moe("cut").share(f"{AT}5.up_proj.weight", (96, 192))
    assert cut is not None
    assert [cut.range(96, r, 4) for r in range(4)] == [(0, 24), (24, 48), (48, 72), (72, 96)]


@pytest.mark.parametrize("number", ["*", "-1", "", "x", "²", "1234567"])
def test_what_is_no_number_of_an_expert(number: str) -> None:
    for experts in EXPERTS:
        assert qwen3_moe(experts).share(f"{AT}{number}.up_proj.weight", (96, 192)) is None


def test_an_expert_that_there_is_not() -> None:
    with pytest.raises(SchemeError, match=r"experts\.16\.up.*expected.*below num_experts, 16"):
        qwen3_moe("owner").share(f"{AT}16.up_proj.weight", (96, 192))


def test_gpt_oss_experts_are_cut_by_pairs_of_gate_and_up() -> None:
    layout = Parallel.of(dict(SAMPLES["gpt-oss"]("tiny").config), "cut")  # 224 wide
    share = layout.share(f"{AT}gate_up_proj", (8, 288, 448))
    assert share is not None
    assert [share.range(448, r, 32) for r in (0, 31)] == [(0, 14), (434, 448)]
    assert [n for n in (7, 32, 64, 448) if share.fits(n)] == [7, 32]
    assert layout.adds(f"{AT}down_proj_bias")
    assert layout.adds("model.layers.0.self_attn.o_proj.bias")
    owner = Parallel.of(dict(SAMPLES["gpt-oss"]("tiny").config), "owner")
    assert owner.share(f"{AT}gate_up_proj", (8, 288, 448)) == Share(0, 8, "num_local_experts")
    assert not owner.adds(f"{AT}down_proj_bias")
    assert owner.adds("model.layers.0.self_attn.o_proj.bias")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_beside_a_weight_is_no_part_of_the_model(shape: tuple[int, ...]) -> None:
    layout = qwen3_moe("owner")
    attention = "model.layers.0.self_attn"
    for name in (
        f"{attention}.k_scale",
        f"{attention}.k_proj.k_scale",
        f"{attention}.q_proj.input_scale",
    ):
        assert layout.share(name, shape) == WHOLE
    assert layout.share(f"{AT}3.up_proj.input_scale", shape) == Share(
        None, 16, "num_experts", expert=3
    )
    assert qwen3_moe("cut").share(f"{AT}3.up_proj.input_scale", shape) == WHOLE
    for name in (f"{attention}.x_proj.input_scale", "model.layers.0.scale", "scale"):
        assert layout.share(name, shape) is None


def test_more_numbers_beside_a_weight_are_not_known() -> None:
    layout = qwen3_moe("owner")
    assert layout.share("model.layers.0.self_attn.q_proj.input_scale", (2,)) is None
    assert layout.share(f"{AT}3.up_proj.input_scale", (96, 1)) is None


def wrapped(model: str, text: Config) -> Parallel:
    return Parallel.of({"model_type": model, "vocab_size": 7, "text_config": text}, "owner")


@pytest.mark.parametrize("at", ["language_model.model.", "model.language_model.", "model."])
def test_the_text_part_of_a_model_of_several_parts(at: str) -> None:
    layout = wrapped("mistral3", llama(model_type="mistral"))
    assert layout.share(f"{at}layers.0.self_attn.k_proj.weight", (256, 1024)) == Share(
        0, 2, "num_key_value_heads", repeat=True
    )
    table = Share(0, 32000, "vocab_size")
    assert layout.share(f"{at}embed_tokens.weight", (32000, 1024)) == table
    for head in ("lm_head.weight", "language_model.lm_head.weight"):
        assert layout.share(head, (32000, 1024)) == table


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.transformer.layers.0.attention.k_proj.weight",
        "model.vision_tower.patch_conv.weight",
        "multi_modal_projector.patch_merger.merging_layer.weight",
        "vision_tower.encoder.blocks.0.wqkv.weight",
        "mm_projector.linear_1.bias",
    ],
)
def test_the_other_parts_are_whole(name: str) -> None:
    layout = wrapped("kimi_k25", dict(SAMPLES["kimi-k2-thinking"]("tiny").config))
    assert layout.share(name, (1024, 1024)) == WHOLE
    assert layout.share(f"x{name}", (1024, 1024)) is None
    assert layout.share(f"language_model.model.layers.0.{name}", (1024, 1024)) is None


def test_fields_of_the_text_come_first() -> None:
    text = {"num_attention_heads": 8, "vocab_size": None}
    config = {"num_attention_heads": 2, "vocab_size": 9, "text_config": text}
    assert fields(config)["num_attention_heads"] == 8
    assert fields(config)["vocab_size"] == 9
    assert fields({"vocab_size": 9, "text_config": 3})["vocab_size"] == 9


def test_mtp_layers_are_those_after_the_models_own() -> None:
    config = dict(SAMPLES["deepseek-v3"]("tiny").config)  # three layers and one
    layout = Parallel.of(config, "owner")
    assert layout.share("model.layers.3.eh_proj.weight", (192, 384)) == WHOLE
    assert layout.share("model.layers.2.eh_proj.weight", (192, 384)) is None
    assert layout.share("mtp.0.eh_proj.weight", (192, 384)) is None


@pytest.mark.parametrize("model", ["glm4_moe", "glm_moe_dsa", "deepseek_v32"])
def test_mtp_layers_of_models_that_transformers_makes_without(
    model: str, published: Published
) -> None:
    config, shapes = published(model)
    layout = Parallel.of(config, "owner")
    tensors = {
        "eh_proj.weight": (64, 128), "enorm.weight": (64,), "hnorm.weight": (64,),
        "shared_head.norm.weight": (64,), "shared_head.head.weight": (96, 64),
        "embed_tokens.weight": (96, 64),
    }  # fmt: skip
    at = "model.layers.2."
    extra = {at + name: shape for name, shape in tensors.items()}
    layer = {n.replace("layers.1.", "layers.2."): s for n, s in shapes.items() if "layers.1." in n}
    table = plans.read(plans.MTP + plans.EXPECTED[model], "owner")
    for name, shape in (extra | layer).items():
        expected = share_of(table[anonymous(name)], name, shape, config)
        assert layout.share(name, shape) == expected, name


def test_tables_of_v4s_mtp() -> None:
    """They repeat the model's; some files have them, under these names."""
    layout = Parallel.of(dict(SAMPLES["deepseek-v4"]("tiny").config), "owner")
    for name in ("emb.tok_emb.weight", "head.weight"):
        assert layout.share(f"mtp.0.{name}", (1024, 256)) == Share(0, 1024, "vocab_size")
        assert layout.share(f"layers.0.{name}", (1024, 256)) is None


def test_a_rotary_table_of_old_files_is_whole() -> None:
    assert Parallel.of(llama(), "owner").share(
        "model.layers.0.self_attn.rotary_emb.inv_freq", (64,)
    ) == WHOLE  # fmt: skip


def test_it_is_quick() -> None:
    """A plan asks for 92,000 names, and has 5 s for all it does; with room for a busy machine."""
    sample = SAMPLES["deepseek-v3"]("full")
    asked: Iterable[tuple[str, tuple[int, ...]]] = shapes_of(sample).items()
    layout = Parallel.of(dict(sample.config), "owner")
    begun = time.process_time()
    found = sum(layout.share(name, shape) is not None for name, shape in asked)
    spent = time.process_time() - begun
    assert found == len(shapes_of(sample))
    assert spent / found < 20e-6
