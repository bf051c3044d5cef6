"""``verify --against``: what is right passes, whoever wrote it. What is wrong is in
test_against_wrong.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert.configout import plain_config
from fp8convert.errors import Fp8ConvertError, SchemeError, UsageError
from fp8convert.options import SCHEMES
from fp8convert.samples import FAMILIES, make_sample
from fp8convert.verify.against import against
from fp8convert.verify.comparing import Bytes
from fp8convert.verify.report import Check

from ..checkpoints import FP8_CONFIG, pair, write
from ..formats.case import Case
from ..formats.catalogue import all_cases
from ..formats.deepseek_ranks import RankCase
from ..formats.formulas import words
from ..sharded.runs import Runs
from ..sharded.sources import MAKERS
from ..test_formats import checkpoint
from .edits import copied, flipped, loaded, single

CASES = {c.id: c for c in all_cases()}
BF16 = {k: v for k, v in FP8_CONFIG.items() if k != "quantization_config"}


def problems(checks: list[Check]) -> list[str]:
    """All of them; a check that passed has none."""
    assert all(c.passed is not bool(c.problems) for c in checks)
    return [p for c in checks for p in c.problems]


def passed(dst: Path, src: Path, **options: Any) -> dict[str, Check]:
    checks = against(dst, src, **options)
    assert problems(checks) == []
    return {c.name: c for c in checks}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_its_twin_that_was_never_coded(
    family: str, made: Runs, tmp_path: Path
) -> None:
    src = made.source(f"sample-{family}")
    found = passed(made.to_bf16(src), src)["against: bits"]
    assert found.counts["decoded"] > 0
    assert found.counts["fraction"] == 1
    make_sample(str(tmp_path / "twin"), family=family, scheme="bf16")
    assert passed(tmp_path / "twin", src)["against: bits"].counts == found.counts


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(dtype: str, made: Runs, tmp_path: Path) -> None:
    src = made.source("sample-qwen3-fp8")
    fp8convert.to_bf16(src, tmp_path / "dst", dtype=dtype)
    assert passed(tmp_path / "dst", src)["against: bits"].counts["decoded"] > 0


@pytest.mark.parametrize("source", ["sample-qwen3-fp8", "sample-qwen3-fp8-in-bf16", "v4"])
@pytest.mark.parametrize("search", ["plain", "mse"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme: str, search: str, source: str, made: Runs) -> None:
    src = made.source(source)
    dst = made.quantize(src, scheme, scale_search=search)
    manifest = json.loads((dst / "manifest.json").read_text())
    found = passed(dst, src)
    told = {n: e for n, e in manifest["quantized"].items() if not e.get("copied")}
    if told:
        assert found["against: error"].counts["weights"] >= len(told)
        worst = max((e.get("relative_rms") or 0.0) for e in told.values())
        assert found["against: error"].counts["worst_relative_rms"] == pytest.approx(
            worst, rel=0.01
        )
    assert found["against: bits"].counts["fraction"] == 1


DECODED = {"misaligned": "bf16"}
SHARDED = [
    ("llama", "hf"), ("llama_gptq", "hf"), ("qwen2_gptq", "hf"), ("llama_awq", "hf"),
    ("gpt_oss", "hf"), ("sample-kimi-k2-thinking", "hf"), ("qwen3_moe", "hf"), ("v3_nvfp4", "hf"),
    ("v3_modelopt", "hf"), ("v3", "deepseek"), ("v32", "deepseek"), ("v4", "deepseek"),
    ("v4_base", "deepseek"),
]  # fmt: skip


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(("source", "layout"), SHARDED)
def test_ranks_and_what_is_made_of_them(source: str, layout: str, tp: int, made: Runs) -> None:
    src = made.source(source)
    dst = made.shard(source, tp, layout=layout)
    bits = passed(dst, src)["against: bits"]
    assert bits.counts["fraction"] == 1
    assert bits.counts["same"] > 0
    passed(made.unshard(dst), src)
    passed(made.to_bf16(dst), src)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("llama", {"weights": "bf16", "layout": "hf", "pad_vocab": 48}),
        ("qwen3_moe", {"weights": "bf16", "layout": "hf", "experts": "cut"}),
        ("llama_bf16", {"weights": "int4-group", "layout": "hf", "group": 32, **DECODED}),
        ("rows_of_192", {"misaligned": "bf16", "layout": "hf"}),
        ("rows_of_192", {"misaligned": "reblock", "layout": "hf"}),
        ("rows_of_192", {"misaligned": "requantize", "layout": "hf"}),
        ("glm4_moe", {"misaligned": "requantize", "layout": "hf", "weights": "fp8-block"}),
        ("v3", {"mtp": "keep", "weights": "bf16"}),
        ("llama", {"weights": "float32", "layout": "hf"}),
    ],
)  # fmt: skip
def test_ranks_of_other_weights(source: str, options: dict[str, Any], made: Runs) -> None:
    passed(made.shard(source, 2, **options), made.source(source))


def test_ranks_as_the_source(made: Runs) -> None:
    ranks = made.shard("llama", 2, layout="hf")
    passed(made.source("llama"), ranks)
    passed(made.shard_folder(ranks, 4, layout="hf"), ranks)
    apart = made.shard("rows_of_192", 2, layout="hf", misaligned="requantize")
    with pytest.raises(SchemeError, match="ranks have scales of their own"):
        against(made.source("rows_of_192"), apart)


def test_what_was_put_together_against_its_ranks(made: Runs) -> None:
    """Shapes that are tensors are those of the ranks' parts in one, of the whole in the other."""
    ranks = made.shard("llama_bf16", 2, layout="hf", weights="int4-group", group=32, **DECODED)
    assert list(made.unshard(ranks).glob("*.safetensors"))
    passed(made.unshard(ranks), ranks)


@pytest.mark.parametrize("source", ["v3", "v4"])
def test_rank_files_of_the_published_script(source: str, made: Runs, tmp_path: Path) -> None:
    """They have no record of what they were cut from, and names of their own."""
    src, bare = made.source(source), copied(made.shard(source, 2), tmp_path / "bare")
    for file in bare.glob("*.json"):
        file.unlink()
    assert passed(bare, src)["against: bits"].counts["same"] > 50
    whole = made.unshard(made.shard(source, 2))
    found = passed(whole, bare)  # they are the source, by the names of what was made of them
    assert found["against: names"].counts["weights"] == len(loaded(whole)) - len(
        [n for n in loaded(whole) if n.endswith(("_scale_inv", ".scale"))]
    )


def test_mtp_layers_left_out_are_told(made: Runs) -> None:
    found = passed(made.shard("v3", 2), made.source("v3"))
    assert "left out of MTP layers" in found["against: names"].detail


def test_scales_of_activations_are_told(made: Runs) -> None:
    src = made.source("sample-mistral-fp8")
    assert (
        "scales of activations dropped" in passed(made.to_bf16(src), src)["against: names"].detail
    )
    assert "dropped" not in passed(src, src)["against: names"].detail


@pytest.mark.parametrize("source", MAKERS)
def test_every_source_against_itself(source: str, made: Runs) -> None:
    src = made.source(source)
    found = passed(src, src)["against: bits"]
    assert found.counts["compared_bytes"] == found.counts["total_bytes"] > 0


def test_other_tools_output(tmp_path: Path) -> None:
    """Another cut, no manifest, no index."""
    tensors = pair("a.weight", 300, 200) | pair("b.weight", 128, 128) | {"n": torch.ones(5)}
    src = write(tmp_path / "src", [tensors], FP8_CONFIG)
    plain = {"n": tensors["n"]}
    for name in ("a.weight", "b.weight"):
        scales = tensors[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
        codes = tensors[name].float()
        plain[name] = (codes * scales[: codes.shape[0], : codes.shape[1]]).to(torch.bfloat16)
    passed(single(tmp_path / "dst", plain, BF16), src)


def _compressed(
    kind: str, bits: int, strategy: str, form: str, group: int | None
) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True,
               "group_size": group}  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    return {**BF16, "quantization_config": said}


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_codes_that_were_divided_in_bf16(kind: str, tmp_path: Path) -> None:
    """As compressed-tensors does it: quotients near the middle fall to the other side."""
    x = (torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    src = single(tmp_path / "src", {"a.weight": x}, BF16)
    top = x.abs().amax(1, keepdim=True)
    scale = top / (448 if kind == "fp8" else 127.5)
    quotient = x / scale
    if kind == "fp8":
        codes = quotient.clamp(-448, 448).to(torch.float8_e4m3fn)
        config = _compressed("float", 8, "channel", "float-quantized", None)
    else:
        codes = quotient.round().clamp(-128, 127).to(torch.int8)
        config = _compressed("int", 8, "channel", "int-quantized", None)
    exact = (x.float() / scale.float()).to(codes.dtype) if kind == "fp8" else (
        x.float() / scale.float()).round().clamp(-128, 127).to(codes.dtype)  # fmt: skip
    assert (exact.float() != codes.float()).any()
    dst = single(tmp_path / "dst", {"a.weight": codes, "a.weight_scale": scale.float()}, config)
    passed(dst, src)


def test_integers_that_make_up_for_each_other(tmp_path: Path) -> None:
    """Error feedback along a row, in the manner of GPTQ: half of the codes are not the nearest."""
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    src = single(tmp_path / "src", {"a.weight": x.bfloat16()}, BF16)
    scale = (x.reshape(128, 2, 128).abs().amax(2) / 7.5).bfloat16()
    wide, rest = scale.float().repeat_interleave(128, 1), torch.zeros(128)
    codes = torch.empty(128, 256, dtype=torch.int64)
    for j in range(256):
        want = x[:, j] + rest
        codes[:, j] = (want / wide[:, j]).round().clamp(-8, 7).long()
        rest = 0.9 * (want - codes[:, j] * wide[:, j])
    assert ((codes - (x / wide).round()).abs() > 0).float().mean() > 0.2
    tensors = {"a.weight_packed": words(codes + 8, 4), "a.weight_scale": scale,
               "a.weight_shape": torch.tensor([128, 256])}  # fmt: skip
    config = _compressed("int", 4, "group", "pack-quantized", 128)
    passed(single(tmp_path / "dst", tensors, config), src)
    tensors["a.weight_scale"] = scale.clone()
    tensors["a.weight_scale"][3, 1] *= 2
    (message,) = problems(against(single(tmp_path / "bad", tensors, config), src))
    assert message.startswith("a.weight [3, ")
    assert "of its block the root mean square is beyond 0.7 of a step" in message


def test_a_sample_is_about_so_much_and_of_every_weight(made: Runs, tmp_path: Path) -> None:
    src = made.source("sample-deepseek-v3")
    dst = made.to_bf16(src)
    some = passed(dst, src, sample=0.1, seed=3)["against: bits"]
    assert 0.05 < some.counts["fraction"] < 0.2
    assert "%" in some.detail
    again = passed(dst, src, sample=0.1, seed=3, workers=1)["against: bits"]
    assert again.counts == some.counts
    wrong = copied(dst, tmp_path / "wrong")
    for file in wrong.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = bytes(b ^ 0x55 for b in data[start:])
        file.write_bytes(data)
    found = problems(against(wrong, src, sample=0.1))
    assert {p.partition(" ")[0] for p in found} == set(loaded(dst))


def test_samples_differ_by_seed(made: Runs, tmp_path: Path) -> None:
    src = made.source("sample-deepseek-v3")
    wrong = copied(made.to_bf16(src), tmp_path / "wrong")
    name = "model.layers.0.mlp.gate_proj.weight"
    flipped(wrong, name, (0, 0), 3)
    found = {bool(problems(against(wrong, src, sample=0.3, seed=seed))) for seed in range(12)}
    assert found == {True, False}


@pytest.mark.parametrize("sample", [0, -1.0, 1.5, float("nan")])
def test_samples_that_mean_nothing(sample: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sample"):
        against(tmp_path, tmp_path, sample=sample)


def test_progress_ends_where_it_should(made: Runs) -> None:
    src = made.source("sample-qwen3-fp8")
    seen: list[tuple[int, int]] = []
    found = passed(made.to_bf16(src), src, progress=lambda done, total: seen.append((done, total)))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    total = found["against: bits"].counts["total_bytes"]
    assert seen[-1] == (total, total)


def test_a_thread_s_error_is_raised(made: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Bytes, "compare", fail)
    src = made.source("sample-qwen3-fp8")
    with pytest.raises(MemoryError, match="no more"):
        against(src, src)


def test_a_source_that_is_unsound_is_an_error(made: Runs, tmp_path: Path) -> None:
    src = write(tmp_path / "src", [{"a.weight": pair("a", 8, 8)["a"], **pair("b", 8, 8)}])
    with pytest.raises(SchemeError, match="has no scale"):
        against(src, src)
    with pytest.raises(Fp8ConvertError, match="does not exist"):
        against(src, tmp_path / "none")


def test_a_target_that_cannot_be_read_is_a_failed_check(made: Runs, tmp_path: Path) -> None:
    (check,) = against(tmp_path / "none", made.source("llama"))
    assert not check.passed
    assert "does not exist" in check.problems[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_format_by_its_oracle_both_ways(case: Case, tmp_path: Path) -> None:
    """What the oracle decodes, written by the safetensors library, is a right conversion; and the
    codes are a right encoding of that."""
    coded = checkpoint(tmp_path / "coded", case)
    tensors = {n: t.bfloat16() if n in case.decoded else t for n, t in case.expected.items()}
    said = {} if isinstance(case, RankCase) else case.config
    config = plain_config(said, "bfloat16")
    plain = single(tmp_path / "plain", tensors, config)
    assert passed(plain, coded)["against: bits"].counts["decoded"] == len(case.decoded)
    exact = single(tmp_path / "exact", case.expected, config)
    assert passed(exact, coded)["against: bits"].counts["decoded"] == len(case.decoded)
    assert passed(coded, exact)["against: error"].counts["weights"] == len(case.decoded)
