"""What ``shard-for-tp`` must refuse, with a message that says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fp8convert

from .quantized import readers
from .sharded import deepseek, families, forms, oracle
from .sharded.forms import plain
from .sharded.refusals import changed, refused, shard
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


# Numbers that do not divide


@pytest.mark.parametrize(
    ("id", "ranks", "options", "words"),
    [
        ("v3_bf16", 16, {}, ["n_routed_experts", "8", "16 ranks", "1, 2, 4, 8"]),
        ("v3_bf16", 3, {}, ["n_routed_experts", "num_attention_heads", "vocab_size", "3 ranks"]),
        ("v3_bf16", 5, {"layout": "hf"}, ["n_routed_experts", "num_attention_heads"]),
        ("v4_bf16", 16, {}, ["n_routed_experts", "o_groups", "index_n_heads"]),
        ("llama", 16, {"layout": "hf"}, ["num_attention_heads is 8", "1, 2, 4, 8"]),
        ("llama", 3, {"layout": "hf"}, ["num_attention_heads", "num_key_value_heads", "vocab"]),
        ("llama_tied", 8, {"layout": "hf"}, ["vocab_size is 60", "1, 2, 3, 4, 5, 6, 10, 12"]),
        ("qwen3_moe", 16, {"layout": "hf"}, ["num_experts is 8", "1, 2, 4, 8"]),
        ("minimax_m2", 16, {"layout": "hf"}, ["num_local_experts"]),
        ("gpt_oss", 16, {"layout": "hf"}, ["num_local_experts"]),
        ("llama_tied", 8, {"layout": "hf", "pad_vocab": 62}, ["vocab_size is 62"]),
    ],
    ids=str,
)
def test_it_says_which_and_what_would(
    id: str, ranks: int, options: dict[str, Any], words: list[str], runs: Runs
) -> None:
    message = shard(runs, id, ranks, **options)
    for word in words:
        assert word in message


def test_kv_heads_that_neither_divide_nor_are_divided(runs: Runs) -> None:
    found = families.dense("llama", "Llama", forms.bf16, None, num_attention_heads=12,
                          num_key_value_heads=4, vocab_size=72, intermediate_size=192)  # fmt: skip
    found = replace(found, id="kv-4")
    message = shard(runs, found, 6, layout="hf")
    assert "num_key_value_heads is 4" in message
    assert "num_attention_heads is" not in message
    expected = oracle.hf_ranks(found.tensors, found.config, 12)  # which four divides
    folder = runs.shard(found, 12, layout="hf")
    assert readers.differing(readers.stored(folder / "rank11"), expected[11]) == []


def test_as_many_experts_as_are_said(runs: Runs) -> None:
    message = shard(runs, "v3", n_experts=256)
    assert "256" in message
    assert "n_routed_experts is 8" in message
    folder = runs.shard("v3", 2, n_experts=8)
    assert (folder / "model1-mp2.safetensors").exists()


def test_experts_that_the_config_does_not_count(runs: Runs) -> None:
    """A name beyond their number would be of no rank."""
    more = dict(forms.bf16("model.layers.1.mlp.experts.8.gate_proj", 64, 144))
    message = shard(runs, changed("v3_bf16", "expert-8", more))
    assert "model.layers.1.mlp.experts.8.gate_proj.weight" in message
    assert "n_routed_experts" in message
    message = shard(runs, changed("v3_bf16", "expert-8-hf", more), layout="hf")
    assert "model.layers.1.mlp.experts.8.gate_proj.weight" in message


# Names and configs


@pytest.mark.parametrize(
    ("id", "name", "layout"),
    [
        ("v3", "model.layers.0.self_attn.new_proj.weight", "deepseek"),
        ("v3", "model.layers.0.mlp.q_b_proj.weight", "deepseek"),
        ("v3", "something.else", "deepseek"),
        ("v4_bf16", "layers.0.attn.wo_c.weight", "deepseek"),
        ("v3", "model.layers.0.self_attn.new_proj.weight", "hf"),
        ("llama", "model.layers.0.self_attn.qkv_proj.weight", "hf"),
        ("llama", "model.layers.2.mlp.gate_proj.weight", "hf"),
        ("qwen3", "visual.patch_embed.proj.weight", "hf"),
        ("v4", "layers.0.attn.wo_c.weight", "hf"),
    ],
)
def test_names_that_the_layout_does_not_know(id: str, name: str, layout: str, runs: Runs) -> None:
    """Cutting them by a guess would be silently wrong."""
    more = {name: plain(name, 64, 80)}
    message = shard(runs, changed(id, f"{id}-{name}-{layout}", more), layout=layout)
    assert f"'{name}'" in message
    assert "does not know" in message


def test_unknown_names_are_counted_and_listed(runs: Runs) -> None:
    names = [f"model.layers.0.self_attn.new_{n}.weight" for n in range(200)]
    message = shard(runs, changed("llama", "new-200", {n: plain(n, 2, 2) for n in names}),
                    layout="hf")  # fmt: skip
    assert "200 names" in message
    assert len(message) < 4000


@pytest.mark.parametrize(
    ("id", "layout", "fields", "word"),
    [
        ("llama", "hf", {"model_type": "bloom"}, "bloom"),
        ("llama", "hf", {"model_type": None}, "model_type"),
        ("llama", "hf", {"num_attention_heads": None}, "num_attention_heads"),
        ("llama", "hf", {"num_attention_heads": "eight"}, "num_attention_heads"),
        ("llama", "hf", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("llama", "hf", {"head_dim": 24}, "head_dim"),
        ("llama", "hf", {"num_key_value_heads": 4}, "num_key_value_heads"),
        ("qwen3_moe", "hf", {"num_experts": None}, "num_experts"),
        ("llama", "deepseek", {}, "llama"),
        ("qwen3_moe", "deepseek", {}, "qwen3_moe"),
        ("v3_bf16", "deepseek", {"n_routed_experts": None}, "n_routed_experts"),
        ("v3_bf16", "deepseek", {"num_attention_heads": None}, "num_attention_heads"),
        ("v3_bf16", "deepseek", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("v4_bf16", "deepseek", {"o_groups": None}, "o_groups"),
    ],
    ids=str,
)
def test_configs_that_do_not_say_what_is_to_be_cut(
    id: str, layout: str, fields: dict[str, Any], word: str, runs: Runs
) -> None:
    found = changed(id, f"{id}-{layout}-{sorted(fields)}-{list(fields.values())}", **fields)
    assert word in shard(runs, found, layout=layout)


def test_heads_that_the_shapes_contradict(runs: Runs) -> None:
    """Half of the heads that the config says: a cut would part a head."""
    found = changed("v3_bf16", "v3-32-heads", num_attention_heads=32, num_key_value_heads=32)
    message = shard(runs, found, 4)
    assert "q_b_proj" in message or "num_attention_heads" in message


def test_a_config_that_is_missing(runs: Runs) -> None:
    src = runs.source(changed("llama", "no-config"))
    (src / "config.json").unlink()
    message = refused(lambda dst: fp8convert.shard_for_tp(src, dst, tp=2, layout="hf"), runs.new())
    assert "config.json" in message


@pytest.mark.parametrize("id", ["kimi", "v3_nvfp4", "v3_modelopt"])
def test_forms_that_deepseeks_code_does_not_read(id: str, runs: Runs) -> None:
    message = shard(runs, id)
    assert "layout deepseek holds FP8 in blocks of 128 x 128" in message
    assert "hf" in message
    assert "bf16" in message


@pytest.mark.parametrize("scheme", ["fp8-channel", "int4-group", "nvfp4", "mxfp8"])
def test_schemes_that_deepseeks_code_does_not_read(scheme: str, runs: Runs) -> None:
    assert scheme in shard(runs, "v3_bf16", weights=scheme)


def test_blocks_that_deepseeks_code_does_not_read(runs: Runs) -> None:
    found = deepseek.deepseek("v3-32", forms.blocks(32), forms.fp8_config(32, fmt="e4m3"))
    assert "128" in shard(runs, found)
    assert "128" in shard(runs, "v3_bf16", weights="fp8-block", block=(64, 64))


# Options


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tp": 0}, "tp '0'"),
        ({"tp": -2}, "tp '-2'"),
        ({"tp": 129}, "tp '129'"),
        ({"tp": "2"}, "tp '2'"),
        ({"tp": True}, "tp 'True'"),
        ({"layout": "megatron"}, "layout 'megatron'"),
        ({"weights": "fp4"}, "weights 'fp4'"),
        ({"mtp": "maybe"}, "mtp 'maybe'"),
        ({"misaligned": "ignore"}, "misaligned 'ignore'"),
        ({"experts": "shared"}, "experts 'shared'"),
        ({"ranks": (2,)}, "ranks '(2,)'"),
        ({"ranks": (-1,)}, "ranks '(-1,)'"),
        ({"ranks": ()}, "ranks '()'"),
        ({"ranks": (0.5,)}, "ranks '(0.5,)'"),
        ({"pad_vocab": 128}, "pad_vocab"),
        ({"experts": "cut"}, "experts cut"),
        ({"max_shard_size": 100}, "max_shard_size"),
        ({"layout": "hf", "pad_vocab": 0}, "pad_vocab '0'"),
        ({"n_experts": 0}, "n_experts '0'"),
        ({"block": (64, 64)}, "block"),
        ({"weights": "bf16", "include": ("*q_proj*",)}, "include"),
        ({"weights": "int8-channel", "layout": "hf", "block": (64, 64)}, "block"),
        ({"no_such": 1}, "no_such"),
    ],
    ids=str,
)
def test_options_that_are_none(options: dict[str, Any], word: str, runs: Runs) -> None:
    assert word in shard(runs, "v3", **{"tp": 2, **options}, code=2)


@pytest.mark.parametrize("inside", ["", "out"])
def test_a_target_in_the_source(inside: str, runs: Runs) -> None:
    src = runs.source(changed("llama", "target-in-source"))
    with pytest.raises(fp8convert.Fp8ConvertError):
        fp8convert.shard_for_tp(src, src / inside, tp=2, layout="hf")
    assert readers.stored(src) == source("llama").tensors


def test_a_target_with_foreign_files(runs: Runs) -> None:
    target = runs.new()
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(fp8convert.Fp8ConvertError):
        fp8convert.shard_for_tp(runs.source("llama"), target, tp=2, layout="hf")
    assert [p.name for p in target.iterdir()] == ["notes.txt"]


def test_another_run_for_the_same_target(runs: Runs) -> None:
    folder = runs.new()
    fp8convert.shard_for_tp(runs.source("llama"), folder, tp=2, layout="hf")
    with pytest.raises(fp8convert.Fp8ConvertError, match="tp"):
        fp8convert.shard_for_tp(runs.source("llama"), folder, tp=4, layout="hf")


# The commands


def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["SRC", "DST"], 2, "--tp"),
        (["SRC", "--tp", "2"], 2, "DST"),
        (["SRC", "DST", "--tp", "two"], 2, "--tp"),
        (["SRC", "DST", "--tp", "2", "--ranks", "0-9"], 2, "ranks"),
        (["SRC", "DST", "--tp", "2", "--ranks", "1-0"], 2, "ranks"),
        (["SRC", "DST", "--tp", "2", "--layout", "megatron"], 2, "megatron"),
        (["SRC", "DST", "--tp", "2", "--n-experts", "256"], 1, "n_routed_experts"),
        (["SRC", "DST", "--tp", "3"], 1, "3 ranks"),
        (["--hf-ckpt-path", "SRC", "--save-path", "DST", "--n-experts", "256",
          "--model-parallel", "2"], 1, "256"),
        (["SRC", "DST", "--tp", "2", "--model-parallel", "4"], 2, "tp"),
    ],
    ids=str,
)  # fmt: skip
def test_exit_codes(words: list[str], code: int, message: str, runs: Runs) -> None:
    target = runs.new()
    given = [runs.source("v3") if w == "SRC" else target if w == "DST" else w for w in words]
    done = run("shard-for-tp", *given)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()


def test_unshard_exits_1(runs: Runs) -> None:
    target = runs.new()
    done = run("fp8convert", "unshard", runs.source("llama"), target)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not target.exists()
