"""Whole comparisons: what passes, what fails and why, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

import fp8convert
from fp8convert.errors import DataError, Fp8ConvertError, SchemeError, UsageError
from fp8convert.parity import measures, weighing
from fp8convert.parity.compare import Options, _lead, compare, plain
from fp8convert.parity.control import FACTORS
from fp8convert.parity.summary import cases
from fp8convert.parity.tokens import Wanted
from fp8convert.reference.run import ARCHITECTURES, logits_of, open_model

from .models import copy, nan, times

TOKENS = Wanted(seed=1, length=12)
EXACT = {
    "max_abs": 0,
    "relative_rms": 0,
    "kl_mean": 0,
    "kl_max": 0,
    "top1": 1,
    "top5": 1,
    "finite": True,
    "failed": [],
}


def compared(ref: Path, other: Path, **options: Any) -> dict[str, Any]:
    return compare(ref, other, Options(**{"wanted": TOKENS, **options}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("compute", ["bf16", "fp32"])
def test_fp8_and_its_bf16_copy_are_identical(tiny_fp8: Path, tiny_bf16: Path, compute: str) -> None:
    found = compared(tiny_fp8, tiny_bf16, compute=compute)
    assert (found["verdict"], found["reasons"], found["starts"]) == ("pass", [], None)
    assert found["heads"] == [{"name": name, **EXACT} for name in ("logits", "mtp")]
    names = ["layer 0", "layer 1", "layer 2", "mtp"]
    assert [h["name"] for h in found["hidden"]] == names
    assert [h["kind"] for h in found["hidden"]] == ["dense", "moe", "moe", "mtp"]
    assert all(h["max_abs"] == 0 < h["ref_rms"] for h in found["hidden"])
    assert found["profile"] == "identical"
    assert found["control"]["detected"]
    assert found["control"]["weight"] == "model.layers.2.self_attn.o_proj.weight"
    sides = [(found[s]["scheme"], found[s]["ranks"]) for s in ("reference", "candidate")]
    assert sides == [("fp8-block", 1), ("none", 1)]
    assert found["tokens"] == {"batch": 1, "length": 12, "source": "seed 1"}
    assert all(w["different"] == 0 < w["weights"] == w["total"] for w in found["weights"])
    assert found["memory"]["peak_rss_bytes"] > 1e6
    assert found["memory"]["read_bytes"] > 1e6
    assert found["memory"]["largest_band_bytes"] >= 1024 * 192 * 4
    assert not any(case.failed for case in cases(found))
    assert json.loads(json.dumps(plain(found), allow_nan=False)) == found


def test_the_measures_are_of_the_logits_that_each_side_has(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other", {"lm_head.weight": times(1.5)})
    found = compared(llama, other, compute="fp32")
    (head,) = found["heads"]
    ids = TOKENS.tokens("", 96).ids
    a, b = (logits_of(open_model(p, "fp32"), ids).double() for p in (llama, other))
    assert head["max_abs"] == float((a - b).abs().max())
    assert head["relative_rms"] == pytest.approx(0.5, rel=1e-6)
    assert found["verdict"] == "fail"
    reasons = [f"logits: {reason}" for reason in head["failed"]]
    assert found["reasons"] == [*reasons, "weights: 1 of 1 in head differ, expected none"]
    assert found["starts"] is None  # it is the head
    assert len(found["scatter"]["reference"]) == 12 * 96


def test_a_fault_in_a_layer_starts_there(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    found = compared(llama, copy(llama, tmp_path / "other", {name: times(2)}))
    assert found["starts"] == "layer 1"
    assert [h["max_abs"] == 0 for h in found["hidden"]] == [True, False]
    (mlp,) = [w for w in found["weights"] if w["different"]]
    weights = [w for n, w in tensors(llama).items() if ".mlp." in n]
    power = sum(float(w.bfloat16().double().pow(2).sum()) for w in weights)
    squares = float(tensors(llama)[name].bfloat16().double().pow(2).sum())
    assert (mlp["class"], mlp["weights"], mlp["different"]) == ("dense mlp", 12, 1)
    assert mlp["relative_rms"] == pytest.approx(math.sqrt(squares / power), rel=1e-3)
    assert mlp["max_abs"] == float(tensors(llama)[name].bfloat16().abs().max())


def test_of_many_weights_some_bands_are_looked_at(
    tiny_fp8: Path, tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "BAND", 1 << 13)
    monkeypatch.setattr(weighing, "MOST", 1 << 16)
    found = {w["class"]: w for w in compared(tiny_fp8, tiny_bf16)["weights"]}
    routed, norms = found["routed experts"], found["norms"]
    assert 4 <= routed["weights"] <= 8 < routed["total"]
    assert norms["weights"] == norms["total"]


@pytest.fixture(scope="module")
def quantized(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny DeepSeek-V3 in a form of eight bits and in the coarsest of four."""
    root = tmp_path_factory.mktemp("quantized")
    for scheme in ("fp8-block-ue8m0", "mxfp4"):
        fp8convert.quantize(tiny_bf16, root / scheme, scheme)
    return {p.name: p for p in root.iterdir() if not p.name.startswith(".")}


def test_requantized_checkpoints_pass_by_their_bits(
    tiny_bf16: Path, quantized: dict[str, Path]
) -> None:
    limits = {}
    for scheme, folder in quantized.items():
        found = compared(tiny_bf16, folder, profile="requantized")
        assert (found["verdict"], found["control"]["detected"]) == ("pass", True), found["reasons"]
        assert all(h["relative_rms"] > 0.01 for h in found["heads"])
        experts = {w["class"]: w["relative_rms"] for w in found["weights"]}["routed experts"]
        assert experts == pytest.approx({"mxfp4": 0.12, "fp8-block-ue8m0": 0.026}[scheme], rel=0.2)
        limits[scheme] = found["thresholds"]["max_rms"]
    assert limits["mxfp4"] > limits["fp8-block-ue8m0"]
    assert compared(tiny_bf16, quantized["fp8-block-ue8m0"])["verdict"] == "fail"  # not identical


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.0.self_attn.o_proj.weight", lambda w: w.reshape(w.shape[::-1]).T),
        ("model.layers.1.self_attn.kv_b_proj.weight", lambda w: w.roll(128, 0)),
        ("model.embed_tokens.weight", lambda w: w.roll(1, 0)),
        ("model.layers.3.eh_proj.weight", lambda w: w.roll(192, 1)),
    ],
)
@pytest.mark.parametrize("scheme", ["fp8-block-ue8m0", "mxfp4"])
def test_broken_ones_do_not_pass_as_requantized(
    tiny_bf16: Path, tmp_path: Path, name: str, change: Any, scheme: str
) -> None:
    broken = copy(tiny_bf16, tmp_path / "broken", {name: change})
    fp8convert.quantize(broken, tmp_path / "coded", scheme)
    found = compared(tiny_bf16, tmp_path / "coded", profile="requantized")
    assert found["verdict"] == "fail"
    assert any("relative_rms" in r or "max_rms" in r for r in found["reasons"])


def test_a_weight_that_differs_where_no_token_looks_is_not_identical(
    llama: Path, tmp_path: Path
) -> None:
    unused = set(range(96)) - set(TOKENS.tokens("", 96).ids.flatten().tolist())
    row = min(unused)

    def change(w: torch.Tensor, by: float) -> torch.Tensor:
        return torch.cat([w[:row], w[row : row + 1] * by, w[row + 1 :]])

    table = "model.embed_tokens.weight"
    for by in (2.0, math.nan):
        other = copy(llama, tmp_path / str(by), {table: lambda w, by=by: change(w, by)})
        found = compared(llama, other)
        assert found["heads"][0]["max_abs"] == 0
        assert found["reasons"] == ["weights: 1 of 1 in embedding differ, expected none"]
        assert found["verdict"] == "fail"
        (case,) = [case for case in cases(found) if case.name == "weights"]
        assert case.failed == found["reasons"][0]
        assert compared(llama, other, own={"max_abs": 0.01})["verdict"] == "pass"
        assert compared(other, other)["verdict"] == "pass"  # NaN that no token meets


def test_an_expert_that_no_token_goes_to_is_compared_by_its_weights(
    tiny_bf16: Path, tmp_path: Path
) -> None:
    used = open_model(tiny_bf16)
    logits_of(used, TOKENS.tokens("", 1024).ids)
    names = [f"model.layers.1.mlp.experts.{n}.up_proj.weight" for n in range(16)]
    unused = next(name for name in names if name not in used.w.used)
    found = compared(tiny_bf16, copy(tiny_bf16, tmp_path / "other", {unused: times(2)}))
    assert found["heads"][0]["max_abs"] == 0
    assert found["reasons"] == ["weights: 1 of 144 in routed experts differ, expected none"]


def test_what_was_left_out_is_noted(tiny_fp8: Path, tiny_bf16: Path) -> None:
    (note,) = compared(tiny_fp8, tiny_bf16)["notes"]
    assert "of 48 routed experts: of the others weights were compared" in note
    notes = compared(tiny_bf16, tiny_bf16, wanted=Wanted(seed=0, length=1))["notes"]
    assert notes[:2] == [
        "REF and CANDIDATE are the same folder",
        "the MTP head was not run: it predicts from two tokens",
    ]
    assert "which is on one side only" in compared(tiny_fp8, tiny_bf16, compute="fp8")["notes"][0]


@pytest.mark.parametrize("profile", ["identical", "requantized"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_a_failure_wherever_it_is(
    llama: Path, tmp_path: Path, profile: str, side: int
) -> None:
    sides = [llama, copy(llama, tmp_path / "nan", {"model.norm.weight": nan})]
    found = compared(*sides[:: 1 if side else -1], profile=profile)
    assert found["verdict"] == "fail"
    assert found["heads"][0]["finite"] is False
    name = ("reference", "candidate")[side]
    assert f"logits: 1,152 of 1,152 logits of the {name} are NaN" in found["reasons"][0]
    said = plain(found)
    assert said["heads"][0]["kl_max"] == "nan"
    assert "nan" in said["scatter"][name]
    json.dumps(said, allow_nan=False)


def test_nan_on_both_sides_is_no_agreement(llama: Path, tmp_path: Path) -> None:
    both = copy(llama, tmp_path / "nan", {"model.norm.weight": nan})
    found = compared(both, both)
    assert found["verdict"] == "fail"
    assert len([r for r in found["reasons"] if "logits of the" in r]) == 2


def test_a_comparison_that_sees_nothing_fails(llama: Path) -> None:
    blind = {"max_abs": math.inf, "max_rms": math.inf}
    found = compared(llama, llama, own=blind)
    assert found["heads"][0]["failed"] == []
    assert found["control"]["tried"] == [*map(float, FACTORS)]
    assert not found["control"]["detected"]
    assert found["verdict"] == "fail"
    assert found["reasons"] == [
        "control not detected: thresholds that let this fault pass prove nothing"
    ]


def test_an_mtp_head_on_one_side_only_is_said(tiny_bf16: Path, tmp_path: Path) -> None:
    extra = {name: None for name in tensors(tiny_bf16) if name.startswith("model.layers.3.")}
    without = copy(tiny_bf16, tmp_path / "without", extra)
    for sides, which in (((tiny_bf16, without), "reference"), ((without, tiny_bf16), "candidate")):
        found = compared(*sides)
        assert found["notes"][0] == f"only the {which} has an MTP head"
        assert [h["name"] for h in found["heads"]] == ["logits"]
        assert found["verdict"] == "pass"
    assert not any("MTP" in note for note in compared(without, without)["notes"])
    with pytest.raises(UsageError, match="3 is the MTP layer, which CANDIDATE does not have"):
        compared(tiny_bf16, without, layers=(0, 3))


def test_layers_are_those_that_are_asked_for(tiny_fp8: Path, tiny_bf16: Path) -> None:
    found = compared(tiny_fp8, tiny_bf16, layers=(0, 2))
    assert found["layers"] == [0, 2]
    assert [h["name"] for h in found["hidden"]] == ["layer 0", "layer 2"]
    assert not any("layers.1." in w for w in [found["control"]["weight"]])
    found = compared(tiny_fp8, tiny_bf16, layers=(1, 3))  # 3 is the MTP layer
    assert found["layers"] == [1]
    assert [h["name"] for h in found["heads"]] == ["logits", "mtp"]


@pytest.mark.parametrize("layers", [(), (3,), (4,), (1, 0), (1, 1)])
def test_other_layers_are_refused(tiny_bf16: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected some of 0 to 2, in order, 3 is the MTP layer"):
        compared(tiny_bf16, tiny_bf16, layers=layers)


def test_progress_counts_layers(llama: Path) -> None:
    seen: list[tuple[int, int]] = []
    compared(llama, llama, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_ranks_are_compared_by_reduction_order(llama: Path, llama_ranks: Path) -> None:
    found = compared(llama, llama_ranks)
    assert (found["verdict"], found["profile"]) == ("pass", "reduction-order")
    assert (found["candidate"]["ranks"], found["candidate"]["scheme"]) == (2, "ranks")
    assert all(w["different"] == 0 for w in found["weights"])
    assert {w["class"] for w in found["weights"]} >= {"attention", "head", "embedding"}
    assert compared(llama_ranks, llama, profile="identical")["profile"] == "identical"


def test_weights_that_ranks_disagree_on_are_a_difference(
    llama: Path, llama_ranks: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.input_layernorm.weight"
    shutil.copytree(llama_ranks, tmp_path / "ranks")
    shutil.rmtree(tmp_path / "ranks" / "rank1")
    copy(llama_ranks / "rank1", tmp_path / "ranks" / "rank1", {name: times(1.5)})
    found = compared(llama, tmp_path / "ranks")
    assert found["verdict"] == "fail"
    assert any(f"weights: tensor '{name}' differs" in reason for reason in found["reasons"])
    assert found["weights"] == []


def test_a_missing_weight_is_said_to_be_of_its_side(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other", {"lm_head.weight": None})
    for sides, which in (((llama, other), "CANDIDATE"), ((other, llama), "REF")):
        with pytest.raises(SchemeError, match=f"^{which}: weight 'lm_head.weight' is missing"):
            compared(*sides)


def test_what_ends_process_0_is_said_where_the_others_are_gone_as_well(llama: Path) -> None:
    class Gone:
        rank, size = 0, 2

        def gather(self, x: torch.Tensor) -> Any:
            raise DataError("another rank has stopped")

    def result() -> Any:
        raise SchemeError("the reason")

    side = SimpleNamespace(model=open_model(llama))
    tokens = SimpleNamespace(ids=torch.tensor([[1]]))
    run: Any = SimpleNamespace(sides=(side, side), tokens=tokens, result=result)
    group: Any = Gone()
    with pytest.raises(SchemeError, match="the reason"):
        _lead(run, group)


def test_more_tokens_than_memory_has_room_for(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(measures, "difference", refuse)
    with pytest.raises(Fp8ConvertError, match="not enough memory for so many tokens"):
        compared(llama, llama)


def test_ranks_in_another_order_are_noticed(llama: Path, llama_ranks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(llama_ranks, other)
    for a, b in (("rank0", "kept"), ("rank1", "rank0"), ("kept", "rank1")):
        (other / a).rename(other / b)
    for n in (0, 1):  # each says which it is
        said = other / f"rank{n}" / "tp.json"
        said.write_text(said.read_text().replace(f'"rank": {1 - n}', f'"rank": {n}'))
    found = compared(llama, other)
    assert found["verdict"] == "fail"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "mistral"),
        ("vocab_size", 95),
        ("hidden_size", 32),
        ("num_hidden_layers", 1),
    ],
)
def test_different_models_are_refused(llama: Path, tmp_path: Path, field: str, value: Any) -> None:
    other = copy(llama, tmp_path / "other", config={field: value})
    before = json.loads((llama / "config.json").read_text())[field]
    expected = f"config.json: {field} is '{before}' in REF and '{value}' in CANDIDATE"
    with pytest.raises(SchemeError, match=expected):
        compared(llama, other)


def test_an_architecture_without_a_model_is_refused(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other", config={"model_type": "gpt_oss"})
    with pytest.raises(Fp8ConvertError) as e:
        compared(other, other)
    assert all(name in str(e.value) for name in ARCHITECTURES)
    assert "fp8convert verify" in str(e.value)


def test_a_rank_set_that_lacks_one_is_refused(
    llama: Path, llama_ranks: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_ranks, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "rank1")
    with pytest.raises(Fp8ConvertError, match="rank1"):
        compared(llama, tmp_path / "half")


def test_rank_files_without_a_config_take_that_of_ref(tiny_bf16: Path, tmp_path: Path) -> None:
    fp8convert.shard_for_tp(tiny_bf16, tmp_path / "ranks", tp=2, layout="deepseek")
    (tmp_path / "ranks" / "config.json").unlink()
    found = compared(tiny_bf16, tmp_path / "ranks")
    assert found["verdict"] == "pass", found["reasons"]
    assert found["candidate"]["architecture"] == "deepseek_v3"


def test_under_fp8_the_control_is_detected_too(tiny_fp8: Path) -> None:
    found = compared(tiny_fp8, tiny_fp8, compute="fp8")
    assert (found["verdict"], found["control"]["detected"]) == ("pass", True)
    assert found["heads"][0]["max_abs"] == 0
