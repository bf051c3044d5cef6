"""Every deliberate corruption is caught, by the checks that should catch it and by no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fp8convert.verify import verify

from .damage import (
    INDEX,
    Change,
    add,
    both,
    config,
    drop,
    edit,
    edit_json,
    put,
    put_at,
    shard_of,
    shards,
    unlink,
)
from .made import Made

FIRST = "model-00001-of-000005.safetensors"
LAST = "model-00005-of-000005.safetensors"
LAYER = "model.layers.1"
EXPERT = f"{LAYER}.mlp.experts.7"
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
SCALE = f"{O_PROJ}_scale_inv"
KV_A = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"  # [576, 192]
BIAS = f"{LAYER}.mlp.gate.e_score_correction_bias"
NORM = "model.norm.weight"
V4_EXPERT = "layers.1.ffn.experts.0.w1"
M3_EXPERT = f"{LAYER}.block_sparse_moe.experts.0.w1"
NAN, INF = float("nan"), float("inf")


def flip_a_byte(folder: Path) -> None:
    """The lowest bit of the last element: still a number."""
    data = bytearray((folder / FIRST).read_bytes())
    data[-2] ^= 1
    put(folder / FIRST, bytes(data))


def truncate(folder: Path) -> None:
    put(folder / FIRST, (folder / FIRST).read_bytes()[:-1000])


def zero_length(folder: Path) -> None:
    put(folder / FIRST, b"")


def double_key(folder: Path) -> None:
    """A header that names a tensor twice: the library takes it."""
    data = (folder / FIRST).read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, rest = data[8 : 8 + length], data[8 + length :]
    name = next(n for n in json.loads(head) if n != "__metadata__")
    entry = json.dumps({name: json.loads(head)[name]})[1:-1]
    head = head.rstrip()[:-1] + f",{entry}}}".encode()
    put(folder / FIRST, len(head).to_bytes(8, "little") + head + rest)


def other_length(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[7] = 0x7F
    put(folder / FIRST, bytes(data))


def wrong_shard(data: dict[str, Any]) -> None:
    data["weight_map"][O_PROJ] = LAST


def unlisted(data: dict[str, Any]) -> None:
    del data["weight_map"][O_PROJ]


def invented(data: dict[str, Any]) -> None:
    data["weight_map"]["model.layers.0.not_there"] = FIRST


def total(data: dict[str, Any]) -> None:
    data["metadata"]["total_size"] += 1


def no_metadata(data: dict[str, Any]) -> None:
    del data["metadata"]


def doubled(folder: Path) -> None:
    """In its shard and in the last."""
    file = next(f for f in shards(folder) if f != shard_of(folder, NORM))
    add(file.name, {NORM: torch.ones(192, dtype=torch.bfloat16)}, indexed=False)(folder)


def renamed(folder: Path) -> None:
    drop(SCALE)(folder)
    add(FIRST, {f"{O_PROJ}_scale_inverse": torch.ones(2, 4)})(folder)


def shapes(data: dict[str, Any]) -> None:
    data["tensors"][NORM]["shape"] = [191]


def sums(data: dict[str, Any]) -> None:
    data["files"][0]["sha256"] = "0" * 64


def plan(data: dict[str, Any]) -> None:
    data["identity"]["options"]["dtype"] = "float16"


def no_files(data: dict[str, Any]) -> None:
    data["files"] = []


def upwards(data: dict[str, Any]) -> None:
    data["files"][0]["name"] = "../../etc/passwd"


def to_bf16(t: torch.Tensor) -> torch.Tensor:
    return t.to(torch.bfloat16)


def rank_gone(folder: Path) -> None:
    shutil.rmtree(folder / "rank1")


def junk(name: str, text: bytes = b"not JSON") -> Change:
    return lambda folder: put(folder / name, text)


STALE = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
NVFP4 = f"{EXPERT}.down_proj.weight"

# What is changed, in which output, the checks that fail, and what the first of them must say.
TABLE: list[tuple[str, str, Change, str, tuple[str, ...]]] = [
    ("flipped byte", "bf16", flip_a_byte, "manifest", (FIRST, "SHA-256 is", "expected")),
    ("truncated shard, sums", "bf16", truncate, "manifest headers", (FIRST, "bytes, expected")),
    ("truncated shard", "v3", truncate, "headers", (FIRST, "truncated", "end at byte")),
    ("empty shard", "v3", zero_length, "headers", (FIRST, "0 bytes long")),
    ("header length", "v3", other_length, "headers", (FIRST, "header length field")),
    ("name twice in a header", "v3", double_key, "headers", (FIRST, "duplicate key")),
    ("deleted shard, sums", "bf16", unlink(LAST), "manifest index", (LAST, "is missing")),
    ("deleted shard", "v3", unlink(LAST), "index", (LAST, "tensors", "which is not there")),
    ("extra shard, sums", "bf16", add("more.safetensors", {"x": torch.ones(2, 2)}, False),
     "manifest index", ("'more.safetensors'", "does not list it")),
    ("extra shard", "v3", add("more.safetensors", {"x": torch.ones(2)}, False), "index",
     ("'more.safetensors' is not in", "TensorRT-LLM")),
    ("second checkpoint", "v3", add("model.safetensors", {"x": torch.ones(2)}, False), "index",
     ("'model.safetensors' is not in",)),
    ("index: wrong shard", "v3", edit_json(INDEX, wrong_shard), "index",
     (O_PROJ, "-of-000005.safetensors', but", f"says '{LAST}'")),
    ("index: not listed", "v3", edit_json(INDEX, unlisted), "index", (O_PROJ, "does not list it")),
    ("index: invented", "v3", edit_json(INDEX, invented), "index",
     ("model.layers.0.not_there", FIRST, "does not hold it")),
    ("index: total_size", "v3", edit_json(INDEX, total), "index", ("metadata.total_size is",)),
    ("index: no metadata", "v3", edit_json(INDEX, no_metadata), "index", ("has no metadata",)),
    ("index: no JSON", "v3", junk(INDEX), "index", (INDEX, "not valid JSON")),
    ("tensor in two shards", "v3", doubled, "index", (NORM, "expected one file")),
    ("scale missing", "v3", drop(SCALE), "scales", (O_PROJ, "has no scale")),
    ("scale one block short", "v3", both(edit(SCALE, lambda t: t[:-1].clone()),
     edit_json(INDEX, lambda d: d["metadata"].__setitem__("total_size", 13484240 - 16))), "scales",
     (O_PROJ, SCALE, "F32 [1, 4], expected", "[2, 4]")),
    ("scale renamed", "v3", renamed, "scales", (O_PROJ, "has no scale")),
    ("scale of another dtype", "v3", both(edit(SCALE, lambda t: t.to(torch.float64)),
     edit_json(INDEX, lambda d: d["metadata"].__setitem__("total_size", 13484240 + 32))), "scales",
     (SCALE, "F64")),
    ("scale left in BF16", "bare bf16", add(LAST, {SCALE: torch.ones(2, 4)}), "scales",
     (SCALE, "it belongs to a coded weight")),
    ("NaN in BF16", "bare bf16", put_at(KV_A, (500, 17), NAN), "values",
     (KV_A, "-of-000005.safetensors'", "nan at [500, 17]")),
    ("Inf in F32", "v3", put_at(BIAS, (3,), -INF), "values", (BIAS, "-inf at [3]")),
    ("Inf in BF16", "v3", put_at("model.embed_tokens.weight", (1023, 191), INF), "values",
     ("model.embed_tokens.weight", "inf at [1023, 191]")),
    ("NaN code in FP8", "v3", put_at(KV_A, (575, 191), 0xFF), "values",
     (KV_A, "code 0xff", "[575, 191]")),
    ("NaN scale", "v3", put_at(SCALE, (1, 3), NAN), "values", (SCALE, "nan at [1, 3]")),
    ("negative scale", "v3", put_at(SCALE, (0, 1), -0.25), "values",
     (SCALE, "scale -0.25 at [0, 1]", "above 0")),
    ("scale 0", "v3", put_at(SCALE, (1, 2), 0.0), "values", (SCALE, "scale 0 at [1, 2]", O_PROJ)),
    ("E8M0 NaN", "deepseek-v4", put_at(f"{V4_EXPERT}.scale", (5, 1), 0xFF), "values",
     (f"{V4_EXPERT}.scale", "code 0xff", "[5, 1]")),
    ("E8M0 NaN in U8", "minimax-m3", put_at(f"{M3_EXPERT}.weight_scale_inv", (0, 2), 0xFF),
     "values", (f"{M3_EXPERT}.weight_scale_inv", "code 0xff", "[0, 2]")),
    ("E8M0 NaN of gpt-oss", "gpt-oss",
     put_at(f"{LAYER}.mlp.experts.down_proj_scales", (7, 11, 3), 0xFF), "values",
     ("down_proj_scales", "[7, 11, 3]")),
    ("NVFP4 scale NaN", "modelopt-nvfp4", put_at(f"{NVFP4}_scale", (9, 4), 0x7F), "values",
     (f"{NVFP4}_scale", "code 0x7f", "[9, 4]")),
    ("NVFP4 scale negative", "modelopt-nvfp4", put_at(f"{NVFP4}_scale", (9, 4), 0xB8), "values",
     (f"{NVFP4}_scale", "scale -1 at [9, 4]")),
    ("NVFP4 global scale", "modelopt-nvfp4", put_at(f"{NVFP4}_scale_2", (), 0.0), "values",
     (f"{NVFP4}_scale_2", "scale 0 at []", f"{NVFP4}'")),
    ("stale declaration", "bare bf16", config(quantization_config=STALE), "config",
     ("quantization_config", "no tensor is coded")),
    ("stale compression", "bare bf16", config(compression_config={"format": "dense"}), "config",
     ("compression_config",)),
    ("stale hf_quant_config", "bare bf16",
     junk("hf_quant_config.json", b'{"quantization": {"quant_algo": "FP8"}}'), "config",
     ("hf_quant_config.json", "no tensor is coded")),
    ("stale description", "bare bf16", junk("quant_model_description.json", b"{}"), "config",
     ("quant_model_description.json", "engines adopt it")),
    ("declaration missing", "v3", config(quantization_config=None), "scales config",
     ("F8_E4M3", "no quantization_config")),
    ("declared block", "v3", config(quantization_config=STALE | {"weight_block_size": [64, 64]}),
     "scales", ("[64, 64]",)),
    ("declared block is none", "v3", config(quantization_config=STALE | {
     "weight_block_size": [0, 7]}), "scales", ("weight_block_size", "[0, 7]")),
    ("torch_dtype", "bare bf16", config(torch_dtype="float16"), "config",
     ("torch_dtype is 'float16'", "BF16")),
    ("torch_dtype of none", "v3", config(torch_dtype="float16"), "config",
     ("torch_dtype is 'float16'", "BF16")),
    ("num_hidden_layers", "v3", config(num_hidden_layers=9), "config",
     ("num_hidden_layers is 9", "layer 4", "0 to 3")),
    ("num_hidden_layers is vast", "v3", config(num_hidden_layers=10**18), "config",
     ("num_hidden_layers is 1000000000000000000",)),
    ("layer missing", "v3", drop(like=f"{LAYER}."), "config", ("no tensor is in layer 1",)),
    ("MTP layers too few", "v3", config(num_nextn_predict_layers=2), "config",
     ("num_nextn_predict_layers is 2, found 1",)),
    ("MTP there, not declared", "v3", config(num_nextn_predict_layers=0), "config",
     ("num_nextn_predict_layers is 0, found 1",)),
    ("vocab_size", "v3", config(vocab_size=1025), "config",
     ("vocab_size is 1025", "model.embed_tokens.weight", "1024 rows")),
    ("router bias in BF16", "v3", both(edit(BIAS, to_bf16),
     edit_json(INDEX, lambda d: d["metadata"].__setitem__("total_size", 13484240 - 32))), "config",
     (BIAS, "BF16, expected F32")),
    ("ue8m0 declared", "v3", config(quantization_config=STALE | {"scale_fmt": "ue8m0"}), "config",
     ("scale_fmt is ue8m0", "_scale_inv", "no power of two")),
    ("head missing", "v3", drop("lm_head.weight"), "config", ("tie_word_embeddings", "no lm_head")),
    ("expert missing", "v3", drop(like=f"{EXPERT}."), "config",
     ("n_routed_experts is 16", f"{LAYER}.mlp.experts", "number 7")),
    ("part of an expert missing", "v3", drop(like=f"{EXPERT}.up_proj"), "config",
     (EXPERT, "up_proj.weight")),
    ("config.json missing", "v3", unlink("config.json"), "config", ("config.json is missing",)),
    ("config.json no JSON", "v3", junk("config.json"), "config", ("config.json: not valid JSON",)),
    ("manifest: sum", "bf16", edit_json("manifest.json", sums), "manifest",
     (FIRST, "expected 0000")),
    ("manifest: plan", "bf16", edit_json("manifest.json", plan), "manifest",
     ("plan is", "identity")),
    ("manifest: no files", "bf16", edit_json("manifest.json", no_files), "manifest",
     ("files is '[]'",)),
    ("manifest: a path", "bf16", edit_json("manifest.json", upwards), "manifest",
     ("not a plain file name",)),
    ("manifest: no JSON", "bf16", junk("manifest.json"), "manifest", ("not valid JSON",)),
    ("rank folder missing", "bare hf2", rank_gone, "index", ("'rank1'", "missing")),
    ("rank folder missing, sums", "hf2", rank_gone, "manifest index", ("rank1/", "missing")),
    ("rank file missing", "bare ds2", unlink("model1-mp2.safetensors"), "index",
     ("rank files", "2")),
    ("tp.json altered", "bare hf2", edit_json("tp.json", shapes), "index",
     (NORM, "[192], expected BF16 [191]")),
    ("tp.json altered, ds", "bare ds2", edit_json("tp.json", shapes), "index",
     ("'norm.weight'", "[192], expected BF16 [191]")),
    ("tp.json no JSON", "bare hf2", junk("tp.json"), "index", ("tp.json: not valid JSON",)),
    ("tp.json missing", "bare hf2", unlink("tp.json"), "index", ("no tp.json",)),
    ("tp.json altered, apart", "bare apart4", edit_json("tp.json", shapes), "index",
     ("rank 0", NORM, "[192], expected BF16 [191]")),
    ("rank's number", "bare hf2", edit_json("rank1/tp.json", lambda d: d.update(rank=0)), "index",
     ("rank1/tp.json", "expected rank 1 of 2")),
    ("rank's config", "bare hf2", edit_json("rank1/config.json", lambda d: d.update(vocab_size=7)),
     "config", ("rank1/config.json is another",)),
    ("rank's NaN", "bare hf2", put_at(NORM, (9,), NAN, "rank1"), "values",
     ("rank1/model-", NORM, "nan at [9]")),
    ("rank's scale of its own", "bare apart4", put_at(SCALE, (1, 0), -1.0, "rank3"), "values",
     ("rank3/", SCALE, "scale -1 at [1, 0]")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "checks", "words"),
    [pytest.param(*row[1:], id=row[0]) for row in TABLE],
)
def test_it_is_caught(
    name: str, change: Change, checks: str, words: tuple[str, ...], right: Made
) -> None:
    folder = right.copied(name)
    change(folder)
    report = verify(folder, workers=2)
    assert [c.name for c in report.failed] == checks.split(), "\n".join(report.lines())
    assert not report.passed
    said = " | ".join(report.failed[0].problems)
    for word in words:
        assert word in said


@pytest.mark.parametrize("tensor", [torch.zeros(0, 5), torch.tensor([1j, 2]), torch.tensor(1.0)])
def test_a_name_in_two_files_of_other_forms(tensor: torch.Tensor, right: Made) -> None:
    """Each is looked at where it is."""
    folder = right.copied("v3")
    file = next(f for f in shards(folder)[::-1] if f != shard_of(folder, SCALE))
    add(file.name, {SCALE: tensor}, indexed=False)(folder)
    report = verify(folder, workers=2)
    failed = {c.name: " | ".join(c.problems) for c in report.failed}
    assert f"'{SCALE}' is in" in failed.pop("index")
    assert not failed.keys() - {"scales"}, failed


def test_no_tensor_at_all(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (check,) = verify(tmp_path).failed
    assert (check.name, check.problems) == ("headers", ("no file has a tensor",))


def test_the_table_is_long_and_its_sources_are_right(right: Made) -> None:
    """So that what fails above fails by the change alone."""
    assert len(TABLE) >= 20
    for name in {row[1] for row in TABLE}:
        assert verify(right.copied(name), workers=2).passed, name
