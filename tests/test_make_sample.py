"""make-sample: inventory, layout, determinism, the BF16 twin, and what transformers makes of it.

The oracles are torch and the safetensors library; neither is used by the code under test.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from fp8convert import header
from fp8convert.cli.make_sample import make_sample_command
from fp8convert.errors import TargetError, UsageError
from fp8convert.samples import deepseek_v3, elements, make_sample, values, writer
from fp8convert.samples.spec import Stored, Weight, shard_names, shards, store

BLOCK = 128


def read_header(path: Path) -> header.Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header.header_length(file.read(8), size, path.name)
        return header.parse(file.read(length), size, path.name)


def headers(folder: Path) -> dict[str, header.Header]:
    return {p.name: read_header(p) for p in sorted(folder.glob("*.safetensors"))}


def entries(folder: Path) -> dict[str, header.Entry]:
    return {e.name: e for h in headers(folder).values() for e in h.entries}


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def load_json(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def apart(folder: Path) -> list[str]:
    """The weights whose scale is in another shard."""
    place = load_json(folder, "model.safetensors.index.json")["weight_map"]
    scale = "_scale_inv"
    return [n for n in place if n + scale in place and place[n] != place[n + scale]]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The full-size sample, made by a process of its own, and that process's peak RSS in KiB."""
    folder = tmp_path_factory.mktemp("full") / "v3"
    code = (
        "import re, sys; from fp8convert.samples import make_sample;"
        "make_sample(sys.argv[1], size='full');"
        # not ru_maxrss: that remembers the size of the process that started this one
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
    )
    return folder, int(done.stdout)


def test_full_is_the_published_inventory(full: tuple[Path, int]) -> None:
    folder, rss_kib = full
    shards_found = headers(folder)
    names = [e.name for h in shards_found.values() for e in h.entries]
    assert len(names) == len(set(names)) == 91_991
    assert list(shards_found) == [f"model-{i:05d}-of-000163.safetensors" for i in range(1, 164)]
    files = [folder / name for name in shards_found]
    assert sum(p.stat().st_size for p in files) == pytest.approx(689e9, rel=0.01)
    assert sum(p.stat().st_blocks * 512 for p in folder.iterdir()) < 64e6
    sizes = [p.stat().st_size for p in files]
    assert min(sizes[:-1]) > 4.2e9
    assert max(sizes) < 4.5e9
    assert sizes[-1] < 1e9
    assert rss_kib < 300 * 1024
    assert len(apart(folder)) > 100


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("model.embed_tokens.weight", "BF16", (129280, 7168)),
        ("lm_head.weight", "BF16", (129280, 7168)),
        ("model.norm.weight", "BF16", (7168,)),
        ("model.layers.0.input_layernorm.weight", "BF16", (7168,)),
        ("model.layers.0.mlp.gate_proj.weight", "F8_E4M3", (18432, 7168)),
        ("model.layers.2.mlp.down_proj.weight", "F8_E4M3", (7168, 18432)),
        ("model.layers.2.mlp.down_proj.weight_scale_inv", "F32", (56, 144)),
        ("model.layers.3.mlp.gate.weight", "BF16", (256, 7168)),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "F32", (256,)),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "F8_E4M3", (2048, 7168)),
        ("model.layers.60.mlp.experts.255.down_proj.weight", "F8_E4M3", (7168, 2048)),
        ("model.layers.60.mlp.experts.255.down_proj.weight_scale_inv", "F32", (56, 16)),
        ("model.layers.60.self_attn.q_a_proj.weight", "F8_E4M3", (1536, 7168)),
        ("model.layers.60.self_attn.q_a_layernorm.weight", "BF16", (1536,)),
        ("model.layers.60.self_attn.q_b_proj.weight", "F8_E4M3", (24576, 1536)),
        ("model.layers.60.self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3", (576, 7168)),
        ("model.layers.60.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "F32", (5, 56)),
        ("model.layers.60.self_attn.kv_a_layernorm.weight", "BF16", (512,)),
        ("model.layers.60.self_attn.kv_b_proj.weight", "F8_E4M3", (32768, 512)),
        ("model.layers.60.self_attn.o_proj.weight", "F8_E4M3", (7168, 16384)),
        ("model.layers.60.post_attention_layernorm.weight", "BF16", (7168,)),
        ("model.layers.61.eh_proj.weight", "BF16", (7168, 14336)),
        ("model.layers.61.enorm.weight", "BF16", (7168,)),
        ("model.layers.61.hnorm.weight", "BF16", (7168,)),
        ("model.layers.61.embed_tokens.weight", "BF16", (129280, 7168)),
        ("model.layers.61.shared_head.norm.weight", "BF16", (7168,)),
        ("model.layers.61.shared_head.head.weight", "BF16", (129280, 7168)),
        ("model.layers.61.mlp.experts.0.gate_proj.weight", "F8_E4M3", (2048, 7168)),
    ],
)
def test_full_tensor(
    full_entries: dict[str, header.Entry], name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    assert full_entries[name][1:3] == (dtype, shape)


@pytest.fixture(scope="module")
def full_entries(full: tuple[Path, int]) -> dict[str, header.Entry]:
    return entries(full[0])


@pytest.mark.parametrize("scheme", ["fp8", "bf16"])
def test_index_is_true(scheme: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{scheme}")
    index = load_json(folder, "model.safetensors.index.json")
    found = headers(folder)
    assert index["weight_map"] == {e.name: n for n, h in found.items() for e in h.entries}
    assert index["metadata"]["total_size"] == sum(
        e.end - e.begin for h in found.values() for e in h.entries
    )
    assert list(found) == shard_names(deepseek_v3.sample("tiny"), len(found))
    assert load(folder).keys() == index["weight_map"].keys()


def test_tiny_is_small_and_has_every_hard_case(tiny_fp8: Path) -> None:
    sizes = [p.stat().st_size for p in sorted(tiny_fp8.glob("*.safetensors"))]
    found = entries(tiny_fp8)
    assert sum(p.stat().st_size for p in tiny_fp8.iterdir()) < 20e6
    assert len(sizes) >= 4
    assert sizes[-1] < sizes[0] / 4
    assert len(apart(tiny_fp8)) >= 1
    kv_a = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert found[kv_a].shape == (576, 192)
    assert found[kv_a + "_scale_inv"].shape == (5, 2)
    for name, entry in found.items():
        if entry.dtype == "F8_E4M3":
            grid = tuple(-(-n // BLOCK) for n in entry.shape)
            assert found[name + "_scale_inv"][1:3] == ("F32", grid)


def test_small_is_two_gigabytes() -> None:
    sample = deepseek_v3.sample("small")
    cut = shards(store(sample, "published"), sample.shard_bytes)
    sizes = [sum(t.nbytes for t in shard) for shard in cut]
    assert 1.9e9 < sum(sizes) < 2.2e9
    assert 8 <= len(sizes) <= 10
    assert sizes[-1] < sizes[0] / 2
    assert max(t.nbytes for shard in cut for t in shard) < 80e6


def test_shards_are_ordered_as_the_library_orders_them(tiny_fp8: Path) -> None:
    width = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    for found in headers(tiny_fp8).values():
        keys = [(-width[e.dtype], e.name) for e in found.entries]
        assert keys == sorted(keys)


def test_configs(tiny_fp8: Path, tiny_bf16: Path, full: tuple[Path, int]) -> None:
    fp8, bf16 = (load_json(f, "config.json") for f in (tiny_fp8, tiny_bf16))
    assert load_json(full[0], "config.json") == deepseek_v3.PUBLISHED
    assert fp8.keys() == deepseek_v3.PUBLISHED.keys()
    assert fp8["quantization_config"]["weight_block_size"] == [128, 128]
    assert fp8.pop("quantization_config")
    assert bf16 == fp8


def test_values_look_trained(tiny_fp8: Path) -> None:
    for name, tensor in load(tiny_fp8).items():
        wide = tensor.float()
        assert wide.isfinite().all(), name
        if tensor.dtype == torch.float8_e4m3fn:
            assert 300 < wide.abs().max() <= 448
            assert abs(wide.mean()) < 5
        elif name.endswith("_scale_inv"):
            assert (wide > 0).all()
            assert wide.mean() == pytest.approx(0.02 * 4 / 448, rel=0.6)
        elif name.endswith("norm.weight"):
            assert wide.mean() == pytest.approx(1, abs=0.05)


def test_mtp_repeats_the_main_tables(tiny_fp8: Path) -> None:
    tensors = load(tiny_fp8)
    mtp = "model.layers.3."
    assert torch.equal(tensors[mtp + "embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(tensors[mtp + "shared_head.head.weight"], tensors["lm_head.weight"])


def test_bf16_twin_is_the_decoded_fp8(tiny_fp8: Path, tiny_bf16: Path) -> None:
    coded, plain = load(tiny_fp8), load(tiny_bf16)
    assert plain.keys() == {n for n in coded if not n.endswith("_scale_inv")}
    for name, got in plain.items():
        want = coded[name]
        if want.dtype == torch.float8_e4m3fn:
            rows, columns = want.shape
            scale = coded[name + "_scale_inv"].repeat_interleave(BLOCK, 0)
            scale = scale.repeat_interleave(BLOCK, 1)[:rows, :columns]
            want = (want.float() * scale).bfloat16()
        assert got.dtype == want.dtype, name
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), name


def test_element_formats_agree_with_torch() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    want = codes.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(elements.e4m3_values(), want)
    x = np.linspace(-448, 448, 100_003)
    got = torch.from_numpy(elements.to_e4m3(x)).view(torch.float8_e4m3fn).float()
    near = torch.from_numpy(x).float().to(torch.float8_e4m3fn).float()
    assert torch.equal(got, near)
    bits = np.arange(0, 2**32, 40_503, dtype=np.uint32)  # odd step: every low half, ties too
    bits = np.concatenate([bits, (bits & 0xFFFF0000) | 0x8000])
    floats = bits.view(np.float32)[(bits >> 23) & 255 != 255]
    rounded = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(elements.to_bf16(floats), rounded)


@pytest.mark.parametrize("fill", ["codes", "decoded"])
def test_values_do_not_depend_on_the_bands(fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight("a.weight", (1000, 777), "linear")
    sample = replace(deepseek_v3.sample("tiny"), weights=(weight,))
    tensor = next(store(sample, "bf16" if fill == "decoded" else "published"))
    assert tensor.fill == fill
    whole = np.concatenate([*values.pieces(tensor, 0)])
    monkeypatch.setattr(values, "BAND", 1)
    bands = [*values.pieces(tensor, 0)]
    assert len(bands) == 8
    np.testing.assert_array_equal(np.concatenate(bands), whole)


def test_same_seed_same_bytes(tiny_fp8: Path, tmp_path: Path) -> None:
    make_sample(str(tmp_path / "again"))
    make_sample(str(tmp_path / "other"), seed=1)
    first, again, other = (content(f) for f in (tiny_fp8, tmp_path / "again", tmp_path / "other"))
    assert again == first
    assert other.keys() == first.keys()
    assert {n for n in first if first[n] != other[n]} == set(headers(tiny_fp8))


# transformers reports the MTP layer of a sample as unexpected keys; that is a log line, no warning
def test_transformers_runs_the_tiny_model(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        tiny_bf16, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(name.startswith("model.layers.3.") for name in info["unexpected_keys"])
    with torch.no_grad():
        logits = model(torch.arange(32)[None]).logits
    assert logits.shape == (1, 32, 1024)
    assert logits.isfinite().all()
    assert logits.float().std() > 0.01


@pytest.mark.parametrize(
    "text", ["The model reads 12345 tokens.", " a\n\n\tb  c ", "héllo 你好 🎉 <x>", ""]
)
def test_tokenizer_round_trip(text: str, tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bf16)
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_id == 1
    assert max(ids) < len(tokenizer) <= load_json(tiny_bf16, "config.json")["vocab_size"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_joins_words_and_has_a_chat_template(
    tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bf16)
    assert tokenizer.tokenize(" the model and") == ["Ġthe", "Ġmodel", "Ġand"]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    assert text.startswith(tokenizer.bos_token)
    assert text.endswith("Yes" + tokenizer.eos_token)
    assert [i for i in ids if i < 5] == [0, 3, 4, 1]


def test_small_files(tiny_fp8: Path) -> None:
    assert "generated" in (tiny_fp8 / "LICENSE").read_text(encoding="utf-8")
    config, generation = (load_json(tiny_fp8, f"{n}config.json") for n in ("", "generation_"))
    assert all(config[key] == generation[key] for key in ("bos_token_id", "eos_token_id"))


def test_a_folder_with_files_is_refused_untouched(tmp_path: Path) -> None:
    kept = tmp_path / "mine" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("keep")
    with pytest.raises(TargetError, match="not empty"):
        make_sample(str(kept.parent))
    with pytest.raises(TargetError, match="found a file"):
        make_sample(str(kept))
    assert [str(p) for p in tmp_path.rglob("*")] == [str(kept.parent), str(kept)]
    assert kept.read_text() == "keep"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensor: Stored, seed: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "pieces", full_disk)
    with pytest.raises(TargetError, match="No space left on device"):
        make_sample(str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_replaced_and_modes_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir(mode=0o700)
    old = os.umask(0o027)
    try:
        make_sample(str(tmp_path / "dst") + "/")
    finally:
        os.umask(old)
    assert [p.name for p in tmp_path.iterdir()] == ["dst"]
    assert stat.S_IMODE((tmp_path / "dst").stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "dst").iterdir()} == {0o640}


@pytest.mark.parametrize("wrong", ["family", "size", "scheme"])
def test_unknown_names_are_usage_errors(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{wrong} 'nope', expected one of"):
        make_sample(str(tmp_path / "new"), **{wrong: "nope"})
    got = CliRunner().invoke(make_sample_command, [str(tmp_path / "new"), f"--{wrong}", "nope"])
    assert got.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path: Path, tiny_bf16: Path) -> None:
    dst = tmp_path / "deep" / "new"
    got = CliRunner().invoke(make_sample_command, [str(dst), "--scheme", "bf16"])
    assert got.exit_code == 0
    assert "8 shards, 207 tensors, 25,211,584 bytes" in got.output
    assert content(dst) == content(tiny_bf16)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fp8convert.cli.make_sample", {"numpy", "torch", "tqdm"}),
        ("fp8convert.samples.writer", {"click", "torch", "tqdm"}),
    ],
)
def test_imports_stay_light(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
