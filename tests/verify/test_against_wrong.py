"""``verify --against``: one thing is wrong, and the message says where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import fp8convert
from fp8convert.options import SCHEMES
from fp8convert.verify import verify
from fp8convert.verify.against import against

from ..checkpoints import FP8_CONFIG, pair, write
from ..sharded.runs import Runs
from .edits import changed, copied, file_of, flipped, loaded, rewritten, swapped
from .test_against import problems

GATE, UP = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
EXPERT = "model.layers.2.mlp.experts.{}.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
SQUARE = "model.layers.1.self_attn.o_proj.weight"
NORM, BIAS = "model.norm.weight", "model.layers.2.mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP8 blocks of every shape that matters: several, ragged, square, equal in shape."""
    tensors = {NORM: torch.rand(300).bfloat16(), BIAS: torch.rand(4)}
    for seed, (name, rows, columns) in enumerate(
        [(GATE, 384, 256), (UP, 384, 256), (DOWN, 256, 384), (SQUARE, 256, 256),
         (EXPERT.format(0), 130, 256), (EXPERT.format(1), 130, 256)]
    ):  # fmt: skip
        tensors |= pair(name, rows, columns, seed)
        grid = torch.rand(-(-rows // 128), -(-columns // 128)) * 1e-3 + 1e-3
        steps = torch.arange(grid.shape[0])[:, None] + torch.arange(grid.shape[1])
        tensors[f"{name}_scale_inv"] = grid * 4.0**steps
    return write(tmp_path_factory.mktemp("wrong") / "src", [tensors], FP8_CONFIG)


@pytest.fixture(scope="module")
def plain(model: Path) -> Path:
    fp8convert.to_bf16(model, model.parent / "bf16")
    return model.parent / "bf16"


def only(dst: Path, src: Path) -> str:
    """The one problem."""
    (message,) = problems(against(dst, src))
    return message


def test_one_bit_is_named_with_both_values(model: Path, plain: Path, tmp_path: Path) -> None:
    wrong = copied(plain, tmp_path / "wrong")
    flipped(wrong, DOWN, (130, 5), 7)
    is_, want = (loaded(f)[DOWN][130, 5] for f in (wrong, plain))
    bits = [f"{v.view(torch.int16).item() & 0xFFFF:#06x}" for v in (is_, want)]
    assert only(wrong, model) == (
        f"{DOWN} [130, 5]: is {is_.item():.6g} ({bits[0]}), expected {want.item():.6g} ({bits[1]})"
    )


def test_the_first_of_many_in_order_is_named_and_all_are_counted(
    model: Path, plain: Path, tmp_path: Path
) -> None:
    wrong = copied(plain, tmp_path / "wrong")

    def shift(t: torch.Tensor) -> torch.Tensor:
        t[7, 9:] = -t[7, 9:]
        t[200] = 0.5
        return t

    changed(wrong, UP, shift)
    zeros = int((loaded(plain)[UP][7, 9:] == 0).sum())
    halves = int((loaded(plain)[UP][200] == 0.5).sum())
    assert zeros < 200
    message = only(wrong, model)
    assert message.startswith(f"{UP} [7, 9]: is ")
    assert message.endswith(f"; {256 - 9 + 256 - halves} of it in all")


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def _transposed(t: torch.Tensor) -> torch.Tensor:
    return t.T


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "two experts swapped": (
        lambda d: swapped(d, EXPERT.format(0), EXPERT.format(1)), EXPERT.format(0)),
    "gate and up swapped": (lambda d: swapped(d, GATE, UP), GATE),
    "transposed": (lambda d: changed(d, SQUARE, _transposed), SQUARE),
    "a router bias in BF16": (
        lambda d: changed(d, BIAS, lambda t: t.bfloat16()), f"'{BIAS}' is BF16 [4], but F32 [4]"),
    "a norm in F32": (
        lambda d: changed(d, NORM, lambda t: t.float()), f"'{NORM}' is F32 [300], but BF16 [300]"),
    "another shape": (
        lambda d: changed(d, DOWN, lambda t: t[:-1]), f"'{DOWN}' is BF16 [255, 384], expected the"),
    "a row of zeros too many": (
        lambda d: changed(d, GATE, lambda t: torch.cat([t, t[:1] * 0])), f"'{GATE}' is BF16 [385"),
    "one block decoded by another's scale": (
        lambda d: changed(d, DOWN, lambda t: torch.cat([t[:, :256], t[:, 256:] * 1.5], 1)),
        f"{DOWN} [0, 256]"),
    "cut off, not rounded": (
        lambda d: changed(d, UP, lambda t: (t.view(torch.int16) - 1).view(torch.bfloat16)), UP),
    "zero without its sign": (lambda d: changed(d, DOWN, lambda t: t + 0.0), f"{DOWN} ["),
    "NaN": (lambda d: changed(d, DOWN, lambda t: t.clone().fill_(float("nan"))),
            f"{DOWN} [0, 0]: is nan (0x7fc0), expected "),
    "missing": (
        lambda d: rewritten(file_of(d, UP), _without(UP)), f"'{UP}' is missing"),
    "more than there was": (
        lambda d: rewritten(
            file_of(d, UP), lambda t: t.update({"model.more.weight": torch.ones(2)})),
        "'model.more.weight' is not in the source"),
    "codes shipped as numbers": (
        lambda d: changed(d, DOWN, lambda t: (t.float() * 1000).bfloat16()), DOWN),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong(what: str, model: Path, plain: Path, tmp_path: Path) -> None:
    change, words = WRONG[what]
    wrong = copied(plain, tmp_path / "wrong")
    change(wrong)
    found = problems(against(wrong, model))
    assert words in found[0], found
    assert len(found) == (2 if "swapped" in what else 1)


def test_a_tensor_under_another_name(model: Path, plain: Path, tmp_path: Path) -> None:
    wrong = copied(plain, tmp_path / "wrong")
    rewritten(file_of(wrong, UP), lambda t: t.update({"model.other.weight": t.pop(UP)}))
    assert problems(against(wrong, model)) == [
        f"'{UP}' is missing", "'model.other.weight' is not in the source"
    ]  # fmt: skip


def test_a_stored_scale_and_a_stored_code(model: Path, tmp_path: Path) -> None:
    wrong = copied(model, tmp_path / "wrong")
    flipped(wrong, f"{DOWN}_scale_inv", (1, 2), 0)
    flipped(wrong, GATE, (3, 200), 0)
    found = sorted(problems(against(wrong, model)))
    assert found[0].startswith(f"{DOWN}_scale_inv [1, 2]: is ")
    assert re.match(
        rf"{re.escape(GATE)} \[3, 200\]: is \S+ \(0x..\), expected \S+ \(0x..\)$", found[1]
    )


def test_the_last_ragged_row_of_scales_is_missing(model: Path, tmp_path: Path) -> None:
    wrong = copied(model, tmp_path / "wrong")
    changed(wrong, f"{EXPERT.format(1)}_scale_inv", lambda t: t[:-1])
    found = problems(against(wrong, model))
    assert EXPERT.format(1) in found[0]
    assert "[1, 2], expected F32 or BF16 or F16" in found[0]


DOUBLED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "fp8-block": ("_scale_inv", lambda s: s * 2),
    "fp8-block-ue8m0": ("_scale_inv", lambda s: s * 2),
    "fp8-channel": ("_scale", lambda s: s * 2),
    "fp8-tensor": ("_scale", lambda s: s * 2),
    "int8-channel": ("_scale", lambda s: s * 2),
    "int4-group": ("_scale", lambda s: s * 2),
    "nvfp4": ("_scale", lambda s: (s.float() * 2).to(s.dtype)),
    "mxfp4": ("_scale", lambda s: s + 1),
    "mxfp8": ("_scale", lambda s: s + 1),
}


def _first(t: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Of one block only: not the first, where there are others."""
    out = t.clone()
    at = tuple(n // 2 for n in t.shape)
    out[at] = change(t[at])
    return out


@pytest.mark.parametrize("source", ["fp8", "bf16"])
@pytest.mark.parametrize("search", ["plain", "mse"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scale_that_is_wrong_by_two(
    scheme: str, search: str, source: str, model: Path, plain: Path, tmp_path: Path
) -> None:
    """In one block, up or down; with the manifest's word for the error, and without it."""
    src = model if source == "fp8" and scheme != "fp8-block" else plain
    fp8convert.quantize(src, tmp_path / "q", scheme, scale_search=search)
    assert problems(against(tmp_path / "q", src)) == []
    suffix, double = DOUBLED[scheme]
    for n, change in enumerate((double, _halved(double))):
        wrong = copied(tmp_path / "q", tmp_path / f"wrong{n}")
        scale = f"{DOWN}{suffix}"
        changed(wrong, scale, lambda t, change=change: _first(t, change))  # type: ignore[misc]
        with_word = problems(against(wrong, src))
        row = re.match(rf"{re.escape(DOWN)} \[(\d+), (\d+)\]: is \S+ \(code 0x", with_word[0])
        assert row, with_word
        shape = loaded(wrong)[scale].shape
        block = [
            max(256 // (shape or [1])[0], 1),
            max(384 // (shape[-1] if len(shape) > 1 else 1), 1),
        ]
        at = [n // 2 for n in shape]
        assert [int(row[1]) // block[0], int(row[2]) // block[1]][: len(at)] == at or not at
        if scheme.startswith(("fp8", "int8")):  # a group of 32 may be less than 1 %
            assert f"{DOWN}: relative rms error" in with_word[1]
        (wrong / "manifest.json").unlink()
        assert problems(against(wrong, src))[0].startswith(f"{DOWN} [")


def _halved(double: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def half(s: torch.Tensor) -> torch.Tensor:
        if s.dtype == torch.uint8:
            return s - 1
        return (s.float() / 2).to(s.dtype)

    return half


@pytest.mark.parametrize(
    ("scheme", "axis"),
    [(s, a) for s in SCHEMES if s != "fp8-tensor" for a in (0, 1) if a == 0 or "channel" not in s],
)
def test_a_grid_of_scales_shifted_by_one(
    scheme: str, axis: int, model: Path, plain: Path, tmp_path: Path
) -> None:
    fp8convert.quantize(plain, tmp_path / "q", scheme)
    scale = f"{DOWN}{DOUBLED[scheme][0]}"
    before = loaded(tmp_path / "q")[scale]
    moved = (
        before.view(torch.uint8).roll(1, axis)
        if before.element_size() == 1
        else before.roll(1, axis)
    )
    assert not torch.equal(moved, before.view(moved.dtype))
    changed(tmp_path / "q", scale, lambda _: moved.view(before.dtype))
    assert problems(against(tmp_path / "q", plain))[0].startswith(f"{DOWN} [")
    (tmp_path / "q" / "manifest.json").unlink()
    assert problems(against(tmp_path / "q", plain))[0].startswith(f"{DOWN} [")


def test_an_error_that_the_manifest_has_wrong(plain: Path, tmp_path: Path) -> None:
    fp8convert.quantize(plain, tmp_path / "q", "fp8-channel")
    path = tmp_path / "q" / "manifest.json"
    manifest = json.loads(path.read_text())
    true = manifest["quantized"][UP]["relative_rms"]
    manifest["quantized"][UP]["relative_rms"] = true * 1.02
    path.write_text(json.dumps(manifest))
    message = only(tmp_path / "q", plain)
    assert message.startswith(f"{UP}: relative rms error ")
    assert message.endswith(f"manifest.json records {true * 1.02:.5g}")
    assert f"{true:.4g}"[:5] in message
    manifest["quantized"][UP] = {"exact": True}
    path.write_text(json.dumps(manifest))
    assert " exact; " in only(tmp_path / "q", plain)


@pytest.mark.parametrize("entry", [-1, "exact", [1], None])
def test_a_manifest_that_says_nothing_of_a_weight(
    entry: object, plain: Path, tmp_path: Path
) -> None:
    fp8convert.quantize(plain, tmp_path / "q", "fp8-channel")
    path = tmp_path / "q" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quantized"][UP] = entry
    path.write_text(json.dumps(manifest))
    assert problems(against(tmp_path / "q", plain)) == []


@pytest.mark.parametrize("text", ["[]", '{"tool": "x", "quantized": {"model.norm.weight": {}}}'])
def test_a_manifest_that_is_not_ours(text: str, model: Path, plain: Path, tmp_path: Path) -> None:
    """Whether it can be read is for another check, and nobody's of the source's."""
    other = copied(plain, tmp_path / "other")
    (other / "manifest.json").write_text(text)
    assert problems(against(other, model)) == problems(against(other, other)) == []


@pytest.mark.parametrize(("said", "problem"), [("1e308", "records 1e+308"), ("1e999", "")])
def test_an_error_in_the_manifest_that_is_beyond_all(
    said: str, problem: str, plain: Path, tmp_path: Path
) -> None:
    """One that no float64 holds makes it no JSON of ours: for the check of the manifest to say."""
    fp8convert.quantize(plain, tmp_path / "q", "fp8-channel")
    path = tmp_path / "q" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quantized"][UP]["relative_rms"] = 12345.5
    path.write_text(json.dumps(manifest).replace("12345.5", said))
    if problem:
        assert only(tmp_path / "q", plain).endswith(f"manifest.json {problem}")
        return
    checks = {check.name: check for check in verify(tmp_path / "q", plain).checks}
    assert "'1e999' is beyond what a float64 holds" in checks["manifest"].problems[0]


def test_scales_of_activations_missing_though_the_declaration_is_the_same(
    made: Runs, tmp_path: Path
) -> None:
    src = made.source("sample-mistral-fp8")
    wrong = copied(src, tmp_path / "wrong")
    name = "model.layers.1.mlp.up_proj.activation_scale"
    rewritten(file_of(wrong, name), _without(name))
    assert only(wrong, src) == f"'{name}' is missing, a scale of activations"


@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight", "nope.weight"])
def test_ranks_that_are_said_to_have_scales_of_their_own(
    name: str, made: Runs, tmp_path: Path
) -> None:
    wrong = copied(made.shard("llama", 2, layout="hf"), tmp_path / "wrong")
    said = json.loads((wrong / "tp.json").read_text())
    (wrong / "tp.json").write_text(json.dumps(said | {"apart": [name]}))
    assert re.search(
        f"'{name}': (ranks have no scales of their own for it|not all ranks have their part)",
        only(wrong, made.source("llama")),
    )


def test_a_shape_tensor_that_says_something_else(plain: Path, tmp_path: Path) -> None:
    fp8convert.quantize(plain, tmp_path / "q", "int4-group")
    changed(tmp_path / "q", f"{UP}_shape", lambda t: t.flip(0))
    assert only(tmp_path / "q", plain) == f"{UP}_shape: is [256, 384], expected [384, 256]"


def test_codes_of_another_codec_than_can_be(plain: Path, model: Path, tmp_path: Path) -> None:
    wrong = copied(plain, tmp_path / "wrong")
    changed(wrong, UP, lambda t: t.to(torch.int64))
    assert (
        only(wrong, model)
        == f"'{UP}' is I64 [384, 256], but fp8-block codes in F8_E4M3 [384, 256] in the source"
    )


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_files_of_two_ranks_swapped(layout: str, made: Runs, tmp_path: Path) -> None:
    source = "v3"
    wrong = copied(made.shard(source, 2, layout=layout), tmp_path / "wrong")
    if layout == "hf":
        for file in (wrong / "rank0").glob("*.safetensors"):
            other = wrong / "rank1" / file.name
            data = file.read_bytes()
            file.write_bytes(other.read_bytes())
            other.write_bytes(data)
    else:
        one, other = (wrong / f"model{r}-mp2.safetensors" for r in (0, 1))
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    found = problems(against(wrong, made.source(source)))
    assert any("experts" in p and "is missing on rank" in p for p in found)
    assert any("model.embed_tokens.weight [0, " in p and " on rank 0: is " in p for p in found)


def test_a_copy_on_one_rank(made: Runs, tmp_path: Path) -> None:
    wrong = copied(made.shard("llama", 2, layout="hf"), tmp_path / "wrong")
    (file,) = [f for f in (wrong / "rank1").glob("*.safetensors") if NORM in _names(f)]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM][3] += 1

    rewritten(file, change)
    assert only(wrong, made.source("llama")).startswith(f"{NORM} [3] on rank 1: is ")


def test_a_copy_of_codes_encoded_anew(made: Runs, tmp_path: Path) -> None:
    """What several ranks have of a requantized weight is compared with the first, and that with
    the source."""
    src = made.source("llama_bf16")
    good = made.shard("llama_bf16", 4, layout="hf", weights="fp8-block", misaligned="bf16")
    copies = _shared_codes(good)
    if not copies:
        good = made.shard("v3_bf16", 2, weights="fp8-block", misaligned="bf16")
        src, copies = made.source("v3_bf16"), _shared_codes(good)
    assert problems(against(good, src)) == []
    wrong = copied(good, tmp_path / "wrong")
    name, inside = copies[0]
    file = next(
        f for f in sorted(wrong.rglob("*.safetensors"), reverse=True) if inside in _names(f)
    )
    at = loaded_file(file)[inside].view(torch.uint8)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        raw = at.clone()
        raw[2, 1] ^= 1
        tensors[inside] = raw.view(tensors[inside].dtype)

    rewritten(file, change)
    assert re.match(rf"{re.escape(name)} \[2, 1\] on rank \d: is ", only(wrong, src))


def _shared_codes(folder: Path) -> list[tuple[str, str]]:
    said = json.loads((folder / "tp.json").read_text())["tensors"]
    return [
        (name, t.get("name", name)) for name, t in said.items()
        if t["dtype"] == "F8_E4M3" and "axis" not in t and "rank" not in t and min(t["shape"]) > 2
    ]  # fmt: skip


def loaded_file(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _names(file: Path) -> set[str]:
    return set(loaded_file(file))


def test_padding_that_is_not_zero(made: Runs, tmp_path: Path) -> None:
    good = made.shard("llama", 2, layout="hf", pad_vocab=48)
    said = json.loads((good / "tp.json").read_text())["tensors"]["model.embed_tokens.weight"]
    rows = said["padded_to"] // 2
    _, _, held = said["pieces"][1]
    assert held < rows
    wrong = copied(good, tmp_path / "wrong")
    (file,) = [f for f in (wrong / "rank1").glob("*.safetensors")
               if "model.embed_tokens.weight" in _names(f)]  # fmt: skip

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][rows - 1, 4] = 2

    rewritten(file, change)
    message = only(wrong, made.source("llama"))
    assert message == (
        f"model.embed_tokens.weight [{rows - 1}, 4] on rank 1, padding: is 2 (0x4000), "
        "expected 0 (0x0000)"
    )


def test_a_rank_s_tensor_that_tp_json_does_not_have(made: Runs, tmp_path: Path) -> None:
    wrong = copied(made.shard("llama", 2, layout="hf"), tmp_path / "wrong")
    file = next((wrong / "rank1").glob("*.safetensors"))
    rewritten(file, lambda t: t.update({"more": torch.ones(1)}))
    assert only(wrong, made.source("llama")) == "rank 1 has 'more', which tp.json does not list"


def test_scales_cut_by_their_own_size(made: Runs, tmp_path: Path) -> None:
    """192 rows, blocks of 128, two ranks: 32 rows of the second have the wrong scale."""
    src = made.source("rows_of_192")
    name = "model.layers.0.mlp.gate_proj.weight"
    wrong = copied(made.shard("rows_of_192", 2, layout="hf", misaligned="bf16"), tmp_path / "wrong")
    theirs = loaded(src)
    scales = theirs[f"{name}_scale_inv"].float()
    rows = torch.cat([scales[:1].repeat(96, 1), scales[1:].repeat(96, 1)])
    columns = theirs[name].shape[1]
    every = rows.repeat_interleave(128, 1)[:, :columns]
    naive = (theirs[name].float() * every).bfloat16()
    (file,) = [f for f in (wrong / "rank1").glob("*.safetensors") if name in _names(f)]
    rewritten(file, lambda t: t.update({name: naive[96:].contiguous()}))
    message = only(wrong, src)
    assert re.match(rf"{re.escape(name)} \[96, \d+\] on rank 1: is ", message)
    count = int(np.count_nonzero((naive != loaded_bf16(src, name))[96:128].numpy()))
    assert message.endswith(f"; {count:,} of it in all")


def loaded_bf16(src: Path, name: str) -> torch.Tensor:
    tensors = loaded(src)
    scale = tensors[f"{name}_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    rows, columns = tensors[name].shape
    return (tensors[name].float() * scale[:rows, :columns]).bfloat16()


def test_mtp_layers_missing_though_the_config_counts_them(made: Runs, tmp_path: Path) -> None:
    src = made.source("v3")
    wrong = copied(src, tmp_path / "wrong")
    for file in wrong.glob("*.safetensors"):
        rewritten(file, lambda t: [t.pop(n) for n in list(t) if ".layers.2." in n] and None)
    config = json.loads((wrong / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1
    found = problems(against(wrong, src))
    assert found
    assert all(p.startswith("'model.layers.2.") and p.endswith("is missing") for p in found)
    config["num_nextn_predict_layers"] = 0
    (wrong / "config.json").write_text(json.dumps(config))
    assert problems(against(wrong, src)) == []


def test_names_of_another_model(made: Runs) -> None:
    found = problems(against(made.source("llama"), made.source("qwen3")))
    assert "'model.layers.0.self_attn.q_norm.weight' is missing" in found
