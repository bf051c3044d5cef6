"""Options for what is beyond this machine: what they come to, which go together, what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fp8convert
from fp8convert import convert, executors
from fp8convert.cli.main import cli
from fp8convert.convert import Job, Manifest
from fp8convert.errors import Fp8ConvertError, UsageError
from fp8convert.hub.push import Push
from fp8convert.origin import Scratch
from fp8convert.settings import Settings

from .crash import contents

COMMANDS = {
    "to-bf16": [],
    "quantize": ["--scheme", "nvfp4"],
    "shard-for-tp": ["--tp", "2"],
    "unshard": [],
}
OPTIONS = ("--scratch", "--scratch-size", "--keep-downloads", "--push-to-hub", "--private",
           "--revision", "--drop-uploaded", "--parity-report", "--executor")  # fmt: skip


class AskedError(Fp8ConvertError):
    """What a command asks for, instead of doing it."""

    def __init__(self, executor: str, job: Job, settings: Settings, push: Push | None) -> None:
        super().__init__("asked")
        self.executor, self.job, self.settings, self.push = executor, job, settings, push


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run."""

    def execute(job: Job, settings: Settings, push: Push | None = None) -> Manifest:
        raise AskedError("", job, settings, push)

    def run(name: str, job: Job, settings: Settings, push: Push | None = None) -> Manifest:
        raise AskedError(name, job, settings, push)

    monkeypatch.setattr(convert, "execute", execute)
    monkeypatch.setattr(executors, "run", run)


@pytest.fixture(scope="module")
def source(
    tiny_fp8: Path, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Of each command."""
    ranks = tmp_path_factory.mktemp("ranks") / "ranks"
    fp8convert.shard_for_tp(tiny_bf16, ranks, 2, layout="hf")
    return {"to-bf16": tiny_fp8, "quantize": tiny_bf16, "shard-for-tp": tiny_bf16, "unshard": ranks}


def invoke(command: str, src: Path, dst: Path, *more: object) -> Result:
    words = [command, src, dst, *COMMANDS[command], "--quiet", *more]
    return CliRunner().invoke(cli, list(map(str, words)))


def asked(command: str, src: Path, dst: Path, *more: object) -> AskedError:
    """What it comes to."""
    found = invoke(command, src, dst, *more).exception
    assert isinstance(found, AskedError), found
    return found


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- What they come to


def test_nothing_is_asked_for(
    command: str, source: dict[str, Path], tmp_path: Path, asking: None
) -> None:
    found = asked(command, source[command], tmp_path / "dst")
    assert found.executor == ""
    assert found.settings.scratch == Scratch()
    assert found.push is None


@pytest.mark.parametrize(
    ("words", "scratch"),
    [
        (["--scratch", "here"], Scratch(Path("here"))),
        (["--scratch-size", "5GB"], Scratch(None, 5 * 10**9)),
        (["--keep-downloads"], Scratch(None, None, True)),
        (["--scratch", "/a/b", "--scratch-size", "1GiB", "--keep-downloads"],
         Scratch(Path("/a/b"), 1 << 30, True)),
    ],
)  # fmt: skip
def test_where_downloads_wait(
    command: str, source: dict[str, Path], tmp_path: Path, words: list[str], scratch: Scratch,
    asking: None,
) -> None:  # fmt: skip
    """Said of a folder too, which needs none."""
    assert asked(command, source[command], tmp_path / "dst", *words).settings.scratch == scratch
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "push"),
    [
        (["--push-to-hub", "org/name"], Push("org/name")),
        (["--push-to-hub", "org/name", "--private"], Push("org/name", private=True)),
        (["--push-to-hub", "org/name", "--revision", "r1"], Push("org/name", revision="r1")),
        (["--push-to-hub", "org/name", "--drop-uploaded"], Push("org/name", drop=True)),
        (["--drop-uploaded", "--revision", "a", "--private", "--push-to-hub", "o/n"],
         Push("o/n", True, "a", True)),
    ],
)  # fmt: skip
def test_where_to_upload(
    command: str, source: dict[str, Path], tmp_path: Path, words: list[str], push: Push,
    asking: None,
) -> None:  # fmt: skip
    found = asked(command, source[command], tmp_path / "dst", *words).push
    assert found is not None
    shared = ("repo", "private", "revision", "drop", "parity")
    assert [getattr(found, n) for n in shared] == [getattr(push, n) for n in shared]


def test_who_runs_it(command: str, source: dict[str, Path], tmp_path: Path, asking: None) -> None:
    """With all the rest."""
    words = ("--executor", "ray", "--scratch", "x", "--push-to-hub", "o/n", "--workers", 3)
    found = asked(command, source[command], tmp_path / "dst", *words)
    assert found.executor == "ray"
    assert found.settings.scratch == Scratch(Path("x"))
    assert found.settings.workers == 3
    assert found.push
    assert found.push.repo == "o/n"
    assert asked(command, source[command], tmp_path / "dst", "--executor", "local").executor == ""


def test_a_dry_run_runs_nowhere(
    command: str, source: dict[str, Path], tmp_path: Path, asking: None
) -> None:
    words = ("--dry-run", "--executor", "ray", "--push-to-hub", "o/n")
    done = invoke(command, source[command], tmp_path / "dst", *words)
    assert (done.exit_code, done.exception) == (0, None)
    assert not os.listdir(tmp_path)


def test_they_do_not_change_the_plan(
    command: str, source: dict[str, Path], tmp_path: Path, asking: None
) -> None:
    """A run may be gone on with by other means."""
    words = ("--executor", "ray", "--scratch", "x", "--push-to-hub", "o/n", "--drop-uploaded")
    ids = {asked(command, source[command], tmp_path / "dst", *more).job.plan.id
           for more in ((), words)}  # fmt: skip
    assert len(ids) == 1


def test_a_folder_into_a_folder_is_the_same_bytes(tiny_fp8: Path, tmp_path: Path) -> None:
    """With options for downloads that there are none of."""
    done = invoke("to-bf16", tiny_fp8, tmp_path / "a", "--scratch", tmp_path / "s",
                  "--scratch-size", "1kB", "--keep-downloads", "--executor", "local")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert invoke("to-bf16", tiny_fp8, tmp_path / "b").exit_code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# --- What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--private"], "go with --push-to-hub"),
        (["--revision", "main"], "go with --push-to-hub"),
        (["--drop-uploaded"], "go with --push-to-hub"),
        (["--private", "--drop-uploaded", "--executor", "ray"], "go with --push-to-hub"),
        (["--scratch-size", "much"], "'much' is not a size such as 5GB"),
        (["--scratch", "file"], "is a file"),
        (["--executor", "dask"], "'dask' is not one of"),
        (["--push-to-hub"], "requires an argument"),
    ],
)
def test_usage_errors(
    command: str, source: dict[str, Path], tmp_path: Path, words: list[str], message: str,
    asking: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = invoke(command, source[command], tmp_path / "dst", *words)
    assert done.exit_code == 2, done
    assert message in done.output
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "/a", "a/", "../b", "hf://a/b", "a b/c", "-a/b"]
)
def test_names_that_are_no_repository(
    source: dict[str, Path], tmp_path: Path, name: str, asking: None
) -> None:
    """Before anything is read or written."""
    done = invoke("to-bf16", tmp_path / "nothing", tmp_path / "dst", f"--push-to-hub={name}")
    assert isinstance(done.exception, UsageError), done
    assert "expected ORG/NAME" in str(done.exception)


@pytest.mark.parametrize("place", ["s3://bucket/x", "hf://org/name", "file:///tmp/x"])
def test_a_scratch_on_no_disk(
    command: str, source: dict[str, Path], tmp_path: Path, asking: None,
    monkeypatch: pytest.MonkeyPatch, place: str,
) -> None:  # fmt: skip
    """No folder of the name ``s3:`` is made."""
    monkeypatch.chdir(tmp_path)
    done = invoke(command, source[command], tmp_path / "dst", "--scratch", place)
    assert isinstance(done.exception, UsageError), done
    assert "expected a folder of this machine" in str(done.exception)
    with pytest.raises(UsageError, match="expected a folder of this machine"):
        Scratch(place)  # type: ignore[arg-type]
    assert not os.listdir(tmp_path)


def test_a_scratch_may_be_text() -> None:
    assert Scratch("a/b:c") == Scratch(Path("a/b:c"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), [("scratch", "Scratch"), ("push", "Push")])
def test_another_kind_of_thing_from_python(
    tiny_fp8: Path, tmp_path: Path, name: str, kind: str
) -> None:
    with pytest.raises(UsageError, match=rf"{name} 'x/y', expected a fp8convert.*\.{kind}$"):
        fp8convert.to_bf16(tiny_fp8, tmp_path / "dst", **{name: "x/y"})
    assert not os.listdir(tmp_path)


def test_executors_that_there_are_not(tiny_fp8: Path, tmp_path: Path) -> None:
    job = convert.prepare(tiny_fp8, tmp_path / "dst")
    with pytest.raises(UsageError, match="executor 'dask', expected one of local, ray"):
        executors.run("dask", job)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("name", [*COMMANDS, "inspect"])
def test_help_says_what_addresses_there_are(name: str) -> None:
    text = CliRunner().invoke(cli, [name, "--help"]).output
    assert "hf://org/name[@revision]" in text
    assert "s3://" in text
    assert "gs://" in text


def test_every_command_has_them_all(command: str) -> None:
    text = CliRunner().invoke(cli, [command, "--help"]).output
    for option in OPTIONS:
        assert f"  {option} " in text or f"  {option}\n" in text, option


# --- What is not loaded

CHECK = """
import sys
from fp8convert.cli.main import cli
cli.main({words!r}, standalone_mode=False)
heavy = {{"huggingface_hub", "fsspec", "ray", "s3fs", "requests", "httpx", "torch"}}
found = sorted(heavy & {{name.split(".")[0] for name in sys.modules}})
sys.exit(f"loaded {{found}}" if found else 0)
"""


def test_a_local_conversion_loads_none_of_it(
    command: str, source: dict[str, Path], tmp_path: Path
) -> None:
    words = [command, source[command], tmp_path / "dst", *COMMANDS[command], "--quiet"]
    code = CHECK.format(words=list(map(str, words)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dst" / "manifest.json").exists()


def test_the_check_finds_what_is_loaded() -> None:
    """A control."""
    code = CHECK.format(words=["--version"]).replace("import sys", "import sys, fsspec", 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "loaded ['fsspec']" in done.stderr


def test_stdout_has_the_outcome_alone(
    source: dict[str, Path], fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray prints there which nodes were lost, also where its logs are off."""
    execute = convert.execute

    def run(name: str, job: Job, settings: Settings, push: Push | None = None) -> Manifest:
        print("(raylet) The node with node id: 81cca75d has been marked dead")
        return execute(job, settings, push)

    monkeypatch.setattr(executors, "run", run)
    words = ["to-bf16", str(source["to-bf16"]), str(fast_path / "dst"), "--executor", "ray"]
    found = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(found.stdout)["target"] == str(fast_path / "dst")
