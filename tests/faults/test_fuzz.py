"""Inputs that fuzzing has found, tried again; and that it finds what is there to be found."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from .fuzz.mutation import Mutator
from .fuzz.planted import BUGS
from .fuzz.promises import timed
from .fuzz.running import CORPUS, CRASHES, fuzz, missing
from .fuzz.targets import Target, targets

MOST_BYTES = 300_000  # of the corpus


# What each of the kept crashes did, and the check that is all that keeps it from doing it again.
MENDED = {
    "config/digits": ("digits", "Exceeds the limit"),
    "config/infinity": ("infinity", "Infinity is not JSON"),
    "model/escape": ("escape", "in a message"),
    "state/error-negative": ("error", "math domain error"),
    "state/error-ratio": ("error", "intermediate overflow"),
    "state/sum": ("sum", "no sum"),
    "tensors/name": ("name", "in a message"),
    "words/layers": ("layers", "invalid literal for int"),
    "words/size": ("size", "cannot convert float infinity to integer"),
}


def kept(folder: Path) -> dict[str, Path]:
    """Inputs, by target and name."""
    return {f"{path.parent.name}/{path.name}": path for path in sorted(folder.glob("*/*"))}


def run(input_: str) -> None:
    """What once broke a promise, tried again."""
    target = targets()[input_.split("/")[0]]
    timed(target.run)((CRASHES / input_).read_bytes())


@pytest.mark.parametrize("target", list(targets()))
def test_the_corpus_breaks_no_promise(target: str) -> None:
    seeds = [path for name, path in kept(CORPUS).items() if name.startswith(f"{target}/")]
    for path in seeds:
        timed(targets()[target].run)(path.read_bytes())
    assert seeds


@pytest.mark.parametrize("name", list(kept(CRASHES)))
def test_what_once_broke_a_promise_does_so_no_more(name: str) -> None:
    run(name)


@pytest.mark.parametrize("name", list(MENDED))
def test_it_does_so_again_without_its_mend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: the replay would tell if a check were lost."""
    bug, said = MENDED[name]
    BUGS[bug](monkeypatch.setattr)
    with pytest.raises((ValueError, ArithmeticError, TypeError, AssertionError), match=said):
        run(name)


@pytest.mark.parametrize("depth", [70, 300, 500, 900])
def test_what_is_nested_is_mutated(depth: int) -> None:
    """Deeper than is walked here: as bytes, not a crash of the tool that looks for crashes."""
    edit = Mutator(["x"], lambda text: b"as bytes")
    text = b"[" * depth + b"1" + b"]" * depth
    found = {edit(text, random.Random(seed)) for seed in range(20)}
    assert b"as bytes" in found
    assert len(found) > 1 or depth == 900


def test_every_crash_has_its_control_and_the_corpus_is_small() -> None:
    assert kept(CRASHES).keys() == MENDED.keys()
    assert sum(path.stat().st_size for path in kept(CORPUS).values()) < MOST_BYTES


def test_a_bug_behind_a_check_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: tensors may overlap, and no input to begin with has such. The fuzzer makes one,
    which the library that all read with refuses."""
    if why := missing():
        pytest.skip(why)
    target = targets()["header"]
    with monkeypatch.context() as planted:
        BUGS["overlap"](planted.setattr)
        for path in kept(CORPUS).values():
            if path.parent.name == "header" and not breaks(target, path.read_bytes()):
                shutil.copy(path, tmp_path)
    found = fuzz("header", 30, seed=0, kept=tmp_path, bug="overlap")
    assert found.crash is not None, found.log
    assert "refused by the safetensors library" in found.why
    assert found.executed > len(list(tmp_path.iterdir())) > 20
    target.run(found.crash)  # with the check it is refused


def breaks(target: Target, data: bytes) -> bool:
    """Whether it breaks a promise."""
    try:
        target.run(data)
    except AssertionError:
        return True
    return False
