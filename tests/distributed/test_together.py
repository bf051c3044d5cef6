"""At once: workers of one share, of several, whoever finalizes, and runs that take over."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..crash import MOST_SECONDS, Ended, Forker
from ..faults import shim
from ..faults.together import Player, Reader, Stage, play, steps_of
from .fleet import Fleet

UNLOCKED = ("together:unlocked", "pretend")
KINDS = ["rename"] * 60  # some step of a worker


class Held:
    """A command that has come to its first write, and waits there until it is let go."""

    def __init__(self, forker: Forker, argv: list[object], sign: Path, *more: object) -> None:
        self.forker, self.sign = forker, sign
        sign.touch()
        tamper = (*UNLOCKED, ["hold", str(sign)]) if more else ("hold", str(sign))
        forker.start(*argv, tamper=tamper)
        end = time.monotonic() + 2 * MOST_SECONDS  # the command is killed before
        while not sign.with_name(f"{sign.name}.held").exists():
            assert time.monotonic() < end, self.forker.end()
            time.sleep(0.002)

    def let_go(self) -> Ended:
        """How it ends."""
        self.sign.unlink()
        return self.forker.end()


def test_one_share_twice_at_once(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """The second does all of it while the first is at work; then the first does: one record."""
    one = fleet()
    first = Held(machines.forkers[0], one.share(0, 1), one.file.with_suffix(".hold"))
    second = machines.forkers[1].run(*one.share(0, 1))
    assert "7 done" in second.out
    files = {p.name: p.read_bytes() for p in (one.state / "journal").iterdir()}
    early = machines.forkers[1].run(*one.ending)
    assert early.code == 1
    assert "all tasks are done, but workers are still at work" in early.err
    ended = first.let_go()
    assert ended.code == 0
    assert {p.name: p.read_bytes() for p in (one.state / "journal").iterdir()} == files
    assert len(files) == 7
    assert one.finished() == ""


def test_others_are_kept_out(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """Where locks work: a run of its own, a new plan, the end; not another worker."""
    one = fleet()
    first = Held(machines.forkers[0], one.share(0, 2), one.file.with_suffix(".hold"))
    for argv in (one.work.argv(one.target), one.planning()):
        refused = machines.forkers[1].run(*argv)
        assert (refused.code, refused.err) == (
            1, f"error: another run is writing '{one.target}'\n",
        )  # fmt: skip
    refused = machines.forkers[1].run(*one.ending)
    assert refused.code == 1
    assert "7 of 7 tasks are not done" in refused.err
    assert machines.forkers[1].run(*one.share(1, 2)).code == 0
    assert first.let_go().code == 0
    assert one.finished() == ""


@pytest.mark.parametrize("taking_over", ["run", "plan"])
def test_workers_that_are_put_out(
    taking_over: str, machines: Stage, fleet: Callable[..., Fleet]
) -> None:
    """Where locks do not work: who begins is the only one; workers end with 75, and no harm."""
    one = fleet()
    old = one.file.read_bytes()
    first = Held(machines.forkers[0], one.share(0, 2), one.file.with_suffix(".hold"), "unlocked")
    argv = one.work.argv(one.target) if taking_over == "run" else one.planning()
    assert machines.forkers[1].run(*argv, tamper=UNLOCKED).code == 0
    if taking_over == "plan":
        assert machines.forkers[1].run(*one.share(1, 2)).code == 0
    ended = first.let_go()
    assert ended.code == 75, ended
    assert "another run on" in ended.err
    assert "has taken over" in ended.err
    if taking_over == "run":
        assert one.finished() == ""
        return
    new = one.file.read_bytes()
    one.file.write_bytes(old)  # of a run that is no more
    refused = machines.forkers[0].run(*one.share(0, 2))
    assert refused.code == 1
    assert "is not of the run that was planned" in refused.err
    assert "plan again" in refused.err
    one.file.write_bytes(new)
    assert machines.forkers[0].run(*one.share(0, 2)).code == 0
    assert one.finished() == ""


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "there is one")
@pytest.mark.parametrize("seed", range(8))
def test_step_by_step(seed: int, machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """Two workers, of one share or of two, and one that ends it, in any order of their steps."""
    rng = random.Random(seed)
    one = fleet(rng.choice(["to-bf16", "shard-hf", "unshard-deepseek"]))
    shares = [one.share(0, 1), one.share(0, 1)] if seed % 2 else [one.share(0, 2), one.share(1, 2)]
    argvs = [*shares, one.ending]
    players = [
        Player(forker, argv, one.work.expected)
        for forker, argv in zip(machines.forkers, argvs, strict=True)
    ]
    tamper = machines.unlocked("pretend", one.target) if seed % 4 > 1 else steps_of(one.target)
    reader = Reader(one.target, one.work.expected)
    play(players, reader, rng, [tamper] * 3, KINDS)
    assert reader.wrong == []
    assert all(p.clean for p in players), [p.ended for p in players]
    for p in players[:2]:  # not even locks that do nothing let the end harm a worker's files
        assert p.ended
        assert p.ended.code == 0 or "taken over" in p.ended.err or "plan again" in p.ended.err
    assert one.run(one.planning()).code == 0
    assert one.run(one.share(0, 1)).code == 0
    assert one.finished() == ""


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "there is one")
def test_a_tool_whose_target_comes_before_its_manifest_loses(
    machines: Stage, fleet: Callable[..., Fleet]
) -> None:
    """The control of the one above: the reader sees a target that is not complete."""
    one = fleet()
    assert one.run(one.share(0, 1)).code == 0
    reader = Reader(one.target, one.work.expected)
    player = Player(machines.forkers[0], one.ending, one.work.expected)
    broken = (
        "together:unlocked",
        "pretend",
        ["breaks:broken", "manifest_last"],
        steps_of(one.target),
    )
    play([player], reader, random.Random(1), [broken], KINDS)
    assert reader.wrong != []
