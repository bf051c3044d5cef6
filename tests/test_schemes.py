"""FAULTS C for the FP8 block scheme: refused at plan time, nothing written, everything named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert import schemes
from fp8convert.catalogue import open_catalogue
from fp8convert.configout import plain_config
from fp8convert.declared import declared
from fp8convert.errors import DataError, SchemeError
from fp8convert.schemes.base import Scheme
from fp8convert.schemes.fp8_block import Fp8BlockScheme
from fp8convert.schemes.plain import PlainScheme

from .checkpoints import FP8_CONFIG, codes, pair, scales, write
from .oracle import dequantize_all, differing, load

W = "model.layers.0.mlp.up_proj.weight"
S = W + "_scale_inv"
NORM = {"model.norm.weight": torch.ones(8, dtype=torch.bfloat16)}


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


def config(**changes: Any) -> dict[str, Any]:
    """FP8_CONFIG with fields of its quantization_config changed."""
    return {**FP8_CONFIG, "quantization_config": {**FP8_CONFIG["quantization_config"], **changes}}


GOOD = pair(W, 192, 256) | NORM
BF16 = {"w.weight": torch.ones((4, 4), dtype=torch.bfloat16)}
PLAIN_CONFIG = {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}

REFUSED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]] = {
    "scale missing": (
        without(GOOD, S), FP8_CONFIG,
        ["model-00001-of-000001.safetensors", W, "has no scale", S],
    ),
    "scale orphaned": (
        without(GOOD, W) | pair("b.weight", 8, 8), FP8_CONFIG,
        [S, "belongs to a coded weight", "there is no such weight"],
    ),
    "scale beside a BF16 weight": (
        GOOD | {W: torch.ones((192, 256), dtype=torch.bfloat16)} | pair("b.weight", 8, 8),
        FP8_CONFIG, [S, "that weight is BF16"],
    ),
    "scale of the wrong shape": (
        GOOD | {S: torch.ones((1, 2))}, FP8_CONFIG,
        [W, f"scales {S!r} are F32 [1, 2], expected F32 or BF16 or F16 or F8_E8M0 or U8 [2, 2]"],
    ),
    "scale of the wrong dtype": (
        GOOD | {S: torch.ones((2, 2), dtype=torch.int32)}, FP8_CONFIG,
        [W, "are I32 [2, 2], expected F32 or BF16 or F16 or F8_E8M0 or U8 [2, 2]"],
    ),
    "codes where scales should be": (
        GOOD | {S: torch.ones((2, 2)).to(torch.float8_e4m3fn)}, FP8_CONFIG,
        [W, "are F8_E4M3 [2, 2], expected F32 or BF16"],
    ),
    "declared block disagrees with the shapes": (
        GOOD, config(weight_block_size=[64, 64]),
        [W, "are F32 [2, 2], expected F32", "[3, 4]", "blocks of [64, 64]"],
    ),
    "block that is no block": (
        GOOD, config(weight_block_size=[128]), ["weight_block_size", "[128]", "[128, 128]"],
    ),
    "block of zero": (GOOD, config(weight_block_size=[0, 128]), ["weight_block_size", "[0, 128]"]),
    "no block size": (
        GOOD, config(weight_block_size=None), [W, "are F32 [2, 2]", "no block (weight_block_size)"],
    ),
    "another element format": (GOOD, config(fmt="e3m4"), ["fmt is 'e3m4', expected one of e4m3"]),
    "experts in FP3, said by the config": (
        GOOD, FP8_CONFIG | {"expert_dtype": "fp3"}, ["expert_dtype is 'fp3', expected one of fp8"],
    ),
    "experts in FP3, said inside": (
        GOOD, config(expert_dtype="fp3"), ["quantization_config.expert_dtype is 'fp3'"],
    ),
    "another algorithm": (GOOD, config(quant_algo="FP9"), ["quant_algo is 'FP9', expected one of"]),
    "experts in FP3, said in text_config": (
        GOOD, FP8_CONFIG | {"text_config": {"expert_dtype": "fp3"}},
        ["text_config.expert_dtype is 'fp3', expected one of fp8"],
    ),
    "packed codes beside their scale": (
        GOOD | {"e.w1": torch.ones((8, 8), dtype=torch.uint8), "e.w1_scale": torch.ones(8)},
        FP8_CONFIG, ["weight 'e.w1': it is U8 [8, 8]: packed codes?"],
    ),
    "packed codes beside FP8": (
        GOOD | {"e.weight": torch.ones((8, 8), dtype=torch.int8)}, FP8_CONFIG,
        ["weight 'e.weight': it is I8 [8, 8]: packed codes?"],
    ),
    "FP8 without a declared scheme": (
        GOOD, PLAIN_CONFIG, [W, "F8_E4M3", "no quantization_config"],
    ),
    "declared scheme without FP8": (
        BF16, FP8_CONFIG, ["declares fp8, but no tensor is coded"],
    ),
    "unknown quant_method": (
        GOOD, config(quant_method="fp9"),
        ["quant_method is 'fp9'", "known: ", "awq (gemm, 4 bits)", "fp8 (blocks", "gptq", "mxfp4",
         "modelopt", "compressed-tensors (float-quantized"],
    ),
    "already BF16": (BF16, PLAIN_CONFIG, ["nothing to convert", "BF16 already"]),
    "three axes": (
        {W: codes(192, 256).reshape(2, 96, 256), S: scales(192, 256)}, FP8_CONFIG,
        [W, "are F32 [2, 2], expected", "[2, 1, 2] for codes [2, 96, 256]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refused_at_plan_time(case: Any, tmp_path: Path) -> None:
    tensors, said, wanted = case
    source = write(tmp_path / "src", [tensors], said)
    with pytest.raises(SchemeError) as refused:
        fp8convert.to_bf16(source, tmp_path / "dst")
    for text in wanted:
        assert text in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]  # no target, no state folder


def test_every_problem_is_listed_up_to_a_limit(tmp_path: Path) -> None:
    tensors = {f"w{i:02}.weight": codes(8, 8, i) for i in range(20)}
    with pytest.raises(SchemeError) as refused:
        fp8convert.to_bf16(write(tmp_path / "src", [tensors]), tmp_path / "dst")
    lines = str(refused.value).splitlines()
    assert len(lines) == 9
    assert lines[-1] == "and 12 more"


def test_a_scale_in_another_shard_is_found(tmp_path: Path) -> None:
    source = write(tmp_path / "src", [without(GOOD, S), {S: GOOD[S]}])
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []
    shards = [p.name for p in (tmp_path / "dst").glob("*.safetensors")]
    assert shards == ["model-00001-of-000002.safetensors"]  # the scale's shard has nothing left


POISON: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "scale NaN": (lambda t: t[S].__setitem__((1, 0), float("nan")), "scale nan at block row 1"),
    "scale Inf": (lambda t: t[S].__setitem__((0, 1), float("inf")), "scale inf at block row 0"),
    "scale negative": (lambda t: t[S].__setitem__((0, 0), -1.0), "scale -1.0 at block row 0"),
    "scale 0": (lambda t: t[S].__setitem__((0, 0), 0.0), "scale 0 at block row 0, column 0"),
    "NaN code": (
        lambda t: t[W].view(torch.uint8).__setitem__((150, 3), 0xFF),
        "a NaN code at row 150, column 3",
    ),
}


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in tensors.items()}


@pytest.mark.parametrize("case", POISON.values(), ids=POISON.keys())
def test_damaged_values_are_refused_and_leave_no_target(case: Any, tmp_path: Path) -> None:
    poison, message = case
    tensors = copies(GOOD)
    poison(tensors)
    source = write(tmp_path / "src", [tensors])
    with pytest.raises(DataError) as refused:
        fp8convert.to_bf16(source, tmp_path / "dst")
    for text in ("model-00001-of-000001.safetensors", W, message):
        assert text in str(refused.value)
    assert not (tmp_path / "dst").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_overflow_is_reported_and_strict_refuses_it(tmp_path: Path) -> None:
    tensors = copies(GOOD)
    tensors[S][0, 0] = 1e37
    source = write(tmp_path / "src", [tensors])
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    ours = load(tmp_path / "dst")
    assert differing(ours, dequantize_all(load(source))) == []
    infinite = int(ours[W].isinf().sum())
    assert done.data["overflowed"] == {W: infinite}
    assert infinite > 0
    with pytest.raises(DataError, match="elements overflow BF16"):
        fp8convert.to_bf16(source, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_strict_refuses_warnings(tmp_path: Path) -> None:
    source = write(tmp_path / "src", [GOOD])
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {"total_size": 1}}))
    with pytest.raises(SchemeError, match="total_size is '1'"):
        fp8convert.to_bf16(source, tmp_path / "strict", strict=True)
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    assert "total_size" in done.data["warnings"][0]


def test_the_declaration_may_sit_in_text_config(tmp_path: Path) -> None:
    nested = {"model_type": "vlm", "text_config": dict(FP8_CONFIG)}
    source = write(tmp_path / "src", [GOOD], nested)
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert json.loads((tmp_path / "dst" / "config.json").read_text()) == {
        "model_type": "vlm",
        "text_config": {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"},
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": 1, "torch_dtype": "x", "z": 2}, {"a": 1, "torch_dtype": "float16", "z": 2}),
        ({"dtype": "x"}, {"dtype": "float16"}),
        ({"text_config": {"dtype": "x"}}, {"text_config": {"dtype": "float16"}}),
        ({"a": 1}, {"a": 1, "torch_dtype": "float16"}),
        ({"compression_config": {}, "quantization_config": {}}, {"torch_dtype": "float16"}),
    ],
)
def test_config_of_a_decoded_checkpoint(before: dict[str, Any], after: dict[str, Any]) -> None:
    kept = json.dumps(before)
    assert list(plain_config(before, "float16").items()) == list(after.items())
    assert json.dumps(before) == kept  # the input is not changed


def test_what_the_config_says_of_dtypes_is_only_reported(tmp_path: Path) -> None:
    source = write(tmp_path / "src", [GOOD], config(fmt="e5m2", expert_dtype="fp4"))
    manifest = fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []
    fmt, experts = manifest.data["warnings"]
    assert "fmt is 'e5m2', but the codes are F8_E4M3: the stored dtypes are believed" in fmt
    assert "expert_dtype is 'fp4', but the codes are F8_E4M3" in experts
    with pytest.raises(SchemeError, match="fmt is 'e5m2'"):
        fp8convert.to_bf16(source, tmp_path / "strict", strict=True)


METHODS = ("fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq")


@pytest.mark.parametrize("value", [5, "x", [1], {"a": 1}, True, 4.0, [[]], {"format": 3}, None])
@pytest.mark.parametrize(
    "method", ["fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq"]
)
def test_a_field_of_any_type_is_refused_or_ignored(method: str, value: Any) -> None:
    """A config is untrusted: whatever a field holds, the answer is a scheme or a SchemeError."""
    fields = ("modules_to_not_convert", "ignore", "config_groups", "weight_block_size", "fmt",
              "quant_algo", "quantized_layers", "producer", "quantization", "bits", "group_size",
              "desc_act", "checkpoint_format", "version", "sparsity_config", "transform_config",
              "format", "exclude_modules", "expert_dtype", "zero_point")  # fmt: skip
    group = {"weights": {"num_bits": 4, "group_size": 32}, "targets": ["Linear"]}
    sound = {"quant_method": method, "bits": 4, "group_size": 128, "quant_algo": "FP8",
             "format": "pack-quantized", "config_groups": {"g": group}}  # fmt: skip
    for field in fields:
        for said in (sound | {field: value}, {"quant_method": method, field: value}):
            with contextlib.suppress(SchemeError):  # and no other error
                schemes.detect(declared({"quantization_config": said}, {}), {}).read({}, [])
    for field in group["weights"] | {"type": 0, "strategy": 0, "block_structure": 0, "actorder": 0}:
        weights = {**group["weights"], field: value}  # type: ignore[dict-item]
        said = sound | {"config_groups": {"g": group | {"weights": weights}}}
        with contextlib.suppress(SchemeError):
            schemes.detect(declared({"quantization_config": said}, {}), {})


def test_integer_tables_stay_as_they_are(tmp_path: Path) -> None:
    tables = {
        "gate.tid2eid": torch.arange(12, dtype=torch.int64).reshape(3, 4),
        "table": torch.arange(12, dtype=torch.int32).reshape(3, 4),
        "counts.weight": torch.arange(5, dtype=torch.int32),
    }
    fp8convert.to_bf16(write(tmp_path / "src", [GOOD | tables]), tmp_path / "dst")
    ours = load(tmp_path / "dst")
    assert all(torch.equal(ours[n], t) for n, t in tables.items())


def test_a_scheme_that_nearly_fits_leaves_the_answer_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other(PlainScheme):
        @classmethod
        def recognise(cls, declared: Any, tensors: Any) -> Scheme | str | None:
            method = declared.method
            return cls() if method == "fp8" else f"{method} is nearly this"

    nearly = config(weight_block_size=0)
    monkeypatch.setattr(schemes, "known", lambda: (Fp8BlockScheme, Other))
    assert isinstance(schemes.detect(declared(nearly, {}), {}), Other)
    with pytest.raises(SchemeError, match=r"^fp9 is nearly this$"):
        schemes.detect(declared(config(quant_method="fp9"), {}), {})
    monkeypatch.setattr(schemes, "known", lambda: (Fp8BlockScheme,))
    with pytest.raises(SchemeError, match="weight_block_size is '0'"):
        schemes.detect(declared(nearly, {}), {})


def test_a_new_scheme_registers_by_being_there(tmp_path: Path) -> None:
    names = {"awq", "compressed-tensors", "fp8-block", "gptq", "modelopt", "mxfp4", "none"}
    assert {s.name for s in schemes.known()} == names
    assert all(issubclass(s, Scheme) for s in schemes.known())
    catalogue = open_catalogue(write(tmp_path / "src", [GOOD]))
    found = schemes.detect(catalogue.declared, catalogue.tensors)
    assert found.to_dict() == {"scheme": "fp8-block", "block": [128, 128]}
