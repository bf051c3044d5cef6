"""The oracle of sharding, and its sources: against the published cut, and against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from .quantized import readers
from .quantized.readers import Stored
from .sharded import arrays, coding, files, oracle, rules, sources
from .sharded.arrays import joined, part, words
from .sharded.forms import blocks, fp8_config
from .sharded.model import Builder
from .sharded.sources import source

V3 = ("v3", "v3_bf16", "v31", "v2", "v32", "v3-in-bf16")
V4 = ("v4", "v4_base", "v4_bf16")
HF = tuple(m for m in sources.MAKERS if m not in V4 and "rows" not in m)


def together(ranks: list[Stored], whole: Stored, axes: dict[str, int | None]) -> Stored:
    """Plain concatenation of what is not all of it; copies beside each other are taken once."""
    out: Stored = {}
    for name in dict.fromkeys(n for r in ranks for n in r):
        held = [r[name] for r in ranks if name in r]
        axis = axes[name]
        if axis is None or held[0] == whole[name] or name.endswith("weight_shape"):
            out[name] = whole[name] if name.endswith("weight_shape") else held[0]
            continue
        copies = len(held) * held[0][1][axis] // whole[name][1][axis]
        out[name] = joined(held[::copies], axis)
    return out


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("id", HF)
def test_hf_ranks_joined_are_the_source(id: str, ranks: int) -> None:
    found = source(id)
    if id == "llama_tied" and ranks == 8:
        with pytest.raises(rules.Unfit):
            oracle.hf_ranks(found.tensors, found.config, ranks)
        return
    axes: dict[str, int | None] = {}
    for name in found.tensors:
        at = coding.place(name, found.tensors, found.config)
        axis = rules.hf_rule(at.weight, found.config, "owner").axis
        axes[name] = None if axis is None else at.own(axis)
    cut = oracle.hf_ranks(found.tensors, found.config, ranks)
    whole = together(cut, found.tensors, axes)
    assert readers.differing(whole, found.tensors) == []
    sizes = {arrays.nbytes(r) for r in cut}
    assert len(sizes) == 1


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("id", [*V3, *V4])
def test_deepseek_ranks_are_those_of_the_published_loop(id: str, ranks: int) -> None:
    """``narrow`` by each tensor's own size: the same, as long as no block is cut through."""
    found = source(id)
    axes = {**rules.V4_AXES} if id in V4 else dict(rules.V3_TABLE.values())
    v4 = id in V4
    tensors = found.tensors
    if v4:
        tensors = oracle._as_v4_runs(tensors, found.config)
    expected: list[Stored] = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        if not v4 and "layers.2." in name:  # 61 of the published script
            continue
        new = name.removeprefix("model.").replace("self_attn", "attn").replace("mlp", "ffn")
        new = new.replace("weight_scale_inv", "scale").replace("e_score_correction_bias", "bias")
        key = new.split(".")[-1 if v4 and ("hc" in new or "attn_sink" in new or "ape" in new)
                             else -2]  # fmt: skip
        dim = axes.get(key)
        if not v4:
            renamed, dim = rules.V3_TABLE[key]
            new = new.replace(key, renamed)
        for rank in range(ranks):
            if "experts" in new and "shared_experts" not in new:
                if int(new.split(".")[-3]) // (8 // ranks) == rank:
                    expected[rank][new] = oracle.as_loaded(new, tensor)
                continue
            if dim is None:
                expected[rank][new] = tensor
                continue
            array = words(tensor)
            assert array.shape[dim] % ranks == 0
            expected[rank][new] = part(tensor[0], np.split(array, ranks, dim)[rank])
    ours = oracle.deepseek_ranks(found.tensors, found.config, ranks)
    assert files.differing(ours, expected) == {}


@pytest.mark.parametrize("id", sources.MAKERS)
def test_sources_are_read_by_the_safetensors_library(id: str, tmp_path: Path) -> None:
    folder = source(id).write(tmp_path / "src")
    found: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            found |= {n: shard.get_slice(n).get_shape() for n in shard.keys()}  # noqa: SIM118
    assert found == {n: list(t[1]) for n, t in source(id).tensors.items()}
    assert readers.stored(folder) == source(id).tensors
    readers.check_index(folder)


@pytest.mark.parametrize(("id", "expected"), [("rows_of_192", [1]), ("rows_of_384", [1, 3])])
def test_the_192_rows_of_formats(id: str, expected: list[int]) -> None:
    """Cut by their own sizes both halves look fine; the oracle refuses."""
    found = source(id)
    with pytest.raises(oracle.Misaligned):
        oracle.hf_ranks(found.tensors, found.config, 2)
    names = oracle.misaligned(found.tensors, found.config, "hf", 2)
    assert {n.split(".")[-2] for n in names} == {"gate_proj", "up_proj", "down_proj"}
    assert oracle.legal(found.tensors, found.config, "hf") == expected


def test_a_declared_block_is_no_scale_a_row() -> None:
    """Where blocks are one row high, or a matrix is one block wide, shapes look like that."""
    made = Builder(blocks(8))
    made.linear("model.layers.0.self_attn.o_proj", 1, 8)
    config = {"quantization_config": fp8_config(8)}
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    assert made.tensors[name][1] == (1, 1)
    assert coding.place(name, made.tensors, config).grain == (8, 8)
    assert coding.place(name, made.tensors, {"quantization_config": {}}).grain == (1, 0)
