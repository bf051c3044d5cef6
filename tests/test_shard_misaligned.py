"""Cuts that part a block of scales: refused, or mended in one of three ways."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.samples import make_sample

from .quantized import oracle as quantizing
from .quantized import readers
from .sharded import coding, files, oracle, rules
from .sharded.arrays import words
from .sharded.model import Source
from .sharded.runs import Runs
from .sharded.runs import runs as made_runs
from .sharded.sources import source

ENGINES = (
    "output_partition_size = {} is not divisible by weight quantization block_n = {}",
    "input_size_per_partition = {} is not divisible by weight quantization block_k = {}",
)
# source, ranks, layout, options: what is cut inside blocks
CASES: list[tuple[str, int, str, dict[str, Any]]] = [
    ("rows_of_192", 2, "hf", {}),
    ("rows_of_192", 4, "hf", {}),
    ("rows_of_384", 2, "hf", {}),
    ("sample-qwen3-fp8", 4, "hf", {}),
    ("qwen3_moe", 4, "hf", {"experts": "cut"}),
    ("sample-deepseek-v3", 4, "hf", {}),
    ("minimax_m2", 8, "hf", {"experts": "cut"}),
]
IDS = [f"{id}-{ranks}" for id, ranks, _, _ in CASES]
each = pytest.mark.parametrize(("id", "ranks", "layout", "options"), CASES, ids=IDS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with made_runs(tmp_path_factory.mktemp("shard")) as made:
        yield made


def refused(runs: Runs, of: str | Source, ranks: int, **options: Any) -> str:
    """The message; nothing is left."""
    folder = runs.new()
    with pytest.raises(fp8convert.Fp8ConvertError) as caught:
        fp8convert.shard_for_tp(runs.source(of), folder, tp=ranks, **options)
    assert not folder.exists()
    assert not list(folder.parent.iterdir())
    assert caught.value.exit_code == 1
    return str(caught.value)


def numbers_in(message: str) -> list[int]:
    """The legal numbers of ranks that a message lists."""
    found = re.search(r"ranks up to 64 that cut none: ([0-9, ]+)\.", message)
    assert found, message
    return [int(n) for n in found[1].split(", ")]


# Refused


@each
def test_it_is_refused_with_what_would_be_legal(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    found = source(id)
    message = refused(runs, id, ranks, layout=layout, **options)
    names = oracle.misaligned(found.tensors, found.config, layout, ranks, **options)
    assert f"cut {len(names):,} weights inside" in message
    named = set(re.findall(r"'([^']*\.weight)'", message))
    assert named <= names
    assert len(named) == min(len(names), 4)
    expected = oracle.legal(found.tensors, found.config, layout, **options)
    assert numbers_in(message) == expected
    assert "--misaligned" in message


def test_192_rows(runs: Runs) -> None:
    """The example of FORMATS: 96 rows for each of two ranks, in blocks of 128."""
    message = refused(runs, "rows_of_192", 2, layout="hf")
    assert re.search(r"model\.layers\.0\.mlp\.(gate|up|down)_proj\.weight", message)
    assert "192" in message
    assert ENGINES[0].format(96, 128) in message
    assert ENGINES[1].format(96, 128) in message
    assert numbers_in(message) == [1]


def test_three_ranks_are_legal_where_two_are_not(runs: Runs) -> None:
    found = source("rows_of_384")
    assert numbers_in(refused(runs, "rows_of_384", 2, layout="hf")) == [1, 3]
    expected = oracle.hf_ranks(found.tensors, found.config, 3)
    folder = runs.shard("rows_of_384", 3, layout="hf")
    assert files.differing(files.hf_files(folder), expected) == {}


@pytest.mark.parametrize("id", ["sample-deepseek-v3"])
def test_the_layout_deepseek_refuses_too(id: str, runs: Runs) -> None:
    found = source(id)
    message = refused(runs, id, 4)
    names = oracle.misaligned(
        oracle.kept(found.tensors, found.config, "drop"), found.config, "deepseek", 4
    )
    assert f"cut {len(names):,} weights inside" in message
    assert numbers_in(message) == oracle.legal(found.tensors, found.config, "deepseek")


def test_groups_cannot_be_cut_either(runs: Runs) -> None:
    """Groups of 32 along the inputs: an expert of 64 over four ranks."""
    for id in ("kimi", "gpt_oss"):
        found = source(id)
        ranks = 4 if id == "kimi" else 2
        message = refused(runs, id, ranks, layout="hf", experts="cut")
        names = oracle.misaligned(found.tensors, found.config, "hf", ranks, experts="cut")
        assert names
        assert f"cut {len(names):,} weights inside" in message
        assert "down_proj" in message
        for how in ("requantize", "reblock"):
            refused(runs, id, ranks, layout="hf", experts="cut", misaligned=how)


# Decoded


@each
def test_bf16_decodes_them(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    """And what engines read in one precision with them; the rest keeps its bytes."""
    found = source(id)
    names = oracle.misaligned(found.tensors, found.config, layout, ranks, **options)
    names = oracle.fused(names, found.tensors, found.config)
    whole = oracle.decoded_some(found.tensors, found.config, names)
    expected = oracle.hf_ranks(whole, found.config, ranks, **options)
    folder = runs.shard(id, ranks, layout=layout, misaligned="bf16", **options)
    assert files.differing(files.hf_files(folder), expected) == {}
    for rank in range(ranks):
        config = readers.config(folder / f"rank{rank}")
        if names == coding.coded(found.tensors, found.config).keys():
            assert "quantization_config" not in config  # nothing is coded any more
            continue
        section = config["quantization_config"]
        listed = section["modules_to_not_convert"]
        assert {n.removesuffix(".weight") for n in names} <= set(listed)
        before = found.config["quantization_config"].get("modules_to_not_convert", [])
        assert listed[: len(before)] == before


@each
def test_bf16_ranks_decode_to_the_same(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    folder = runs.shard(id, ranks, layout=layout, misaligned="bf16", **options)
    if id == "rows_of_192" and ranks == 4:  # nothing is coded any more
        ours = readers.stored(runs.unshard(folder))
    else:
        ours = readers.stored(runs.to_bf16(folder))
    assert readers.differing(ours, coding.decoded(source(id).tensors, source(id).config)) == []


def test_bf16_in_the_layout_deepseek(runs: Runs) -> None:
    found = source("sample-deepseek-v3")
    tensors = oracle.kept(found.tensors, found.config, "drop")
    names = oracle.misaligned(tensors, found.config, "deepseek", 4)
    whole = oracle.decoded_some(tensors, found.config, oracle.fused(names, tensors, found.config))
    expected = oracle.deepseek_ranks(whole, found.config, 4)
    folder = runs.shard("sample-deepseek-v3", 4, misaligned="bf16")
    assert files.differing(files.deepseek_files(folder), expected) == {}


# Scales repeated


@each
def test_reblock_repeats_scales(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    """Codes stay; every coded weight has the largest blocks that no cut parts."""
    found = source(id)
    block = oracle.common_block(found.tensors, found.config, ranks, **options)
    whole, config = oracle.reblocked(found.tensors, found.config, block)
    expected = oracle.hf_ranks(whole, config, ranks, **options)
    folder = runs.shard(id, ranks, layout=layout, misaligned="reblock", **options)
    assert files.differing(files.hf_files(folder), expected) == {}
    for rank in range(ranks):
        assert readers.config(folder / f"rank{rank}") == config


@each
def test_reblocked_ranks_decode_to_the_same(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    folder = runs.shard(id, ranks, layout=layout, misaligned="reblock", **options)
    ours = readers.stored(runs.to_bf16(folder))
    assert readers.differing(ours, coding.decoded(source(id).tensors, source(id).config)) == []


def test_blocks_of_the_192_rows(runs: Runs) -> None:
    folder = runs.shard("rows_of_192", 2, layout="hf", misaligned="reblock")
    section = readers.config(folder / "rank1")["quantization_config"]
    assert section["weight_block_size"] == [32, 32]  # of 96 and 128 the common divisor


def test_smaller_blocks_need_a_place_to_be_declared(tmp_path: Path) -> None:
    """compressed-tensors' MXFP8 has groups of 32 by name."""
    bf16, mxfp8, ranks = (tmp_path / name for name in ("bf16", "mxfp8", "ranks"))
    make_sample(str(bf16), "qwen3-fp8", scheme="bf16")
    fp8convert.quantize(bf16, mxfp8, "mxfp8")
    options = {"layout": "hf", "experts": "cut", "misaligned": "reblock"}
    with pytest.raises(fp8convert.Fp8ConvertError, match="declares no weight_block_size"):
        fp8convert.shard_for_tp(mxfp8, ranks, 4, **options)
    assert not ranks.exists()


def test_the_layout_deepseek_knows_one_size_of_blocks(runs: Runs) -> None:
    message = refused(runs, "sample-deepseek-v3", 4, misaligned="reblock")
    assert "128" in message


# Encoded anew


def slices(found: Source, ranks: int, options: dict[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Every rank's part of every weight that is cut inside blocks, as float32."""
    parts = coding.coded(found.tensors, found.config)
    for name in sorted(oracle.misaligned(found.tensors, found.config, "hf", ranks, **options)):
        x = coding.weight_of(name, parts[name], found.tensors, found.config)
        rule = rules.hf_rule(name, found.config, options.get("experts", "owner"))
        assert rule.axis is not None
        for rank in range(ranks):
            along = rules.span(rule, x.shape[rule.axis], rank, ranks)
            assert along is not None
            yield rank, name, x[along[0] : along[1]] if rule.axis == 0 else x[:, slice(*along)]


@each
def test_requantize_encodes_the_slices(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    """By amax / 448 of each block of each slice, as ``quantize`` does; the rest is copied."""
    found = source(id)
    block = tuple(found.config["quantization_config"]["weight_block_size"])
    folder = runs.shard(id, ranks, layout=layout, misaligned="requantize", **options)
    ours = files.hf_files(folder)
    names = oracle.misaligned(found.tensors, found.config, layout, ranks, **options)
    parts = coding.coded(found.tensors, found.config)
    others = {n: t for n, t in found.tensors.items()
              if not any(n in parts[name] for name in names)}  # fmt: skip
    expected = oracle.hf_ranks(others, found.config, ranks, **options)
    for rank, name, x in slices(found, ranks, options):
        made = quantizing.quantized(np.ascontiguousarray(x), "fp8-block", "BF16", block=block)
        module = name.removesuffix("weight")
        expected[rank] |= {module + leaf: stored for leaf, stored in made.items()}
    assert files.differing(ours, expected) == {}


@each
def test_requantize_reports_the_error(
    id: str, ranks: int, layout: str, options: dict[str, Any], runs: Runs
) -> None:
    """No value of any rank is farther off than the manifest says, and one is as far."""
    found = source(id)
    block = tuple(found.config["quantization_config"]["weight_block_size"])
    folder = runs.shard(id, ranks, layout=layout, misaligned="requantize", **options)
    ours = files.hf_files(folder)
    report = files.read_json(folder / "manifest.json")["quantized"]
    worst: dict[str, float] = {}
    for rank, name, x in slices(found, ranks, options):
        y = quantizing.decoded(readers.parts_of(ours[rank], name), block)
        top = float(np.abs(x.astype(np.float64) - y).max())
        worst[name] = max(worst.get(name, 0.0), top)
    said: dict[str, float] = {}
    for name, row in report.items():
        weight = name.partition("/")[2] if re.match(r"rank[0-9]+/", name) else name
        said[weight] = max(said.get(weight, 0.0), 0.0 if row["exact"] else row["max_abs"])
    assert said.keys() == worst.keys()
    for name, top in worst.items():
        assert math.isclose(said[name], top, rel_tol=5.1e-5), name


def test_requantized_ranks_cannot_be_put_together(runs: Runs) -> None:
    folder = runs.shard("rows_of_192", 2, layout="hf", misaligned="requantize")
    target = runs.new()
    with pytest.raises(fp8convert.Fp8ConvertError, match="put together"):
        fp8convert.unshard(folder, target)
    assert not target.exists()


def test_powers_of_two_stay_powers_of_two(runs: Runs) -> None:
    """Of a source that says so: the scales of a slice are chosen by the same rule."""
    found = power_rows()
    folder = runs.shard(found, 2, layout="hf", misaligned="requantize")
    for rank, tensors in enumerate(files.hf_files(folder)):
        expected = {(r, n): x for r, n, x in slices(found, 2, {})}
        for (r, name), x in expected.items():
            if r != rank:
                continue
            made = quantizing.quantized(np.ascontiguousarray(x), "fp8-block-ue8m0", "BF16")
            module = name.removesuffix("weight")
            for leaf, stored in made.items():
                assert tensors[module + leaf] == stored
            scale = words(tensors[f"{name}_scale_inv"])
            assert not (scale & 0x7FFFFF).any()


def power_rows() -> Source:
    """The 192 rows with scales that are powers of two."""
    found = source("rows_of_192")
    section = {**found.config["quantization_config"], "scale_fmt": "ue8m0"}
    tensors = {
        n: ("F32", t[1], (words(t) & 0x7F800000).astype("<u4").tobytes())
        if n.endswith("scale_inv")
        else t
        for n, t in found.tensors.items()
    }
    made = found.changed("rows-of-192-powers", quantization_config=section)
    return Source(made.id, made.config, tensors)


def test_control_a_slice_of_its_own_size_decodes_wrongly(runs: Runs, tmp_path: Path) -> None:
    """What the published cut does: both halves have one row of scales, the first's."""
    found = source("rows_of_192")
    name = "model.layers.0.mlp.gate_proj.weight"
    code, scale = found.tensors[name], found.tensors[f"{name}_scale_inv"]
    own: readers.Stored = {
        name: (code[0], (96, 80), words(code)[96:].tobytes()),
        f"{name}_scale_inv": (scale[0], (1, 1), words(scale)[1:].tobytes()),
    }
    wrong = coding.weight_of(name, list(own), own, found.config)
    right = coding.weight_of(name, [name, f"{name}_scale_inv"], found.tensors, found.config)[96:]
    rows = (wrong != right).any(axis=1)
    assert rows[:32].all()
    assert not rows[32:].any()


def test_where_all_that_would_be_encoded_is_cut_inside_blocks(runs: Runs) -> None:
    """Then nothing is encoded, and the config does not say that anything is."""
    folder = runs.shard(
        "rows_of_192-in-bf16", 4, layout="hf", weights="fp8-block", misaligned="bf16"
    )
    for rank in range(4):
        config = json.loads((folder / f"rank{rank}" / "config.json").read_text())
        assert "quantization_config" not in config
    assert '"F8_E4M3"' not in (folder / "tp.json").read_text()
