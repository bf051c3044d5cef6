"""The place where a target goes: what may be there, and whether what is there is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from . import strictjson
from .errors import FormatError, TargetError, shown
from .folder import Folder
from .seal import unsealed

MANIFEST = "manifest.json"
MAX_RECORD = 100_000_000  # bytes of a file that says what was done
MAX_DIFFERENCES = 6


def resolve_target(dst: str | os.PathLike[str], source: Path | None) -> Path:
    """The real path of the target; refuses one that is the source, inside it, or around it.

    ``source``: its real path, if it is on this disk.
    """
    target = Path(os.path.realpath(dst))  # Path.resolve raises on a loop of links
    if source and (target == source or source in target.parents or target in source.parents):
        raise TargetError(
            f"target {shown(target)} and source {shown(source)} must not contain each other"
        )
    if os.path.ismount(target):
        raise TargetError(
            f"{shown(target)} is a mount point, and a target is renamed into place: "
            "name a folder inside it"
        )
    return target


def finished(
    target: Path, identity: dict[str, Any], source: dict[str, Any], apart: Container[str] = ()
) -> dict[str, Any] | None:
    """The manifest if the target is already there; refuses one of another plan or source.

    ``identity`` is the plan's; ``source`` has size and time of every shard, since equal headers do
    not make equal weights. Files ``apart`` may be missing.
    """
    if not os.path.lexists(target):
        return None
    if not target.is_dir():
        raise TargetError(f"{shown(target)} exists and is not a folder")
    if not any(target.iterdir()):
        return None
    manifest, damage = _read_manifest(target)
    refuse_other(target, manifest, damage, identity, source)
    check_files(target, manifest, others=True, apart=apart)
    return manifest  # type: ignore[no-any-return]


def refuse_other(
    target: object, manifest: Any, damage: str, identity: dict[str, Any], source: dict[str, Any]
) -> None:
    """TargetError unless ``manifest`` says that ``target`` was made by this plan from this source;
    ``damage`` ends the sentence if there is none."""
    before = field(manifest, "identity")
    notes = differences(before, identity) if before else []
    notes += differences(field(manifest, "source"), source) if before else []
    if before and not notes:
        return
    notes += _of_commit(field(before, "origin"), field(identity, "origin"))
    note = ": it was made by another plan\n" + "\n".join(notes) if notes else damage
    raise TargetError(f"{shown(target)} exists and is not empty{note}")


def _of_commit(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line that says how to go on with the commit of a repository that has moved since."""
    commit, hub = before.get("commit"), before.get("hub")
    if not commit or hub != now.get("hub") or commit == now.get("commit"):
        return []
    return [f"To go on with what it was made of, give {shown(f'hf://{hub}@{commit}')}"]


def differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Lines that name each field that differs, with both values; long lists are cut."""
    lines: list[str] = []
    for key in [*before, *(k for k in now if k not in before)]:
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{path}{key}.")
        elif json.dumps(a) != json.dumps(b):
            lines.append(f"  {path}{shown(key)[1:-1]}: {shown(a)} then, {shown(b)} now")
    return lines[:MAX_DIFFERENCES]


def field(value: Any, key: str) -> dict[str, Any]:
    """The object under ``key``; empty if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _read_manifest(folder: Path) -> tuple[Any, str]:
    """A target's manifest, or None; and what is wrong with it, to end a sentence with."""
    if not os.path.lexists(folder / MANIFEST):
        return None, ""
    try:
        data = Folder.at(folder).read(MANIFEST, MAX_RECORD, "manifest")
        return unsealed(data, MANIFEST)[0], ""
    except FormatError as e:
        return None, f": {e}"


def read_json(path: Path) -> Any:
    """The JSON in ``path``, or None if it is absent, empty or damaged; OSError if unreadable."""
    try:
        data = Folder.at(path.parent).read(path.name, MAX_RECORD, "state")
        return strictjson.loads(data, path.name)
    except FormatError:
        return None


_GONE = "\nIf --drop-uploaded removed them, give --push-to-hub again, or download them to here"


def check_files(
    folder: Path, manifest: dict[str, Any], others: bool, apart: Container[str] = ()
) -> None:
    """Refuse a folder without the manifest's files, each of its size; ``others`` may be there, and
    those ``apart`` be missing."""
    expected = listed_sizes(folder, manifest)
    actual = _sizes(folder, {name.split("/")[0] for name in expected if "/" in name})
    expected = {n: size for n, size in expected.items() if n in actual or n not in apart}
    check_sizes(folder, expected, actual, others)


def listed_sizes(folder: object, manifest: dict[str, Any]) -> dict[str, Any]:
    """Bytes by file, as the manifest of ``folder`` has them."""
    try:
        return {str(f["name"]): f["size"] for f in manifest["files"]}
    except (KeyError, TypeError):
        raise TargetError(f"{shown(folder)} has a {MANIFEST} without its list of files") from None


def check_sizes(
    folder: object, expected: dict[str, Any], actual: dict[str, int], others: bool
) -> None:
    """Refuse files that are not of the sizes expected; ``others`` may be there."""
    if others:
        actual = {name: size for name, size in actual.items() if name in expected}
    notes = differences(expected, actual)
    gone = any(name.endswith(".safetensors") for name in set(expected) - set(actual))
    if notes:
        raise TargetError(
            f"{shown(folder)} does not hold what its manifest says, in bytes by file:\n"
            + "\n".join(notes)
            + (_GONE if gone and isinstance(folder, Path) else "")
        )


def _sizes(folder: Path, folders: set[str]) -> dict[str, int]:
    """Bytes of everything but the manifest, by name; of what is in ``folders`` as well."""
    found = [p for p in folder.iterdir() if p.name != MANIFEST]
    inner = {p for p in found if p.name in folders and p.is_dir()}
    found = [p for p in found if p not in inner] + [p for f in inner for p in f.iterdir()]
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
