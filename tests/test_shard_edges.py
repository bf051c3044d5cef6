"""Cases at the edges of ``shard-for-tp`` and ``unshard``, each found by a review of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.classes import mtp_layer
from fp8convert.errors import Fp8ConvertError, UsageError
from fp8convert.options import ShardForTp

from .quantized import readers
from .sharded import files, oracle
from .sharded.arrays import part
from .sharded.model import Source
from .sharded.refusals import changed, shard, unshard
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("edges")) as made:
        yield made


def tp_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tp.json").read_text())
    return found


def same(folder: Path, of: Source) -> None:
    """Every tensor, byte for byte."""
    assert readers.differing(readers.stored(folder), of.tensors) == []


@pytest.mark.parametrize("weights", ["fp8-block", "fp8-block-ue8m0"])
def test_wo_a_stays_plain_when_others_are_encoded(weights: str, runs: Runs) -> None:
    folder = runs.shard("v4_bf16", 2, weights=weights)
    found = tp_json(folder)["tensors"]
    names = [n for n in found if n.endswith("attn.wo_a.weight")]
    assert names
    assert {found[n]["dtype"] for n in names} == {"BF16"}
    assert not [n for n in found if n.endswith("wo_a.scale")]
    ignored = readers.config(folder)["quantization_config"]["modules_to_not_convert"]
    assert {n.removesuffix(".weight") for n in names} <= set(ignored)


@pytest.mark.parametrize("experts", ["owner", "cut"])
def test_experts_that_are_missing(experts: str, runs: Runs) -> None:
    whole = source("qwen3_moe")
    some = {n: t for n, t in whole.tensors.items() if ".experts.7." not in n}
    assert len(some) < len(whole.tensors)
    few = Source(f"few-{experts}", whole.config, some, files=whole.files)
    message = shard(runs, few, layout="hf", experts=experts)
    assert "of 7 experts, expected 8: num_experts in config.json (number 7 is not there)" in message


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_more_experts_in_the_config_than_there_are(layout: str, runs: Runs) -> None:
    found = changed("v3_bf16", f"v3-more-{layout}", n_routed_experts=16)
    assert "of 8 experts, expected 16: n_routed_experts" in shard(runs, found, layout=layout)


@pytest.mark.parametrize(("id", "options"), [
    ("qwen3_moe", {"experts": "cut"}), ("gpt_oss", {}), ("llama", {}), ("qwen3_moe", {}),
])  # fmt: skip
def test_a_number_of_experts_that_is_not_the_configs(
    id: str, options: dict[str, Any], runs: Runs
) -> None:
    message = shard(runs, id, layout="hf", n_experts=99, **options)
    assert "n_experts is 99, but" in message
    assert ("speaks of none" in message) == (id == "llama")


def test_a_declaration_goes_where_nothing_is_coded_any_more(runs: Runs) -> None:
    folder = runs.shard("v3_modelopt", 8, layout="hf", experts="cut", misaligned="bf16")
    dtypes = {t["dtype"] for t in tp_json(folder)["tensors"].values()}
    assert dtypes == {"BF16", "F32"}
    assert not list(folder.rglob("hf_quant_config.json"))
    fp8convert.unshard(folder, target := runs.new())
    assert not (target / "hf_quant_config.json").exists()


def test_layers_of_a_tower_are_no_mtp_layers(runs: Runs) -> None:
    assert mtp_layer("vision_tower.transformer.layers.2.x.weight", 2) is None
    assert mtp_layer("language_model.model.layers.2.x.weight", 2) == 2
    assert mtp_layer("model.layers.2.x.weight", 2) == 2
    assert mtp_layer("mtp.0.x.weight", 2) == 2
    text = source("mistral")
    tower = {
        f"vision_tower.transformer.layers.{n}.norm.weight": part("BF16", np.ones(4, np.uint16))
        for n in range(4)
    }
    inner = {**text.config, "model_type": "mistral"}
    config = {"model_type": "mistral3", "text_config": inner}
    if "quantization_config" in text.config:
        config["quantization_config"] = text.config["quantization_config"]
    made = Source("towers", config, {**text.tensors, **tower}, files=text.files)
    kept = tp_json(runs.shard(made, 2, layout="hf", mtp="drop"))["tensors"]
    assert kept.keys() >= tower.keys()


def published(runs: Runs, id: str, ranks: int, mtp: str) -> Path:
    """Rank files as the published script leaves them: tensors and nothing else."""
    found = source(id)
    folder = runs.new()
    folder.mkdir(parents=True)
    for name in (cut := runs.shard(id, ranks, mtp=mtp)).glob("*.safetensors"):
        shutil.copy(cut / name.name, folder)
    (folder.parent / "model.json").write_text(json.dumps(found.config))
    return folder


@pytest.mark.parametrize("again", [None, 4])
def test_published_files_without_a_config(again: int | None, runs: Runs) -> None:
    folder, target = published(runs, "v3", 2, "drop"), runs.new()
    config = folder.parent / "model.json"
    fp8convert.unshard(folder, target, config=str(config), tp=again)
    said = readers.config(target)
    assert json.loads(config.read_text())["num_nextn_predict_layers"] == 1
    assert said["num_nextn_predict_layers"] == 0
    kept = oracle.kept(source("v3").tensors, source("v3").config, "drop")
    if again is None:
        assert readers.differing(readers.stored(target), kept) == []


def test_published_v4_files_say_that_wo_a_is_plain(runs: Runs) -> None:
    folder, target = published(runs, "v4", 2, "keep"), runs.new()
    fp8convert.unshard(folder, target, config=str(folder.parent / "model.json"))
    plain = [n for n in readers.stored(target) if n.endswith("wo_a.weight")]
    ignored = readers.config(target)["quantization_config"]["modules_to_not_convert"]
    assert plain
    assert {n.removesuffix(".weight") for n in plain} <= set(ignored)


def test_published_files_beside_a_config_are_cut_anew_at_once(runs: Runs) -> None:
    folder, target = published(runs, "v3", 2, "drop"), runs.new()
    shutil.copy(folder.parent / "model.json", folder / "config.json")
    fp8convert.shard_for_tp(folder, target, tp=4)
    expected = oracle.deepseek_ranks(source("v3").tensors, source("v3").config, 4)
    assert files.differing(files.deepseek_files(target), expected) == {}
    bare = published(runs, "v3", 2, "drop")
    with pytest.raises(Fp8ConvertError, match=r"put the model's own beside them"):
        fp8convert.shard_for_tp(bare, runs.new(), tp=4)


@pytest.mark.parametrize("file", ["model.bin", "tp.json", "a/b.safetensors", "config.json", ""])
def test_files_that_are_no_shards(file: str, runs: Runs) -> None:
    folder = runs.new()
    shutil.copytree(runs.shard("llama", 2, layout="hf"), folder)
    table = tp_json(folder)
    table["tensors"]["model.norm.weight"]["file"] = file
    (folder / "tp.json").write_text(json.dumps(table))
    assert "tp.json: tensor 'model.norm.weight': file" in unshard(runs, folder)


@pytest.mark.parametrize(("tp", "multiple"), [(1, 96), (2, 128), (2, 96), (4, 256)])
def test_padded_ranks_are_put_together(tp: int, multiple: int, runs: Runs) -> None:
    """Also where each rank has as many rows as the whole, and where there is but one."""
    found = source("llama_bf16")
    rows = found.config["vocab_size"]
    assert rows % multiple
    folder = runs.shard("llama_bf16", tp, layout="hf", pad_vocab=multiple)
    table = tp_json(folder)["tensors"]["model.embed_tokens.weight"]
    assert table["padded_to"] == -(-rows // multiple) * multiple
    same(runs.unshard(folder), found)


def test_a_head_that_is_encoded_is_not_padded(runs: Runs) -> None:
    message = shard(
        runs, "llama_bf16", layout="hf", weights="fp8-block", block=(16, 16),
        include=("lm_head",), pad_vocab=96,
    )  # fmt: skip
    assert "pad_vocab takes plain tables" in message


@pytest.mark.parametrize(("id", "layout"), [("v3", "hf"), ("v3", "deepseek")])
def test_a_config_that_declares_mtp_layers_that_are_not_there(
    id: str, layout: str, runs: Runs
) -> None:
    whole = source(id)
    kept = oracle.kept(whole.tensors, whole.config, "drop")
    assert len(kept) < len(whole.tensors)
    made = Source(f"without-mtp-{layout}", whole.config, kept, files=whole.files)
    back = runs.unshard(runs.shard(made, 2, layout=layout))
    before = (runs.source(made) / "config.json").read_bytes()
    assert (back / "config.json").read_bytes() == before
    same(back, made)


def test_some_ranks_of_a_size_are_those_of_all(runs: Runs) -> None:
    every = runs.shard("qwen3_moe", 2, layout="hf", max_shard_size=30_000)
    some = runs.shard("qwen3_moe", 2, layout="hf", max_shard_size=30_000, ranks=(1,))
    ours, wanted = files.contents(some), files.contents(every)
    assert sum(n.endswith(".safetensors") for n in ours) > 2
    assert {n for n in ours if ours[n] != wanted[n]} == {"manifest.json"}


def test_a_value_of_a_hundred_thousand_integers(runs: Runs) -> None:
    folder = runs.new()
    shutil.copytree(runs.shard("kimi", 2, layout="hf", experts="cut"), folder)
    table = tp_json(folder)
    name = next(n for n, t in table["tensors"].items() if "whole_value" in t)
    table["tensors"][name] |= {"shape": [100_000], "whole_value": [1, 2] * 50_000}
    (folder / "tp.json").write_text(json.dumps(table))
    assert "of at most 8 axes" in unshard(runs, folder)


def test_gptq_ranks_say_that_they_belong_together(runs: Runs) -> None:
    target = runs.new()
    done = fp8convert.shard_for_tp(runs.source("qwen2_gptq"), target, tp=2, layout="hf")
    assert [w for w in done.data["warnings"] if "counts groups in the whole weight" in w]
    same(runs.unshard(target), source("qwen2_gptq"))


def test_a_foreign_file_beside_ranks(runs: Runs) -> None:
    folder = runs.new()
    shutil.copytree(runs.shard("v3", 2), folder)
    shutil.copy(folder / "model0-mp2.safetensors", folder / "extra.safetensors")
    done = fp8convert.unshard(folder, runs.new())
    assert [w for w in done.data["warnings"] if "'extra.safetensors' not part of" in w]


def test_a_rank_that_is_there_twice_is_named(runs: Runs) -> None:
    folder = runs.new()
    shutil.copytree(runs.shard("v3", 2), folder)
    shutil.copy(folder / "model0-mp2.safetensors", folder / "model00-mp2.safetensors")
    assert "3 files, 'model00-mp2.safetensors' too many" in unshard(runs, folder)


def test_what_goes_with_requantizing() -> None:
    ShardForTp(tp=2, misaligned="requantize", scale_search="mse", require_exact=True)
    with pytest.raises(UsageError, match="scale_search"):
        ShardForTp(tp=2, misaligned="bf16", scale_search="mse")


def test_requantized_rank_files_say_so_themselves(runs: Runs) -> None:
    """Also without their record: joined by shapes alone they would be other weights."""
    folder = runs.new()
    shutil.copytree(runs.shard("sample-deepseek-v3", 4, misaligned="requantize"), folder)
    for run in (fp8convert.to_bf16, fp8convert.unshard):
        with pytest.raises(Fp8ConvertError, match="scales of their own across blocks"):
            run(folder, runs.new())
    (folder / "tp.json").unlink()
    for run in (fp8convert.to_bf16, fp8convert.unshard):
        with pytest.raises(Fp8ConvertError, match="scales of their own across blocks"):
            run(folder, runs.new())


def test_a_million_experts_in_the_config(runs: Runs) -> None:
    found = changed("qwen3_moe", "many", num_experts=10**30)
    assert "of 8 experts, expected 1,000,000," in shard(runs, found, layout="hf")


def test_engines_are_not_quoted_on_what_they_do_not_speak_of(runs: Runs) -> None:
    assert "SGLang and vLLM" in shard(runs, "rows_of_192", layout="hf")
    message = shard(runs, "rows_of_192-in-bf16", 4, layout="hf", weights="mxfp8")
    assert "inside their blocks" in message
    assert "SGLang and vLLM" not in message
