"""Commands other than conversions in a terminal, streams that are closed, and controls."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fp8convert.cli import stopping

from .lab import Lab
from .screen import screen
from .tally import Tally
from .terminal import PROGRAM, RESUME, once, press, started, twice, wrong


@pytest.mark.parametrize(
    ("text", "lines", "column"),
    [
        ("", [""], 0),
        ("a\r\nb", ["a", "b"], 1),
        ("abc\rx\r\n", ["xbc", ""], 0),
        ("abc\r\x1b[Kx", ["x"], 1),
        ("a\r\nb\x1b[A\rc\r\n", ["c", "b"], 0),
        ("bar 1\rbar 2^C\r\nerror: x\r\n", ["bar 2^C", "error: x", ""], 0),
    ],
)
def test_the_screen(text: str, lines: list[str], column: int) -> None:
    assert screen(text) == (lines, column)


# --- Other commands


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "TARGET"),
        ("verify", "TARGET", "--against", "SOURCE"),
        ("logits", "SOURCE", "--seed", "0", "--length", "4", "--out", "NEW"),
        ("parity", "SOURCE", "TARGET", "--length", "4"),
        ("inspect", "SOURCE"),
    ],
    ids=" ".join,
)
def test_a_command_that_converts_nothing(words: tuple[str, ...], made: Lab) -> None:
    """Also while it still imports, which torch takes a while for; it leaves nothing."""
    work = made.by_name["to-bf16"]
    new = made.new().parent / "new.safetensors"
    places = {"TARGET": made.root / "expected-to-bf16", "SOURCE": work.source, "NEW": new}
    codes = []
    for most in (0.0, 1.0):
        with started(made, None, random.Random(1), [places.get(w, w) for w in words]) as run:
            run.pause(most)
            if not run.ended:
                run.terminal.press(b"\x03")
            code = run.terminal.end()
            codes.append(code)
            shown = run.terminal.shown
            if code != 0:
                assert wrong(run, code) == "", (code, shown)
            assert "Traceback" not in shown
        assert os.listdir(new.parent) == [] or code == 0
    assert codes[0] == 75


def test_early(made: Lab) -> None:
    """The very first moment: nothing is made, not even a folder."""
    with started(made, made.works[0], random.Random(1)) as run:
        run.terminal.press(b"\x03")
        assert run.terminal.end() == 75
        assert wrong(run, 75) == "", run.terminal.shown
        assert {p.name for p in run.target.parent.iterdir()} <= {"begun", "slow"}


# --- Streams


def test_nohup(made: Lab) -> None:
    """A window that is closed is nothing to it, and a bar that nobody sees no reason to end.

    Only that nobody heard of the end is told by the exit code.
    """
    work = made.by_name["to-bf16"]
    with started(made, work, random.Random(1), shell='trap "" HUP; exec "$0" "$@"') as run:
        run.terminal.until(lambda: "%|" in run.terminal.shown or run.ended)
        assert not run.ended
        run.terminal.hang_up()
        assert run.terminal.end() == 75
        assert work.ended_right(run.target)
        assert made.run(work, run.target).out.startswith("already done: ")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(made: Lab, closed: str) -> None:
    """Nothing that is written to a stream comes to be in a file that got its number."""
    for work in made.works[:2]:
        target = made.new()
        words = ["/bin/sh", "-c", f'exec "$0" "$@" {closed}', PROGRAM, *work.argv(target)]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr
        assert work.ended_right(target)


def test_a_pipe_that_nobody_reads(made: Lab) -> None:
    """What was to be said is lost, which the exit code says; the target is there."""
    work, target = made.by_name["to-bf16"], made.new()
    read, write = os.pipe()
    os.close(read)
    words = [str(w) for w in (PROGRAM, *work.argv(target))]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
    assert work.ended_right(target)


# --- How signals are taken


def test_a_program_that_goes_on_gets_its_handlers_back() -> None:
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, as it stays then
    try:
        before = [signal.getsignal(s) for s in stopping.SIGNALS]
        stopping.begin()
        assert [signal.getsignal(s) for s in stopping.SIGNALS] == [stopping._stop] * 3
        stopping.end()
        assert [signal.getsignal(s) for s in stopping.SIGNALS] == before
    finally:
        signal.signal(signal.SIGHUP, hang_up)


def test_only_the_first_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(stopping, "_leave", lambda: left.append(1))
    stopping.begin()
    try:
        with pytest.raises(KeyboardInterrupt):
            stopping._stop(signal.SIGTERM, None)
        assert stopping.asked()
        stopping._stop(signal.SIGTERM, None)
        assert left == []
        stopping._stop(signal.SIGTERM, None)
        assert left == [1]
    finally:
        stopping.end()


LATE = """
import signal, sys
name = sys.argv[1]
sys.argv = ["fp8convert", "inspect", "nowhere"]
from fp8convert.cli import main, stopping
place = {"end": stopping, "_say": main}[name]
real = getattr(place, name)
def late(*args):
    signal.raise_signal(signal.SIGINT)
    return real(*args)
setattr(place, name, late)
main.main()
"""


@pytest.mark.parametrize("place", ["end", "_say"])
def test_the_first_comes_while_the_outcome_is_told(place: str) -> None:
    """Then that is an interruption as well, and no traceback."""
    done = subprocess.run([sys.executable, "-c", LATE, place], capture_output=True, text=True)
    assert done.returncode == 75, done
    assert done.stderr.endswith(stopping.WORDS)
    assert "Traceback" not in done.stderr


# --- Controls: broken ones lose

BROKEN = {
    "a bar that is not closed": "from fp8convert.cli.progress import _Meter\n"
    "_Meter._close = lambda self: None\n",
    "signals as Python takes them": "from fp8convert.cli import stopping\n"
    "import signal\n"
    "stopping.begin = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)\n",
    "no word on how to go on": "import click\nfrom fp8convert.cli import main\n"
    "main._say = lambda error: click.echo('error: interrupted', err=True) or 75\n",
    "a target in the making": "from fp8convert.publish import Staging\n"
    "Staging.out = property(lambda self: self.target)\n"
    "Staging.finished = lambda self, source: None\n",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_tool_loses(how: str, made: Lab, tmp_path: Path) -> None:
    program = tmp_path / "fp8convert"
    program.write_text(
        f"#!{sys.executable}\nimport fp8convert.cli\n{BROKEN[how]}"
        "from fp8convert.cli.main import main\nmain()\n"
    )
    program.chmod(0o755)
    work, tally, rng = made.by_name["to-bf16"], Tally(), random.Random(2)
    words = [str(w) for w in (program, *work.argv(tmp_path / "dst"))]
    assert subprocess.run(words, capture_output=True).returncode == 0
    for keys in (once, twice, once):
        press(made, work, keys, rng, tally, program=program)
        if tally.losses:
            return
    pytest.fail("it did not lose")


def test_the_words(made: Lab) -> None:
    """Those of the early end are those of any."""
    assert stopping.WORDS.splitlines() == ["error: interrupted", RESUME]
