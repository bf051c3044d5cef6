"""Keys pressed in a terminal: Ctrl-C at any moment, once or more, Ctrl-Z, a window that is closed.

The installed command runs in a pseudo-terminal, in the foreground group of a session, as from a
shell; the disk is made slow, so that there is a bar to interrupt. What is pressed before the first
line of the command is Python's own to answer, so nothing is.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .lab import Lab, Work, share, state_of, temporaries
from .screen import Terminal, screen
from .tally import Campaign, Tally

PROGRAM = Path(sys.executable).with_name("fp8convert")
BAR = "%|"  # in its line
ECHOES = re.compile(r"(\^C)+")  # of keys pressed when all was said
RESUME = "Run the same command again to resume."
# Slows the writes of the process that finds it, and leaves a mark when the command has begun:
# click is the first thing that it imports.
SLOW = """
import os, sys, time
real = os.pwritev
def pwritev(*args):
    time.sleep({seconds})
    return real(*args)
os.pwritev = pwritev
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            open(os.environ["BEGUN"], "w").close()
sys.meta_path.insert(0, Finder())
"""
SECONDS = 0.03  # of a write


class Run(NamedTuple):
    """One command in a terminal, and where it writes."""

    lab: Lab
    work: Work | None
    target: Path
    terminal: Terminal
    rng: random.Random
    begun: Path

    def interrupt(self, moment: bool = True) -> None:
        """Ctrl-C; at a random moment, of which half are while the bar is there."""
        if moment and self.rng.random() < 0.5:
            self.terminal.until(lambda: BAR in self.terminal.shown or self.ended)
            self.pause(0.3)
        elif moment:
            self.pause(1.0)
        if not self.ended:
            self.terminal.press(b"\x03")

    def pause(self, most: float) -> None:
        """A random while."""
        self.terminal.until(lambda: self.ended, self.rng.uniform(0, most))

    @property
    def ended(self) -> bool:
        """Whether it has, whatever is pressed."""
        return "exit " in self.terminal.said


@contextmanager
def started(
    lab: Lab, work: Work | None, rng: random.Random, argv: list[object] | None = None,
    shell: str = "", seconds: float = SECONDS, program: Path = PROGRAM,
) -> Iterator[Run]:  # fmt: skip
    """A command that has begun, by itself or by a line of the ``shell``."""
    target = lab.new()
    begun, slow = target.with_name("begun"), target.with_name("slow")
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW.format(seconds=seconds))
    words: list[object] = [program, *(argv or (work.argv(target, "--workers", 1) if work else []))]
    if shell:
        words = ["/bin/sh", "-c", shell, *words]
    env = {"PYTHONPATH": str(slow), "BEGUN": str(begun), "TERM": "xterm"}
    with Terminal(words, env) as terminal:
        run = Run(lab, work, target, terminal, rng, begun)
        terminal.until(lambda: begun.exists() or run.ended)
        yield run
    shutil.rmtree(target.parent)


# --- What is pressed


def once(run: Run) -> None:
    """Ctrl-C."""
    run.interrupt()


def twice(run: Run) -> None:
    """Quickly after each other."""
    run.interrupt()
    run.pause(0.03)
    run.interrupt(moment=False)


def thrice(run: Run) -> None:
    """By somebody who does not wait."""
    twice(run)
    run.pause(0.1)
    run.interrupt(moment=False)


def term(run: Run) -> None:
    """SIGTERM, from elsewhere."""
    run.pause(1.0)
    if not run.ended:
        os.kill(run.terminal.pid, signal.SIGTERM)


def suspend(run: Run) -> None:
    """Ctrl-Z, ``fg``, and Ctrl-C later."""
    run.pause(1.0)
    if run.ended:
        return
    run.terminal.press(b"\x1a")
    if run.terminal.until(lambda: "stopped" in run.terminal.said or run.ended) and not run.ended:
        run.terminal.foreground()
        run.interrupt()


def close(run: Run) -> None:
    """The window is closed: SIGHUP, and nothing can be written any more."""
    run.pause(1.0)
    run.terminal.hang_up()


KEYS: tuple[Callable[[Run], None], ...] = (once, twice, suspend, thrice, term, close, once, twice)
SHELLS = ("", "", "", 'exec "$0" "$@" <&-', "")  # without standard input


# --- What must be there then


def wrong(run: Run, code: int | None) -> str:
    """What is not as it should be of code and screen; "" if nothing."""
    shown = run.terminal.shown
    lines, column = screen(shown)
    if "Traceback" in shown or "Exception ignored" in shown:
        return "a traceback"
    if code not in (0, 75):
        return f"exit code {code}"
    if run.terminal.master < 0:
        return ""  # nobody sees it
    if (column or lines[-1]) and not ECHOES.fullmatch(lines[-1]):
        return f"the cursor is at column {column} of {lines[-1]!r}"
    if not run.terminal.same_modes:
        return "other modes"
    if code == 0:
        return "" if any(n.startswith(("done: ", "already done")) for n in lines) else "not done"
    said = [n for n in lines if "error: " in n]
    if len(said) != 1 or not said[0].startswith("error: interrupted"):
        return f"said {said}"
    return "" if RESUME in lines else "no word on how to go on"


def press(lab: Lab, work: Work, keys: Callable[[Run], None], rng: random.Random, tally: Tally,
          shell: str = "", program: Path = PROGRAM) -> None:  # fmt: skip
    """One run, what is pressed, and the same command again."""
    with started(lab, work, rng, shell=shell, program=program) as run:
        keys(run)
        begun = time.monotonic()
        code = run.terminal.end()
        late = time.monotonic() - begun > 20
        found = wrong(run, code) or ("it took too long" if late else "")
        thrown = keys is thrice or not temporaries(run.target.parent)  # the third leaves at once
        absent = not run.target.exists() or work.ended_right(run.target)
        last = lab.run(work, run.target)
        right = (
            last.code == 0 and work.ended_right(run.target) and not state_of(run.target).exists()
        )
        seen = (found, code, thrown, absent, last, run.terminal.shown[-600:])
        what = f"{work.name}: {keys.__name__} {shell}".rstrip()
        tally.add(what, not found and thrown and absent, right, seen)


def keys(lab: Lab, amount: int, seed: int, program: Path = PROGRAM) -> Tally:
    """All keys on all works, in turn."""
    rng, tally = share(seed, "terminal"), Tally()
    for n in range(amount):
        work = lab.works[n % len(lab.works)]
        pressed, shell = KEYS[n % len(KEYS)], SHELLS[n % len(SHELLS)]
        press(lab, work, pressed, rng, tally, shell, program)
    return tally


CAMPAIGN = Campaign("Ctrl-C in a terminal", keys, 80, 8)
