"""Runs on an ext4 image that stop before each call that changes something, and copies of the image.

What the file of the image holds then is what a disk holds if the power fails there: what the kernel
has not written is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from ..crash import Ended
from . import disk, shim
from .aftermath import Case, Cut
from .lab import Lab

Steps = Sequence[str]  # for each call: its kind and its path


@contextlib.contextmanager
def place(lab: Lab) -> Iterator[Path]:
    """A folder for images, where what is mounted is ours alone."""
    with disk.private_mounts(), tempfile.TemporaryDirectory(dir=lab.root) as folder:
        yield Path(folder)


def started(lab: Lab, case: Case, folder: Path, rng: random.Random) -> tuple[Case, Path]:
    """A filesystem as the case finds it; at which step an earlier run ended is chosen here."""
    image = disk.new_image(folder / "start")
    if case.place == "empty":
        with disk.mounted(image, folder / "run", case.mount) as root:
            case.target(root).mkdir()
    if not case.before:
        return case, image
    first = case._replace(before="")
    found = enumerate(steps(lab, first, image))
    building = [n for n, step in found if not step.startswith("unlink")]
    at = rng.choice(building[len(building) // 4 : len(building) * 3 // 4])
    if case.before == "killed":
        return case._replace(step=at), image
    cut, *_ = cuts(lab, first, image, {at})
    return case, cut.image.rename(folder / "begun")


def steps(lab: Lab, case: Case, image: Path) -> Steps:
    """What an undisturbed run does, call by call."""
    found: list[str] = []
    stopped(lab, case, plain(image), lambda step, disk: found.append(step))
    return found[:-1]


@contextlib.contextmanager
def plain(image: Path) -> Iterator[Path]:
    """A disk that holds what an image does, which stays as it is."""
    working = image.with_name("disk")
    disk.copy_sparse(image, working)
    yield working


def stopped(
    lab: Lab, case: Case, device: AbstractContextManager[Path], at: Callable[[str, Path], None]
) -> None:
    """Run a case on a disk; ``at`` gets each step before it is made, and the file of the disk.

    When the run has ended it gets "", and the file as it is then.
    """
    with device as file, disk.mounted(file, file.with_name("run"), case.mount) as root:
        log = file.with_name("log")
        log.write_text("")
        if case.before == "killed":
            killed = lab.forker.run(
                *case.argv(lab, root), tamper=_tamper(case, root, "kill-before")
            )
            assert killed.code == -signal.SIGKILL, f"{case}: {killed}"
        lab.forker.start(*case.argv(lab, root), tamper=_tamper(case, root, "stop", str(log)))
        with open(log) as lines:
            ended = _followed(lab, lambda: at(_line(lines, root), file))
        assert ended.code == 0, f"{case}: {ended}"
        at("", file)


def _tamper(case: Case, root: Path, action: str, log: str = "") -> tuple[object, ...]:
    arm = ("arm", str(root), list(shim.CHANGES), action, case.step, 0, 0, log)
    return ("several", ("enter", os.getpid()), *case.tamper, arm)


def _line(lines: TextIO, root: Path) -> str:
    return lines.readline().strip().replace(f"{root}/", "")


def _followed(lab: Lab, at: Callable[[], None]) -> Ended:
    """Wait for a run to end; where it stops, ``at`` is called."""
    while not (ended := lab.forker.wait()):
        try:
            at()
        except BaseException:
            _let_go(lab)
            raise
        lab.forker.go()
    return ended


def _let_go(lab: Lab) -> None:
    """Have a stopped run end."""
    lab.forker.go()
    while not lab.forker.wait():
        lab.forker.go()


def cuts(lab: Lab, case: Case, image: Path, chosen: Collection[int]) -> list[Cut]:
    """What is on the disk before the steps ``chosen``, if that is new, and when the run is done."""
    found: list[Cut] = []
    seen, count = set[tuple[str, bool]](), itertools.count()

    def cut(step: str, working: Path) -> None:
        if (n := next(count)) not in chosen and step:
            return
        copy = image.with_name(f"cut-{n}")
        disk.copy_sparse(working, copy)
        key = disk.sum_of(copy), not step
        if key in seen:
            copy.unlink()
            return
        seen.add(key)
        found.append(Cut(copy, f"before {step}" if step else "done", not step))

    stopped(lab, case, plain(image), cut)
    return found
