"""``shard-for-tp`` and ``unshard`` as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from .test_cli import BIN, run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def ranks(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sample for two ranks, by the command of its own."""
    target = tmp_path_factory.mktemp("ranks") / "mp2"
    done = run(tiny_fp8, target, "--tp", "2", program="shard-for-tp")
    assert done.returncode == 0, done.stderr
    return target


def test_files_of_layout_deepseek(ranks: Path, tiny_fp8: Path) -> None:
    companions = {"LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(files(ranks)) == companions | {
        "model0-mp2.safetensors", "model1-mp2.safetensors", "config.json", "model_args.json",
        "tp.json", "manifest.json",
    }  # fmt: skip
    for name in companions:
        assert (ranks / name).read_bytes() == (tiny_fp8 / name).read_bytes()
    config = json.loads((tiny_fp8 / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1
    wanted = {**config, "num_nextn_predict_layers": 0}
    assert json.loads((ranks / "config.json").read_text()) == wanted


@pytest.mark.parametrize("flags", [
    ("--hf-ckpt-path", "SRC", "--save-path", "DST", "--n-experts", "16", "--model-parallel", "2"),
    ("SRC", "DST", "--model-parallel", "2"),
    ("SRC", "--save-path", "DST", "--tp", "2", "--mtp", "drop", "--layout", "deepseek"),
])  # fmt: skip
@pytest.mark.parametrize("program", ["shard-for-tp", "fp8convert"])
def test_flags_of_the_published_script(
    program: str, flags: tuple[str, ...], ranks: Path, tiny_fp8: Path, tmp_path: Path
) -> None:
    words = [{"SRC": tiny_fp8, "DST": tmp_path / "dst"}.get(f, f) for f in flags]
    first = ["shard-for-tp"] if program == "fp8convert" else []
    done = run(*first, *words, program=program)
    assert done.returncode == 0, done.stderr
    same = files(tmp_path / "dst").items() - files(ranks).items()
    assert {name for name, _ in same} <= {"manifest.json"}  # n_experts is an option


@pytest.mark.parametrize(("flags", "said"), [
    ((), "give --tp N once"),
    (("--tp", "2", "--model-parallel", "2"), "give --tp N once"),
    (("--tp", "0"), "1<=x<=128"),
    (("--tp", "129"), "1<=x<=128"),
    (("--tp", "2", "--ranks", "2"), "ranks '(2,)', expected some of 0 to 1"),
    (("--tp", "2", "--ranks", "1-0"), "not a list of ranks"),
    (("--tp", "2", "--ranks", "x"), "not a list of ranks"),
    (("--tp", "2", "--layout", "vllm"), "'vllm' is not one of"),
    (("--tp", "2", "--weights", "fp7"), "'fp7' is not one of"),
    (("--tp", "2", "--pad-vocab", "64"), "for layout hf"),
    (("--tp", "2", "--experts", "cut"), "for layout hf"),
    (("--tp", "2", "--max-shard-size", "1GB"), "for layout hf"),
    (("--tp", "2", "--block", "64x64"), "block goes with weights that are encoded"),
    (("--tp", "2", "--save-path", "x"), "give DST once"),
])  # fmt: skip
def test_usage_errors(flags: tuple[str, ...], said: str, tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("shard-for-tp", tiny_fp8, tmp_path / "dst", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("flags", "said"), [
    (("--tp", "4"), "Numbers of ranks up to 64 that cut none: 1, 2."),
    (("--tp", "3"), "n_routed_experts is 16, which 3 ranks do not divide"),
    (("--tp", "2", "--n-experts", "8"), "n_experts is 8, but n_routed_experts is 16"),
    (("--tp", "4", "--misaligned", "reblock"), "layout deepseek knows blocks of 128 x 128 only"),
    (("--tp", "2", "--weights", "nvfp4"), "layout deepseek holds FP8 in blocks of 128 x 128"),
])  # fmt: skip
def test_refusals(flags: tuple[str, ...], said: str, tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("shard-for-tp", tiny_fp8, tmp_path / "dst", *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_some_ranks_are_those_of_all(ranks: Path, tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("shard-for-tp", tiny_fp8, tmp_path / "dst", "--tp", "2", "--ranks", "1")
    assert done.returncode == 0, done.stderr
    some, every = files(tmp_path / "dst"), files(ranks)
    assert some.keys() == every.keys() - {"model0-mp2.safetensors"}
    assert all(every[n] == data for n, data in some.items() if n != "manifest.json")
    whole = run("fp8convert", "unshard", tmp_path / "dst", tmp_path / "whole", program="fp8convert")
    assert whole.returncode == 2  # the program's name is no command
    alone = run("unshard", tmp_path / "dst", tmp_path / "whole")
    assert alone.returncode == 1
    assert "'model0-mp2.safetensors' missing" in alone.stderr


def test_json_and_dry_run(tiny_fp8: Path, tmp_path: Path) -> None:
    flags = ("--tp", "2", "--layout", "hf", "--json")
    plan = run("shard-for-tp", tiny_fp8, tmp_path / "dst", *flags, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert not any(tmp_path.iterdir())
    done = run("shard-for-tp", tiny_fp8, tmp_path / "dst", *flags)
    assert done.returncode == 0, done.stderr
    planned, found = json.loads(plan.stdout), json.loads(done.stdout)
    assert planned["id"] == found["plan"]
    assert {t["file"] for t in planned["tasks"]} == {
        f["name"] for f in found["files"] if f["name"].endswith(".safetensors")
    }
    again = run("shard-for-tp", tiny_fp8, tmp_path / "dst", *flags[:-1])
    assert "already done" in again.stdout


def test_unshard_says_what_it_did(ranks: Path, tmp_path: Path) -> None:
    done = run("unshard", ranks, tmp_path / "dst")
    assert done.returncode == 0, done.stderr
    assert "tensors kept" in done.stdout
    assert f"done: {tmp_path / 'dst'}" in done.stdout


def test_unshard_refuses_what_are_no_ranks(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("unshard", tiny_fp8, tmp_path / "dst")
    assert done.returncode == 1
    assert "no files of tensor-parallel ranks" in done.stderr
    layout = run("unshard", tiny_fp8, tmp_path / "dst", "--layout", "hf")
    assert layout.returncode == 2
    assert "layout goes with tp" in layout.stderr


@pytest.mark.parametrize("when", [0.02, 0.08, 0.2])
def test_a_killed_run_is_resumed(when: float, tiny_fp8: Path, tmp_path: Path) -> None:
    """Whenever the kill comes: the end is that of a run that was left alone."""
    words = [BIN / "shard-for-tp", tiny_fp8, tmp_path / "dst", "--tp", "2", "--layout", "hf",
             "--quiet"]  # fmt: skip
    child = subprocess.Popen([str(w) for w in words])
    try:
        child.wait(when + 0.15)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = run(*words[1:], program="shard-for-tp")
    assert done.returncode == 0, done.stderr
    alone = run(tiny_fp8, tmp_path / "alone", *words[3:], program="shard-for-tp")
    assert alone.returncode == 0, alone.stderr
    assert files(tmp_path / "dst") == files(tmp_path / "alone")
