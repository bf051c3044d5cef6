"""The commands as a user types them: outputs, exit codes, both right and wrong."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def run(
    *arguments: object, program: str = "fp8convert", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def test_to_bf16_prints_a_summary_and_exits_0(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("to-bf16", tiny_fp8, tmp_path / "dst")
    assert done.returncode == 0, done.stderr
    assert "176 weights decoded to bfloat16, 31 tensors kept, 176 scales dropped" in done.stdout
    assert f"done: {tmp_path / 'dst'}" in done.stdout
    again = run("to-bf16", tiny_fp8, tmp_path / "dst")
    assert (again.returncode, "already done" in again.stdout) == (0, True)
    other = run("to-bf16", tiny_fp8, tmp_path / "dst", "--dtype", "float32")
    assert other.returncode == 1
    assert "options.dtype: 'bfloat16' then, 'float32' now" in other.stderr


def test_the_published_scripts_flags_do_the_same(tiny_fp8: Path, tmp_path: Path) -> None:
    flags = ("--input-fp8-hf-path", tiny_fp8, "--output-bf16-hf-path", tmp_path / "a")
    assert run("to-bf16", *flags).returncode == 0
    assert run("to-bf16", tiny_fp8, tmp_path / "b").returncode == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give SRC once"),
        (["src"], "give DST once"),
        (["src", "dst", "--input-fp8-hf-path", "src"], "give SRC once"),
        (["src", "dst", "--dtype", "int8"], "'int8' is not one of"),
        (["src", "dst", "--workers", "0"], "--workers"),
        (["src", "dst", "--memory", "lots"], "'lots' is not a size such as 5GB"),
        (["src", "dst", "--memory", "10MiB"], "too little for"),
        (["src", "dst", "--max-shard-size", "-5GB"], "is not a size"),
        (["src", "dst", "--max-shard-size", "0"], "expected a positive number"),
        (["src", "dst", "--no-such-option"], "No such option"),
    ],
)
def test_usage_errors_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("to-bf16", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_refusals_exit_1_with_one_clean_message(tmp_path: Path) -> None:
    done = run("to-bf16", tmp_path / "nothing", tmp_path / "dst")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: '{tmp_path}/nothing' does not exist, expected a checkpoint folder\n"
    )


def test_a_failed_run_says_where_its_unfinished_work_is(tiny_fp8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp8, tmp_path / "src")
    shard = tmp_path / "src" / "model-00003-of-000005.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] = 0x7F  # FP8 codes come last: one becomes NaN
    shard.write_bytes(data)
    done = run("to-bf16", tmp_path / "src", tmp_path / "dst")
    assert done.returncode == 1
    assert "a NaN code at row" in done.stderr
    assert f"Unfinished work is in {tmp_path / '.dst.fp8convert'}" in done.stderr
    assert not (tmp_path / "dst").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("to-bf16", tiny_fp8, tmp_path / "dst", "--dry-run")
    assert done.returncode == 0
    for label in ("bytes in", "bytes out", "disk needed", "free", "peak memory", "tasks        5"):
        assert label in done.stdout
    assert not list(tmp_path.iterdir())
    plan = json.loads(run("to-bf16", tiny_fp8, tmp_path / "dst", "--dry-run", "--json").stdout)
    assert plan["disk_needed"] == plan["bytes_out"] > plan["bytes_in"] > 0
    assert {"disk_free", "peak_memory", "workers", "tasks", "id"} <= set(plan)
    assert not list(tmp_path.iterdir())


def test_json_summary_is_one_document_on_stdout(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("to-bf16", tiny_fp8, tmp_path / "dst", "--json", "--quiet", "--workers", "2")
    facts = json.loads(done.stdout)
    assert facts["weights_decoded"] == 176
    assert not facts["already_done"]
    assert done.stderr == ""
    assert json.loads(run("to-bf16", tiny_fp8, tmp_path / "dst", "--json").stdout)["already_done"]


def test_quiet_says_nothing(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("to-bf16", tiny_fp8, tmp_path / "dst", "--quiet", "--io", "buffered")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_warnings_reach_the_user(tiny_fp8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp8, tmp_path / "src")
    (tmp_path / "src" / "extra.safetensors").write_bytes(b"anything")
    done = run("to-bf16", tmp_path / "src", tmp_path / "dst")
    assert done.returncode == 0
    assert "warning: 'extra.safetensors' not part of the checkpoint" in done.stderr
    strict = run("to-bf16", tmp_path / "src", tmp_path / "strict", "--strict")
    assert strict.returncode == 1
    assert not (tmp_path / "strict").exists()


def test_inspect(tiny_fp8: Path, tmp_path: Path) -> None:
    done = run("inspect", tiny_fp8)
    assert done.returncode == 0
    assert "deepseek_v3" in done.stdout
    assert "MTP layers: [3]" in done.stdout
    report = json.loads(run("inspect", tiny_fp8, "--json").stdout)
    assert report["tensors"] == 383
    shutil.copytree(tiny_fp8, tmp_path / "src")
    config = json.loads((tmp_path / "src" / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "zip"
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    broken = run("inspect", tmp_path / "src")
    assert broken.returncode == 1
    assert "problem: config.json: quantization_config.quant_method is 'zip'" in broken.stdout
    assert run("inspect", tmp_path / "none").returncode == 1


def test_inspect_prints_no_terminal_escapes(tiny_fp8: Path, tmp_path: Path) -> None:
    source = tmp_path / "src\x1b[31m"
    shutil.copytree(tiny_fp8, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"model_type": "a\x1b[2J", "architectures": ["b\n\x1b[2J", "c" * 999]})
    )
    done = run("inspect", source)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "(999 characters)" in done.stdout
    assert run("inspect", tiny_fp8).stdout.splitlines()[1] == (
        "family      deepseek_v3 (DeepseekV3ForCausalLM)"
    )


def test_a_failure_names_the_unfinished_work(tiny_fp8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp8, tmp_path / "src")
    shard = max((tmp_path / "src").glob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start:] = b"\xff" * (len(raw) - start)  # NaN, as a code and as a scale
    shard.write_bytes(raw)
    done = run("to-bf16", tmp_path / "src", tmp_path / "dst", "--quiet")
    state = tmp_path / ".dst.fp8convert"
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        f"Unfinished work is in {state} (remove it to give up)."
    ]
    with (state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another run would: its work is not ours to remove
        busy = run("to-bf16", tmp_path / "src", tmp_path / "dst", "--quiet")
    assert busy.returncode == 1
    assert "another run is writing" in busy.stderr
    assert "Unfinished" not in busy.stderr


@pytest.mark.parametrize(
    "command", ["", "to-bf16", "inspect", "make-sample", "shard-for-tp", "unshard"]
)
def test_help_has_examples_and_loads_nothing_heavy(command: str) -> None:
    done = run(*filter(None, [command]), "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    code = (
        "import sys\nfrom fp8convert.cli.main import cli\n"
        f"cli.main({[*filter(None, [command]), '--help']!r}, standalone_mode=False)\n"
        "assert not {'numpy', 'numba', 'torch', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_progress_bar_on_a_terminal(tiny_fp8: Path, tmp_path: Path) -> None:
    import os
    import pty
    import struct
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = [str(BIN / "fp8convert"), "to-bf16", str(tiny_fp8), str(tmp_path / "dst")]
    done = subprocess.run(words, stderr=writer, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    os.close(writer)
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "writing: 100%" in shown
    assert "B/s]" in shown


def test_version() -> None:
    from fp8convert import __version__

    assert run("--version").stdout == f"fp8convert, version {__version__}\n"


def test_unknown_command_exits_2() -> None:
    done = run("to-bf17")
    assert done.returncode == 2
    assert "No such command 'to-bf17'" in done.stderr
