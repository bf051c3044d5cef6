"""The command lines of plan, run-task and finalize: options, what they print, exit codes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fp8convert.cli import planned, to_bf16
from fp8convert.cli.main import COMMANDS as ALL
from fp8convert.cli.main import cli
from fp8convert.cli.plan import plan_command
from fp8convert.errors import TargetError, UsageError
from fp8convert.planfile import COMMANDS

from ..crash import contents

CUT = ("--max-shard-size", "500")  # five files of mini


def run(*argv: object) -> Result:
    """One command; errors of ours as they are raised."""
    return CliRunner().invoke(cli, [str(a) for a in argv], catch_exceptions=True)


def done(*argv: object) -> str:
    """What it prints on stdout; it must end well."""
    found = run(*argv)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout


# --- Options


@pytest.mark.parametrize("name", COMMANDS)
def test_plan_has_the_options_that_shape_it(name: str) -> None:
    """All fields of the options, as the command has them; none of a run."""
    command, of_run = plan_command.commands[name], planned.command_of(name)
    fields = {f.name for f in dataclasses.fields(COMMANDS[name])}
    names = [p.name for p in command.params]
    assert {*names} == fields | {"src", "dst", "out", "quiet", "as_json"}
    assert len(names) == len({*names})
    theirs = {p.name: p for p in of_run.params}
    for param in command.params:
        if param.name in fields:
            other = theirs[param.name]
            assert (param.opts, param.type, param.multiple) == (
                other.opts, other.type, other.multiple,
            )  # fmt: skip
            assert param.get_default(click.Context(command)) == other.get_default(
                click.Context(of_run)
            )
    assert all(p.required for p in command.params if p.name in ("src", "dst", "out"))


def test_the_commands_stay_as_they_are() -> None:
    """Copies were changed, not theirs."""
    params = {p.name: p for p in to_bf16.to_bf16_command.params}
    assert not params["src"].required
    assert "workers" in params


def test_run_task_and_finalize_have_those_of_a_run() -> None:
    theirs = {p.name: p.opts for p in to_bf16.to_bf16_command.params}
    for name, own, taken in (
        ("run-task", {"plan", "index", "count"}, {
            "workers", "memory", "io", "scratch", "scratch_size", "keep_downloads", "quiet",
            "as_json"}),
        ("finalize", {"plan"}, {"quiet", "as_json"}),
    ):  # fmt: skip
        command = cli.get_command(click.Context(cli), name)
        assert command
        assert {p.name for p in command.params} == own | taken
        assert all(p.opts == theirs[p.name] for p in command.params if p.name in taken)


@pytest.mark.parametrize("argv", [["plan"], *(["plan", n] for n in COMMANDS), ["run-task"],
                                  ["finalize"]])  # fmt: skip
def test_help_has_examples_that_parse(argv: list[str]) -> None:
    text = done(*argv, "--help")
    examples = re.findall(r"(?m)^ +fp8convert (.*)$", text)
    assert examples
    assert {*argv} & {*shlex.split(examples[0])}
    for example in examples:
        name, *rest = shlex.split(example)
        command = cli.get_command(click.Context(cli), name)
        assert command
        if name == "plan":
            command, rest = plan_command.commands[rest[0]], rest[1:]
        if "$" not in example:
            command.make_context(name, rest)  # or it raises a usage error


def test_they_are_listed() -> None:
    assert {"plan", "run-task", "finalize"} <= ALL.keys()
    text = done("--help")
    for name in ("plan", "run-task", "finalize"):
        assert re.search(rf"(?m)^  {name} ", text)


# --- What they print


def test_in_words(mini: Path, fast_path: Path) -> None:
    """Everything once, as docs/distributed.md shows it."""
    file, dst = fast_path / "the plan.json", fast_path / "dst"
    said = done("plan", "to-bf16", mini, dst, *CUT, "--out", file).splitlines()
    assert re.fullmatch(r"plan         [0-9a-f]{64}", said[0])
    assert said[1] == "tasks        5"
    assert re.fullmatch(r"bytes in     [0-9,]+ \(.* kB\)", said[2])
    assert re.fullmatch(r"bytes out    [0-9,]+ \(.* kB\)", said[3])
    assert said[4] == f"written to   {file}"
    assert said[6:] == [
        f"  fp8convert run-task '{file}' --index I --count N", f"  fp8convert finalize '{file}'",
    ]  # fmt: skip
    told = done("run-task", file, "--index", 1, "--count", 2)
    assert re.fullmatch(r"2 of 5 tasks are this worker's, \d+.\d\d kB: 2 done, in \d+.\d s\n", told)
    told = done("run-task", file, "--index", 0, "--count", 1)
    assert "5 of 5 tasks are this worker's" in told
    assert "3 done, 2 were there already, in" in told
    assert "0 of 5 tasks are this worker's, 0 B: 0 done" in done(
        "run-task", file, "--index", 7, "--count", 9
    )
    assert "tasks        5, 5 of them done" in done(
        "plan", "to-bf16", mini, dst, *CUT, "--out", file
    )
    said = done("finalize", file).splitlines()
    assert said[0].startswith("3 weights decoded to bfloat16, 3 tensors kept")
    assert re.fullmatch(r".* read, .* written", said[1])
    assert said[2:] == [f"done: {dst}"]
    already = f"already done: {dst} is finished, by this very plan"
    for argv in (["finalize", file], ["run-task", file, "--index", 0, "--count", 2],
                 ["plan", "to-bf16", mini, dst, *CUT, "--out", file], ["finalize", file],
                 ["run-task", file, "--index", 1, "--count", 2]):  # fmt: skip
        assert done(*argv).splitlines()[-1] == already


def test_in_json(mini: Path, fast_path: Path) -> None:
    file, dst = fast_path / "plan.json", fast_path / "dst"
    said = json.loads(done("plan", "to-bf16", mini, dst, *CUT, "--out", file, "--json"))
    plan = json.loads(file.read_text())
    assert said == {
        "plan": plan["plan"], "run": plan["run"], "out": str(file), "target": str(dst),
        "already_done": False, "tasks": 5, "tasks_done": 0, "bytes_in": plan["bytes_in"],
        "bytes_out": plan["bytes_out"], "next": [
            f"fp8convert run-task {file} --index I --count N", f"fp8convert finalize {file}"],
    }  # fmt: skip
    said = json.loads(done("run-task", file, "--index", 1, "--count", 3, "--json"))
    assert {k: v for k, v in said.items() if k not in ("seconds", "files")} == {
        "plan": plan["plan"], "run": plan["run"], "target": str(dst), "already_done": False,
        "tasks": 5, "index": 1, "count": 3, "numbers": [1, 4], "done": 2, "there": 0,
    }  # fmt: skip
    assert [f["name"] for f in said["files"]] == [plan["tasks"][n]["file"] for n in (1, 4)]
    done("run-task", file, "--index", 0, "--count", 1, "--quiet")
    said = json.loads(done("finalize", file, "--json"))
    assert (said["target"], said["already_done"], said["seconds"]) == (str(dst), False, None)
    assert said["files"][:2] == json.loads((dst / "manifest.json").read_text())["files"][:2]
    assert json.loads(done("run-task", file, "--index", 0, "--count", 2, "--json"))["already_done"]
    assert json.loads(done("finalize", file, "--json"))["already_done"]


def test_quiet(mini: Path, fast_path: Path) -> None:
    """Not a word, on neither stream."""
    file = fast_path / "plan.json"
    for argv in (["plan", "to-bf16", mini, fast_path / "dst", "--out", file],
                 ["run-task", file, "--index", 0, "--count", 1], ["finalize", file]):  # fmt: skip
        assert run(*argv, "--quiet").output == ""


@pytest.mark.parametrize("name", ["quantize", "shard-for-tp"])
def test_each_command_has_its_summary(name: str, tiny_bf16: Path, fast_path: Path) -> None:
    """That of a local run, but for the time."""
    more = {"quantize": ["--scheme", "fp8-block"], "shard-for-tp": ["--tp", "2"]}[name]
    file = fast_path / "plan.json"
    done("plan", name, tiny_bf16, fast_path / "dst", *more, "--out", file)
    done("run-task", file, "--index", 0, "--count", 1)
    here = done("finalize", file)
    local = done(name, tiny_bf16, fast_path / "local", *more)
    assert re.sub(r"written in .*", "written", local).replace("local", "dst") == here
    assert contents(fast_path / "local") == contents(fast_path / "dst")


# --- Errors


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run-task", "plan.json", "--index", "3", "--count", "3"], "expected 0 to 2"),
        (["run-task", "plan.json", "--index", "-1", "--count", "3"], "-1 is not in the range"),
        (["run-task", "plan.json", "--index", "0", "--count", "0"], "0 is not in the range"),
        (["run-task", "plan.json", "--index", "0"], "Missing option '--count'"),
        (["run-task", "plan.json", "--count", "2"], "Missing option '--index'"),
        (["run-task", "--index", "0", "--count", "2"], "Missing argument 'PLAN.json'"),
        (["finalize"], "Missing argument 'PLAN.json'"),
        (["plan", "to-bf16", "src", "dst"], "Missing option '--out'"),
        (["plan", "to-bf16", "src", "--out", "p"], "Missing argument 'DST'"),
        (["plan", "quantize", "src", "dst", "--out", "p"], "Missing option '--scheme'"),
        (["plan", "shard-for-tp", "src", "dst", "--out", "p"], "Missing option '--tp'"),
        (["plan", "to-bf16", "src", "dst", "--out", "no/p"], "not a file in a folder"),
        (["plan", "to-bf16", "src", "dst", "--out", "/dev/null"], "not a file in a folder"),
        (["plan", "to-bf16", "src", "dst", "--out", "p", "--workers", "2"], "--workers"),
        (["plan", "verify", "src"], "No such command 'verify'"),
    ],
)
def test_usage(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(*argv)
    assert found.exit_code == 2
    assert words in found.output
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_not_followed_by_what_is_left(mini: Path, fast_path: Path) -> None:
    """What is there is another's, or to go on; where it is stands in the words themselves."""
    file = fast_path / "plan.json"
    done("plan", "to-bf16", mini, fast_path / "dst", *CUT, "--out", file)
    found = run("finalize", file)
    assert isinstance(found.exception, TargetError)
    assert "5 of 5 tasks are not done" in str(found.exception)
    assert "Unfinished work" not in str(found.exception)
    found = run("run-task", file, "--index", 0, "--count", 1, "--memory", "9MB")
    assert isinstance(found.exception, UsageError)
    assert "Unfinished work" not in str(found.exception)


def test_warnings_are_told_by_who_plans(mini: Path, fast_path: Path) -> None:
    index = mini / "model.safetensors.index.json"
    source = fast_path / "src"
    source.mkdir()
    for path in mini.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    said = json.loads(index.read_text())
    said["metadata"]["total_size"] += 1
    (source / index.name).write_text(json.dumps(said))
    found = run("plan", "to-bf16", source, fast_path / "dst", "--out", fast_path / "plan.json")
    assert "warning: model.safetensors.index.json: metadata.total_size" in found.stderr
    assert found.exit_code == 0
