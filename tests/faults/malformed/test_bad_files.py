"""Bad headers, indexes and paths through the real command line of all four commands.

Whatever is refused leaves nothing: no target, no unfinished work, no file of the user's changed.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from fp8convert.errors import shown

from ...test_catalogue import ODD_FILES
from ...test_header import REFUSED
from ..lab import Lab
from . import accepted, headers, index, paths
from .edits import file
from .runs import base, check, convert, in_turn, pairs, place, refused
from .victims import CONFIG, INDEX, TP, WORKS, Case, Victim, put, sparse

__all__ = ["base", "place"]  # fixtures
MIB = 1 << 20
BAD = (*headers.CASES, *index.CASES)


@pytest.mark.parametrize(("case", "work"), [*pairs(BAD), *in_turn(index.MORE)])
def test_refused(case: Case, work: str, place: Lab, base: Path) -> None:
    check(place, base, case, work)


@pytest.mark.parametrize(("case", "work"), pairs(BAD[:: len(BAD) // 3]))
@pytest.mark.parametrize("more", ["--json", "--dry-run"])
def test_refused_whatever_the_options(
    case: Case, work: str, more: str, place: Lab, base: Path
) -> None:
    """And without a word on stdout, where ``--json`` would have a document."""
    check(place, base, case, work, more)


@pytest.mark.parametrize(("case", "work"), pairs(BAD[1 :: len(BAD) // 4]))
def test_refused_before_a_target_that_is_there(
    case: Case, work: str, place: Lab, base: Path
) -> None:
    """Files of the user's in it are as they were."""
    (base / "out" / "dst").mkdir()
    (base / "out" / "dst" / "mine.txt").write_text("mine")
    check(place, base, case, work)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_headers(name: str, place: Lab, base: Path) -> None:
    """The parser's own table: whole files in place of a shard, by a command each in turn."""
    found, words = REFUSED[name]
    work = WORKS[list(REFUSED).index(name) % len(WORKS)]
    case = Case("", name, file(lambda d: found), lambda f: [])
    v = Victim(place.by_name[work], base)
    case.spoil(v)
    message = refused(place, v)
    for part in (shown(v.shard), *words):
        assert part in message


def test_every_item_has_a_case() -> None:
    """And those that are not refused are in the table of what is accepted, or below."""
    bad = {case.item for case in headers.CASES} | {"1.25 million entries"}
    assert bad == set(headers.ITEMS)
    assert {c.item for c in index.CASES} == set(index.ITEMS) - set(index.ACCEPTED)
    good = {*accepted.ITEMS, *index.ACCEPTED}
    assert {case.item for case in accepted.CASES} == good - {".py copied on request"}
    every = (*BAD, *accepted.CASES)
    assert all(case.why or set(case.only) == set(WORKS) for case in every)


CARELESS = {
    "follows links": ("a symlink out of the tree", "absolute for the shard", "code=0"),
    "believes offsets": ("one byte too long", "", "code=0"),
    "believes indexes": ("tensor in shard but not in index", "", "code=0"),
    "says names raw": (accepted.ITEMS[-1], shown("two\nlines\r\x85\u2028")[:20], r"two\\nlines"),
    "leaves a folder": ("empty file", "", "out/dst"),
}


@pytest.mark.parametrize("how", CARELESS)
def test_a_careless_tool_is_found_out(how: str, place: Lab, base: Path) -> None:
    """A control: each check fails where the tool does not check."""
    *names, seen = CARELESS[how]
    every = (*BAD, *accepted.ESCAPED)
    case = next(case for case in every if [case.item, case.name] == names)
    with pytest.raises(AssertionError, match=seen):
        check(place, base, case, "unshard-hf", tamper=("malformed.careless:careless", how))
    for made in ("src", "outside", "out/dst"):
        shutil.rmtree(base / made, ignore_errors=True)
    check(place, base, case, "unshard-hf")


ODD_SOURCES = {
    "nothing": (lambda path: None, "does not exist"),
    "a FIFO": (os.mkfifo, "is not a folder"),
    "a device": (lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)), "is not a"),
    "a file": (Path.touch, "is not a folder"),
    "a loop": (lambda path: path.symlink_to(path.name), "does not exist"),
    "nothing in it": (Path.mkdir, "no model.safetensors.index.json"),
}


@pytest.mark.parametrize("kind", ODD_SOURCES)
@pytest.mark.parametrize("work", WORKS)
def test_a_source_that_is_none(work: str, kind: str, place: Lab, base: Path) -> None:
    v = Victim(place.by_name[work], base)
    v.root = base / "odd\x1b[2J\n"
    make, words = ODD_SOURCES[kind]
    try:
        make(v.root)
    except PermissionError:
        pytest.skip("may not make a device")
    message = refused(place, v)
    assert words in message
    assert shown(v.root) in message


@pytest.mark.parametrize("kind", [*ODD_FILES, "a terabyte", "a list"])
def test_a_config_of_published_ranks(kind: str, place: Lab, base: Path) -> None:
    """``--config`` names a file of the user's; it is no more trusted than another."""
    v = Victim(place.by_name["unshard-deepseek"], base)
    for name in (TP, CONFIG):
        (v.root / name).unlink()
    (base / "given").mkdir()
    path = base / "given" / CONFIG
    make, words = {
        **ODD_FILES,
        "a terabyte": (lambda path: sparse(path, b"{", 2**40), "expected at most 100,000,000"),
        "a list": (lambda path: path.write_text("[]"), "is no object"),
    }[kind]
    make(path)
    assert words in refused(place, v, "--config", path)


# Bounds


HOSTILE = ("N = 2**63", "N over our cap", "huge shape", "huge offset", "product overflow",
           "product overflow hidden by 0", "deep nesting", "oversize")  # fmt: skip


@pytest.mark.parametrize(("case", "work"), in_turn([c for c in BAD if c.item in HOSTILE]))
def test_refused_in_little_memory(case: Case, work: str, place: Lab, base: Path) -> None:
    """Numbers of a header make nothing large: 16 MiB more than a process has at its start."""
    check(place, base, case, work, tamper=("bound", 16 * MIB))


def entries(count: int) -> bytes:
    """A header of so many fields that are no tensors, under the cap of 25 MB."""
    body = b"{" + b",".join(b'"%x":{}' % i for i in range(count)) + b"}"
    return len(body).to_bytes(8, "little") + body


def test_1_25_million_entries(place: Lab, base: Path) -> None:
    """Counted, not parsed: within a few times the header's own 15 MB."""
    v = Victim(place.by_name["to-bf16"], base)
    put(v.path, entries(1_250_000))
    message = refused(place, v, tamper=("bound", 64 * MIB))
    assert f"{shown(v.shard)}: header has more than 500,000 JSON objects" in message


def test_1_25_million_tensors_in_an_index(place: Lab, base: Path) -> None:
    """Which is believed to be an index, but no shard has them."""
    v = Victim(place.by_name["to-bf16"], base)
    rows = ",".join(f'"model.layers.{n}.weight":"{v.shard}"' for n in range(1_250_000))
    put(v.root / INDEX, b'{"weight_map":{%b}}' % rows.encode())
    message = refused(place, v, tamper=("bound", 768 * MIB))
    assert f"{INDEX} puts 'model.layers.0.weight', " in message
    assert "1249997 more" in message


def test_little_memory_is_little(place: Lab, base: Path) -> None:
    """A control: what needs more than it has ends otherwise."""
    v = Victim(place.by_name["to-bf16"], base)
    put(v.path, entries(499_000))
    ended = convert(place, v, tamper=("bound", 16 * MIB))
    assert ended.code == 75
    assert "out of memory" in ended.err


def test_the_traps_work(base: Path) -> None:
    """A control: code and pickles that are loaded do make their mark."""
    import pickle

    pickle.loads(paths.trap(base))
    assert (base / "fired").exists()
    (base / "fired").rmdir()
    exec(f"open({str(base / 'fired')!r}, 'w').close()")
    assert (base / "fired").exists()
