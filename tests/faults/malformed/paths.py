"""Bad paths: what an index may name and must never be opened, and what may lie there instead.

Half of section B of FAULTS; see ``index.py``.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fp8convert.errors import shown

from ...test_catalogue import ODD_FILES
from ..armed import Payload
from .edits import index
from .victims import INDEX, INDEXED, RANK_FILES, RANK_FOLDERS, TP, Case, Spoil, Victim, put

PATHS = ("../x", "/abs", "C:\\x", "\\\\host\\s", "a/../../x")


# Names


def named(file: object) -> Spoil:
    """The index names ``file`` for one tensor."""

    def change(table: dict[str, Any], name: str) -> None:
        if isinstance(table[name], dict):
            table[name]["file"] = file
        else:
            table[name] = file

    return index(change)


def _lure(file: str) -> Spoil:
    """The same, and a sound shard lies where a naive join of names leads."""

    def spoil(v: Victim) -> None:
        (v.path.parent / "a").mkdir()
        if not file.startswith("/"):
            place = v.path.parent / file
            place.parent.mkdir(exist_ok=True, parents=True)
            if not place.exists():
                os.link(v.path, place)
        named(file)(v)

    return spoil


NAMES = (*PATHS, *(f"{n}.safetensors" for n in PATHS))
MORE_NAMES = (
    "./model.safetensors", "sub/model.safetensors",
    "/dev/zero", "file:///x.safetensors", "", "..", "\0", "\x1b[2J.safetensors",
    "a\nb.safetensors", "\u202e.safetensors", "x" * 300 + ".safetensors",
)  # fmt: skip


def _item(name: str) -> str:
    bare = name.removesuffix(".safetensors")
    return bare if bare in PATHS else PATHS[0]


def _name(name: str) -> Case:
    spoil = _lure(name) if name in NAMES else named(name)
    says = [shown(name), "is not a plain file name"]
    return Case(_item(name), shown(name)[:24], spoil, lambda f: [*says, shown(f.listed)], "index")


NAMED = [_name(name) for name in NAMES]
MORE = [_name(name) for name in MORE_NAMES]  # for one command each


# Odd files


def _replaced(of: Callable[[Victim], str], make: Callable[[Path], None]) -> Spoil:
    def spoil(v: Victim) -> None:
        path = v.root / of(v)
        path.unlink()
        make(path)

    return spoil


WHAT: dict[str, tuple[Callable[[Victim], str], str]] = {
    "shard": (lambda v: v.shard, "(shard)"),
    "index": (lambda v: v.index, "("),
    "config": (lambda v: f"{v.home}config.json", "(config)"),
    "tokenizer": (lambda v: f"{v.home}tokenizer.json", "(companion file)"),
}


def _odd(item: str, kind: str) -> Iterator[Case]:
    make, says = ODD_FILES[kind]
    for what, (of, why) in WHAT.items():
        if (kind, what) == ("a folder", "tokenizer"):
            continue  # a folder of such a name is no companion
        yield Case(item, f"{kind} for the {what}", _replaced(of, make),
                   lambda f, why=why: [why, says], _naming(what))  # fmt: skip


def _naming(what: str) -> str:
    return what if what in ("shard", "index") else f"{what}.json"


def _outside(v: Victim, name: str) -> Path:
    """A sound file, or folder, of the checkpoint, moved out of it."""
    place = v.base / "outside" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(v.root / name, place)
    return place


def _absolute(path: Path, place: Path) -> None:
    path.symlink_to(place)


def _relative(path: Path, place: Path) -> None:
    path.symlink_to(os.path.relpath(place, path.parent))


def _by_another_link(path: Path, place: Path) -> None:
    inner = path.with_name("inner")
    inner.symlink_to(place)
    path.symlink_to("inner")


LINKS = {"absolute": _absolute, "relative": _relative, "by another link": _by_another_link}


def _linked(of: Callable[[Victim], str], link: Callable[[Path, Path], None]) -> Spoil:
    return lambda v: link(v.root / of(v), _outside(v, of(v)))


LINKED = [
    Case("a symlink out of the tree", f"{how} for the {what}", _linked(of, link),
         lambda f, why=why: [why, "is a link out of"], _naming(what))
    for what, (of, why) in WHAT.items() for how, link in LINKS.items()
    if what == "shard" or how == "absolute"
]  # fmt: skip


def _device(v: Victim) -> None:
    v.path.unlink()
    v.path.symlink_to("/dev/zero")


def _of_rank(make: Callable[[Path], None]) -> Spoil:
    def spoil(v: Victim) -> None:
        shutil.rmtree(v.root / "rank1")
        make(v.root / "rank1")

    return spoil


ONLY_FOLDERS = "others have no folders"
ODD = (
    *_odd("a folder", "a folder"), *_odd("a FIFO", "a FIFO"), *_odd("a device", "a device"),
    *_odd("a device", "a block device"), *LINKED,
    Case("a device", "behind a link", _device, lambda f: ["(shard) is a link out of"]),
    Case("a FIFO", "for a rank's folder", _of_rank(os.mkfifo),
         lambda f: ["'rank1/tp.json'", "missing"], "", (RANK_FOLDERS,), ONLY_FOLDERS),
    Case("a symlink out of the tree", "for a rank's folder",
         _linked(lambda v: "rank1", _absolute),
         lambda f: ["'rank1/tp.json'", "is a link out of"], "", (RANK_FOLDERS,), ONLY_FOLDERS),
)  # fmt: skip


# Pickles


def trap(base: Path) -> bytes:
    """A pickle that shows that it was loaded."""
    return pickle.dumps(Payload(base / "fired"))


def _pickle_named(end: str) -> Case:
    def spoil(v: Victim) -> None:
        put(v.path.parent / f"pytorch_model{end}", trap(v.base))
        named(f"pytorch_model{end}")(v)

    says = [shown(f"pytorch_model{end}"), "expected", ".safetensors file"]
    return Case(f"{end} named", "", spoil, lambda f: says, "index")


def _pickle_alone(end: str, only: Sequence[str], *says: str) -> Case:
    def spoil(v: Victim) -> None:
        for path in v.of_rank:
            path.unlink()
        (v.path.parent / INDEX).unlink(missing_ok=True)
        put(v.path.parent / f"pytorch_model{end}", trap(v.base))

    return Case(f"{end} alone", " ".join(only), spoil, lambda f: says, "", only, "said otherwise")


UNPICKLED = "would have to be unpickled, which is never done"
PICKLES = [
    case for end in (".bin", ".pt", ".pth") for case in (
        _pickle_named(end),
        _pickle_alone(end, INDEXED, f"'pytorch_model{end}'", UNPICKLED, f"no {INDEX}"),
        _pickle_alone(end, (RANK_FILES,), f"'pytorch_model{end}'", UNPICKLED, "expected 2", TP),
    )
]  # fmt: skip

CASES = (*NAMED, *ODD, *PICKLES)
