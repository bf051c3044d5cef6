"""Names in DeepSeek's rank files, held against the loop of its published script."""

from __future__ import annotations

import pytest

from fp8convert.errors import SchemeError
from fp8convert.reference import names

from ..formats.deepseek_ranks import rename as published
from ..formats.deepseek_ranks import source

# What that script's table does not have: its keys, by the names of inference/model.py.
OTHERS = {
    "model.layers.3.self_attn.q_proj.weight": "layers.3.attn.wq.weight",
    "model.layers.3.self_attn.indexer.wq_b.weight": "layers.3.attn.indexer.wq_b.weight",
    "model.layers.3.self_attn.indexer.wk.weight": "layers.3.attn.indexer.wk.weight",
    "model.layers.3.self_attn.indexer.k_norm.bias": "layers.3.attn.indexer.k_norm.bias",
    "model.layers.3.self_attn.indexer.weights_proj.weight":
        "layers.3.attn.indexer.weights_proj.weight",
    "model.layers.61.embed_tokens.weight": "layers.61.embed.weight",
    "model.layers.61.enorm.weight": "layers.61.enorm.weight",
    "model.layers.61.eh_proj.weight": "layers.61.eh_proj.weight",
    "model.layers.61.shared_head.norm.weight": "layers.61.shared_head.norm.weight",
    "model.layers.61.shared_head.head.weight": "layers.61.shared_head.head.weight",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in source() if not n.endswith("_scale_inv")])
def test_as_the_published_script_renames(name: str) -> None:
    assert names.v3(name) == published(name)[0]


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_published_table_has_not(name: str) -> None:
    assert names.v3(name) == OTHERS[name]


@pytest.mark.parametrize("model", ["deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"])
def test_models_with_the_names_of_v3(model: str) -> None:
    rename = names.rename_of({"model_type": model})
    assert rename("model.norm.weight") == "norm.weight"


def test_v4_has_the_names_that_it_is_published_under() -> None:
    rename = names.rename_of({"model_type": "deepseek_v4"})
    assert rename("layers.0.attn.wq_a.weight") == "layers.0.attn.wq_a.weight"


@pytest.mark.parametrize("config", [{"model_type": "qwen3"}, {}])
def test_other_models_have_no_such_files(config: dict[str, str]) -> None:
    with pytest.raises(SchemeError, match=r"model_type is .*DeepSeek's own files, of deepseek_v2"):
        names.rename_of(config)
