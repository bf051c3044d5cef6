"""Runs of the real command line on spoiled sources, and what every refusal has to be like."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ...crash import Ended, marks
from ..lab import Lab, lab, tree
from .accepted import Good
from .victims import WORKS, Case, Facts, Victim


@pytest.fixture(scope="module")
def place() -> Iterator[Lab]:
    """A lab whose own sources are as they were in the end: only copies are spoiled."""
    with lab(preload=False) as made:
        sources = {work.source: tree(work.source) for work in made.works}
        yield made
        assert {folder: tree(folder) for folder in sources} == sources


@pytest.fixture
def base(place: Lab) -> Iterator[Path]:
    """A folder for one copy, one target, and files of the user's beside both."""
    made = Path(tempfile.mkdtemp(dir=place.root))
    (made / "out").mkdir()
    (made / "out" / "notes.txt").write_text("mine")
    yield made
    shutil.rmtree(made)


def convert(place: Lab, v: Victim, *more: object, **options: object) -> Ended:
    """The command, on the copy."""
    return place.forker.run(*v.argv(v.base / "out" / "dst", *more), **options)


def refused(place: Lab, v: Victim, *more: object, **options: object) -> str:
    """The message, once nothing else of the run is to be seen."""
    before = marks(v.base)
    ended = convert(place, v, *more, **options)
    assert ended.code == 1, ended  # 70 is a traceback, -14 a child that hung
    assert ended.out == "", ended
    assert ended.err.startswith("error: "), ended
    message = ended.err.removesuffix("\n")
    assert message.isprintable(), ascii(message)  # one line, nothing raw
    assert len(message) < 1000, message
    after = marks(v.base)
    assert after == before, sorted(after.keys() ^ before.keys()) or "touched"
    return message


def pairs(cases: Sequence[Case] | Sequence[Good]) -> list[object]:
    """Each case with each of its works."""
    return [
        pytest.param(case, work, id=f"{case.item}-{ascii(case.name)[1:-1]}-{work}")
        for case in cases
        for work in WORKS
        if work in case.only
    ]


def in_turn(cases: Sequence[Case]) -> list[object]:
    """Each case with one of its works: where more of the same would tell nothing."""
    found = []
    for n, case in enumerate(cases):
        works = [work for work in WORKS if work in case.only]
        found += pairs([case._replace(only=(works[n % len(works)],))])
    return found


def check(place: Lab, base: Path, case: Case, work: str, *more: object, **options: object) -> None:
    """The case is refused, with its words."""
    v = Victim(place.by_name[work], base)
    case.spoil(v)
    message = refused(place, v, *more, **options)
    named = {"shard": v.shard, "index": v.index}.get(case.named, case.named)
    for words in (named, *case.says(Facts.of(v))):
        assert words in message, (words, message)
