"""Check ``manifest``: the files are those that were written, byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..calls import let_go, naming
from ..companions import DECLARATIONS, NEVER
from ..errors import FormatError, listed, shown
from ..folder import Folder, check_name
from ..seal import LENGTH, ends_sealed, is_sealed, unsealed
from ..shards import as_object
from ..strictjson import brief, loads
from ..target import MANIFEST, MAX_RECORD
from .parallel import Progress, Tally, each
from .report import Check

NAME = "manifest"
CHUNK = 4 << 20
AHEAD = 64 << 20
HEX = frozenset("0123456789abcdef")
CARD = "README.md"  # the model card, which an upload adds and a download has; nothing reads it


class Listed(NamedTuple):
    """A file as the manifest has it; without ``sha256`` no sum was taken."""

    name: str
    size: int
    sha256: str | None


def check_manifest(folder: Folder, workers: int, progress: Progress | None) -> Check:
    """Every file that manifest.json lists is there with its size and SHA-256; nothing is added.

    Nor was the manifest changed: it has a sum of itself. All bytes are read, whatever is sampled
    elsewhere: a sum is of a whole file.
    """
    if not folder.has(MANIFEST):
        return _none(folder, f"no {MANIFEST}: another tool's output has none")
    try:
        found, summed = unsealed(folder.read(MANIFEST, MAX_RECORD, "manifest"), MANIFEST)
        data = as_object(found, MANIFEST)
        if "files" not in data and not str(data.get("tool")).startswith("fp8convert"):
            return _none(folder, f"{MANIFEST} is not one of fp8convert")
        files = list(_files(data))
        _check_itself(data, files)
    except (FormatError, OSError) as e:
        return Check.of(NAME, f"{MANIFEST} is damaged", [str(e)])
    tally = Tally("sums", sum(f.size for f in files if f.sha256), progress)
    answers = each(lambda f: _compare(folder, f, tally), files, workers)
    problems = [answer for answer in answers if answer]
    more, warnings = _others(folder, files)
    if not summed:
        warnings.append(f"{MANIFEST} has no sum of itself, as an older version wrote it")
    sums = sum(f.sha256 is not None for f in files)
    detail = f"{len(files):,} files: sizes and SHA-256 sums"
    if sums < len(files):
        without = len(files) - sums
        detail += f"; sizes only for {without:,} of them, written without sums (--checksum none)"
    return Check.of(
        NAME, detail, problems + more, warnings, files=len(files), sums=sums, bytes=tally.done
    )


def _none(folder: Folder, why: str) -> Check:
    """There is no manifest of ours; or there is one, and it has the name of another file."""
    for file in _everything(folder):
        with contextlib.suppress(FormatError, OSError):  # unreadable: for other checks to say
            if _is_one(folder, file):
                wrong = f"{shown(file)} is a {MANIFEST} of fp8convert by another name"
                return Check.of(NAME, f"{MANIFEST} is misplaced", [wrong])
    return Check.skipped(NAME, why)


def _everything(folder: Folder) -> Iterator[str]:
    """Names, also of what is in the folders."""
    for name in folder.names():
        inner: list[str] = []
        if (folder.root / name).is_dir():
            with contextlib.suppress(FormatError, OSError):
                inner = folder.names(name)
        yield from (f"{name}/{n}" for n in inner) if inner else [name]


def _is_one(folder: Folder, name: str) -> bool:
    fd = folder.open(name, "looked for")
    with os.fdopen(fd, "rb") as f:
        f.seek(max(0, os.fstat(fd).st_size - LENGTH))
        if not ends_sealed(f.read(LENGTH)):
            return False
    raw = folder.read(name, MAX_RECORD, "looked for")
    return is_sealed(raw) and not _at_home(folder, name, raw)


def _at_home(folder: Folder, name: str, raw: bytes) -> bool:
    """Whether it is that of another checkpoint, in a folder in this one, whose files are there."""
    home, _, own = name.rpartition("/")
    files = _files(as_object(loads(raw, name), name))
    return own == MANIFEST and all(os.path.lexists(folder.root / home / f.name) for f in files)


def _files(data: dict[str, Any]) -> Iterator[Listed]:
    found = data.get("files")
    if not isinstance(found, list) or not found:
        raise FormatError(f"{MANIFEST}: files is {brief(found)}, expected a list of files")
    seen: set[str] = set()
    for entry in found:
        listing = Listed(**{key: _field(entry, key) for key in Listed._fields})
        if listing.name in seen:
            raise FormatError(f"{MANIFEST}: files has {shown(listing.name)} twice")
        check_name(listing.name, f"{MANIFEST}: files")
        seen.add(listing.name)
        yield listing


def _field(entry: Any, key: str) -> Any:
    """Of an entry of ``files``, of its type."""
    found = as_object(entry, f"{MANIFEST}: an entry of files").get(key)
    sound = {
        "name": isinstance(found, str),
        "size": type(found) is int and found >= 0,
        "sha256": _is_sum(found),
    }
    if not sound[key]:
        raise FormatError(f"{MANIFEST}: files: {key} is {brief(found)} in {brief(entry)}")
    return found


def _is_sum(found: Any) -> bool:
    return found is None or (isinstance(found, str) and len(found) == 64 and HEX.issuperset(found))


def _check_itself(data: dict[str, Any], files: list[Listed]) -> None:
    """Its parts agree: ``plan`` is the sum of ``identity``, which has the sums of small files."""
    identity = as_object(data.get("identity"), f"{MANIFEST}: identity")
    plan = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if data.get("plan") != plan:
        raise FormatError(
            f"{MANIFEST}: plan is {brief(data.get('plan'))}, expected {plan}, the SHA-256 of "
            "identity: one of them was edited"
        )
    sums = {f.name: f.sha256 for f in files}
    for name, sha in as_object(identity.get("texts"), f"{MANIFEST}: identity.texts").items():
        if sums.get(name) != sha:
            raise FormatError(
                f"{MANIFEST}: sha256 of {shown(name)} is {brief(sums.get(name))} in files, "
                f"{brief(sha)} in identity.texts"
            )


def _compare(folder: Folder, file: Listed, tally: Tally) -> str | None:
    try:
        fd = folder.open(file.name, MANIFEST)
        try:
            with naming(file.name):
                return _wrong(fd, file, tally)
        finally:
            let_go(fd)
    except (FormatError, OSError) as e:
        return str(e)


def _wrong(fd: int, file: Listed, tally: Tally) -> str | None:
    if (size := os.fstat(fd).st_size) != file.size:
        return f"{shown(file.name)}: {size:,} bytes, expected {file.size:,}"
    if file.sha256 is None:
        return None
    found, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, max(size, 1))))
    at = 0
    while count := os.preadv(fd, [buffer], at):
        at += count
        if hasattr(os, "posix_fadvise"):  # in larger pieces than the system does by itself
            os.posix_fadvise(fd, at, AHEAD, os.POSIX_FADV_WILLNEED)
        found.update(buffer[:count])
        tally.add(count)
    if found.hexdigest() == file.sha256:
        return None
    return f"{shown(file.name)}: SHA-256 is {found.hexdigest()}, expected {file.sha256}"


def _others(folder: Folder, files: list[Listed]) -> tuple[list[str], list[str]]:
    """Files that are not listed: a problem if a loader may read them as weights or declarations."""
    known = {f.name for f in files} | {MANIFEST}
    inside = {name.split("/")[0] for name in known if "/" in name}
    names = [n for n in folder.names() if n not in inside and not n.startswith(".")]
    for sub in sorted(n for n in inside if os.path.isdir(folder.root / n)):
        names += [f"{sub}/{n}" for n in folder.names(sub) if not n.startswith(".")]
    more = [n for n in names if n not in known and n != CARD]
    read = [n for n in more if n.lower().endswith(NEVER) or n.split("/")[-1] in DECLARATIONS]
    problems = [f"{shown(n)} is in the folder, but {MANIFEST} does not list it" for n in read]
    rest = [n for n in more if n not in read]
    return problems, [f"{listed(rest)} in the folder, not in {MANIFEST}"] if rest else []
