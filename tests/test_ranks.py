"""DeepSeek's own files, ``model{rank}-mp{N}.safetensors``: joined to what they were cut from.

The cut here is plain slicing by a table of axes, as ``inference/convert.py`` of DeepSeek-V3, V3.2
and V4 has it: every tensor by its own size, so weight and scale may be cut at different rows.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fp8convert
from fp8convert.errors import DataError, Fp8ConvertError
from fp8convert.inspection import inspect
from fp8convert.layouts.deepseek import RANK_FILE
from fp8convert.settings import Settings

from .checkpoints import FP8_CONFIG, codes, pair, scales
from .oracle import dequantize, differing, load

Tensors = dict[str, torch.Tensor]
Ranks = list[Tensors]
E8M0 = torch.float8_e8m0fnu
WHOLE = None
V3_AXES: dict[str, int | None] = {
    "embed": 0, "head": 0, "attn.wq_b": 0, "attn.wkv_b": 0, "attn.wo": 1,
    "ffn.w1": 0, "ffn.w2": 1, "ffn.w3": 0,
    "shared_experts.w1": 0, "shared_experts.w2": 1, "shared_experts.w3": 0,
}  # fmt: skip
V4_AXES: dict[str, int | None] = {
    "embed": 0, "head": 0, "attn.wq_b": 0, "attn.wo_a": 0, "attn.wo_b": 1,
    "attn.attn_sink": 0, "indexer.wq_b": 0, "indexer.weights_proj": 0,
}  # fmt: skip
EXPERTS = 8


def fp8(module: str, rows: int, columns: int, block: tuple[int, int] = (128, 128)) -> Tensors:
    """A weight, and its scale as a sibling."""
    seed = sum(map(ord, module))
    return {
        f"{module}.weight": codes(rows, columns, seed),
        f"{module}.scale": scales(rows, columns, block),
    }


def bf16(name: str, *shape: int) -> Tensors:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16)}


def f32(name: str, *shape: int) -> Tensors:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return {name: torch.randn(shape, generator=generator)}


@functools.cache
def v3() -> Tensors:
    """The unsplit checkpoint in the inference names. 80 rows are no whole block."""
    at, width = "layers.0", 1024
    whole = bf16("embed.weight", 16, 128) | bf16("head.weight", 16, 128) | bf16("norm.weight", 128)
    whole |= bf16(f"{at}.attn_norm.weight", 128) | bf16(f"{at}.attn.q_norm.weight", 64)
    whole |= fp8(f"{at}.attn.wq_a", 64, 128) | fp8(f"{at}.attn.wq_b", width, 64)
    whole |= fp8(f"{at}.attn.wkv_a", 80, 128) | fp8(f"{at}.attn.wkv_b", width, 64)
    whole |= fp8(f"{at}.attn.wo", 128, width)
    whole |= bf16(f"{at}.ffn.gate.weight", EXPERTS, 128) | f32(f"{at}.ffn.gate.bias", EXPERTS)
    for mlp in ("ffn.shared_experts", *(f"ffn.experts.{n}" for n in range(EXPERTS))):
        inner = 128 if ".experts." in mlp else width
        whole |= fp8(f"{at}.{mlp}.w1", inner, 128) | fp8(f"{at}.{mlp}.w3", inner, 128)
        whole |= fp8(f"{at}.{mlp}.w2", 128, inner)
    return whole


@functools.cache
def v32() -> Tensors:
    """V3.2: the indexer is whole on every rank, though its wq_b is named as the attention's is."""
    at = "layers.0.attn.indexer"
    return v3() | {
        **fp8(f"{at}.wq_b", 256, 64),
        **fp8(f"{at}.wk", 128, 128),
        **f32(f"{at}.k_norm.weight", 128),
        **f32(f"{at}.k_norm.bias", 128),
        **bf16(f"{at}.weights_proj.weight", 16, 128),
    }


@functools.cache
def v4() -> Tensors:
    """V4: grouped output projections, sinks, compressors; the shared expert is whole."""
    at = "layers.0"

    def dense(module: str, rows: int, columns: int) -> Tensors:
        found = fp8(f"{at}.{module}", rows, columns)
        name = f"{at}.{module}.scale"
        return found | {name: torch.exp2(found[name].log2().round()).to(E8M0)}

    whole = bf16("embed.weight", 16, 128) | bf16("head.weight", 16, 128)
    whole |= f32("hc_head_fn", 4, 512) | f32("hc_head_scale", 1)
    whole |= f32(f"{at}.hc_attn_scale", 3) | f32(f"{at}.attn.attn_sink", 8)
    whole |= dense("attn.wq_a", 64, 128) | dense("attn.wq_b", 1024, 64)
    whole |= dense("attn.wkv", 64, 128) | dense("attn.wo_a", 1024, 64)
    whole |= dense("attn.wo_b", 128, 1024)
    whole |= f32(f"{at}.attn.compressor.ape", 4, 128)
    whole |= bf16(f"{at}.attn.compressor.wkv.weight", 128, 128)
    whole |= dense("attn.indexer.wq_b", 1024, 64)
    whole |= bf16(f"{at}.attn.indexer.weights_proj.weight", 8, 128)
    whole |= bf16(f"{at}.ffn.gate.weight", EXPERTS, 128)
    whole |= {f"{at}.ffn.gate.tid2eid": torch.arange(48).reshape(16, 3)}
    for mlp in ("ffn.shared_experts", *(f"ffn.experts.{n}" for n in range(EXPERTS))):
        for leaf in ("w1", "w2", "w3"):
            whole |= dense(f"{mlp}.{leaf}", 128, 128)
    return whole


def axis_of(name: str, axes: Mapping[str, int | None]) -> int | None:
    module = name.removesuffix(".weight").removesuffix(".scale")
    return next((a for m, a in axes.items() if module == m or module.endswith(f".{m}")), WHOLE)


def cut(whole: Tensors, count: int, axes: Mapping[str, int | None]) -> Ranks:
    """The files of ``count`` ranks."""
    ranks: Ranks = [{} for _ in range(count)]
    for name, tensor in whole.items():
        axis = axis_of(name, axes)
        for rank, file in enumerate(ranks):
            if ".experts." in name:
                if int(name.split(".")[-3]) // (EXPERTS // count) == rank:
                    file[name] = tensor
            elif axis is WHOLE:
                file[name] = tensor
            else:
                size = tensor.shape[axis] // count
                assert size * count == tensor.shape[axis], name
                bytes_ = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
                piece = bytes_.narrow(axis, rank * size, size).contiguous()
                file[name] = piece.view(tensor.dtype)
    return ranks


def write(folder: Path, ranks: Ranks, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir()
    for rank, tensors in enumerate(ranks):
        save_file(tensors, folder / f"model{rank}-mp{len(ranks)}.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def decoded(whole: Tensors, block: int = 128) -> Tensors:
    """By the oracle, from the checkpoint before it was cut."""
    return {
        name: dequantize(
            tensor,
            whole[name.removesuffix("weight") + "scale"].to(torch.float32),
            torch.bfloat16,
            block,
        )
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in whole.items()
        if not name.endswith(".scale")
    }


MODELS: dict[str, tuple[Callable[[], Tensors], dict[str, int | None]]] = {
    "V3": (v3, V3_AXES),
    "V3.2": (v32, V3_AXES),
    "V4": (v4, V4_AXES),
}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("model", MODELS)
def test_joined_to_what_it_was_cut_from(model: str, count: int, tmp_path: Path) -> None:
    make, axes = MODELS[model]
    source = write(tmp_path / "src", cut(make(), count, axes))
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(make())) == []
    names = [p.name for p in (tmp_path / "dst").iterdir()]
    assert not any(RANK_FILE.fullmatch(n) for n in names)
    assert "config.json" not in names


def test_a_cut_that_misses_the_blocks_is_mended_by_joining(tmp_path: Path) -> None:
    """192 rows are two blocks: a rank has 96 rows and one scale, the first rank's for 128 rows."""
    whole = fp8("layers.0.ffn.w1", 192, 256) | fp8("layers.0.ffn.w2", 64, 192)
    ranks = cut(whole, 2, V3_AXES)
    for file in ranks:
        assert file["layers.0.ffn.w1.weight"].shape == (96, 256)
        assert file["layers.0.ffn.w1.scale"].shape == (1, 2)
        assert file["layers.0.ffn.w2.weight"].shape == (64, 96)
        assert file["layers.0.ffn.w2.scale"].shape == (1, 1)
    fp8convert.to_bf16(write(tmp_path / "src", ranks), tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(whole)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_config_beside_them_is_kept_without_its_declaration(count: int, tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), count, V3_AXES), FP8_CONFIG)
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(v3())) == []
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config == {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}


def test_the_block_of_a_config_beside_them_wins(tmp_path: Path) -> None:
    whole: Tensors = {}
    for module, rows, columns in (("layers.0.ffn.w1", 128, 64), ("layers.0.attn.wo", 64, 128)):
        whole |= fp8(module, rows, columns, (32, 32))
    inner = {**FP8_CONFIG["quantization_config"], "weight_block_size": [32, 32]}
    ranks = cut(whole, 2, V3_AXES)
    source = write(tmp_path / "src", ranks, {"quantization_config": inner})
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(whole, 32)) == []
    source = write(tmp_path / "without", ranks)
    with pytest.raises(Fp8ConvertError, match="scales"):
        fp8convert.to_bf16(source, tmp_path / "dst2")


def test_a_config_that_declares_nothing_is_no_hindrance(tmp_path: Path) -> None:
    """The config of the inference code has other fields altogether."""
    config = {"vocab_size": 129280, "dim": 7168, "dtype": "fp8"}
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES), config)
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(v3())) == []


@pytest.mark.parametrize("limit", [1, 50_000, 10**9])
def test_shards_of_a_chosen_size(limit: int, tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES))
    fp8convert.to_bf16(source, tmp_path / "dst", max_shard_size=limit)
    assert differing(load(tmp_path / "dst"), decoded(v3())) == []
    files = [p.name for p in (tmp_path / "dst").glob("*.safetensors")]
    assert not any(RANK_FILE.fullmatch(n) for n in files)
    weights = len(decoded(v3()))
    assert len(files) == {1: weights, 10**9: 1}.get(limit, len(files))
    assert 1 <= len(files) <= weights
    index = tmp_path / "dst" / "model.safetensors.index.json"
    if len(files) > 1:
        assert set(json.loads(index.read_text())["weight_map"].values()) == set(files)


def test_inspect_counts_the_whole(tmp_path: Path) -> None:
    report = inspect(write(tmp_path / "src", cut(v3(), 4, V3_AXES)))
    assert report.problems == []
    assert report.tensors == len(v3())
    assert report.parameters == sum(t.numel() for t in decoded(v3()).values())
    assert report.shards == 4


def test_bf16_ranks_have_nothing_to_convert(tmp_path: Path) -> None:
    whole = bf16("embed.weight", 16, 128) | bf16("layers.0.ffn.w1.weight", 16, 16)
    source = write(tmp_path / "src", cut(whole, 2, V3_AXES))
    with pytest.raises(Fp8ConvertError, match="nothing to convert"):
        fp8convert.to_bf16(source, tmp_path / "dst")


def refused(folder: Path) -> str:
    target = folder.parent / "dst"
    with pytest.raises(Fp8ConvertError) as caught:
        fp8convert.to_bf16(folder, target)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize("missing", range(4))
def test_a_missing_rank(missing: int, tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 4, V3_AXES))
    (source / f"model{missing}-mp4.safetensors").unlink()
    message = refused(source)
    assert "rank files of 4 ranks" in message
    assert f"'model{missing}-mp4.safetensors' missing" in message


@pytest.mark.parametrize("name", ["model00-mp2.safetensors", "model1-mp02.safetensors"])
def test_a_rank_that_is_there_twice(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES))
    save_file(bf16("x", 1), source / name)
    assert "rank files of 2 ranks: 3 files" in refused(source)


@pytest.mark.parametrize("name", ["model2-mp2.safetensors", "model9999-mp2.safetensors"])
def test_a_rank_too_many(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES))
    save_file(bf16("x", 1), source / name)
    assert "rank files of 2 ranks" in refused(source)


def test_no_ranks_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    save_file(bf16("x", 1), folder / "model0-mp0.safetensors")
    assert "rank files of 0 ranks" in refused(folder)


def test_two_numbers_of_ranks(tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES))
    save_file(bf16("x", 1), source / "model0-mp4.safetensors")
    assert "different numbers of ranks" in refused(source)


def test_other_files_beside_them_are_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    source = write(tmp_path / "src", cut(v3(), 2, V3_AXES))
    save_file(bf16("x", 1), source / "other.safetensors")
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    assert ["'other.safetensors' not part of" in w for w in done.data["warnings"]] == [True]
    assert differing(load(tmp_path / "dst"), decoded(v3())) == []


def cut_v3() -> Ranks:
    return [dict(rank) for rank in cut(v3(), 2, V3_AXES)]


NORM, SINK = "layers.0.attn_norm.weight", "layers.0.attn.attn_sink"
WQ_B, BIAS = "layers.0.attn.wq_b.weight", "layers.0.ffn.gate.bias"


def another_dtype(ranks: Ranks) -> None:
    ranks[1][NORM] = ranks[1][NORM].float()


def another_shape(ranks: Ranks) -> None:
    ranks[1][NORM] = torch.ones(64, dtype=torch.bfloat16)


def another_width(ranks: Ranks) -> None:
    ranks[1][WQ_B] = codes(512, 32)


def another_number_of_axes(ranks: Ranks) -> None:
    ranks[1][WQ_B] = ranks[1][WQ_B].view(torch.uint8).reshape(8, 64, 64).view(torch.float8_e4m3fn)


def cut_along_an_axis_that_is_not_there(ranks: Ranks) -> None:
    for rank in ranks:
        rank["layers.0.attn.wo.weight"] = torch.ones(8, dtype=torch.bfloat16)


def on_one_rank_only(ranks: Ranks) -> None:
    del ranks[1][BIAS]


def weight_on_one_rank_only(ranks: Ranks) -> None:
    del ranks[0][WQ_B]


def an_expert_twice(ranks: Ranks) -> None:
    for part in ("weight", "scale"):
        ranks[1][f"layers.0.ffn.experts.0.w1.{part}"] = v3()[f"layers.0.ffn.experts.0.w1.{part}"]


def an_expert_without_its_scale(ranks: Ranks) -> None:
    del ranks[1]["layers.0.ffn.experts.7.w2.scale"]


def a_scale_cut_at_another_axis(ranks: Ranks) -> None:
    for rank in ranks:
        rank["layers.0.attn.wq_b.scale"] = scales(1024, 64)


DISAGREE: dict[str, tuple[Callable[[Ranks], None], list[str]]] = {
    "another dtype": (another_dtype, [NORM, "F32 [128]", "BF16 [128]", "model1-mp2"]),
    "another shape": (another_shape, [NORM, "BF16 [64]", "BF16 [128]", "expected the same"]),
    "another width": (another_width, [WQ_B, "[512, 32]", "expected the same"]),
    "another number of axes": (another_number_of_axes, [WQ_B, "[8, 64, 64]", "[512, 64]"]),
    "an axis that is not there": (
        cut_along_an_axis_that_is_not_there,
        ["layers.0.attn.wo.weight", "expected an axis 1 to be cut"],
    ),
    "on one rank only": (on_one_rank_only, [BIAS, "on 1 of 2 ranks", "model0-mp2.safetensors"]),
    "a weight on one rank only": (weight_on_one_rank_only, [WQ_B, "on 1 of 2", "model1-mp2"]),
    "an expert twice": (an_expert_twice, ["layers.0.ffn.experts.0.w1.", "on 2 of 2 ranks"]),
    "an expert without its scale": (
        an_expert_without_its_scale,
        ["layers.0.ffn.experts.7.w2.weight", "has no scale"],
    ),
    "a scale that was not cut": (
        a_scale_cut_at_another_axis,
        [WQ_B, "[16, 1]", "[8, 1]"],
    ),
}


@pytest.mark.parametrize("case", DISAGREE.values(), ids=DISAGREE)
def test_ranks_that_cannot_belong_together(
    case: tuple[Callable[[Ranks], None], list[str]], tmp_path: Path
) -> None:
    spoil, wanted = case
    ranks = cut_v3()
    spoil(ranks)
    message = refused(write(tmp_path / "src", ranks))
    assert [text for text in wanted if text not in message] == [], message


@pytest.mark.parametrize(
    "name",
    [NORM, BIAS, "layers.0.attn.wq_a.weight", "layers.0.attn.wkv_a.scale", "a.new.name", "new"],
)
def test_copies_that_differ_in_a_byte(name: str, tmp_path: Path) -> None:
    """Seen while decoding; a name that is not known must be the same everywhere too."""
    ranks = cut_v3()
    for rank in ranks:
        rank.setdefault(name, torch.arange(300, dtype=torch.float32))
    spoiled = ranks[1][name].clone()
    spoiled.view(torch.uint8).reshape(-1)[-1] ^= 1
    ranks[1][name] = spoiled
    source = write(tmp_path / "src", ranks)
    with pytest.raises(DataError, match=re.escape(f"tensor '{name}' differs")) as caught:
        fp8convert.to_bf16(source, tmp_path / "dst")
    assert "shard" in str(caught.value)
    assert not (tmp_path / "dst").exists()


def test_a_name_that_is_not_known_is_kept_once(tmp_path: Path) -> None:
    ranks = cut_v3()
    table = torch.arange(12, dtype=torch.int64).reshape(3, 4)
    for rank in ranks:
        rank |= {"layers.0.new.table": table, "new": torch.ones(3)}
        rank |= {n: t.clone() for n, t in fp8("layers.0.new", 80, 96).items()}
    fp8convert.to_bf16(write(tmp_path / "src", ranks), tmp_path / "dst")
    more = {"layers.0.new.table": table, "new": torch.ones(3), **fp8("layers.0.new", 80, 96)}
    assert differing(load(tmp_path / "dst"), decoded(v3() | more)) == []


def test_one_rank_holds_everything_as_it_is(tmp_path: Path) -> None:
    """Also what could not be cut, or is on no other rank."""
    whole = v3() | fp8("layers.0.ffn.w1", 192, 100) | {"layers.0.attn.wo": torch.ones(3)}
    source = write(tmp_path / "src", [whole])
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), decoded(whole)) == []


def test_sinks_tell_the_two_tables_of_axes_apart(tmp_path: Path) -> None:
    """The shared expert is whole in V4 and cut before it; equal copies of it must not be joined."""
    ranks = cut(v4(), 2, V4_AXES)
    shape = inspect_shapes(write(tmp_path / "v4", ranks))
    assert shape["layers.0.ffn.shared_experts.w1.weight"] == (128, 128)
    assert shape[SINK] == (8,)
    for rank in ranks:
        del rank[SINK]
    shape = inspect_shapes(write(tmp_path / "v3", ranks))
    assert shape["layers.0.ffn.shared_experts.w1.weight"] == (256, 128)


def inspect_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    opened = fp8convert.open_checkpoint(folder)
    return {name: opened.spec(name).shape for name in opened.names()}


def test_rows_are_read_across_ranks(tmp_path: Path) -> None:
    """A slice that begins on one rank and ends on the next."""
    whole = fp8("layers.0.ffn.w1", 192, 64) | fp8("layers.0.attn.wo", 64, 192)
    opened = fp8convert.open_checkpoint(write(tmp_path / "src", cut(whole, 2, V3_AXES)))
    for name, want in decoded(whole).items():
        scale = whole[name.removesuffix("weight") + "scale"]
        exact = dequantize(whole[name], scale, torch.float32)
        assert exact.to(torch.bfloat16).equal(want)
        for rows in (slice(0, 1), slice(30, 40), slice(90, 130), slice(0, 192)):
            found = torch.from_numpy(opened.read(name, rows))
            assert torch.equal(found, exact[rows])


@pytest.mark.parametrize("tile", [4096, 1 << 20])
@pytest.mark.parametrize("ranks", [2, 4])
def test_an_uncoded_tensor_cut_across_its_rows(
    ranks: int, tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BF16 ``wo``: pieces that begin and end within a row of the whole."""
    monkeypatch.setattr(Settings, "tile", tile)
    whole = torch.randn((300, 4096), generator=torch.Generator().manual_seed(3)).bfloat16()
    coded = pair("layers.0.attn.wq_b.weight", 512, 128)
    coded["layers.0.attn.wq_b.scale"] = coded.pop("layers.0.attn.wq_b.weight_scale_inv")
    (tmp_path / "src").mkdir()
    for rank in range(ranks):
        mine = {"layers.0.attn.wo.weight": whole.chunk(ranks, 1)[rank].contiguous()}
        mine |= {n: t.view(torch.uint8).chunk(ranks, 0)[rank].contiguous().view(t.dtype)
                 if t.dtype != torch.float32 else t.chunk(ranks, 0)[rank].contiguous()
                 for n, t in coded.items()}  # fmt: skip
        save_file(mine, tmp_path / "src" / f"model{rank}-mp{ranks}.safetensors")
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst")
    assert torch.equal(load(tmp_path / "dst")["layers.0.attn.wo.weight"], whole)


def test_a_head_inside_a_module_is_not_the_head(tmp_path: Path) -> None:
    """Only ``head.weight`` itself is cut; the same on every rank, another is what it is."""
    same = torch.randn((64, 64), generator=torch.Generator().manual_seed(4)).bfloat16()
    coded = {
        "layers.0.attn.wkv_a.weight": codes(64, 128),
        "layers.0.attn.wkv_a.scale": torch.ones(1, 1),
    }
    (tmp_path / "src").mkdir()
    for rank in range(2):
        mine = {"mtp.2.markov_head.head.weight": same, **coded}
        save_file(mine, tmp_path / "src" / f"model{rank}-mp2.safetensors")
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst")
    assert torch.equal(load(tmp_path / "dst")["mtp.2.markov_head.head.weight"], same)
