"""``fp8convert logits``: the file, what is said, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from fp8convert.reference.run import logits_of, open_model

from .commands import Run
from .models import copy, nan


def test_the_file_holds_tokens_and_their_logits(llama: Path, tmp_path: Path, run: Run) -> None:
    out, ids = tmp_path / "logits.safetensors", tmp_path / "ids.json"
    ids.write_text("[[5, 7, 9], [1, 0, 95]]")
    done = run("logits", llama, "--tokens", ids, "--out", out, "--compute", "fp32")
    assert done.code == 0, done.err
    assert f"{out}: logits [2, 3, 96] of 2 layers" in done.out
    assert "of a weight decoded at once" in done.out
    with safe_open(out, "pt") as f:
        assert sorted(f.keys()) == ["logits", "tokens"]
        tokens, logits = f.get_tensor("tokens"), f.get_tensor("logits")
    assert (tokens.dtype, tokens.tolist()) == (torch.int64, [[5, 7, 9], [1, 0, 95]])
    assert torch.equal(logits, logits_of(open_model(llama, "fp32"), tokens))
    assert logits.dtype == torch.float32
    assert not list(tmp_path.glob(".*"))
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


def test_as_json_by_a_seed_and_some_layers(tiny_fp8: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "logits.safetensors"
    words = ("--seed", 4, "--length", 6, "--batch", 2, "--layers", "0,2", "--json")
    done = run("logits", tiny_fp8, *words, "--out", out)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["tokens"] == {"batch": 2, "length": 6, "source": "seed 4"}
    assert (said["layers"], said["shape"]) == ([0, 2], [2, 6, 1024])
    assert said["source"]["scheme"] == "fp8-block"
    assert said["memory"]["peak_rss_bytes"] > said["memory"]["largest_band_bytes"] > 0
    with safe_open(out, "pt") as f:
        expected = logits_of(open_model(tiny_fp8), f.get_tensor("tokens"), [0, 2])
        assert torch.equal(f.get_tensor("logits"), expected)


def test_by_a_prompt_quietly(tiny_bf16: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "logits.safetensors"
    done = run("logits", tiny_bf16, "--prompt", "to be", "--out", out, "--layers", "0", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    with safe_open(out, "pt") as f:
        ids = f.get_tensor("tokens").tolist()
    assert ids == [Tokenizer.from_file(str(tiny_bf16 / "tokenizer.json")).encode("to be").ids]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one of --tokens FILE, --prompt TEXT, --seed N --length L"),
        (("--seed", 1, "--length", 2, "--prompt", "a"), "give one of --tokens FILE"),
        (("--seed", 1), "--seed needs --length"),
        (("--prompt", "a", "--length", 3), "--length and --batch are for --seed"),
        (("--prompt", "a", "--batch", 3), "--length and --batch are for --seed"),
        (("--tokens", "nothing.json"), "does not exist"),
        (("--seed", 1, "--length", 0), "--length"),
        (("--seed", 1, "--length", 2, "--compute", "int8"), "'int8' is not one of"),
        (("--seed", 1, "--length", 2, "--layers", "first"), "'first' is not a list of layers"),
        (("--seed", 1, "--length", 2, "--layers", "7"), "expected some of 0 to 1, in order"),
    ],
)
def test_usage_errors_exit_2(
    llama: Path, tmp_path: Path, run: Run, words: tuple[object, ...], message: str
) -> None:
    done = run("logits", llama, "--out", tmp_path / "out.safetensors", *words)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_nan_is_no_result(llama: Path, tmp_path: Path, run: Run) -> None:
    broken = copy(llama, tmp_path / "broken", {"model.norm.weight": nan})
    out = tmp_path / "out.safetensors"
    done = run("logits", broken, "--seed", 0, "--length", 3, "--out", out)
    assert done.code == 1
    assert "288 of 288 logits" in done.err
    assert "nothing was written" in done.err
    assert not out.exists()


def test_other_places_are_refused_before_the_work(llama: Path, tmp_path: Path, run: Run) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    for out, message in (
        (there, "exists, expected the name of a new file"),
        (tmp_path / "no" / "x.safetensors", "is not a file in a folder that is there"),
        (llama / "x.safetensors", "is inside the checkpoint"),
    ):
        done = run("logits", llama, "--seed", 0, "--length", 3, "--out", out)
        assert (done.code, message in done.err) == (1, True), done.err
    assert there.read_text() == "mine"
    assert not (llama / "x.safetensors").exists()


def test_a_write_that_fails_leaves_nothing(
    llama: Path, tmp_path: Path, run: Run, full_disk: None
) -> None:
    out = tmp_path / "out.safetensors"
    done = run("logits", llama, "--seed", 0, "--length", 3, "--out", out)
    assert done.code == 75
    assert "No space left" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["logits", "parity"])
def test_help_needs_no_pytorch(command: str) -> None:
    code = (
        "import sys; from fp8convert.cli.main import cli;"
        f"cli.main(['{command}', '--help'], standalone_mode=False);"
        "sys.exit(bool({'torch', 'numpy', 'safetensors', 'numba'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--layers" in done.stdout
