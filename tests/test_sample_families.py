"""The sample families: names, dtypes and configs as published, and the twins decoded elsewhere.

The oracles are torch's float8 types, compressed-tensors, transformers and plain arithmetic; none
is used by the code under test.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from fp8convert import header
from fp8convert.cli.make_sample import make_sample_command
from fp8convert.errors import UsageError
from fp8convert.samples import FAMILIES, FP8_FAMILIES, deepseek_v4, elements, make_sample, spec
from fp8convert.samples.spec import shard_names, shards, store

from .test_make_sample import content, entries, headers, load, load_json

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]
Pair = tuple[str, Path, Path]
NEW = [name for name in FAMILIES if name != "deepseek-v3"]
FULL = ("deepseek-v3", "deepseek-v4")


@pytest.fixture(scope="module", params=NEW)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A family's name, its tiny published checkpoint and the unquantized twin."""
    folder, name = tmp_path_factory.mktemp(request.param), str(request.param)
    for scheme in ("published", "bf16"):
        make_sample(str(folder / scheme), name, scheme=scheme)
    return name, folder / "published", folder / "bf16"


@pytest.fixture(scope="module")
def of_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny published checkpoint of a family, made once."""
    made: dict[str, Path] = {}

    def tiny(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "tiny"
            make_sample(str(made[family]), family)
        return made[family]

    return tiny


# What each tensor of the published form is, at the tiny size.
PUBLISHED: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "deepseek-v4": {
        "embed.weight": ("BF16", (1024, 256)),
        "hc_head_fn": ("F32", (4, 1024)),
        "layers.0.attn.attn_sink": ("F32", (4,)),
        "layers.0.attn.wq_a.weight": ("F8_E4M3", (128, 256)),
        "layers.0.attn.wq_a.scale": ("F8_E8M0", (1, 2)),
        "layers.0.ffn.gate.tid2eid": ("I64", (1024, 4)),
        "layers.0.ffn.experts.15.w1.weight": ("I8", (128, 128)),
        "layers.0.ffn.experts.15.w1.scale": ("F8_E8M0", (128, 8)),
        "layers.1.attn.indexer.wq_b.scale": ("F8_E8M0", (2, 1)),
        "layers.1.attn.compressor.ape": ("F32", (4, 256)),
        "layers.2.attn.compressor.ape": ("F32", (128, 128)),
        "layers.2.ffn.gate.bias": ("F32", (16,)),
        "mtp.0.e_proj.weight": ("F8_E4M3", (256, 256)),
        "mtp.0.ffn.experts.0.w2.scale": ("F8_E8M0", (256, 4)),
    },
    "qwen3-fp8": {
        "model.layers.0.self_attn.q_proj.weight": ("F8_E4M3", (256, 192)),
        "model.layers.0.self_attn.q_proj.weight_scale_inv": ("BF16", (2, 2)),
        "model.layers.0.self_attn.q_norm.weight": ("BF16", (64,)),
        "model.layers.0.mlp.gate.weight": ("BF16", (16, 192)),
        "model.layers.2.mlp.experts.15.down_proj.weight": ("F8_E4M3", (192, 96)),
        "model.layers.2.mlp.experts.15.down_proj.weight_scale_inv": ("BF16", (2, 1)),
    },
    "kimi-k2-thinking": {
        "model.layers.0.mlp.gate_proj.weight": ("BF16", (512, 192)),
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": ("BF16", (192, 192)),
        "model.layers.1.mlp.shared_experts.up_proj.weight": ("BF16", (160, 192)),
        "model.layers.1.mlp.gate.e_score_correction_bias": ("F32", (16,)),
        "model.layers.1.mlp.experts.0.gate_proj.weight_packed": ("I32", (160, 24)),
        "model.layers.1.mlp.experts.0.gate_proj.weight_scale": ("BF16", (160, 6)),
        "model.layers.1.mlp.experts.0.gate_proj.weight_shape": ("I32", (2,)),
    },
    "gpt-oss": {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", (8, 448, 9, 16)),
        "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", (8, 448, 9)),
        "model.layers.0.mlp.experts.gate_up_proj_bias": ("BF16", (8, 448)),
        "model.layers.0.mlp.experts.down_proj_blocks": ("U8", (8, 288, 7, 16)),
        "model.layers.0.mlp.experts.down_proj_bias": ("BF16", (8, 288)),
        "model.layers.3.mlp.router.bias": ("BF16", (8,)),
        "model.layers.3.self_attn.sinks": ("BF16", (4,)),
        "model.layers.3.self_attn.o_proj.bias": ("BF16", (288,)),
    },
    "mistral-fp8": {
        "model.layers.0.mlp.down_proj.weight": ("F8_E4M3", (288, 720)),
        "model.layers.0.mlp.down_proj.weight_scale_inv": ("BF16", ()),
        "model.layers.0.mlp.down_proj.activation_scale": ("BF16", ()),
        "lm_head.weight": ("BF16", (1024, 288)),
    },
    "minimax-m3": {
        "model.layers.0.self_attn.k_proj.weight": ("F8_E4M3", (128, 224)),
        "model.layers.0.self_attn.k_proj.weight_scale_inv": ("U8", (128, 7)),
        "model.layers.0.self_attn.k_norm.weight": ("BF16", (128,)),
        "model.layers.0.block_sparse_moe.gate.weight": ("F32", (16, 224)),
        "model.layers.0.block_sparse_moe.e_score_correction_bias": ("F32", (16,)),
        "model.layers.2.block_sparse_moe.experts.15.w2.weight_scale_inv": ("U8", (224, 3)),
    },
    "modelopt-nvfp4": {
        "model.layers.0.mlp.down_proj.weight": ("U8", (192, 264)),
        "model.layers.0.mlp.down_proj.weight_scale": ("F8_E4M3", (192, 33)),
        "model.layers.0.mlp.down_proj.weight_scale_2": ("F32", ()),
        "model.layers.0.mlp.down_proj.input_scale": ("F32", ()),
        "model.layers.1.mlp.shared_experts.up_proj.weight_scale": ("F8_E4M3", (176, 12)),
        "model.layers.1.mlp.experts.7.up_proj.weight": ("U8", (176, 96)),
        "model.layers.1.self_attn.o_proj.weight": ("BF16", (192, 512)),
        "model.layers.3.mlp.experts.7.up_proj.weight": ("BF16", (176, 192)),
    },
}


def test_names_dtypes_and_shapes(pair: Pair) -> None:
    family, published, _ = pair
    found = {name: (e.dtype, e.shape) for name, e in entries(published).items()}
    assert {name: found.get(name) for name in PUBLISHED[family]} == PUBLISHED[family]


def test_index_and_sizes(pair: Pair) -> None:
    family, *folders = pair
    for folder in folders:
        index, found = load_json(folder, INDEX), headers(folder)
        assert index["weight_map"] == {e.name: n for n, h in found.items() for e in h.entries}
        assert index["metadata"]["total_size"] == sum(
            e.end - e.begin for h in found.values() for e in h.entries
        )
        assert list(found) == shard_names(FAMILIES[family]("tiny"), len(found))
        assert load(folder).keys() == index["weight_map"].keys()
    assert len(headers(folders[0])) >= 4
    assert 3e6 < sum(p.stat().st_size for p in folders[0].iterdir()) < 15e6


def test_same_seed_same_bytes(pair: Pair, tmp_path: Path) -> None:
    family, published, _ = pair
    make_sample(str(tmp_path / "again"), family)
    make_sample(str(tmp_path / "other"), family, seed=1)
    first, again, other = (content(f) for f in (published, tmp_path / "again", tmp_path / "other"))
    assert again == first
    assert {n for n in first if first[n] != other[n]} == set(headers(published))


def test_configs(pair: Pair) -> None:
    family, published, bf16 = pair
    coded, twin = load_json(published, "config.json"), load_json(bf16, "config.json")
    hidden = {"quantization_config", "expert_dtype"}
    assert twin == {key: value for key, value in coded.items() if key not in hidden}
    assert ("expert_dtype" in coded) == (family == "deepseek-v4")
    assert ("quantization_config" in coded) == (family != "modelopt-nvfp4")
    assert {p.name for p in published.iterdir() if p.suffix != ".safetensors"} - {
        p.name for p in bf16.iterdir()
    } == ({"hf_quant_config.json"} if family == "modelopt-nvfp4" else set())


# --- the twins, decoded by others


def grid(scale: torch.Tensor, block: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Each scale repeated over its block, cut to the weight."""
    rows, columns = like.shape
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[:rows, :columns]


def fp8(codes: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    return (codes.float() * grid(scale.float(), block, codes)).bfloat16()


def deepseek_fp4(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]).repeat(2)
    table[9:] *= -1  # code 8 is +0.0
    low, high = packed.view(torch.uint8) & 15, packed.view(torch.uint8) >> 4
    values = table[torch.stack([low, high], -1).flatten(1).long()]
    return (values * grid(scale.float(), (1, 32), values)).bfloat16()


def deepseek_v4_twin(t: Tensors) -> Tensors:
    out = {}
    for name, scale in t.items():
        weight = name.removesuffix(".scale") + ".weight"
        if scale.dtype == torch.float8_e8m0fnu and t[weight].dtype == torch.int8:
            out[weight] = deepseek_fp4(t[weight], scale)
        elif scale.dtype == torch.float8_e8m0fnu:
            out[weight] = fp8(t[weight], scale, (128, 128))
        elif name not in out and name.removesuffix(".weight") + ".scale" not in t:
            out[name] = scale
    return out


def scale_inv_twin(t: Tensors, one: Callable[[torch.Tensor, torch.Tensor], Any]) -> Tensors:
    coded = {n: t[n + "_scale_inv"] for n in t if n + "_scale_inv" in t}
    dropped = ("_scale_inv", ".activation_scale")
    plain = {n: v for n, v in t.items() if n not in coded and not n.endswith(dropped)}
    return plain | {n: one(t[n], scale) for n, scale in coded.items()}


def kimi_twin(t: Tensors) -> Tensors:
    out = {n: v for n, v in t.items() if ".weight_" not in n}
    for name, packed in t.items():
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
            shape = torch.Size(t[base + "_shape"].tolist())
            q = unpack_from_int32(packed, 4, shape).float()
            out[base] = (q * grid(t[base + "_scale"].float(), (1, 32), q)).bfloat16()
    return out


def gpt_oss_twin(t: Tensors) -> Tensors:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    out = {n: v for n, v in t.items() if not n.endswith(("_blocks", "_scales"))}
    for name, blocks in t.items():
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            out[base] = convert_moe_packed_tensors(blocks, t[base + "_scales"])
    return out


def nvfp4_twin(t: Tensors) -> Tensors:
    out = {n: v for n, v in t.items() if not n.endswith(("_scale", "_scale_2"))}
    for name, codes in out.items():
        if name + "_scale" in t:
            rows, columns = codes.shape
            values = unpack_fp4_from_uint8(codes, rows, 2 * columns, torch.float32)
            scale = t[name + "_scale"].float() * t[name + "_scale_2"]
            out[name] = (values * grid(scale, (1, 16), values)).bfloat16()
    return out


TWINS: dict[str, Callable[[Tensors], Tensors]] = {
    "deepseek-v4": deepseek_v4_twin,
    "qwen3-fp8": lambda t: scale_inv_twin(t, lambda w, s: fp8(w, s, (128, 128))),
    "kimi-k2-thinking": kimi_twin,
    "gpt-oss": gpt_oss_twin,
    "mistral-fp8": lambda t: scale_inv_twin(t, lambda w, s: (w.float() * s.float()).bfloat16()),
    "minimax-m3": lambda t: scale_inv_twin(
        t, lambda w, s: fp8(w, (s.float() - 127).exp2(), (1, 32))
    ),
    "modelopt-nvfp4": nvfp4_twin,
}


def test_the_twin_is_what_others_decode(pair: Pair) -> None:
    family, published, bf16 = pair
    want, got = TWINS[family](load(published)), load(bf16)
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert (tensor.dtype, tensor.shape) == (want[name].dtype, want[name].shape), name
        same = torch.equal(tensor.view(torch.uint8), want[name].contiguous().view(torch.uint8))
        assert same, name


def test_decoded_weights_look_trained(pair: Pair) -> None:
    _, published, bf16 = pair
    before = load(published)
    for name, tensor in load(bf16).items():
        coded = name not in before or before[name].dtype != tensor.dtype
        assert tensor.isfinite().all(), name
        if coded:
            assert 0.005 < tensor.float().std() < 0.06, name  # one scale a weight varies most


CODED = (".weight", "_packed", "_blocks")
FEW = 8  # blocks in a grid from which on some scales must differ


def test_rare_codes_occur_and_scales_vary(pair: Pair) -> None:
    family, published, _ = pair
    codes: Counter[int] = Counter()
    for name, tensor in load(published).items():
        if (tensor.element_size() == 1 and name.endswith(CODED)) or name.endswith("_packed"):
            bits = tensor.contiguous().view(torch.uint8).flatten()
            if tensor.dtype != torch.float8_e4m3fn:
                bits = torch.cat([bits & 15, bits >> 4])
            codes.update(dict(enumerate(torch.bincount(bits.int()).tolist())))
        elif name.endswith(("scale", "scale_inv", "_scales")) and tensor.numel() > FEW:
            kept = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor
            assert len(set(kept.flatten().tolist())) > 1, name
    if family in ("qwen3-fp8", "mistral-fp8", "minimax-m3"):
        assert all(codes[c] for c in range(256) if c & 0x7F != 0x7F)  # every finite e4m3 code
        assert not codes[0x7F]
        assert not codes[0xFF]
    else:
        assert all(codes[c] for c in range(16))


def test_e8m0_exponents_are_close(of_family: Callable[[str], Path]) -> None:
    """As in published MXFP4: no two in a weight are more than six apart."""
    for name, tensor in load(of_family("deepseek-v4")).items():
        if tensor.dtype == torch.float8_e8m0fnu:
            bits = tensor.view(torch.uint8).int()
            assert bits.max() - bits.min() <= 6, name


def test_expert_ids_are_valid(of_family: Callable[[str], Path]) -> None:
    ids = load(of_family("deepseek-v4"))["layers.0.ffn.gate.tid2eid"]
    assert set(ids.flatten().tolist()) == set(range(16))


def test_fused_weights_share_the_scales_of_a_tensor(of_family: Callable[[str], Path]) -> None:
    tensors = load(of_family("modelopt-nvfp4"))
    gates = [n for n in tensors if n.endswith("gate_proj.weight_scale_2")]
    assert len(gates) == 1 + 2 * 17
    for gate in gates:
        up, down = (gate.replace("gate_proj", name) for name in ("up_proj", "down_proj"))
        assert tensors[gate] == tensors[up] != tensors[down]
        gate, up = (n.replace("weight_scale_2", "input_scale") for n in (gate, up))
        assert tensors[gate] == tensors[up]


def test_hf_quant_config(of_family: Callable[[str], Path]) -> None:
    found = load_json(of_family("modelopt-nvfp4"), "hf_quant_config.json")
    excluded = found["quantization"].pop("exclude_modules")
    assert found["quantization"] == {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
    }
    assert found["producer"]["name"] == "modelopt"
    assert {"lm_head", "model.layers.0.self_attn*", "model.layers.3*"} <= set(excluded)
    assert "model.layers.0.mlp.gate" not in excluded
    assert "model.layers.1.mlp.gate" in excluded


def test_qwen_lists_what_is_not_quantized(of_family: Callable[[str], Path]) -> None:
    folder = of_family("qwen3-fp8")
    listed = load_json(folder, "config.json")["quantization_config"]["modules_to_not_convert"]
    found = entries(folder)
    plain = {n.removesuffix(".weight") for n, e in found.items() if e.dtype == "BF16"}
    assert set(listed) <= plain
    assert len(listed) == 1 + 3 * 3


def test_element_values_agree_with_torch() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    want = every.view(torch.float8_e8m0fnu).float()
    got = torch.from_numpy(elements.e8m0_values())
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    pairs = torch.from_numpy(elements.code_values("e2m1")).view(torch.float32)
    other = unpack_fp4_from_uint8(every, 256, 2, torch.float32).flatten()
    assert torch.equal(pairs.view(torch.int32), other.view(torch.int32))  # the sign of zero too


# --- sizes


@pytest.fixture(scope="module")
def full_v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "v4"
    make_sample(str(folder), "deepseek-v4", "full")
    return folder


def test_full_v4_is_the_published_inventory(full_v4: Path) -> None:
    found = headers(full_v4)
    assert list(found) == [f"model-{i:05d}-of-00046.safetensors" for i in range(1, 47)]
    every = {e.name: e for h in found.values() for e in h.entries}
    assert len(every) == sum(len(h.entries) for h in found.values()) == 69_187
    assert sum(e.end - e.begin for e in every.values()) == 159_609_485_896
    dtypes = Counter(e.dtype for e in every.values())
    assert (dtypes["I8"], dtypes["F8_E4M3"], dtypes["F8_E8M0"]) == (33_792, 375, 34_167)
    assert dtypes["BF16"] + dtypes["F32"] + dtypes["I64"] == 853
    assert dtypes["I64"] == 3
    for name, e in every.items():
        if e.dtype in ("I8", "F8_E4M3"):
            rows, columns = e.shape
            block = (rows, columns // 16) if e.dtype == "I8" else (rows // 128, columns // 128)
            scale = every[name.removesuffix(".weight") + ".scale"]
            assert (scale.dtype, scale.shape) == ("F8_E8M0", block), name
    assert load_json(full_v4, "config.json") == deepseek_v4.PUBLISHED
    assert sum(p.stat().st_blocks * 512 for p in full_v4.iterdir()) < 64e6


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("embed.weight", "BF16", (129280, 4096)),
        ("hc_head_fn", "F32", (4, 16384)),
        ("hc_head_scale", "F32", (1,)),
        ("layers.0.hc_attn_fn", "F32", (24, 16384)),
        ("layers.42.hc_ffn_scale", "F32", (3,)),
        ("layers.0.attn.attn_sink", "F32", (64,)),
        ("layers.0.attn.wq_b.weight", "F8_E4M3", (32768, 1024)),
        ("layers.0.attn.wkv.scale", "F8_E8M0", (4, 32)),
        ("layers.0.attn.wo_a.weight", "F8_E4M3", (8192, 4096)),
        ("layers.2.attn.compressor.ape", "F32", (4, 1024)),
        ("layers.2.attn.compressor.wkv.weight", "BF16", (1024, 4096)),
        ("layers.2.attn.indexer.wq_b.weight", "F8_E4M3", (8192, 1024)),
        ("layers.2.attn.indexer.weights_proj.weight", "BF16", (64, 4096)),
        ("layers.2.attn.indexer.compressor.norm.weight", "BF16", (128,)),
        ("layers.2.ffn.gate.tid2eid", "I64", (129280, 6)),
        ("layers.3.ffn.gate.bias", "F32", (256,)),
        ("layers.3.attn.compressor.ape", "F32", (128, 512)),
        ("layers.42.ffn.experts.255.w2.weight", "I8", (4096, 1024)),
        ("layers.42.ffn.experts.255.w2.scale", "F8_E8M0", (4096, 64)),
        ("layers.42.ffn.shared_experts.w1.weight", "F8_E4M3", (2048, 4096)),
        ("mtp.0.h_proj.scale", "F8_E8M0", (32, 32)),
        ("mtp.0.hc_head_base", "F32", (4,)),
        ("mtp.0.ffn.gate.bias", "F32", (256,)),
    ],
)
def test_full_v4_tensor(
    v4_entries: dict[str, header.Entry], name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    assert v4_entries[name][1:3] == (dtype, shape)


@pytest.fixture(scope="module")
def v4_entries(full_v4: Path) -> dict[str, header.Entry]:
    return entries(full_v4)


@pytest.mark.parametrize("family", FAMILIES)
def test_small_is_one_to_two_gigabytes(family: str) -> None:
    sample = FAMILIES[family]("small")
    cut = shards(store(sample, "published"), sample.shard_bytes)
    sizes = [sum(t.nbytes for t in shard) for shard in cut]
    assert 1.2e9 < sum(sizes) < 2.2e9
    assert 4 <= len(sizes) <= 14
    assert max(t.nbytes for shard in cut for t in shard) < 110e6


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in FULL])
def test_other_families_have_no_full_size(family: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"size 'full', expected one of tiny, small for {family}"):
        make_sample(str(tmp_path / "new"), family, "full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_scheme_fp8_is_for_fp8_families(family: str, tmp_path: Path) -> None:
    dst, published = tmp_path / "fp8", tmp_path / "published"
    got = CliRunner().invoke(make_sample_command, [str(dst), "--family", family, "--scheme", "fp8"])
    if family in FP8_FAMILIES:
        assert got.exit_code == 0
        make_sample(str(published), family)
        assert content(dst) == content(published)
    else:
        assert isinstance(got.exception, UsageError)
        assert "use 'published'" in str(got.exception)
        assert not dst.exists()


def test_help_names_every_family() -> None:
    text = CliRunner().invoke(make_sample_command, ["--help"]).output
    listed = text.split("Families:")[1].split("Examples:")[0]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(FAMILIES)


def test_config_is_plain_json(pair: Pair) -> None:
    for folder in pair[1:]:
        for path in folder.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))


SCALE = {
    "deepseek-v4": (".weight", ".scale"),
    "kimi-k2-thinking": ("_packed", "_scale"),
    "gpt-oss": ("_blocks", "_scales"),
    "modelopt-nvfp4": (".weight", ".weight_scale"),
}


def test_some_scales_are_in_another_shard_than_their_weight(pair: Pair) -> None:
    place = load_json(pair[1], INDEX)["weight_map"]
    codes, scale = SCALE.get(pair[0], (".weight", ".weight_scale_inv"))
    pairs = [(n, n.removesuffix(codes) + scale) for n in place if n.endswith(codes)]
    assert any(s in place and place[n] != place[s] for n, s in pairs)


def test_samples_share_no_code_with_the_conversion() -> None:
    allowed = {"fp8convert.errors", "fp8convert.dtypes", "fp8convert.header"}
    for path in Path(spec.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("fp8convert") for a in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                names = {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
                mine = {n for n in names if n.startswith("fp8convert.")}
                assert node.level or not mine or mine & allowed, path
