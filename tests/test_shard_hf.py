"""``shard-for-tp --layout hf``: a folder a rank, cut by Megatron's rules, against a plain loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert.settings import Settings

from .quantized import readers
from .sharded import coding, families, files, oracle
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

DENSE = (
    "llama", "llama_bf16", "llama_awq", "llama_gptq", "mistral", "qwen2", "qwen2_gptq", "qwen3",
)  # fmt: skip
MOE = ("qwen2_moe", "qwen3_moe", "glm4_moe", "minimax_m2", "gpt_oss", "gpt_oss-in-bf16")
DEEPSEEK = ("v3", "v3_bf16", "v2", "v32", "kimi", "v3_nvfp4", "v3_modelopt", "v4", "v4_base")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


def assert_ranks(folder: Path, id: str, ranks: int, **options: Any) -> None:
    """Every tensor of every rank, in both directions."""
    found = source(id)
    expected = oracle.hf_ranks(found.tensors, found.config, ranks, **options)
    assert files.differing(files.hf_files(folder), expected) == {}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("id", [*DENSE, *MOE, *DEEPSEEK])
def test_every_rank_is_what_the_loop_makes(id: str, ranks: int, runs: Runs) -> None:
    """Two KV heads: four and eight ranks have copies of them."""
    assert_ranks(runs.shard(id, ranks, layout="hf"), id, ranks)


@pytest.mark.parametrize(
    ("id", "ranks"),
    [
        ("sample-deepseek-v3", 2),
        ("sample-kimi-k2-thinking", 4),
        ("sample-gpt-oss", 4),
        ("sample-mistral-fp8", 4),
        ("sample-modelopt-nvfp4", 1),
    ],
)
def test_the_samples(id: str, ranks: int, runs: Runs) -> None:
    assert_ranks(runs.shard(id, ranks, layout="hf"), id, ranks)


@pytest.mark.parametrize(
    "id", [m for m in MOE if m != "gpt_oss"] + ["v3_bf16", "kimi", "v3_nvfp4", "v3_modelopt"]
)
def test_experts_that_are_cut(id: str, runs: Runs) -> None:
    """Like an MLP, every one of them."""
    assert_ranks(runs.shard(id, 2, layout="hf", experts="cut"), id, 2, experts="cut")


def test_stacked_experts_that_are_cut(runs: Runs) -> None:
    """By pairs of rows, by groups of inputs: 128 wide, there are four groups for four ranks."""
    found = families.gpt_oss(128)
    expected = oracle.hf_ranks(found.tensors, found.config, 4, experts="cut")
    folder = runs.shard(found, 4, layout="hf", experts="cut")
    assert files.differing(files.hf_files(folder), expected) == {}


@pytest.mark.parametrize("id", ["glm4_moe", "v3", "v4"])
def test_mtp_layers_are_kept_unless_they_are_dropped(id: str, runs: Runs) -> None:
    found = source(id)
    folder = runs.shard(id, 2, layout="hf", mtp="drop")
    assert_ranks(folder, id, 2, mtp="drop")
    for rank in range(2):
        config = readers.config(folder / f"rank{rank}")
        assert config == {**found.config, "num_nextn_predict_layers": 0}
    if id == "v3":  # the layout deepseek has another default
        assert_ranks(runs.shard(id, 2, layout="hf"), id, 2, mtp="keep")


@pytest.mark.parametrize(
    "id",
    [
        "llama",
        "llama_awq",
        "llama_gptq",
        "qwen2_gptq",
        "mistral",
        "gpt_oss",
        "v3",
        "kimi",
        "v3_nvfp4",
        "v3_modelopt",
        "v4",
    ],
)
def test_decoded_in_the_same_pass(id: str, runs: Runs) -> None:
    found = source(id)
    whole = coding.decoded(found.tensors, found.config)
    config = {k: v for k, v in found.config.items() if k != "quantization_config"}
    expected = oracle.hf_ranks(whole, config, 8)
    folder = runs.shard(id, 8, layout="hf", weights="bf16")
    assert files.differing(files.hf_files(folder), expected) == {}
    for rank in range(8):
        assert "quantization_config" not in readers.config(folder / f"rank{rank}")


# The vocabulary


@pytest.mark.parametrize(
    ("id", "ranks", "multiple"),
    [("llama_tied", 8, 64), ("llama_tied", 8, 128), ("llama_tied", 4, 8), ("llama", 8, 96)],
)
def test_a_padded_vocabulary(id: str, ranks: int, multiple: int, runs: Runs) -> None:
    """Zeros behind the tokens; to a multiple of 128, half of the ranks have nothing else."""
    folder = runs.shard(id, ranks, layout="hf", pad_vocab=multiple)
    assert_ranks(folder, id, ranks, pad_vocab=multiple)
    assert readers.differing(files.pieced(folder), source(id).tensors) == []


def test_tied_embeddings_have_no_head(runs: Runs) -> None:
    folder = runs.shard("llama_tied", 4, layout="hf")
    assert_ranks(folder, "llama_tied", 4)
    assert "lm_head.weight" not in files.hf_rank(folder / "rank3")


# The other files


@pytest.mark.parametrize("id", ["llama", "v3_modelopt"])
def test_a_folder_holds_nothing_else(id: str, runs: Runs) -> None:
    """Each rank is a checkpoint that stands alone, with all that says how it is coded."""
    found = source(id)
    folder = runs.shard(id, 2, layout="hf")
    assert {p.name for p in folder.iterdir()} == {"rank0", "rank1", "tp.json", "manifest.json"}
    for rank in range(2):
        mine = files.contents(folder / f"rank{rank}")
        shards = {n for n in mine if n.endswith(".safetensors")}
        index = {"model.safetensors.index.json"} if len(shards) > 1 else set()
        assert mine.keys() == shards | index | {"config.json", "tp.json"} | set(found.files)
        assert mine["config.json"] == found.config_bytes
        for name, data in found.files.items():
            assert mine[name] == data


@pytest.mark.parametrize("limit", [1, 30_000, 10**9])
def test_shards_of_a_chosen_size(limit: int, runs: Runs) -> None:
    folder = runs.shard("llama", 4, layout="hf", max_shard_size=limit)
    assert_ranks(folder, "llama", 4)
    for rank in range(4):
        shards = files.by_file(folder / f"rank{rank}")
        if limit == 10**9:
            assert list(shards) == ["model.safetensors"]
        else:
            assert len(shards) > 1
        for found in shards.values():
            assert sum(len(t[2]) for t in found.values()) <= limit or limit == 1


@pytest.mark.parametrize(
    ("id", "options"),
    [
        *((id, {}) for id in (*DENSE, *MOE, *DEEPSEEK, "llama_tied")),
        ("qwen3_moe", {"experts": "cut"}),
        ("gpt_oss-in-bf16", {"experts": "cut"}),
        ("kimi", {"experts": "cut"}),
    ],
    ids=str,
)
def test_tp_json_says_where_everything_is(id: str, options: dict[str, Any], runs: Runs) -> None:
    """By what it says alone, the ranks are the source again."""
    ranks = 4 if not options else 2
    folder = runs.shard(id, ranks, layout="hf", **options)
    assert readers.differing(files.pieced(folder), source(id).tensors) == []


def test_tp_json_says_what_is_added_once(runs: Runs) -> None:
    """The bias of a row-parallel layer is on every rank, and would be added by each."""
    table = files.read_json(runs.shard("gpt_oss", 2, layout="hf") / "tp.json")["tensors"]
    said = {n.split("layers.0.")[-1] for n, entry in table.items() if "add_on_one_rank" in entry}
    assert {n for n in said if not n.startswith("model.")} == {"self_attn.o_proj.bias"}


# Some ranks, other ways of running


def test_some_ranks_are_those_of_all(runs: Runs) -> None:
    every = files.contents(runs.shard("qwen3_moe", 8, layout="hf"))
    some = files.contents(runs.shard("qwen3_moe", 8, layout="hf", ranks=(1, 6)))
    assert {n.split("/")[0] for n in some} == {"rank1", "rank6", "tp.json", "manifest.json"}
    assert all(data == every[n] for n, data in some.items() if n != "manifest.json")


@pytest.mark.parametrize("id", ["llama", "kimi", "gpt_oss", "qwen2"])
@pytest.mark.parametrize("way", [{"workers": 1}, {"workers": 5, "io": "buffered"}], ids=str)
def test_the_same_bytes_however_it_runs(
    id: str, way: dict[str, Any], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files.contents(runs.shard(id, 4, layout="hf"))
    monkeypatch.setattr(Settings, "tile", 4096)
    folder = runs.new()
    fp8convert.shard_for_tp(runs.source(id), folder, tp=4, layout="hf", **way)
    assert files.contents(folder) == expected


def test_the_command_does_the_same(runs: Runs) -> None:
    options = {"layout": "hf", "experts": "cut", "pad_vocab": 128}
    expected = files.contents(runs.shard("qwen2_moe", 2, **options))
    folder = runs.new()
    words = [BIN / "shard-for-tp", runs.source("qwen2_moe"), folder, "--tp", 2]
    words += ["--layout", "hf", "--experts", "cut", "--pad-vocab", 128]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files.contents(folder) == expected
