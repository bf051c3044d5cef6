"""A complete output: what loaders demand of a BF16 checkpoint folder, as tests.

Each loader named was seen to fail on, or to swallow in silence, what its line guards against.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import fp8convert
from fp8convert import header

from .checkpoints import pair, write
from .oracle import dequantize_all, differing, load, same_bytes

INDEX = "model.safetensors.index.json"
BESIDE = [
    "hf_quant_config.json",
    "quant_model_description.json",
    "chat_template.jinja",
    "README.md",
    "modeling_deepseek.py",
    "LICENSE-MODEL",
    "vocab.txt",
    ".gitattributes",
    "pytorch_model.bin",
    "LICENSE.bin",
    "notice.onnx",
    "manifest.json",
    "consolidated.safetensors.index.json",
]


@pytest.fixture(scope="module")
def source(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sample with everything beside it that a repository may hold."""
    folder = tmp_path_factory.mktemp("full") / "src"
    shutil.copytree(tiny_fp8, folder)
    for name in BESIDE:
        (folder / name).write_text("{}")
    (folder / "inference").mkdir()
    (folder / "assets.json").mkdir()
    return folder


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "dst"
    fp8convert.to_bf16(source, folder)
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_tensor_is_right_to_the_bit(source: Path, target: Path, tiny_bf16: Path) -> None:
    ours = load(target)
    assert differing(ours, dequantize_all(load(source))) == []
    assert differing(ours, load(tiny_bf16)) == []  # the sample's own independent decoder


def test_a_changed_bit_would_be_seen(target: Path, tiny_bf16: Path) -> None:
    """The control: the comparison above fails when one element is off by one unit."""
    ours = load(target)
    name = next(n for n in ours if n.endswith("kv_a_proj_with_mqa.weight"))
    ours[name].view(torch.int16)[-1, -1] += 1
    assert differing(ours, load(tiny_bf16)) == [name]


def test_one_layout_an_index_equal_to_the_shards_and_true_sizes(target: Path) -> None:
    """transformers and LMDeploy take model.safetensors over an index; KeyError without metadata."""
    shards = {p.name for p in target.glob("*.safetensors")}
    assert "model.safetensors" not in shards
    index = read_json(target / INDEX)
    held: dict[str, str] = {}
    total = 0
    for shard in shards:
        with safe_open(target / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}  # older transformers crash without it
            held |= dict.fromkeys(file.keys(), shard)
        total += sum(t.numel() * t.element_size() for t in load_one(target / shard).values())
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"].values()) == shards


def load_one(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118


def test_no_other_weights_and_no_stale_quantization_beside(target: Path) -> None:
    """TensorRT-LLM merges all .safetensors, vLLM prefers consolidated*, engines adopt sidecars."""
    names = {p.name for p in target.iterdir()}
    assert not any(n.startswith("consolidated") for n in names)
    assert not names & {"hf_quant_config.json", "quant_model_description.json", "README.md",
                        "pytorch_model.bin", "LICENSE.bin", "notice.onnx",
                        "modeling_deepseek.py", "inference"}  # fmt: skip
    stored = {t.dtype for t in load(target).values()}
    assert stored == {torch.bfloat16, torch.float32}
    assert not [n for n in load(target) if "scale" in n]  # vLLM: KeyError


def test_companions_are_there_and_untouched(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE",
                 "LICENSE-MODEL", "chat_template.jinja", "vocab.txt"):  # fmt: skip
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_config_keeps_every_other_key_in_order(source: Path, target: Path) -> None:
    """A config rebuilt by transformers loses topk_method and vLLM then fails: raw JSON it is."""
    before, after = read_json(source / "config.json"), read_json(target / "config.json")
    assert before.pop("quantization_config")
    assert list(after.items()) == list(before.items())
    assert after["torch_dtype"] == "bfloat16"
    for key in ("topk_method", "scoring_func", "moe_layer_freq", "auto_map"):
        assert key in after


def test_mtp_layers_agree_with_the_config(target: Path) -> None:
    config = read_json(target / "config.json")
    layers = {int(n.split(".")[2]) for n in load(target) if n.startswith("model.layers.")}
    mtp = {n for n in layers if n >= config["num_hidden_layers"]}
    assert mtp == {config["num_hidden_layers"]}
    assert config["num_nextn_predict_layers"] == len(mtp)


def test_only_coded_weights_changed(source: Path, target: Path) -> None:
    """The router bias stays F32, norms and embeddings keep their bytes."""
    before, after = load(source), load(target)
    kept = {n for n, t in before.items() if t.dtype != torch.float8_e4m3fn} & after.keys()
    assert len(kept) == 31
    assert all(same_bytes(before[n], after[n]) for n in kept)
    assert any(
        n.endswith("e_score_correction_bias") and after[n].dtype == torch.float32 for n in kept
    )


def test_manifest_sums_every_file_and_names_what_stayed_behind(target: Path) -> None:
    import hashlib

    manifest = read_json(target / "manifest.json")
    listed = {f["name"]: f for f in manifest["files"]}
    assert set(listed) == {p.name for p in target.iterdir()} - {"manifest.json"}
    for name, entry in listed.items():
        data = (target / name).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {"README.md", "modeling_deepseek.py", "hf_quant_config.json", "inference"} <= set(
        manifest["not_copied"]
    )
    assert manifest["rules"]["fp8-block"].startswith("float32(code) * scale")
    assert (manifest["weights_decoded"], manifest["tensors_kept"]) == (176, 31)


def test_files_have_the_mode_of_the_umask(source: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fp8convert.to_bf16(source, tmp_path / "dst")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "dst").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "dst").stat().st_mode) == 0o750


def test_headers_are_strict_and_data_starts_on_a_page(target: Path) -> None:
    for path in target.glob("*.safetensors"):
        raw = path.read_bytes()
        length = header.header_length(raw[:64], len(raw), path.name)
        assert header.parse(raw[8 : 8 + length], len(raw), path.name).data_start % 4096 == 0


def test_copy_code_copies_code(source: Path, tmp_path: Path) -> None:
    fp8convert.to_bf16(source, tmp_path / "dst", copy_code=True)
    assert (tmp_path / "dst" / "modeling_deepseek.py").read_text() == "{}"


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("float16", torch.float16), ("float32", torch.float32)]
)
def test_other_dtypes(source: Path, tmp_path: Path, dtype: str, torch_dtype: torch.dtype) -> None:
    fp8convert.to_bf16(source, tmp_path / "dst", dtype=dtype)
    ours = load(tmp_path / "dst")
    assert differing(ours, dequantize_all(load(source), torch_dtype)) == []
    assert read_json(tmp_path / "dst" / "config.json")["torch_dtype"] == dtype
    assert ours["model.norm.weight"].dtype == torch.bfloat16  # not coded: not touched


@pytest.mark.parametrize("limit", [1, 100_000, 3_000_000, 10**12])
def test_max_shard_size(source: Path, tmp_path: Path, limit: int) -> None:
    fp8convert.to_bf16(source, tmp_path / "dst", max_shard_size=limit)
    ours = load(tmp_path / "dst")
    assert differing(ours, dequantize_all(load(source))) == []
    shards = sorted((tmp_path / "dst").glob("*.safetensors"))
    for path in shards:
        tensors = load_one(path)
        nbytes = sum(t.numel() * t.element_size() for t in tensors.values())
        assert nbytes <= limit or len(tensors) == 1
    single = limit == 10**12
    assert (len(shards) == 1) == single
    assert (tmp_path / "dst" / INDEX).exists() != single
    if single:
        assert shards[0].name == "model.safetensors"
    else:
        assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):06d}.safetensors"


def test_single_file_source_stays_a_single_file_without_index(tmp_path: Path) -> None:
    source = write(tmp_path / "src", [pair("w.weight", 192, 200)])
    (source / "model-00001-of-000001.safetensors").rename(source / "model.safetensors")
    (source / INDEX).unlink()
    fp8convert.to_bf16(source, tmp_path / "dst")
    names = {p.name for p in (tmp_path / "dst").iterdir()}
    assert names == {"model.safetensors", "config.json", "manifest.json"}
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []


def test_shard_names_that_a_loader_would_misread_are_replaced(tmp_path: Path) -> None:
    """Several shards, one called model.safetensors: a loader would take it for everything."""
    source = write(tmp_path / "src", [pair("a.weight", 8, 8), pair("b.weight", 8, 8)])
    names = ("model-00001-of-000002.safetensors", "model.safetensors")
    (source / names[0]).rename(source / names[1])
    index = read_json(source / INDEX)
    index["weight_map"] = {
        n: names[1] if f == names[0] else f for n, f in index["weight_map"].items()
    }
    (source / INDEX).write_text(json.dumps(index))
    fp8convert.to_bf16(source, tmp_path / "dst")
    shards = sorted(p.name for p in (tmp_path / "dst").glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-000002.safetensors" for i in (1, 2)]
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []


@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated-1.safetensors"])
def test_a_lone_consolidated_file_is_renamed(tmp_path: Path, name: str) -> None:
    """vLLM would take it for Mistral's own format."""
    source = write(tmp_path / "src", [pair("w.weight", 8, 8)])
    (source / "model-00001-of-000001.safetensors").rename(source / name)
    index = read_json(source / INDEX)
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (source / INDEX).write_text(json.dumps(index))
    fp8convert.to_bf16(source, tmp_path / "dst")
    names = {p.name for p in (tmp_path / "dst").iterdir()}
    assert names == {"model.safetensors", "config.json", "manifest.json"}


def test_a_name_on_disk_that_is_not_utf8_does_not_stop_it(tmp_path: Path) -> None:
    source = write(tmp_path / "src", [pair("w.weight", 8, 8)])
    (source / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    assert done.data["not_copied"] == ["caf\\udce9.png"]
    assert fp8convert.to_bf16(source, tmp_path / "dst").already_done


def test_odd_tensors_pass_untouched(tmp_path: Path) -> None:
    """0-d, empty, 1-byte and 8-byte tensors between coded ones, in any order."""
    odd = {
        "bool": torch.tensor([True, False, True]),
        "table": torch.arange(7, dtype=torch.int64),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty((0, 4), dtype=torch.bfloat16),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "ints": torch.arange(-3, 3, dtype=torch.int8),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "\u540d.\u00e9\n\x1b[31m": torch.ones(3, dtype=torch.bfloat16),
    }
    source = write(tmp_path / "src", [odd | pair("w.weight", 130, 70), pair("v.weight", 1, 1)])
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []


@pytest.mark.parametrize("checksum", ["sha256", "none"])
@pytest.mark.parametrize("io", ["auto", "direct", "buffered"])
@pytest.mark.parametrize("workers", [1, 7])
def test_settings_change_no_byte(
    tiny_fp8: Path, target: Path, tmp_path: Path, checksum: str, io: str, workers: int
) -> None:
    memory = (224 + workers * 2) << 20  # the smallest tiles: every tensor is cut
    done = fp8convert.to_bf16(
        tiny_fp8, tmp_path / "dst", checksum=checksum, io=io, workers=workers, memory=memory
    )
    for path in target.glob("*.safetensors"):
        assert (tmp_path / "dst" / path.name).read_bytes() == path.read_bytes()
    assert all((f["sha256"] is None) == (checksum == "none") for f in done.files
               if f["name"].endswith(".safetensors"))  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_loads_it_and_computes_what_the_oracle_computes(
    target: Path, tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    ids = torch.arange(16)[None]
    logits = []
    for folder in (target, tiny_bf16):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert torch.isfinite(logits[0]).all()
    assert torch.equal(*logits)
