"""``shard-for-tp --layout deepseek``: every rank file against a plain loop over whole tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import fp8convert
from fp8convert.settings import Settings

from .quantized import readers
from .sharded import coding, deepseek, files, forms, oracle
from .sharded.arrays import nbytes
from .sharded.model import Source
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

V3 = ("v3", "v3_bf16", "v31", "v2", "v32", "v32-in-bf16")
V4 = ("v4", "v4_base", "v4_bf16")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


def assert_ranks(folder: Path, expected: list[readers.Stored]) -> None:
    """Every tensor of every rank, in both directions."""
    assert files.differing(files.deepseek_files(folder), expected) == {}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("id", [*V3, *V4])
def test_every_rank_is_what_the_loop_makes(id: str, ranks: int, runs: Runs) -> None:
    found = source(id)
    expected = oracle.deepseek_ranks(found.tensors, found.config, ranks)
    assert_ranks(runs.shard(id, ranks), expected)


@pytest.mark.parametrize(
    ("id", "ranks"),
    [
        ("sample-deepseek-v3", 1),
        ("sample-deepseek-v3", 2),
        ("sample-deepseek-v3-in-bf16", 4),
        ("sample-deepseek-v4", 1),
        ("sample-deepseek-v4", 2),
    ],
)
def test_the_samples(id: str, ranks: int, runs: Runs) -> None:
    found = source(id)
    expected = oracle.deepseek_ranks(found.tensors, found.config, ranks)
    assert_ranks(runs.shard(id, ranks), expected)


@pytest.mark.parametrize("mtp", ["drop", "keep"])
@pytest.mark.parametrize("id", ["v3", "v3_bf16", "v32", "v4", "v4_base"])
def test_mtp_layers(id: str, mtp: str, runs: Runs) -> None:
    """V3's are left out unless asked for, as the published script does; V4's are kept."""
    found = source(id)
    expected = oracle.deepseek_ranks(found.tensors, found.config, 4, mtp=mtp)
    folder = runs.shard(id, 4, mtp=mtp)
    assert_ranks(folder, expected)
    config = readers.config(folder)
    assert config.pop("num_nextn_predict_layers") == (0 if mtp == "drop" else 1)
    if id in V4:  # wo_a is BF16 then
        kept = oracle.kept(found.tensors, found.config, mtp)
        decoded = {n.removesuffix(".weight") for n in kept if n.endswith("wo_a.weight")}
        assert set(config["quantization_config"].pop("modules_to_not_convert")) == decoded
    assert config == {k: v for k, v in found.config.items() if k != "num_nextn_predict_layers"}


@pytest.mark.parametrize(("id", "weights", "tag"), [
    ("v3", "bf16", "BF16"), ("v32", "bf16", "BF16"), ("v4", "bf16", "BF16"),
    ("v4_base", "bf16", "BF16"), ("v3", "float16", "F16"), ("v3", "float32", "F32"),
])  # fmt: skip
def test_decoded_in_the_same_pass(id: str, weights: str, tag: str, runs: Runs) -> None:
    """Cut anywhere: the weights have no blocks any more."""
    found = source(id)
    whole = coding.decoded(found.tensors, found.config, tag)
    expected = oracle.deepseek_ranks(whole, found.config, 8)
    folder = runs.shard(id, 8, weights=weights)
    assert_ranks(folder, expected)
    config = readers.config(folder)
    assert "quantization_config" not in config
    assert config["torch_dtype"] == {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[tag]


@pytest.mark.parametrize("ranks", [16, 64])
def test_more_ranks_than_are_written_together(ranks: int, runs: Runs) -> None:
    found = wide()
    expected = oracle.deepseek_ranks(found.tensors, found.config, ranks)
    assert_ranks(runs.shard(found, ranks), expected)


def wide() -> Source:
    """64 heads of two channels, 64 experts; unquantized, so that nothing is aligned."""
    return deepseek.deepseek(
        "wide", forms.bf16, None, num_attention_heads=64, num_key_value_heads=64,
        n_routed_experts=64, qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=2, hidden_size=24,
        q_lora_rank=8, moe_intermediate_size=4, intermediate_size=128, n_shared_experts=16,
    )  # fmt: skip


def test_tables_that_repeat_the_models_are_left_out_in_v4(runs: Runs) -> None:
    """Whatever they are called: ``mtp.0.embed`` and ``mtp.0.head`` here."""
    names = set(files.deepseek_files(runs.shard("v4_base", 2))[0])
    assert {"embed.weight", "head.weight", "mtp.0.e_proj.weight"} <= names
    assert not {"mtp.0.embed.weight", "mtp.0.head.weight"} & names


# The other files


def test_a_folder_holds_nothing_else(runs: Runs) -> None:
    found = source("v3")
    folder = runs.shard("v3", 4, mtp="keep")
    names = {p.name for p in folder.iterdir()}
    own = {"config.json", "model_args.json", "tp.json", "manifest.json"}
    assert names == own | set(found.files) | {f"model{r}-mp4.safetensors" for r in range(4)}
    for name, data in found.files.items():
        assert (folder / name).read_bytes() == data
    assert (folder / "config.json").read_bytes() == found.config_bytes


@pytest.mark.parametrize("id", ["v3", "v32", "v4_bf16"])
def test_the_safetensors_library_reads_every_rank(id: str, runs: Runs) -> None:
    folder = runs.shard(id, 2)
    for rank, expected in enumerate(files.deepseek_files(folder)):
        with safe_open(folder / f"model{rank}-mp2.safetensors", "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert set(shard.keys()) == expected.keys()
            for name, (_, shape, data) in expected.items():
                tensor = shard.get_tensor(name)
                assert tuple(tensor.shape) == shape
                assert tensor.element_size() * tensor.numel() == len(data)


@pytest.mark.parametrize("id", ["v3", "v3_bf16", "v32", "v4", "v4_base"])
def test_tp_json_says_where_everything_is(id: str, runs: Runs) -> None:
    """By what it says alone, the ranks are the source; of V4, the source as it is run."""
    found = source(id)
    expected = found.tensors
    if id in V4:
        expected = oracle._as_v4_runs(expected, found.config)
    else:
        expected = oracle.kept(expected, found.config, "drop")
    assert readers.differing(files.pieced(runs.shard(id, 4)), expected) == []


PUBLISHED = {  # config_671B.json of DeepSeek-V3
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61,
    "n_dense_layers": 3, "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "n_activated_experts": 8, "n_expert_groups": 8, "n_limited_groups": 4, "route_scale": 2.5,
    "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip
FIELDS = {  # of config.json, by the name that the model's arguments have
    "vocab_size": "vocab_size", "dim": "hidden_size", "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size", "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace", "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts", "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok", "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group", "route_scale": "routed_scaling_factor",
    "score_func": "scoring_func", "q_lora_rank": "q_lora_rank", "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim", "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
}  # fmt: skip


@pytest.mark.parametrize(("id", "dtype"), [("v3", "fp8"), ("v3_bf16", "bf16"), ("v31", "fp8")])
def test_model_arguments(id: str, dtype: str, runs: Runs) -> None:
    """As the published JSON has them, and only what ``ModelArgs`` takes."""
    found = source(id).config
    args = files.read_json(runs.shard(id, 2) / "model_args.json")
    assert PUBLISHED.keys() <= args.keys()
    assert {k: args[k] for k in FIELDS} == {k: found[field] for k, field in FIELDS.items()}
    assert args["dtype"] == dtype
    extra = args.keys() - PUBLISHED.keys()
    assert extra <= {
        "original_seq_len", "rope_theta", "rope_factor", "beta_fast", "beta_slow", "mscale",
        "scale_fmt",
    }  # fmt: skip
    assert args.get("scale_fmt") == ("ue8m0" if id == "v31" else None)
    decoded = files.read_json(runs.shard(id, 2, weights="bf16") / "model_args.json")
    assert decoded["dtype"] == "bf16"


def test_model_arguments_of_the_published_config(runs: Runs) -> None:
    """The tiny sample has the fields of the published config, not its sizes."""
    args = files.read_json(runs.shard("sample-deepseek-v3", 2) / "model_args.json")
    assert (args["route_scale"], args["score_func"], args["dtype"]) == (2.5, "sigmoid", "fp8")
    assert args["n_layers"] == 3


# Some ranks, other ways of running


def test_some_ranks_are_those_of_all(runs: Runs) -> None:
    every = files.contents(runs.shard("v3", 8))
    some = files.contents(runs.shard("v3", 8, ranks=(0, 3, 4)))
    names = {n for n in some if n.endswith(".safetensors")}
    assert names == {f"model{r}-mp8.safetensors" for r in (0, 3, 4)}
    for name in (*names, "config.json", "model_args.json", "tp.json"):
        assert some[name] == every[name], name


@pytest.mark.parametrize("id", ["v3", "v4", "v3_bf16"])
@pytest.mark.parametrize("way", [{"workers": 1}, {"workers": 5}, {"io": "buffered"}], ids=str)
def test_the_same_bytes_however_it_runs(
    id: str, way: dict[str, Any], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small tiles: they begin and end within rows, blocks and ranks."""
    expected = files.contents(runs.shard(id, 4))
    monkeypatch.setattr(Settings, "tile", 4096)
    folder = runs.new()
    fp8convert.shard_for_tp(runs.source(id), folder, tp=4, **way)
    assert files.contents(folder) == expected


def test_small_tiles_decoded(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = files.contents(runs.shard("v3", 8, weights="bf16"))
    monkeypatch.setattr(Settings, "tile", 4096)
    folder = runs.new()
    fp8convert.shard_for_tp(runs.source("v3"), folder, tp=8, weights="bf16", workers=2)
    assert files.contents(folder) == expected


@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_the_source_is_read_about_once(ranks: int, runs: Runs) -> None:
    """What is whole on every rank is small here, as it is in real models."""
    found = source("sample-deepseek-v3-in-bf16" if ranks < 16 else "v3_bf16")
    if ranks == 16:
        found = wide()
    seen: list[Any] = []
    fp8convert.shard_for_tp(
        runs.source(found), runs.new(), tp=ranks, progress=seen.append, io="buffered"
    )
    assert nbytes(oracle.kept(found.tensors, found.config, "drop")) <= seen[-1].read
    assert seen[-1].read <= 1.25 * nbytes(found.tensors)


def test_a_run_that_was_stopped_is_resumed(runs: Runs) -> None:
    """With the bytes of an undisturbed one, and nothing under a final name before."""
    expected = files.contents(runs.shard("v3", 4))
    folder = runs.new()

    class Stop(Exception):  # noqa: N818
        pass

    def stop(at: Any) -> None:
        if at.written > at.total / 2:
            raise Stop

    with pytest.raises(Stop):
        fp8convert.shard_for_tp(runs.source("v3"), folder, tp=4, progress=stop)
    assert not folder.exists()
    done = fp8convert.shard_for_tp(runs.source("v3"), folder, tp=4)
    assert files.contents(folder) == expected
    assert not done.already_done
    assert fp8convert.shard_for_tp(runs.source("v3"), folder, tp=4).already_done


# The command


def run(*words: object, program: str = "shard-for-tp") -> subprocess.CompletedProcess[str]:
    command = [str(BIN / program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_command_does_the_same(runs: Runs) -> None:
    expected = files.contents(runs.shard("v3", 4))
    one, two, three = runs.new(), runs.new(), runs.new()
    src = runs.source("v3")
    done = run(src, one, "--tp", 4)
    assert done.returncode == 0, done.stderr
    assert files.contents(one) == expected
    done = run("shard-for-tp", src, two, "--tp", 4, "--layout", "deepseek", program="fp8convert")
    assert done.returncode == 0, done.stderr
    assert files.contents(two) == expected
    done = run("--hf-ckpt-path", src, "--save-path", three, "--n-experts", 8, "--model-parallel", 4)
    assert done.returncode == 0, done.stderr
    assert files.contents(three).keys() == expected.keys()
    for name, data in files.contents(three).items():
        if name != "manifest.json":  # which has the number of experts that was checked
            assert data == expected[name], name


def test_the_command_takes_ranges_of_ranks(runs: Runs) -> None:
    src, folder = runs.source("v3"), runs.new()
    done = run(src, folder, "--tp", 8, "--ranks", "0,3-5", "--mtp", "keep", "--weights", "bf16")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in folder.glob("*.safetensors")}
    assert names == {f"model{r}-mp8.safetensors" for r in (0, 3, 4, 5)}
    every = files.deepseek_files(runs.shard("v3", 8, mtp="keep", weights="bf16"))
    for rank in (0, 3, 4, 5):
        assert readers.shard(folder / f"model{rank}-mp8.safetensors") == every[rank]


def test_control_a_byte_that_differs_is_noticed(runs: Runs, tmp_path: Path) -> None:
    found = source("v3")
    expected = oracle.deepseek_ranks(found.tensors, found.config, 2)
    ours = files.deepseek_files(runs.shard("v3", 2))
    name = "layers.0.attn.wq_b.scale"
    tag, shape, data = ours[1][name]
    ours[1][name] = (tag, shape, data[:-1] + bytes([data[-1] ^ 1]))
    assert files.differing(ours, expected) == {1: [name]}
    del ours[1][name]
    assert files.differing(ours, expected) == {1: [name]}
    ours[0]["more"] = (tag, shape, data)
    assert files.differing(ours, expected) == {0: ["more"], 1: [name]}


def test_the_manifest_names_every_file(runs: Runs) -> None:
    folder = runs.shard("v4", 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {entry["name"]: entry["size"] for entry in manifest["files"]}
    there = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "manifest.json"}
    assert names == there
