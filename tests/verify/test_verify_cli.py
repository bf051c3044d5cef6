"""``fp8convert verify`` as a user types it: table, JSON, JUnit, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fp8convert.cli.main import main

from ..test_cli import BIN, run
from .damage import add, drop, put_at
from .made import Made

NAN = put_at("model.norm.weight", (5,), float("nan"))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Typed = Callable[..., Done]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """The program in this process, where torch is loaded already."""

    def run_here(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["fp8convert", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        code = stopped.value.code
        return Done(code if isinstance(code, int) else -1, *capsys.readouterr())

    return run_here


def test_all_is_right(right: Made) -> None:
    done = run("verify", right.output("bf16"))
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [
        ["check", "result"], ["manifest", "ok"], ["headers", "ok"], ["index", "ok"],
        ["scales", "ok"], ["values", "ok"], ["config", "ok"],
    ]  # fmt: skip


def test_another_tools_output(right: Made, typed: Typed) -> None:
    done = typed("verify", right.output("v3"))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split(maxsplit=3)[:3] == ["manifest", "not", "checked"]
    assert "no manifest.json: another tool's output has none" in done.stdout


def test_a_failure_is_exit_code_3(right: Made, typed: Typed) -> None:
    folder = right.copied("bare bf16")
    NAN(folder)
    done = typed("verify", folder)
    assert (done.returncode, done.stderr) == (3, "")
    assert "\nvalues    FAIL" in done.stdout
    assert "\nvalues: 'model-0000" in done.stdout
    assert "tensor 'model.norm.weight': nan at [5], expected finite values\n" in done.stdout
    quiet = typed("verify", folder, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (3, "", "")


def test_a_file_that_is_damaged_is_exit_code_3(right: Made, typed: Typed) -> None:
    folder = right.copied("bare bf16")
    (folder / "model-00002-of-000005.safetensors").unlink()
    (folder / "model-00002-of-000005.safetensors").write_bytes(b"short")
    assert typed("verify", folder).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none"], 1, "'none' does not exist, expected a checkpoint folder"),
        ([".", "--against", "none"], 1, "error: "),
        ([".", "--sample", "0"], 2, "'0' is not a fraction above 0"),
        ([".", "--sample", "1.01"], 2, "'1.01' is not a fraction above 0"),
        ([".", "--sample", "nan"], 2, "'nan' is not a fraction above 0"),
        ([".", "--sample", "half"], 2, "'half' is not a fraction above 0"),
        ([".", "--junit", "no/such/place.xml"], 2, "--junit: no/such/place.xml is not a file"),
        ([".", "--junit", "/dev/null"], 2, "--junit: /dev/null is not a file"),
        ([".", "--junit", "."], 2, "--junit: . is not a file"),
        ([".", "--workers", "0"], 2, "--workers"),
        ([], 2, "Missing argument 'DST'"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], code: int, message: str,
    tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = typed("verify", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout == ""


def test_a_source_that_cannot_be_read(right: Made, tmp_path: Path, typed: Typed) -> None:
    done = typed("verify", right.output("bf16"), "--against", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: '{tmp_path}/none' does not exist, expected a checkpoint folder\n"
    )


def test_json(right: Made, typed: Typed) -> None:
    done = typed("verify", right.output("v3"), "--json", "--sample", "5%", "--seed", "7")
    report = json.loads(done.stdout)
    assert report["path"] == str(right.output("v3"))
    assert (report["verdict"], report["against"]) == ("pass", None)
    assert report["not_checked"] == ["manifest"]
    by_name = {c["name"]: c for c in report["checks"]}
    assert by_name["manifest"]["result"] == "not checked"
    assert by_name["values"]["counts"]["sample"] == 0.05
    assert by_name["values"]["counts"]["bytes"] < 13_484_240
    assert "a sample of 0.05, seed 7" in by_name["values"]["detail"]


def test_junit(right: Made, tmp_path: Path, typed: Typed) -> None:
    folder = right.copied("bare bf16")
    drop("lm_head.weight")(folder)
    file = tmp_path / "verify.xml"
    assert typed("verify", folder, "--against", right.output("v3"), "--junit", file).returncode == 3
    (suite,) = ET.parse(file).getroot()
    assert suite.get("name") == f"fp8convert verify {folder}"
    cases = {c.get("name"): c for c in suite}
    assert cases["manifest"].find("skipped") is not None
    assert cases["headers"].find("failure") is None
    failure = cases["config"].find("failure")
    assert failure is not None
    assert "no lm_head" in str(failure.get("message"))
    assert sum(c.find("failure") is not None for c in suite) == int(str(suite.get("failures"))) >= 2
    assert [p.name for p in tmp_path.iterdir()] == ["verify.xml"]


def test_names_hold_no_terminal_escapes(right: Made, tmp_path: Path, typed: Typed) -> None:
    folder = right.copied("bare bf16")
    name = "model.norm\x1b[2J]]>.weight"
    add("model-00005-of-000005.safetensors", {name: torch.tensor([float("inf")])})(folder)
    file = tmp_path / "out.xml"
    done = typed("verify", folder, "--junit", file)
    assert done.returncode == 3
    assert r"model.norm\x1b[2J]]>.weight" in done.stdout
    assert "\x1b" not in done.stdout
    (suite,) = ET.parse(file).getroot()
    assert r"model.norm\x1b[2J]]>.weight" in "".join(suite.itertext())


def test_help_has_examples_and_loads_nothing_heavy() -> None:
    done = run("verify", "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert "3 a check failed" in done.stdout
    code = (
        "import sys\nfrom fp8convert.cli.main import cli\n"
        "cli.main(['verify', '--help'], standalone_mode=False)\n"
        "assert not {'numpy', 'numba', 'torch', 'safetensors', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_bar_for_each_reading_on_a_terminal(right: Made) -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = [str(BIN / "fp8convert"), "verify", str(right.output("bf16"))]
    done = subprocess.run(words, stderr=writer, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    os.close(writer)
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "sums: 100%" in shown
    assert "values: 100%" in shown
