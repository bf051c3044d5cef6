"""``fp8convert parity``: exit codes, what is printed, the files, real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from .commands import Run
from .models import copy, nan, times

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def other(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight of it is another."""
    name = "model.layers.0.mlp.up_proj.weight"
    return copy(llama, tmp_path_factory.mktemp("other") / "llama", {name: times(1.05)})


def test_the_same_passes_with_exit_code_0(llama: Path, run: Run) -> None:
    done = run("parity", llama, llama)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "verdict: PASS (identical)"
    assert "tokens 1 x 32, seed 0, layers 0 to 1" in done.out
    assert "control: " in done.out
    assert "detected" in done.out


def test_a_difference_is_exit_code_3(llama: Path, other: Path, run: Run) -> None:
    done = run("parity", llama, other)
    assert done.code == 3
    assert done.out.splitlines()[-1] == "verdict: FAIL (identical)"
    assert "fails: logits: max_abs" in done.out
    assert "the hidden state first differs at layer 0" in done.out


def test_own_thresholds_let_it_pass(llama: Path, other: Path, run: Run) -> None:
    assert run("parity", llama, other, "--profile", "reduction-order").code == 0
    lax = ("--max-abs", 0.02, "--max-kl", 0.5, "--min-top5", 0.5)
    done = run("parity", llama, other, *lax, "--json")
    said = json.loads(done.out)
    assert (done.code, said["verdict"]) == (0, "pass")
    expected = {"max_abs": 0.02, "max_kl": 0.5, "min_top5": 0.5}
    assert {k: v for k, v in said["thresholds"].items() if v is not None} == expected
    strict = run("parity", llama, other, "--profile", "requantized", "--max-kl-mean", 0, "--json")
    assert (strict.code, json.loads(strict.out)["thresholds"]["max_kl_mean"]) == (3, 0)
    assert run("parity", llama, other, *lax, "--max-rms", 1e-6).code == 3


def test_a_blinded_comparison_is_exit_code_3(llama: Path, run: Run) -> None:
    done = run("parity", llama, llama, "--max-abs", 1e30)
    assert done.code == 3
    assert "NOT DETECTED" in done.out
    assert "fails: control not detected" in done.out


def test_nan_is_exit_code_3_and_strict_json(llama: Path, tmp_path: Path, run: Run) -> None:
    broken = copy(llama, tmp_path / "broken", {"lm_head.weight": nan})
    done = run("parity", llama, broken, "--json", "--profile", "requantized")
    assert done.code == 3

    def no(constant: str) -> None:
        raise AssertionError(constant)

    said = json.loads(done.out, parse_constant=no)
    assert said["heads"][0]["kl_mean"] == "nan"
    assert said["heads"][0]["finite"] is False


def test_files_are_written_whether_it_passes_or_not(
    llama: Path, other: Path, tmp_path: Path, run: Run
) -> None:
    junit, page = tmp_path / "parity.xml", tmp_path / "parity.html"
    for candidate, code in ((llama, 0), (other, 3)):
        done = run("parity", llama, candidate, "--junit", junit, "--report", page, "--quiet")
        assert (done.code, done.out, done.err) == (code, "", "")
        suite = ET.parse(junit).getroot()
        assert bool(list(suite.iter("failure"))) == bool(code)
        names = {case.get("name") for case in suite.iter("testcase")}
        assert {"logits: max_abs", "logits: finite", "control", "verdict"} <= names
        text = page.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        assert ("✗ FAIL" if code else "✓ PASS") in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parity.html", "parity.xml"]


def test_a_page_that_cannot_be_written_does_not_take_the_summary_with_it(
    llama: Path, tmp_path: Path, run: Run, full_disk: None
) -> None:
    done = run("parity", llama, llama, "--report", tmp_path / "page.html")
    assert (done.code, done.out.splitlines()[-1]) == (1, "verdict: PASS (identical)")
    assert "--report: [Errno 28]" in done.err
    assert not list(tmp_path.iterdir())


def test_tokens_are_chosen_as_for_logits(
    llama: Path, tiny_bf16: Path, tmp_path: Path, run: Run
) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text("[[1, 2], [3, 4], [5, 6]]")
    cases = (
        (llama, ("--tokens", ids), (3, 2)),
        (llama, ("--length", 5), (1, 5)),
        (llama, ("--seed", 3), (1, 32)),
        (llama, ("--seed", 3, "--batch", 2, "--length", 4), (2, 4)),
        (tiny_bf16, ("--prompt", "a", "--layers", "0"), (1, None)),
    )
    for model, words, (batch, length) in cases:
        said = json.loads(run("parity", model, model, *words, "--json").out)
        assert said["tokens"]["batch"] == batch
        assert length in (None, said["tokens"]["length"])
        assert said["verdict"] == "pass"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "a", "--seed", 1), "give one of --tokens FILE"),
        (("--prompt", "a", "--length", 4), "--length and --batch are for --seed"),
        (("--profile", "close"), "'close' is not one of"),
        (("--min-top1", 1.5), "--min-top1"),
        (("--max-abs", -1), "--max-abs"),
        (("--layers", "5"), "expected some of 0 to 1, in order"),
        (("--junit", "nowhere/a.xml"), "--junit: nowhere/a.xml is not a file in a folder"),
        (("--report", "."), "--report: . is not a file in a folder"),
        (("--junit", "same", "--report", "./same"), "--junit and --report are the same file"),
        (("--max-kl", "nan"), "'nan' is not a number"),
        (("--length", 2**40), "--length"),
    ],
)
def test_usage_errors_exit_2(
    llama: Path, run: Run, words: tuple[object, ...], message: str
) -> None:
    done = run("parity", llama, llama, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_what_cannot_be_compared_is_exit_code_1(llama: Path, tmp_path: Path, run: Run) -> None:
    other = copy(llama, tmp_path / "other", config={"vocab_size": 97})
    done = run("parity", llama, other)
    assert done.code == 1
    assert "vocab_size is '96' in REF and '97' in CANDIDATE" in done.err
    strange = copy(llama, tmp_path / "strange", config={"model_type": "gpt_oss"})
    done = run("parity", strange, strange)
    assert done.code == 1
    assert "`fp8convert verify`" in done.err


def torchrun(folder: Path, *words: object) -> tuple[list[str], list[str]]:
    """``fp8convert`` with ``words`` as two processes: exit codes of both, and what both said."""
    command = f"{BIN}/fp8convert {' '.join(map(str, words))}"
    script = f"{command} > $RANK.out 2> $RANK.err; echo $? > $RANK.code"
    start = [BIN / "torchrun", "--no-python", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*map(str, start), "bash", "-c", script],
                   capture_output=True, cwd=folder, timeout=300)  # fmt: skip
    codes = [(folder / f"{n}.code").read_text().strip() for n in (0, 1)]
    return codes, [(folder / f"{n}.{of}").read_text() for of in ("out", "err") for n in (0, 1)]


@pytest.mark.parametrize("same", [True, False])
def test_processes_of_torchrun_run_a_rank_each(
    llama: Path, other: Path, llama_ranks: Path, tmp_path: Path, same: bool
) -> None:
    words = (llama if same else other, llama_ranks, "--compute", "fp32", "--junit", "$RANK.xml")
    codes, said = torchrun(tmp_path, "parity", *words)
    assert codes == ["0" if same else "3"] * 2, said
    assert f"verdict: {'PASS' if same else 'FAIL'} (reduction-order)" in said[0]
    assert "2 ranks" in said[0]
    assert "detected" in said[0]
    assert said[1] == ""
    assert (tmp_path / "0.xml").exists()
    assert not (tmp_path / "1.xml").exists()


def test_an_error_of_one_process_ends_both(llama: Path, llama_ranks: Path, tmp_path: Path) -> None:
    broken = tmp_path / "ranks"
    shutil.copytree(llama_ranks, broken)
    (shard,) = (broken / "rank1").glob("*.safetensors")
    tensors = load_file(shard)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, shard, metadata={"format": "pt"})
    codes, said = torchrun(tmp_path, "parity", llama, broken)
    assert codes == ["1", "1"], said
    assert "o_proj.weight' is missing on rank 1" in said[3]
    assert "error: " in said[2]
    assert not any("Traceback" in text for text in said)
