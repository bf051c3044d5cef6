"""DeepSeek-V4 from files: coded ones and what they become, ranks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fp8convert
from fp8convert.errors import DataError, FormatError, SchemeError
from fp8convert.reference.config import Config
from fp8convert.reference.deepseek_v4 import DeepSeekV4
from fp8convert.reference.deepseek_v4_forms import saved_name
from fp8convert.reference.ranks import open_any
from fp8convert.reference.run import logits_of, open_model, steps
from fp8convert.samples import make_sample

from . import v4
from .held import weights

FLOAT32 = 1e-5  # relative to the largest value; measured: 2e-6
FP8 = 0.2  # relative RMS from bf16; measured: 0.11


# FP8 and FP4


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """In the published form, and its BF16 output."""
    folder = tmp_path_factory.mktemp("v4")
    make_sample(str(folder / "coded"), "deepseek-v4", "tiny")
    fp8convert.to_bf16(folder / "coded", folder / "bf16")
    return folder / "coded", folder / "bf16"


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Enough for an entry of 128, and for more of 4 than are chosen."""
    return torch.randint(0, 1024, (1, 140), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compute", ["bf16", "fp32"])
def test_bf16_output_gives_the_same_bits(
    compute: str, sample: tuple[Path, Path], tokens: Tensor
) -> None:
    coded, plain = (_run(folder, compute, tokens) for folder in sample)
    assert len(coded) == 3 + 2
    assert all(torch.equal(a, b) for a, b in zip(coded, plain, strict=True))


def test_fp8_compute_is_near_bf16(sample: tuple[Path, Path], tokens: Tensor) -> None:
    coded, plain = sample
    expected, found = (_run(coded, compute, tokens) for compute in ("bf16", "fp8"))
    for a, b in zip(found, expected, strict=True):
        assert 1e-3 < v4.rms(a, b) < FP8
    decoded = _run(plain, "fp8", tokens)  # there are no codes to multiply: as bf16
    assert all(torch.equal(a, b) for a, b in zip(decoded, expected, strict=True))


def _run(folder: Path, compute: str, tokens: Tensor) -> list[Tensor]:
    """The states of all layers, the logits, and the MTP layer's."""
    model: Any = open_model(folder, compute)
    states = [step.state for step in steps(model, tokens)]
    with torch.no_grad():
        return [*states, model.logits(states[-1]), model.predict(states[-1], tokens)[1]]


# Ranks


def test_two_ranks_are_the_whole(whole: Path, tmp_path: Path) -> None:
    """Cut by heads, groups, index heads, experts and vocabulary; MTP layer and all states, too."""
    fp8convert.shard_for_tp(whole, tmp_path / "ranks", 2, layout="deepseek")
    tokens = torch.randint(0, 96, (2, 270), generator=torch.Generator().manual_seed(0))
    one, two = open_model(whole, "fp32"), open_any(tmp_path / "ranks", "fp32")
    local = two.ranks[1].w.shape
    assert local("layers.1.attn.wq_b.weight") == (2 * 32, 20)
    assert local("layers.1.attn.wo_a.weight") == (12, 64)
    assert local("layers.1.attn.indexer.weights_proj.weight") == (4, 48)
    assert not two.ranks[1].w.has("layers.0.ffn.experts.2.w1.weight")
    expected, found = (list(steps(model, tokens)) for model in (one, two))
    for a, b in zip(found, expected, strict=True):
        assert v4.relative(a.state, b.state) < FLOAT32
    with torch.no_grad():
        last = expected[-1].state
        assert v4.relative(two.logits(last), one.logits(last)) < FLOAT32
        for a, b in zip(two.predict(last, tokens), one.predict(last, tokens), strict=True):  # type: ignore[attr-defined]
            assert v4.relative(a, b) < FLOAT32


# What is refused


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return v4.tensors(v4.CONFIG, 0, torch.float32)


@pytest.fixture(scope="module")
def whole(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v4.published(tmp_path_factory.mktemp("v4") / "whole", v4.CONFIG, tensors)


def _model(tensors: dict[str, Tensor], **changed: Any) -> DeepSeekV4:
    return DeepSeekV4(Config({**v4.CONFIG, **changed}), weights(tensors))


@pytest.mark.parametrize(
    "end",
    ["hc_attn_fn", "hc_ffn_fn", "hc_head_fn", ".ape", ".wkv.weight", ".wgate.weight",
     "indexer.weights_proj.weight", ".gate.weight"],
)  # fmt: skip
def test_what_is_float32_in_the_model_is_not_rounded_first(
    end: str, tensors: dict[str, Tensor]
) -> None:
    """In bf16 compute: hyper-connections, entries, the indexer's scores, the router."""
    tokens = torch.arange(96)[None].repeat(1, 2)
    names = [n for n in tensors if n.endswith(end) and not n.endswith(".attn.wkv.weight")]
    rounded = {n: tensors[n].bfloat16().float() for n in names}
    config = Config(v4.CONFIG)
    found = [
        logits_of(DeepSeekV4(config, weights(held, "bf16")), tokens)
        for held in (tensors, {**tensors, **rounded})
    ]
    assert not torch.equal(*found)


def _predict(model: DeepSeekV4) -> None:
    tokens = torch.arange(96)[None].repeat(1, 2)  # every token, so every row of every table
    with torch.no_grad():
        x = model.embed(tokens)
        for n in range(model.layers):
            x = model.layer(n, x, tokens)
        model.logits(x)
        model.predict(x, tokens)


def test_every_weight_is_used(tensors: dict[str, Tensor]) -> None:
    """Without a bias tokens go to all experts."""
    even = {n: t * 0 if n.endswith("gate.bias") else t for n, t in tensors.items()}
    model = _model(even)
    _predict(model)
    assert model.w.used == set(tensors)


@pytest.mark.parametrize("form", ["published", "saved"])
@pytest.mark.parametrize(
    "name",
    [
        "head.weight",
        "hc_head_scale",
        "layers.0.ffn.gate.tid2eid",
        "layers.0.hc_attn_base",
        "layers.1.attn.attn_sink",
        "layers.1.attn.indexer.compressor.ape",
        "layers.2.attn.compressor.norm.weight",
        "layers.2.attn.kv_norm.weight",
        "layers.2.ffn.gate.bias",
        "layers.3.ffn.shared_experts.w3.weight",
        "layers.4.ffn.experts.5.w2.weight",
        "mtp.0.enorm.weight",
    ],
)
def test_a_missing_weight_is_named(name: str, form: str, tensors: dict[str, Tensor]) -> None:
    kept = {n: t for n, t in tensors.items() if n != name}
    if form == "saved":
        kept = {saved_name(n): t for n, t in kept.items()}
    with pytest.raises(SchemeError, match=rf"'{name}' is missing"):
        _predict(_model(kept))


ONCE = [n for n in v4.shapes(v4.CONFIG) if not n.startswith(("layers.3.", "layers.4."))]


@pytest.mark.parametrize("name", [n for n in ONCE if ".experts." not in n])
def test_a_weight_of_another_shape_is_named(name: str, tensors: dict[str, Tensor]) -> None:
    """One row less, or one more; tables may be padded."""
    less, more = tensors[name][:-1], torch.cat([tensors[name], tensors[name][:1]])
    for changed in (less,) if name in ("embed.weight", "head.weight") else (less, more):
        with pytest.raises(FormatError, match=rf"weight '({name}|.*norm.*)' (is|has)"):
            _predict(_model({**tensors, name: changed}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("compress_ratios", [0, 4, 128]),
        ("compress_ratios", [0, 4, 128, 0, 8, 0]),
        ("compress_rate_csa", 8),
        ("compress_rates", {"compressed_sparse_attention": 0}),
        ("hidden_act", "gelu"),
        ("layer_types", ["sliding_attention", "full_attention"] * 3),
        ("mlp_bias", True),
        ("mlp_layer_types", ["moe", "dense", "moe", "moe", "moe"]),
        ("n_shared_experts", 2),
        ("norm_topk_prob", False),
        ("num_experts_per_tok", 7),
        ("num_hash_layers", None),
        ("num_key_value_heads", 4),
        ("rope_scaling", {"type": "dynamic", "factor": 2}),
        ("scoring_func", "sigmoid"),
        ("swiglu_limit", None),
        ("tie_word_embeddings", True),
        ("topk_method", "greedy"),
    ],
)
def test_a_field_that_is_not_supported_is_named(
    field: str, value: Any, tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(FormatError, match=rf"config\.json: {field}"):
        _model(tensors, **{field: value})


def test_counts_that_are_far_from_what_is_there_take_no_memory(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(
        FormatError, match=r"'hc_head_base' is \[4\], expected \[1125899906842624\]"
    ):
        _model(tensors, hc_mult=1 << 50)
    assert _model(tensors, num_nextn_predict_layers=1 << 50).mtp == 1 << 50
    with pytest.raises(FormatError, match="compress_ratios has 6 entries"):
        _model(tensors, num_hidden_layers=100_000)
    with pytest.raises(FormatError, match="expected at most 100,000"):
        _model(tensors, num_hidden_layers=1 << 50)


def test_a_table_of_experts_that_are_not_there(tensors: dict[str, Tensor]) -> None:
    name = "layers.0.ffn.gate.tid2eid"
    table = tensors[name].clone()
    table[3, 1] = 6
    with pytest.raises(DataError, match=rf"'{name}' has 6, expected 0 to 5"):
        _predict(_model({**tensors, name: table}))
