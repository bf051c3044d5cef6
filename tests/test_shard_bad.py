"""What ``shard-for-tp`` and ``unshard`` must refuse, with a message that says what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fp8convert

from .quantized import readers
from .quantized.readers import Stored
from .sharded import deepseek, families, forms, model, oracle
from .sharded.arrays import cut, joined
from .sharded.forms import plain
from .sharded.model import Source
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


def refused(run: Callable[[Path], object], target: Path, code: int = 1) -> str:
    """The message; nothing is left."""
    with pytest.raises(fp8convert.Fp8ConvertError) as caught:
        run(target)
    assert not target.exists()
    assert caught.value.exit_code == code
    return str(caught.value)


def shard(runs: Runs, of: str | Source, tp: Any = 2, code: int = 1, **options: Any) -> str:
    """The message of ``shard_for_tp``."""
    src = runs.source(of)
    target = runs.new()
    message = refused(lambda dst: fp8convert.shard_for_tp(src, dst, tp=tp, **options), target, code)
    assert not list(target.parent.iterdir())
    return message


def changed(id: str, name: str, tensors: Stored | None = None, **fields: Any) -> Source:
    """A source with other fields in its config (None: without), or more tensors."""
    found = source(id).changed(name, **fields)
    return replace(found, tensors=found.tensors | (tensors or {}))


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


# Rank files that do not belong together


Ranks = Path


def copied(runs: Runs, folder: Path) -> Path:
    """A rank set that may be spoiled."""
    target = runs.new()
    shutil.copytree(folder, target)
    return target


def unshard(runs: Runs, folder: Path, **options: Any) -> str:
    """The message of ``unshard``."""
    target = runs.new()
    message = refused(lambda dst: fp8convert.unshard(folder, dst, **options), target)
    assert not [p for p in target.parent.iterdir() if not p.name.startswith(".")]
    return message


@pytest.fixture
def native(runs: Runs) -> Path:
    return copied(runs, runs.shard("v3", 4))


@pytest.fixture
def hf(runs: Runs) -> Path:
    return copied(runs, runs.shard("llama", 4, layout="hf"))


def rewrite(file: Path, change: Callable[[Stored], None]) -> None:
    """One shard, spoiled."""
    tensors = readers.shard(file)
    change(tensors)
    model.write_shard(file, tensors)


def one_shard(folder: Path, name: str) -> Path:
    """The file with this tensor."""
    return next(f for f in folder.glob("*.safetensors") if name in readers.shard(f))


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_rank_file_is_missing(missing: int, native: Path, runs: Runs) -> None:
    (native / f"model{missing}-mp4.safetensors").unlink()
    assert f"model{missing}-mp4.safetensors" in unshard(runs, native)


def test_a_rank_file_is_there_twice(native: Path, runs: Runs) -> None:
    shutil.copy(native / "model1-mp4.safetensors", native / "model01-mp4.safetensors")
    assert "rank files of 4 ranks: 5 files" in unshard(runs, native)


def test_rank_files_of_two_numbers(native: Path, runs: Runs) -> None:
    shutil.copy(native / "model1-mp4.safetensors", native / "model1-mp2.safetensors")
    assert "different numbers of ranks" in unshard(runs, native)


def test_rank_files_of_another_number(native: Path, runs: Runs) -> None:
    for rank in range(4):
        (native / f"model{rank}-mp4.safetensors").unlink()
    for rank in range(2):
        shutil.copy(runs.shard("v3", 2) / f"model{rank}-mp2.safetensors", native)
    message = unshard(runs, native)
    assert "2" in message
    assert "4" in message
    assert "tp.json" in message


def test_a_rank_folder_is_missing(hf: Path, runs: Runs) -> None:
    shutil.rmtree(hf / "rank2")
    assert "'rank2' missing" in unshard(runs, hf)


def test_a_rank_folder_too_many(hf: Path, runs: Runs) -> None:
    shutil.copytree(hf / "rank2", hf / "rank4")
    assert "'rank4'" in unshard(runs, hf)


def test_a_rank_folder_that_is_another(hf: Path, runs: Runs) -> None:
    """Copied over: every shape is right, the rows are those of rank 1."""
    shutil.rmtree(hf / "rank2")
    shutil.copytree(hf / "rank1", hf / "rank2")
    message = unshard(runs, hf)
    assert "rank2" in message
    assert "rank 2 of 4" in message


def test_a_rank_folder_of_another_number(hf: Path, runs: Runs) -> None:
    shutil.rmtree(hf / "rank1")
    shutil.copytree(runs.shard("llama", 2, layout="hf") / "rank1", hf / "rank1")
    assert "rank 1 of 4" in unshard(runs, hf)


def test_a_shard_of_a_rank_is_missing(hf: Path, runs: Runs) -> None:
    file = one_shard(hf / "rank1", "model.layers.0.self_attn.q_proj.weight")
    file.unlink()
    assert file.name in unshard(runs, hf)


WQ_B, NORM = "layers.0.attn.wq_b.weight", "layers.0.attn_norm.weight"
EXPERT = "layers.1.ffn.experts.2.w1.weight"  # of rank 1


def drop(name: str) -> Callable[[Stored], None]:
    return lambda tensors: tensors.pop(name) and None


def shorter(name: str) -> Callable[[Stored], None]:
    def change(tensors: Stored) -> None:
        tensors[name] = cut(tensors[name], 0, 0, tensors[name][1][0] // 2)

    return change


def longer(name: str) -> Callable[[Stored], None]:
    def change(tensors: Stored) -> None:
        tensors[name] = joined([tensors[name], tensors[name]], 0)

    return change


def retyped(name: str) -> Callable[[Stored], None]:
    def change(tensors: Stored) -> None:
        _, shape, data = tensors[name]
        tensors[name] = ("F16" if len(data) % 2 == 0 and "norm" in name else "U8", shape, data)

    return change


def added(name: str) -> Callable[[Stored], None]:
    def change(tensors: Stored) -> None:
        tensors[name] = plain(name, 4, 4)

    return change


@pytest.mark.parametrize("told", [True, False], ids=["tp.json", "published"])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (drop(WQ_B), WQ_B),
        (drop(NORM), NORM),
        (shorter(WQ_B), WQ_B),
        (shorter(NORM), NORM),
        (retyped(WQ_B), WQ_B),
        (retyped(NORM), NORM),
        (added("layers.0.more.weight"), "layers.0.more.weight"),
        (added("layers.1.ffn.experts.0.w1.weight"), "layers.1.ffn.experts.0.w1.weight"),
        (drop("layers.0.attn.wq_b.scale"), "layers.0.attn.wq_b.scale"),
    ],
    ids=["no cut", "no whole", "short", "short whole", "dtype", "whole dtype", "new", "expert",
         "no scale"],
)  # fmt: skip
def test_ranks_that_disagree(
    change: Callable[[Stored], None], name: str, told: bool, native: Path, runs: Runs
) -> None:
    """One rank's file is not like the others, or not as tp.json has it."""
    rewrite(native / "model1-mp4.safetensors", change)
    if not told:
        (native / "tp.json").unlink()
    assert name in unshard(runs, native)


def test_an_expert_that_no_rank_has(native: Path, runs: Runs) -> None:
    """Without tp.json the config counts the experts, but nothing says which layers have them."""
    rewrite(native / "model1-mp4.safetensors", drop(EXPERT))
    assert EXPERT in unshard(runs, native)


def test_every_rank_is_longer(native: Path, runs: Runs) -> None:
    """What is beyond the recorded length of a cut is padding, but whole tensors have none."""
    for rank in range(4):
        rewrite(native / f"model{rank}-mp4.safetensors", longer(NORM))
    assert NORM in unshard(runs, native)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_rank_folders_that_disagree(name: str, hf: Path, runs: Runs) -> None:
    rewrite(one_shard(hf / "rank3", name), shorter(name))
    message = unshard(runs, hf)
    assert name in message
    assert "rank3" in message or "rank 3" in message


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.k_proj.weight"])
def test_copies_that_differ(name: str, hf: Path, runs: Runs) -> None:
    """Found when they are read: a norm of every rank, KV heads of two."""

    def spoil(tensors: Stored) -> None:
        tag, shape, data = tensors[name]
        tensors[name] = (tag, shape, data[:-1] + bytes([data[-1] ^ 1]))

    rewrite(one_shard(hf / "rank1", name), spoil)
    target = runs.new()
    with pytest.raises(fp8convert.Fp8ConvertError, match="differ") as caught:
        fp8convert.unshard(hf, target)
    assert name in str(caught.value)
    assert not target.exists()


# What tp.json says


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        table = json.loads((folder / "tp.json").read_text())
        change(table)
        (folder / "tp.json").write_text(json.dumps(table))

    return spoil


def of(table: dict[str, Any], name: str = "model.layers.0.self_attn.q_proj.weight") -> Any:
    return table["tensors"][name]


def written(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "tp.json").write_text(text)

    return spoil


SPOILED: dict[str, Callable[[Path], None]] = {
    "no JSON": written("{"),
    "a list": written("[]"),
    "empty": written(""),
    "no tensors": edited(lambda t: t.pop("tensors")),
    "tensors a list": edited(lambda t: t.update(tensors=[])),
    "format 2": edited(lambda t: t.update(format=2)),
    "format true": edited(lambda t: t.update(format=True)),
    "another layout": edited(lambda t: t.update(layout="megatron")),
    "the other layout": edited(lambda t: t.update(layout="deepseek")),
    "no ranks": edited(lambda t: t.update(ranks=0)),
    "a billion ranks": edited(lambda t: t.update(ranks=10**9)),
    "fewer ranks": edited(lambda t: t.update(ranks=2)),
    "more ranks": edited(lambda t: t.update(ranks=8)),
    "axis 2": edited(lambda t: of(t).update(axis=2)),
    "axis -1": edited(lambda t: of(t).update(axis=-1)),
    "another axis": edited(lambda t: of(t).update(axis=1)),
    "no axis": edited(lambda t: of(t).pop("axis")),
    "no pieces": edited(lambda t: of(t).pop("pieces")),
    "pieces in another order": edited(lambda t: of(t)["pieces"].reverse()),
    "offsets exchanged": edited(lambda t: of(t)["pieces"][0].__setitem__(1, of(t)["pieces"][1][1])),
    "a hole": edited(lambda t: of(t)["pieces"][1].__setitem__(1, 65)),
    "a short piece": edited(lambda t: of(t)["pieces"][3].__setitem__(2, 63)),
    "a negative length": edited(lambda t: of(t)["pieces"][3].__setitem__(2, -64)),
    "a float": edited(lambda t: of(t)["pieces"][3].__setitem__(1, 192.0)),
    "a rank twice": edited(lambda t: of(t)["pieces"][3].__setitem__(0, 2)),
    "another dtype": edited(lambda t: of(t).update(dtype="BF16")),
    "no dtype": edited(lambda t: of(t).pop("dtype")),
    "another shape": edited(lambda t: of(t).update(shape=[256, 81])),
    "a shape of text": edited(lambda t: of(t).update(shape=["256", 80])),
    "a name that is not there": edited(lambda t: of(t).update(name="x")),
    "one tensor fewer": edited(
        lambda t: t["tensors"].pop("model.layers.0.self_attn.q_proj.weight")
    ),
    "one rank alone": edited(lambda t: of(t).update(rank=1)),
    "rank 4": edited(lambda t: of(t, "model.norm.weight").update(rank=4)),
    "one tensor more": edited(
        lambda t: t["tensors"].update(more={"dtype": "F32", "shape": [1], "file": "x"})
    ),
    "two of one": edited(
        lambda t: t["tensors"].update(
            more={**of(t, "model.norm.weight"), "name": "model.norm.weight"}
        )
    ),
    "a file outside": edited(
        lambda t: of(t, "model.norm.weight").update(file="../../evil.safetensors")
    ),
    "a file that is none of weights": edited(
        lambda t: of(t, "model.norm.weight").update(file="config.json")
    ),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_tp_json_that_is_wrong(spoil: Callable[[Path], None], hf: Path, runs: Runs) -> None:
    """Never a crash, never a checkpoint that is not the source's."""
    spoil(hf)
    assert len(unshard(runs, hf)) < 2000


def test_a_rank_set_in_part(runs: Runs) -> None:
    for layout, word in (("deepseek", "model1-mp4.safetensors"), ("hf", "rank1")):
        folder = runs.shard("v3", 4, layout=layout, ranks=(0, 3))
        assert word in unshard(runs, folder)


def test_what_is_no_rank_set(runs: Runs) -> None:
    for folder in (runs.source("llama"), runs.shard("llama", 4, layout="hf") / "rank1"):
        message = unshard(runs, folder)
        assert "rank" in message
    assert "does not exist" in unshard(runs, runs.root / "nothing")


def test_one_rank_is_no_whole_model(runs: Runs) -> None:
    """A rank's folder looks like a checkpoint, but its heads are not those of the config."""
    folder = runs.shard("llama", 4, layout="hf") / "rank1"
    message = refused(
        lambda dst: fp8convert.shard_for_tp(folder, dst, tp=2, layout="hf"), runs.new()
    )
    assert "rank" in message or "num_attention_heads" in message or "vocab_size" in message


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
