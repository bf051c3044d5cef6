"""Right checkpoints pass: every family, every scheme, ranks, and what other tools write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fp8convert.errors import FormatError, UsageError
from fp8convert.options import SCHEMES
from fp8convert.samples import FAMILIES
from fp8convert.verify import verify
from fp8convert.verify.report import Check, Report

from ..checkpoints import write
from ..sharded import tiny
from .damage import config, put, put_at, shards
from .made import Made

ALL = ["manifest", "headers", "index", "scales", "values", "config"]


def results(report: Report) -> dict[str, str]:
    return {c.name: c.result for c in report.checks}


def assert_right(folder: Path, manifest: str = "ok", **others: str) -> Report:
    """Every check passes, but for those that are named with what they say."""
    report = verify(folder, workers=2)
    expected = dict.fromkeys(ALL, "ok") | {"manifest": manifest} | others
    assert results(report) == expected, "\n".join(report.lines())
    assert report.passed
    return report


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_its_bf16(family: str, right: Made) -> None:
    source = assert_right(right.sample(family), "not checked")
    assert source.checks[3].counts["weights"] > 0
    assert assert_right(right.to_bf16(right.sample(family))).checks[3].counts["weights"] == 0
    assert_right(right.sample(family, "bf16"), "not checked")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme: str, right: Made) -> None:
    source = right.sample("deepseek-v3", "bf16")
    assert assert_right(right.quantize(source, scheme)).checks[3].counts["weights"] > 10
    assert_right(right.to_bf16(right.quantize(source, scheme)))


RANKS: list[tuple[str, int, dict[str, Any]]] = [
    ("deepseek-v3", 2, {"layout": "hf"}),
    ("deepseek-v3", 2, {"layout": "hf", "weights": "bf16"}),
    ("deepseek-v3", 2, {"layout": "hf", "pad_vocab": 384}),
    ("deepseek-v3", 2, {}),
    ("deepseek-v3", 2, {"weights": "bf16"}),
    ("deepseek-v3", 2, {"mtp": "keep"}),
    ("deepseek-v3", 4, {"layout": "hf", "misaligned": "requantize"}),
    ("deepseek-v3", 4, {"misaligned": "requantize"}),
    ("deepseek-v3", 4, {"layout": "hf", "misaligned": "bf16"}),
    ("deepseek-v3", 4, {"layout": "hf", "misaligned": "reblock"}),
    ("deepseek-v4", 2, {}),
    ("deepseek-v4", 2, {"layout": "hf"}),
    ("kimi-k2-thinking", 2, {"layout": "hf"}),
    ("gpt-oss", 4, {"layout": "hf"}),
    ("mistral-fp8", 2, {"layout": "hf"}),
    ("modelopt-nvfp4", 1, {"layout": "hf"}),
]


@pytest.mark.parametrize(("family", "ranks", "options"), RANKS)
def test_ranks(family: str, ranks: int, options: dict[str, Any], right: Made) -> None:
    report = assert_right(right.shard_folder(right.sample(family), ranks, **options))
    assert report.checks[2].detail.startswith(f"{ranks} ranks of layout")


@pytest.mark.parametrize("layout", ["hf", "deepseek"])
def test_ranks_put_together_again(layout: str, right: Made) -> None:
    cut = right.shard_folder(right.sample(), 2, layout=layout, mtp="keep")
    assert_right(right.unshard(cut))


def test_rank_files_of_the_published_script(right: Made) -> None:
    """They come without tp.json, config and manifest."""
    folder = right.copied("ds2")
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    report = assert_right(folder, "not checked", config="not checked")
    assert report.checks[3].counts["weights"] > 100
    put_at("norm.weight", (3,), float("nan"))(folder)
    assert [c.name for c in verify(folder).failed] == ["values"]


def test_one_rank_is_not_a_checkpoint(right: Made) -> None:
    with pytest.raises(FormatError, match=r"has one rank only, number '1' of '2'"):
        verify(right.output("hf2") / "rank1")


@pytest.mark.parametrize("model", ["llama", "qwen3_moe", "deepseek_v3", "gpt_oss", "minimax_m2"])
def test_what_transformers_writes(model: str, tmp_path: Path) -> None:
    """No manifest, no index; no tokenizer and no MTP layer, which are warnings."""
    tiny.write(model, tmp_path / model)
    report = assert_right(tmp_path / model, "not checked")
    mtp = ["config.json: num_nextn_predict_layers is 1, found 0 MTP layers"]
    expected = mtp if model == "deepseek_v3" else []
    expected = [*expected, "no tokenizer file in the folder"]
    assert [w for c in report.checks for w in c.warnings] == expected


def test_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    folder = write(tmp_path / "src", [{"a.weight": torch.ones(3, 4).to(torch.bfloat16)}],
                   {"torch_dtype": "bfloat16"})  # fmt: skip
    assert_right(folder, "not checked")
    save_file({"a.weight": torch.ones(3, 4).to(torch.bfloat16)}, shards(folder)[0])
    warned = assert_right(folder, "not checked").checks[-1].warnings
    assert "no metadata {'format': 'pt'}" in warned[0]


def test_output_without_sums_has_its_sizes_checked(right: Made) -> None:
    folder = right.new()
    import fp8convert

    fp8convert.to_bf16(right.sample(), folder, checksum="none", workers=2)
    report = assert_right(folder)
    assert "sizes only for 5 of them, written without sums" in report.checks[0].detail
    shard = shards(folder)[0]
    put(shard, shard.read_bytes() + b" ")
    assert [c.name for c in verify(folder).failed] == ["manifest", "headers"]


def test_what_cannot_be_read_is_never_said_to_be_right(right: Made) -> None:
    folder = right.copied("v3")
    put(shards(folder)[0], b"")
    report = verify(folder)
    assert results(report) == {
        "manifest": "not checked",
        "headers": "FAIL",
        "index": "ok",
        "scales": "not checked",
        "values": "not checked",
        "config": "not checked",
    }
    assert report.to_dict()["not_checked"] == ["manifest", "scales", "values", "config"]
    assert "'model-00001-of-000005.safetensors' cannot be read" in report.checks[4].detail


def test_a_scheme_that_is_not_known_is_not_checked(right: Made) -> None:
    folder = right.copied("bare bf16")
    config(quantization_config={"quant_method": "hqq"})(folder)
    report = assert_right(folder, "not checked", scales="not checked")
    assert "quant_method is 'hqq'; known: " in report.checks[3].detail


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("consolidated.safetensors", "'consolidated.safetensors' beside the checkpoint: vLLM may"),
        ("notes.txt", "'notes.txt' in the folder, not in manifest.json"),
        ("images/a.png", "'images' in the folder, not in manifest.json"),
    ],
)
def test_doubtful_but_legal(file: str, words: str, right: Made) -> None:
    """A warning; a file of weights that a manifest does not list is more than that."""
    folder = right.copied("bare bf16" if "consolidated" in file else "bf16")
    (folder / file).parent.mkdir(exist_ok=True)
    put(folder / file, shards(folder)[0].read_bytes())
    report = verify(folder)
    assert report.passed
    assert words in " | ".join(w for c in report.checks for w in c.warnings)


def test_a_model_card_is_no_news(right: Made) -> None:
    """It comes with a download of what --push-to-hub has uploaded."""
    folder = right.copied("bf16")
    before = verify(folder)
    (folder / "README.md").write_text("# Mine")
    assert [c.warnings for c in verify(folder).checks] == [c.warnings for c in before.checks]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_dtype_that_only_the_decoded_weights_have(dtype: str, tmp_path: Path) -> None:
    """Other matrices keep theirs, which may be more."""
    a, b = torch.ones(64, 64), torch.ones(8, 8)
    save_file({"a": a.bfloat16(), "b": b.to(getattr(torch, dtype))}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": dtype}))
    warnings = assert_right(tmp_path, "not checked").checks[-1].warnings
    assert f"torch_dtype is '{dtype}', but BF16 is the dtype of most" in warnings[0]


def test_fields_that_engines_want(right: Made) -> None:
    folder = right.copied("v3")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    del said["activation_scheme"]
    config(quantization_config=said)(folder)
    assert "activation_scheme" in assert_right(folder, "not checked").checks[-1].warnings[0]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        verify(tmp_path / "none")
    with pytest.raises(FormatError, match="expected a checkpoint folder"):
        verify(tmp_path)
    for sample in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="expected a fraction"):
            verify(tmp_path, sample=sample)


def test_a_source_that_cannot_be_read_is_an_error(right: Made, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        verify(right.output("bf16"), tmp_path / "none")


def test_against_a_source(right: Made) -> None:
    report = verify(right.output("bf16"), right.output("v3"))
    assert report.passed
    names = [c.name for c in report.checks]
    assert names[:6] == ALL
    assert all(name.startswith("against") for name in names[6:])
    assert len(names) > 6
    assert report.to_dict()["against"] == str(right.output("v3"))
    folder = right.copied("bf16")
    put(shards(folder)[0], b"")
    assert results(verify(folder, right.output("v3")))["against"] == "not checked"


def test_progress_counts_every_byte(right: Made) -> None:
    told: list[tuple[str, int, int]] = []
    report = verify(right.output("bf16"), workers=3, progress=lambda *now: told.append(now))
    for what, check in (("sums", 0), ("values", 4)):
        said = [(n, of) for w, n, of in told if w == what]
        assert said == sorted(said)
        assert {of for _, of in said} == {said[-1][0]} == {report.checks[check].counts["bytes"]}


def test_a_report_without_any_check_that_was_made_has_not_passed() -> None:
    assert not Report("x", None, (Check.skipped("a", "why"),)).passed
    assert Report("x", None, (Check.skipped("a", "why"), Check.of("b", "", []))).passed
    assert not Report("x", None, (Check.of("a", "", ["wrong"]), Check.of("b", "", []))).passed


def test_a_table_shows_some_of_many_problems() -> None:
    report = Report("x", None, (Check.of("a", "what", [f"wrong {n}" for n in range(30)], ["odd"]),))
    lines = report.lines()
    assert lines[0].split() == ["check", "result", "detail"]
    assert lines[1].split() == ["a", "FAIL", "what"]
    assert lines[2] == "a: wrong 0"
    assert lines[-2:] == ["a: and 10 more", "warning: a: odd"]
    assert len(report.to_dict()["checks"][0]["problems"]) == 30
