"""What a killed run has left, and what the next one makes of it: scenes that tests begin with."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..crash import Ended, marks
from .lab import Files, Lab, Work, state_of

MINE = "mine.txt"  # a file of the user's, beside the target
KILLED = ("breaks:at", "publish", "Staging", "commit", signal.SIGKILL)
COMMANDS = ("to-bf16", "quantize-nvfp4", "shard-hf", "unshard-hf")  # a work of each command


class Scene:
    """A target that is not there, a folder around it, and a file of the user's."""

    def __init__(self, lab: Lab, work: Work) -> None:
        self.lab, self.work = lab, work
        self.target = lab.new()
        self.parent, self.state = self.target.parent, state_of(self.target)
        self.out, self.journal = self.state / "out", self.state / "journal"
        (self.parent / MINE).write_text(MINE)

    def argv(self, *more: object, source: Path | None = None) -> list[object]:
        """The command of the work."""
        return self.work.argv(self.target, "--workers", 1, *more, source=source)

    def run(self, *more: object, source: Path | None = None, tamper: tuple[Any, ...] = ()) -> Ended:
        """One run of it."""
        return self.lab.forker.run(*self.argv(*more, source=source), tamper=tamper)

    def stopped(
        self, where: tuple[str, str, str], meanwhile: Callable[[], object],
        source: Path | None = None, broken: str = "",
    ) -> Ended:  # fmt: skip
        """One run of it, which waits before a method is called first: something happens then."""
        how: tuple[str, ...] = ("breaks:broken", broken, "at") if broken else ("breaks:at",)
        tamper = (*how, *where, signal.SIGSTOP)
        self.lab.forker.start(*self.argv(source=source), tamper=tamper)
        assert self.lab.forker.wait() is None
        meanwhile()
        self.lab.forker.go()
        return self.lab.forker.end()

    def copied(self) -> Path:
        """A copy of the source, equal in all, to be changed."""
        return Path(shutil.copytree(self.work.source, self.parent / "src"))

    def data_files(self, of: Path | None = None) -> list[str]:
        """The tensor files finished, as paths in ``out`` or another folder."""
        of = of or self.out
        return sorted(p.relative_to(of).as_posix() for p in of.rglob("*.safetensors"))

    def record(self, file: str) -> Path:
        """The journal's record of one of them."""
        return next(p for p in self.journal.iterdir() if f'"file": "{file}"' in p.read_text())

    def ends_right(self, others: Iterable[str] = ()) -> None:
        """The next run ends with what an undisturbed one does, and the user's files alone."""
        ended = self.run()
        assert ended.code == 0, ended
        assert self.work.ended_right(self.target)
        assert set(os.listdir(self.parent)) == {"dst", MINE, *others}
        assert (self.parent / MINE).read_text() == MINE

    def refused(self, words: Iterable[str], *more: object, code: int = 1, **options: Any) -> None:
        """The next run is refused with these words, and nothing is touched."""
        before = marks(self.parent)
        ended = self.run(*more, **options)
        assert (ended.code, ended.out) == (code, ""), ended
        assert "Traceback" not in ended.err
        for said in words:
            assert said in ended.err, ended.err
        assert marks(self.parent) == before


class Scenes:
    """Scenes in a lab; a run that was killed is run once and copied."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._killed: dict[tuple[str, tuple[str, ...]], Path] = {}

    def new(self, work: str) -> Scene:
        """Nothing begun."""
        return Scene(self.lab, self.lab.by_name[work])

    def killed(self, work: str, options: tuple[str, ...] | None = None) -> Scene:
        """Every file finished, the target about to get its name; by other ``options`` if given."""
        done = self.lab.by_name[work]
        if options is not None:
            done = done._replace(options=options)
        key = (work, done.options)
        if key not in self._killed:
            first = Scene(self.lab, done)
            ended = first.run(tamper=KILLED)
            assert ended.code == -signal.SIGKILL, ended
            self._killed[key] = first.state
        scene = Scene(self.lab, done)
        shutil.copytree(self._killed[key], scene.state, symlinks=True)
        return scene

    def finished(self, work: str) -> Scene:
        """The target is there."""
        scene = self.new(work)
        shutil.copytree(self.lab.root / f"expected-{work}", scene.target)
        return scene


def same_files(before: Files, after: Files) -> set[str]:
    """The names whose files are the same ones, not written again: of two :func:`crash.marks`."""
    return {name for name, mark in before.items() if after.get(name, ())[:2] == mark[:2]}
