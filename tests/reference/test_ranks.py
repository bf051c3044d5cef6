"""Rank sets run as ranks: as the unsharded model; what is wrong in a rank's files shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fp8convert.catalogue import open_ranks
from fp8convert.errors import DataError, FormatError, Fp8ConvertError, SchemeError, UsageError
from fp8convert.reference.groups import Threads
from fp8convert.reference.ranked import Ranked, one_thread
from fp8convert.reference.ranks import open_any
from fp8convert.reference.run import logits_of, steps

from ..sharded.families import rows_of_192
from ..sharded.runs import runs
from ..sharded.sources import source
from .rank_sets import (
    Models,
    Tensors,
    apart,
    divergence,
    edit,
    files,
    ids,
    transformers_logits,
    vocabulary,
)

FLOAT32 = 1e-5  # relative rms; measured: at most 1e-6
BF16 = 0.03  # relative rms, largest KL below; measured: at most 0.014, 1.3e-3 (V4)
BF16_KL = 0.01
WRONG = 100 * FLOAT32  # what damage must exceed, in float32

HF: dict[str, Any] = {"layout": "hf"}
CUT: dict[str, Any] = {"layout": "hf", "experts": "cut"}
PADDED: dict[str, Any] = {
    "layout": "hf",
    "pad_vocab": 128,
}  # 96 rows, of 4 ranks: the last has none
DEEPSEEK: dict[str, Any] = {"layout": "deepseek"}
MENDED: dict[str, Any] = {"layout": "deepseek", "mtp": "keep", "misaligned": "bf16"}
KEPT: dict[str, Any] = {"layout": "deepseek", "mtp": "keep"}
V3_SETS: list[tuple[int, dict[str, Any]]] = [
    (1, KEPT),
    (2, KEPT),
    (2, CUT),
    (2, {"layout": "deepseek", "weights": "bf16"}),
    (4, MENDED),
    (4, {"layout": "hf", "misaligned": "reblock"}),
    (4, {"layout": "deepseek", "weights": "bf16"}),
]
V3_CASES = [
    *((compute, tp, options) for compute in ("fp32", "bf16") for tp, options in V3_SETS),
    *(("fp8", tp, options) for tp, options in V3_SETS[:3]),  # the same codes as in the source
]
TINY_SETS = [
    ("llama", HF),  # biases of o_proj and down_proj, which every rank has; 2 KV heads
    ("llama", PADDED),
    ("mistral", HF),
    ("qwen2", HF),
    ("qwen3", HF),
    ("qwen3_moe", HF),
    ("qwen3_moe", CUT),
    ("deepseek_v3", HF),
    ("deepseek_v3", CUT),
    ("deepseek_v32", DEEPSEEK),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with runs(tmp_path_factory.mktemp("ranks")) as made:
        yield Models(made.root)


def logits(folder: Path, compute: str = "fp32", **options: Any) -> torch.Tensor:
    """With as many threads as ranks have, whatever is at ``folder``."""
    model = open_any(folder, compute, **options)
    with one_thread():
        return logits_of(model, ids(model.vocabulary))


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(("model", "options"), TINY_SETS)
def test_ranks_are_transformers_model(
    model: str, tp: int, options: dict[str, Any], models: Models
) -> None:
    whole = models.model(model)
    expected = transformers_logits(whole, ids(vocabulary(whole)))
    found = logits(models.cut(model, tp, **options))
    assert apart(expected, found) <= FLOAT32


@pytest.mark.parametrize(("compute", "tp", "options"), V3_CASES)
def test_ranks_of_v3(compute: str, tp: int, options: dict[str, Any], models: Models) -> None:
    expected = logits(models.model("sample-deepseek-v3"), compute)
    found = logits(models.cut("sample-deepseek-v3", tp, **options), compute)
    if tp == 1:
        assert torch.equal(expected, found)
    assert apart(expected, found) <= (FLOAT32 if compute == "fp32" else BF16)
    assert divergence(expected, found) <= BF16_KL


@pytest.mark.parametrize("tp", [1, 2])  # two groups of heads: no more ranks
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp8"])
def test_ranks_of_v4(compute: str, tp: int, models: Models) -> None:
    expected = logits(models.model("sample-deepseek-v4"), compute)
    found = logits(models.cut("sample-deepseek-v4", tp, **DEEPSEEK), compute)
    if tp == 1:
        assert torch.equal(expected, found)
    assert apart(expected, found) <= (FLOAT32 if compute == "fp32" else BF16)
    assert divergence(expected, found) <= BF16_KL


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("id", ["llama", "llama_awq", "llama_tied", "mistral", "qwen3_moe", "kimi"])
def test_ranks_in_other_formats(id: str, tp: int, models: Models) -> None:
    """Smaller blocks, four bits, a scale a tensor, tied tables."""
    kv = source(id).config["num_attention_heads" if id == "kimi" else "num_key_value_heads"]
    plain = {"rope_parameters": {"rope_theta": 10000}}
    made = source(id).changed(f"{id}-run", rms_norm_eps=1e-6, num_key_value_heads=kv, **plain)
    expected = logits(models.source(made))
    assert apart(expected, logits(models.shard(made, tp, layout="hf"))) <= FLOAT32


@pytest.mark.parametrize("experts", ["owner", "cut"])
def test_ranks_of_v4_under_layout_hf(experts: str, models: Models) -> None:
    expected = logits(models.model("sample-deepseek-v4"))
    found = logits(models.cut("sample-deepseek-v4", 2, layout="hf", experts=experts))
    assert apart(expected, found) <= FLOAT32


def test_ranks_of_groups_in_activation_order_cannot_be_run_alone(models: Models) -> None:
    made = source("qwen2_gptq").changed("qwen2_gptq-run", rms_norm_eps=1e-6)
    with pytest.raises(SchemeError, match=r"down_proj.qweight.*scales .* are F16 \[8, 96\]"):
        open_any(models.shard(made, 2, layout="hf"))


@pytest.mark.parametrize(
    ("model", "tp", "options"),
    [
        ("sample-deepseek-v3", 2, KEPT),
        ("sample-deepseek-v3", 2, HF),
        ("sample-deepseek-v3", 4, MENDED),
        ("sample-deepseek-v4", 2, DEEPSEEK),
    ],
)
def test_the_mtp_layer_of_ranks(
    model: str, tp: int, options: dict[str, Any], models: Models
) -> None:
    found = []
    for folder in (models.model(model), models.cut(model, tp, **options)):
        opened = open_any(folder, "fp32")
        assert opened.mtp == 1
        tokens = ids(opened.vocabulary)
        *_, last = steps(opened, tokens)
        with torch.no_grad(), one_thread():
            found.append(opened.predict(last.state, tokens))
    for expected, ranked in zip(*found, strict=True):
        assert apart(expected, ranked) <= FLOAT32


def test_an_mtp_layer_that_was_left_out(models: Models) -> None:
    assert open_any(models.cut("sample-deepseek-v3", 2, **DEEPSEEK)).mtp == 0


def test_every_rank_has_the_same_state(models: Models) -> None:
    ranked = open_any(models.cut("qwen3", 2, **HF))
    assert isinstance(ranked, Ranked)
    assert ranked.kind(0) == "dense"
    assert (ranked.layers, ranked.vocabulary) == (2, 96)
    x = ranked.embed(ids(96))
    assert x.dtype == torch.bfloat16
    assert not x.requires_grad
    assert "model.embed_tokens.weight" in ranked.w.used
    assert ranked.w.largest_band > 0
    assert ranked.w.bytes_decoded == sum(w.bytes_decoded for w in ranked.w.ranks) > 0


def test_ranks_with_scales_of_their_own_are_run_though_they_cannot_be_joined(
    models: Models,
) -> None:
    for layout in ("hf", "deepseek"):
        options = {"layout": layout, "misaligned": "requantize"}
        found = logits(models.cut("sample-deepseek-v3", 4, **options))
        expected = logits(models.model("sample-deepseek-v3"))
        assert 1e-3 < apart(expected, found) < 0.03


def test_as_many_threads_compute_as_before(models: Models) -> None:
    before = torch.get_num_threads()
    open_any(models.cut("qwen3", 2, **HF)).embed(ids(96))
    assert torch.get_num_threads() == before


# Damage. Each was sound before: the test above that has the same set.


def move_o_proj(ranks: list[Tensors]) -> None:
    """From the other rank."""
    for name in ranks[0]:
        if name.endswith((".attn.wo.weight", ".o_proj.weight")):
            ranks[0][name], ranks[1][name] = ranks[1][name], ranks[0][name]


def copy_up_proj(ranks: list[Tensors]) -> None:
    """One rank has rows of the other."""
    ranks[1]["model.layers.0.mlp.up_proj.weight"] = ranks[0]["model.layers.0.mlp.up_proj.weight"]


def swap_files(ranks: list[Tensors]) -> None:
    """All of them, in another order."""
    ranks.reverse()


def swap_head(ranks: list[Tensors]) -> None:
    ranks[0]["head.weight"], ranks[1]["head.weight"] = (
        ranks[1]["head.weight"], ranks[0]["head.weight"],
    )  # fmt: skip


def swap_experts(ranks: list[Tensors]) -> None:
    """What the experts of one rank are is under the names of the other's."""
    for name in [n for n in ranks[0] if ".experts." in n]:
        number = int(name.split(".")[-3])
        other = name.replace(f".experts.{number}.", f".experts.{number + 8}.")
        ranks[0][name], ranks[1][other] = ranks[1][other], ranks[0][name]


def swap_gate_and_up(ranks: list[Tensors]) -> None:
    """On one rank only."""
    for name in [n for n in ranks[1] if n.endswith("ffn.shared_experts.w1.weight")]:
        other = name.replace(".w1.", ".w3.")
        ranks[1][name], ranks[1][other] = ranks[1][other], ranks[1][name]


def swap_kv_heads(ranks: list[Tensors]) -> None:
    """Those of the other rank's queries."""
    for name in [n for n in ranks[0] if n.endswith((".k_proj.weight", ".v_proj.weight"))]:
        ranks[0][name], ranks[1][name] = ranks[1][name], ranks[0][name]


def alter_norm(ranks: list[Tensors]) -> None:
    """A replicated weight of one rank."""
    ranks[1]["layers.1.attn_norm.weight"] *= 1.5


DAMAGE: list[tuple[str, dict[str, Any], Callable[[list[Tensors]], None]]] = [
    ("sample-deepseek-v3", DEEPSEEK, move_o_proj),
    ("sample-deepseek-v3", DEEPSEEK, swap_head),
    ("sample-deepseek-v3", DEEPSEEK, swap_experts),
    ("sample-deepseek-v3", DEEPSEEK, swap_gate_and_up),
    ("sample-deepseek-v3", DEEPSEEK, alter_norm),
    ("qwen3", HF, move_o_proj),
    ("qwen3", HF, copy_up_proj),
    ("qwen3", HF, swap_files),
    ("qwen3", HF, swap_kv_heads),
]


@pytest.mark.parametrize(("model", "options", "damage"), DAMAGE)
def test_damage_shows_in_the_logits(
    model: str, options: dict[str, Any], damage: Callable[[list[Tensors]], None], models: Models
) -> None:
    folder = models.copy(models.cut(model, 2, **options))
    edit(folder, damage)
    expected = logits(models.model(model))
    assert apart(expected, logits(folder)) > WRONG


def test_ranks_whose_files_change_places(models: Models) -> None:
    """Sums are the same in any order; tables are not."""
    folder = models.copy(models.cut("sample-deepseek-v3", 2, weights="bf16", **DEEPSEEK))
    first, second = files(folder)
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)

    def experts_back(ranks: list[Tensors]) -> None:
        for name in [n for r in ranks for n in r if ".experts." in n]:
            own, other = ranks if name in ranks[0] else ranks[::-1]
            other[name] = own.pop(name)

    with pytest.raises(FormatError, match=r"rank 0 has experts 8, 9, .*expected 0 to 7, or all 16"):
        open_any(folder)
    edit(folder, experts_back)
    assert apart(logits(models.model("sample-deepseek-v3")), logits(folder)) > WRONG


def test_scales_cut_by_their_own_size(models: Models) -> None:
    """As the published script cuts: 192 rows in blocks of 128, of 2 ranks."""
    uncut = models.source(rows_of_192().changed("llama-192-run", rms_norm_eps=1e-6))
    sound = models.shard_folder(uncut, 2, layout="hf", misaligned="bf16")
    folder = models.copy(sound)
    whole = {n: p for n, p in rows_of_192().tensors.items() if ".mlp.gate_proj." in n}

    def as_published(ranks: list[Tensors]) -> None:
        for name, (_, shape, data) in whole.items():
            kind = torch.float32 if name.endswith("_inv") else torch.uint8
            tensor = torch.frombuffer(bytearray(data), dtype=kind).view(shape)
            for rank, part in zip(ranks, tensor.chunk(2), strict=True):
                coded = kind == torch.uint8
                rank[name] = part.contiguous().view(torch.float8_e4m3fn) if coded else part

    for rank in range(2):  # one file each
        (folder / f"rank{rank}" / "model.safetensors.index.json").unlink()
        merge(folder / f"rank{rank}")
    assert apart(logits(uncut), logits(folder)) <= FLOAT32
    edit(folder, as_published)
    assert apart(logits(uncut), logits(folder)) > WRONG


def merge(folder: Path) -> None:
    """All shards of a rank as one."""
    from safetensors.torch import load_file, save_file

    shards = sorted(folder.glob("*.safetensors"))
    tensors = {n: t for shard in shards for n, t in load_file(shard).items()}
    for shard in shards:
        shard.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_ranks_that_disagree_about_the_state(models: Models) -> None:
    """A bias that every rank adds for itself, after the sum."""

    def alter(ranks: list[Tensors]) -> None:
        ranks[1]["model.layers.1.self_attn.o_proj.bias"] += 1

    folder = models.copy(models.cut("llama", 4, **HF))
    edit(folder, alter)
    with pytest.raises(DataError, match="layer 1: rank 0 and rank 1 have different values"):
        logits(folder)


def test_ranks_that_disagree_about_the_experts(models: Models) -> None:
    def alter(ranks: list[Tensors]) -> None:
        ranks[1]["layers.1.ffn.gate.weight"] *= -1

    folder = models.copy(models.cut("sample-deepseek-v3", 2, **DEEPSEEK))
    edit(folder, alter)
    with pytest.raises(DataError, match="experts that tokens are routed to: rank 0 and rank 1"):
        logits(folder)


# Sets that are not whole.


def test_an_expert_that_no_rank_has(models: Models) -> None:
    def drop(ranks: list[Tensors]) -> None:
        for name in [n for n in ranks[1] if ".experts.9." in n]:
            del ranks[1][name]

    folder = models.copy(models.cut("sample-deepseek-v3", 2, **DEEPSEEK))
    edit(folder, drop)
    with pytest.raises(FormatError, match=r"rank 1 has experts 8, 10, .*'layers.1.ffn.experts'"):
        open_any(folder)


def test_a_weight_that_one_rank_has_not(models: Models) -> None:
    folder = models.copy(models.cut("qwen3", 2, **HF))
    edit(folder, lambda ranks: ranks[1].__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(SchemeError, match=r"up_proj.weight' is missing on rank 1"):
        logits(folder)


@pytest.mark.parametrize("tp_json", [True, False])
def test_a_rank_file_that_is_missing(tp_json: bool, models: Models) -> None:
    folder = models.copy(models.cut("sample-deepseek-v3", 2, **DEEPSEEK))
    files(folder)[1].unlink()
    if not tp_json:
        (folder / "tp.json").unlink()
    with pytest.raises(FormatError, match=r"rank files of 2 ranks: 'model1-mp2.safetensors' miss"):
        open_any(folder)


def test_rank_folders_that_are_missing_or_too_many(models: Models) -> None:
    folder = models.copy(models.cut("qwen3", 2, **HF))
    shutil.copytree(folder / "rank1", folder / "rank2")
    with pytest.raises(FormatError, match="folders of 2 ranks: 'rank2' too many"):
        open_any(folder)
    shutil.rmtree(folder / "rank2")
    shutil.rmtree(folder / "rank0")
    with pytest.raises(FormatError, match="folders of 2 ranks: 'rank0' missing"):
        open_any(folder)


def test_folders_in_the_wrong_order(models: Models) -> None:
    folder = models.copy(models.cut("qwen3", 2, **HF))
    (folder / "rank0").rename(folder / "aside")
    (folder / "rank1").rename(folder / "rank0")
    (folder / "aside").rename(folder / "rank1")
    with pytest.raises(FormatError, match="expected rank 0 of 2"):
        open_any(folder)


def test_one_rank_alone(models: Models) -> None:
    with pytest.raises(FormatError, match=r"one rank only, .*: give the folder that holds all"):
        open_any(models.cut("qwen3", 2, **HF) / "rank1")


def test_an_index_of_a_rank_that_is_not_its_files(models: Models) -> None:
    folder = models.copy(models.cut("sample-deepseek-v3", 2, **HF))
    index = folder / "rank1" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["lm_head.bias"] = said["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(said))
    with pytest.raises(FormatError, match=r"'lm_head\.bias'"):
        open_any(folder)


# Configs.


def test_files_without_a_config(models: Models) -> None:
    sound = models.cut("sample-deepseek-v3", 2, **DEEPSEEK)
    folder = models.copy(sound)
    for name in ("config.json", "tp.json"):
        (folder / name).unlink()
    with pytest.raises(SchemeError, match=r"has rank files without a config\.json"):
        open_any(folder)
    config = json.loads((models.model("sample-deepseek-v3") / "config.json").read_text())
    assert torch.equal(logits(folder, config=config), logits(sound))


def test_ranks_whose_configs_differ(models: Models) -> None:
    folder = models.copy(models.cut("qwen3", 2, **HF))
    config = folder / "rank1" / "config.json"
    said = json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}
    config.write_text(json.dumps(said))
    with pytest.raises(FormatError, match="of rank 1 and of rank 0 differ in 'rms_norm_eps'"):
        open_any(folder)


def test_a_config_of_a_model_that_has_no_such_files(models: Models) -> None:
    folder = models.copy(models.cut("sample-deepseek-v3", 2, **DEEPSEEK))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen3_moe"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SchemeError, match="DeepSeek's own files"):
        open_any(folder)


def test_no_rank_set(models: Models) -> None:
    whole = models.model("qwen3")
    assert open_ranks(whole) is None
    assert not isinstance(open_any(whole), Ranked)


class Processes:
    """A group as ``torchrun`` would have it, seen by one process."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(
    ("cut", "said"), [(True, "3 processes, but .* has 2 ranks"), (False, "is no rank set")]
)
def test_as_many_processes_as_ranks(cut: bool, said: str, models: Models) -> None:
    folder = models.cut("qwen3", 2, **HF) if cut else models.model("qwen3")
    with pytest.raises(UsageError, match=said):
        open_any(folder, group=Processes(0, 3))  # type: ignore[arg-type]


def test_an_error_of_one_rank_ends_all() -> None:
    threads = Threads(3)

    def one(rank: int) -> None:
        if rank == 1:
            raise Fp8ConvertError("rank 1 only")
        threads.member(rank).gather(torch.zeros(1))

    for _ in range(2):  # and they can be used again
        with pytest.raises(Fp8ConvertError, match="rank 1 only"):
            threads.run(one)
    assert threads.run(lambda rank: rank) == [0, 1, 2]
