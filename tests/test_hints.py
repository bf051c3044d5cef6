"""Lists of what a config says is not quantized: what they name, cost, and change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert.errors import SchemeError
from fp8convert.inspection import inspect
from fp8convert.schemes import hints
from fp8convert.schemes.hints import Listed

from .checkpoints import FP8_CONFIG, pair, write
from .oracle import dequantize_all, differing, load

UP = "model.layers.3.mlp.up_proj.weight"
EXPERT = "model.layers.3.mlp.experts.7.up_proj.weight"

NAMES: dict[str, tuple[list[Any], list[str], list[str]]] = {
    "an exact module": (
        ["model.layers.3.mlp.up_proj"],
        [UP],
        ["model.layers.3.mlp.up_proj_2.weight", "model.layers.30.mlp.up_proj.weight", EXPERT],
    ),
    "a module around it": (
        ["model.layers.3"],
        [UP, EXPERT, "model.layers.3.input_layernorm.weight"],
        ["model.layers.30.mlp.up_proj.weight", "x.model.layers.3.mlp.up_proj.weight"],
    ),
    "the name of a tensor": (
        [UP, "model.layers.3.self_attn.k_norm.bias"],
        [UP, "model.layers.3.self_attn.k_norm.bias"],
        ["model.layers.3.mlp.down_proj.weight", "model.layers.3.self_attn.k_norm.weight"],
    ),
    "a last part alone": (
        ["gate", "lm_head", "e_score_correction_bias"],
        [
            "model.layers.3.mlp.gate.weight",
            "lm_head.weight",
            "language_model.lm_head.weight",
            "model.layers.0.block_sparse_moe.e_score_correction_bias",
        ],
        ["model.layers.3.mlp.gate_proj.weight", "gate_2.weight", EXPERT],
    ),
    "an entry of a module that does not exist": (
        ["model.layers.3.self_attn.indexers_proj"],
        [],
        ["model.layers.3.self_attn.indexer.weights_proj.weight"],
    ),
    "a star at the end": (
        ["model.layers.61*", "mtp*"],
        ["model.layers.61.mlp.up_proj.weight", "mtp.layers.0.mlp.up_proj.weight"],
        ["model.layers.6.mlp.up_proj.weight", "x.mtp.fc.weight"],
    ),
    "stars around": (
        ["*.attn.*", "*.ffn.shared_experts.*", "model.layers.*.mlp.router"],
        [
            "layers.0.attn.wq_a.weight",
            "layers.0.ffn.shared_experts.w1.weight",
            "model.layers.3.mlp.router.weight",
        ],
        ["layers.0.ffn.experts.0.w1.weight", "attn.wq.weight", "model.layers.3.mlp.routers.weight"],
    ),
    "other globs": (
        ["layers.[0-2].w?"],
        ["layers.0.w1.weight", "layers.2.w3.weight"],
        ["layers.3.w1.weight", "layers.0.w.weight", "layers.0.w12.weight"],
    ),
    "regular expressions, from the start": (
        ["re:.*self_attn.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "re:model.lm_head"],
        [UP, "model.layers.0.self_attn.q_proj.weight", "model.lm_head.weight"],
        [EXPERT, "x.model.lm_head.weight"],
    ),
    "regular expressions with an end": (
        [r"re:.*\.mlp\.gate$", "re:.*attn.*(fused_wqa_wkv|wq_b|wo_a|wo_b)$"],
        ["model.layers.1.mlp.gate.weight", "model.layers.0.attn.fused_wqa_wkv.weight"],
        ["model.layers.1.mlp.gate_proj.weight", "model.layers.0.attn.wo_b.norm.weight"],
    ),
    "an expert": (
        ["model.layers.3.mlp.experts.7.up_proj"],
        [EXPERT],
        ["model.layers.3.mlp.experts.70.up_proj.weight", "model.layers.3.mlp.experts.0.up_proj"],
    ),
    "all experts of a layer": (["model.layers.3.mlp.experts"], [EXPERT], [UP]),
    "what is no text": ([7, None, 1.5, True, ["lm_head"], {"lm_head": 1}], [], ["lm_head.weight"]),
    "text that is no pattern": (
        ["re:(", "re:[", "re:a{99999999999999}", "re:*", "[", "[!]", "", "."],
        [],
        ["lm_head.weight", UP],
    ),
    "text that Python warns of": (["re:[[a]", "re:[a||b]x", "[[a]", "[a--b]"], [], [UP]),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES)
def test_what_entries_name(case: tuple[list[Any], list[str], list[str]]) -> None:
    entries, named, others = case
    listed = Listed(entries)
    assert [n for n in named if not listed.names(n)] == []
    assert [n for n in others if listed.names(n)] == []
    assert [n for n in named if not listed.names(n)] == []  # asked again: the same


def test_empty_lists_name_nothing() -> None:
    assert not Listed([]).names(UP)
    assert not Listed(()).names("")


HOSTILE: dict[str, tuple[str, str]] = {
    "nested repeats": ("['re:(a+)+$', 're:(a*)*b', 're:((a+)+)+c']", "'a' * 60 + '!'"),
    "repeats that overlap": ("['re:' + '.*' * 60 + 'x']", "'a' * 250"),
    "three of them, in every pattern": ("[f're:.*.*.*x{n}' for n in range(5000)]", "'a' * 250"),
    "optional parts": ("['re:' + 'a?' * 60 + 'a' * 60]", "'a' * 60"),
    "alternatives that overlap": ("['re:' + '(a|aa)' * 32 + 'x']", "'a' * 250"),
    "large counts": ("['re:(a{1,999}){1,999}x', 're:.{1,999}.{1,999}.{1,999}x']", "'a' * 250"),
    "stars in a glob": ("['*a' * 100 + 'b']", "'a' * 250"),
    "a long glob": ("['*' + 'a' * 20_000_000] * 3", "'a'"),
    "a long expression": ("['re:' + 'a' * 20_000_000] * 3", "'a'"),
    "many entries": ("[f'model.layers.{n}.x' for n in range(300_000)]", "'model.layers.7.x.w'"),
    "many globs": ("[f'*model.layers.{n}*' for n in range(100_000)]", "'model.layers.7.x.w'"),
    "a long name": ("['re:.*x', '*x', 'x']", "'a' * 5_000_000"),
    "a name of many parts": ("['re:.*x', '*x', 'x']", "'a.' * 200_000"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_list_buys_neither_time_nor_memory(case: tuple[str, str]) -> None:
    """In a process that may take 1 GB: the worst of them would take more, or hours."""
    entries, name = case
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from fp8convert.schemes.hints import Listed\n"
        f"listed = Listed({entries})\n"
        f"name = {name}\n"
        "for n in range(5):\n"
        "    listed.names(f'{n}{name}'), listed.names(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr


def test_the_longest_real_list_is_read_whole() -> None:
    """hf_quant_config.json of nvidia/GLM-5-NVFP4 has 79 globs."""
    listed = Listed([f"model.layers.{n}.self_attn.indexer*" for n in range(78)] + ["mtp*"])
    assert listed.names("model.layers.77.self_attn.indexer.wk.weight")
    assert listed.names("mtp.0.fc.weight")


def test_all_experts_of_a_layer_are_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting:
        def match(self, text: str) -> None:
            asked.append(text)

    monkeypatch.setattr(hints, "compiled", lambda _: Counting())
    listed = Listed(["re:nothing"])
    for layer in range(2):
        for expert in range(100):
            for leaf in ("gate_proj", "up_proj", "down_proj"):
                assert not listed.names(f"model.layers.{layer}.experts.{expert}.{leaf}.weight")
    assert len(asked) == 6


CODED = "model.layers.0.mlp.up_proj.weight"
TENSORS = {
    **pair(CODED, 192, 256),
    **pair("model.layers.0.mlp.experts.0.up_proj.weight", 128, 128),
    "lm_head.weight": torch.ones((8, 8), dtype=torch.bfloat16),
}


def declaring(key: str, entries: Any) -> dict[str, Any]:
    inner = {**FP8_CONFIG["quantization_config"], key: entries}
    return {**FP8_CONFIG, "quantization_config": inner}


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers", "ignore"])
@pytest.mark.parametrize("entry", ["model.layers.0", "up_proj", "*.mlp.up_proj", "re:.*mlp.up"])
def test_where_list_and_tensors_disagree_the_tensors_are_believed(
    key: str, entry: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "src", [TENSORS], declaring(key, ["lm_head", entry]))
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []
    (warning,) = done.data["warnings"]
    assert "config.json lists" in warning
    assert "as not quantized" in warning
    with pytest.raises(SchemeError, match="as not quantized"):
        fp8convert.to_bf16(source, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_inspect_says_so_too(tmp_path: Path) -> None:
    entries = ["lm_head", "model.layers.0.mlp.up_proj"]
    report = inspect(write(tmp_path / "src", [TENSORS], declaring("ignore", entries)))
    assert report.problems == []
    assert [w for w in report.warnings if "as not quantized" in w] != []


@pytest.mark.parametrize(
    "entries",
    [
        ["lm_head"],
        ["lm_head", "model.layers.0.mlp.gate", "gate", "re:.*self_attn.*", "model.layers.1*"],
        [],
        None,
        [7, None, {"up_proj": 1}, ["up_proj"]],
    ],
)
def test_a_list_that_agrees_is_not_mentioned(entries: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "src", [TENSORS], declaring("modules_to_not_convert", entries))
    done = fp8convert.to_bf16(source, tmp_path / "dst", strict=True)
    assert done.data["warnings"] == []


@pytest.mark.parametrize("entries", [7, True, "up_proj", {"up_proj": 1}])
def test_a_list_that_is_none_is_refused_or_ignored(entries: Any, tmp_path: Path) -> None:
    """Never a traceback; and text is not taken for a list of its letters."""
    source = write(tmp_path / "src", [TENSORS], declaring("modules_to_not_convert", entries))
    try:
        fp8convert.to_bf16(source, tmp_path / "dst")
    except SchemeError:
        assert not (tmp_path / "dst").exists()
    else:
        assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []


def test_an_entry_appears_in_a_message_only_as_the_name_it_names(tmp_path: Path) -> None:
    """No terminal escape of a config reaches the terminal."""
    entries = ["model.layers.0.mlp.up_proj", "*up_proj\x1b[31m", "re:.*\x1b]0;x\x07"]
    source = write(tmp_path / "src", [TENSORS], declaring("ignore", entries))
    done = fp8convert.to_bf16(source, tmp_path / "dst")
    assert all(w.isprintable() for w in done.data["warnings"])
