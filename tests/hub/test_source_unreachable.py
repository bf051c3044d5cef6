"""A hub that does not answer: what the user is told, and when; and what would help."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import snapshot_download

import fp8convert
from fp8convert.cli import progress
from fp8convert.convert import prepare
from fp8convert.errors import ResumableError
from fp8convert.hub import errors
from fp8convert.settings import Progress

from .faults import Fault
from .models import contents
from .server import Hub

pytestmark = pytest.mark.usefixtures("hasty")

REPO = "org/model"
AT = f"hf://{REPO}"
NOTE = f"note: {AT}@main: the hub cannot be reached, or ended it: "
FIRST = "; next try in 0.01 s, 2 left"
OFFLINE = "HF_HUB_OFFLINE=1"


def run(*words: object) -> Result:
    from fp8convert.cli.main import cli

    return CliRunner().invoke(cli, [str(word) for word in words])


def notes(done: Result) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("note: hf://")]


class TestTold:
    """Before the first pause, in one line."""

    def words(self, command: str, tmp_path: Path) -> list[object]:
        plan = tmp_path / "plan.json"
        return {
            "inspect": ["inspect", AT],
            "convert": ["to-bf16", AT, tmp_path / "dst"],
            "plan": ["plan", "to-bf16", AT, tmp_path / "dst", "--out", tmp_path / "other.json"],
            "run-task": ["run-task", plan, "--index", 0, "--count", 1],
            "finalize": ["finalize", plan],
        }[command]

    @pytest.mark.parametrize("command", ["inspect", "convert", "plan", "run-task", "finalize"])
    def test_by(self, command: str, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        if command in ("run-task", "finalize"):
            plan = ["plan", "to-bf16", AT, tmp_path / "dst", "--out", tmp_path / "plan.json"]
            assert run(*plan).exit_code == 0
        hub.down()
        done = run(*self.words(command, tmp_path), "--json")
        (said,) = notes(done)
        assert said.startswith(f"note: {AT}@")
        assert "the hub cannot be reached" in said
        assert said.endswith(FIRST)
        assert isinstance(done.exception, ResumableError)
        assert done.stdout == ""

    @pytest.mark.parametrize("command", ["convert", "plan"])
    def test_not_if_quiet(self, command: str, chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.down()
        done = run(*self.words(command, tmp_path), "--quiet")
        assert isinstance(done.exception, ResumableError)
        assert done.stderr == ""

    def test_when_it_answers_again(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        fault = hub.faults.add(Fault("/revision/", drop=True, times=1))
        done = run("to-bf16", AT, tmp_path / "dst", "--json")
        assert (done.exit_code, fault.struck) == (0, 1)
        assert [said.startswith(NOTE) for said in notes(done)] == [True]
        assert contents(tmp_path / "dst") == expected

    def test_mid_run(
        self, chain: Path, expected: dict[str, bytes], hub: Hub, tmp_path: Path
    ) -> None:
        hub.add(REPO, chain)
        hub.faults.add(Fault("cdn/.*00003-of", status=500, skip=2, times=1))
        done = run("to-bf16", AT, tmp_path / "dst")
        (said,) = notes_of_shards(done)
        assert "the hub answers 500" in said
        assert contents(tmp_path / "dst") == expected

    def test_of_a_commit_before_huggingface_hub_tries_again_by_itself(
        self, chain: Path, hub: Hub
    ) -> None:
        """It does so for half a minute where listings are asked for, and says nothing."""
        at = f"{AT}@{hub.add(REPO, chain)}"
        fault = hub.faults.add(Fault("", drop=True))
        assert notes(run("inspect", at))
        assert fault.struck == 3  # tries of ours
        assert {r.path.split("/")[5] for r in hub.log} == {"revision"}


def notes_of_shards(done: Result) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("note: 'model-")]


class TestLibrary:
    """Nothing is printed; its log has it."""

    def test_log(
        self, hub: Hub, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        hub.down()
        caplog.set_level(logging.INFO, "fp8convert")
        with pytest.raises(ResumableError):
            prepare(AT, tmp_path / "dst")
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("fp8convert")]
        assert [text.rsplit("; ")[-1] for text in ours] == [
            "next try in 0.01 s, 2 left", "next try in 0.01 s, 1 left"
        ]  # fmt: skip
        assert capfd.readouterr() == ("", "")

    def test_no_log_that_nobody_asked_for(
        self, hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where logging was never set up: warnings would be printed then, by Python."""
        monkeypatch.setattr(logging.getLogger("fp8convert"), "level", logging.NOTSET)
        monkeypatch.setattr(logging.getLogger("fp8convert"), "propagate", False)
        with pytest.raises(ResumableError):
            errors.patiently(refuse, "it")
        assert capfd.readouterr() == ("", "")


def refuse() -> None:
    raise ConnectionError("no")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestMeter:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        made = SimpleNamespace(now=1.0)
        made.monotonic = lambda: made.now
        monkeypatch.setattr(progress, "time", made)
        return made

    def say(self, clock: Any, times: Iterable[float]) -> None:
        for now in times:
            clock.now = now
            errors.LOG.info("at %g", now)

    def test_one_in_ten_seconds(self, clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
        with progress.Meter(quiet=False):
            self.say(clock, [1, 1, 2, 4, 10.9, 11, 12, 30])
        self.say(clock, [50])
        assert capsys.readouterr().err == "note: at 1\nnote: at 11\nnote: at 30\n"

    def test_above_the_bar(self, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        with progress.Meter(quiet=False) as meter:
            meter(Progress(1, 100, 0))
            self.say(clock, [2])
            meter(Progress(2, 100, 0))
        assert "\rnote: at 2\n" in screen.getvalue()

    def test_a_closed_terminal(self, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        class Closed(Terminal):
            def write(self, text: str) -> int:
                raise OSError(5, "closed")

        monkeypatch.setattr(sys, "stderr", Closed())
        with progress.Meter(quiet=False):
            self.say(clock, [2, 20])


class TestCached:
    """The error says so where the cache may do."""

    def refused(self, tmp_path: Path, at: str = AT) -> str:
        with pytest.raises(ResumableError) as e:
            prepare(at, tmp_path / "dst")
        return str(e.value)

    @pytest.mark.parametrize("revision", ["", "@{sha}"])
    def test_weights(self, revision: str, chain: Path, hub: Hub, tmp_path: Path) -> None:
        sha = hub.add(REPO, chain)
        snapshot_download(REPO, revision=sha if revision else None)
        hub.down()
        said = self.refused(tmp_path, AT + revision.format(sha=sha))
        assert f"has files of its commit {sha}: with {OFFLINE} they are read" in said

    def test_the_commit_of_an_unfinished_run(self, chain: Path, hub: Hub, tmp_path: Path) -> None:
        first = hub.add(REPO, chain)
        hub.faults.add(Fault("LICENSE", drop=True))
        with pytest.raises(ResumableError):
            fp8convert.to_bf16(AT, tmp_path / "dst")
        hub.faults.clear()
        hub.put(REPO, {"config.json": b"{}"})
        for revision in (first, "main"):
            snapshot_download(REPO, revision=revision)
        hub.down()
        assert f"has files of its commit {first}: " in self.refused(tmp_path)

    @pytest.mark.parametrize("names", [[], ["*.json"]])
    def test_no_weights(self, names: list[str], chain: Path, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, chain)
        if names:
            snapshot_download(REPO, allow_patterns=names)
        hub.down()
        assert OFFLINE not in self.refused(tmp_path)
