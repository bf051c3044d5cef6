"""Rank sets that ``unshard`` must refuse, with a message that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fp8convert

from .quantized import readers
from .quantized.readers import Stored
from .sharded import model
from .sharded.arrays import cut, joined
from .sharded.forms import plain
from .sharded.refusals import copied, refused, unshard
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


# Rank files that do not belong together


Ranks = Path


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
