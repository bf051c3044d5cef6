"""The place where a target goes, by its address: a folder, or a place in an object store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import TargetError, UsageError, shown
from .folder import Folder
from .origin import Origin
from .plan import Plan
from .publish import ASKED, JOB, Staging
from .stage import Stage
from .staged import state_of
from .stores.address import HUB, ObjectPath, scheme_of
from .stores.store import check_installed
from .target import field, read_json, resolve_target

Target = Path | ObjectPath


def resolve(dst: str | os.PathLike[str], origin: Origin) -> Target:
    """Where ``dst`` is; refuses one that is the source, inside it, or around it."""
    scheme = scheme_of(os.fspath(dst))
    if scheme is None:
        return resolve_target(dst, origin.root if isinstance(origin, Folder) else None)
    if scheme == HUB:
        raise UsageError(f"{shown(dst)}: a target is a folder; --push-to-hub uploads it as well")
    target = ObjectPath.of(os.fspath(dst))
    check_installed(target)
    if f"{target}/".startswith(f"{origin.place}/") or f"{origin.place}/".startswith(f"{target}/"):
        raise TargetError(
            f"target {shown(target)} and source {shown(origin.place)} must not contain each other"
        )
    return target


def begun(dst: str | os.PathLike[str]) -> Mapping[str, str]:
    """What an unfinished run for ``dst`` reads: the origin in its plan and, as ``asked``, what it
    was found by; empty if there is no such run, or it reads a folder."""
    job = _job(dst)
    origin = field(field(job, "identity"), "origin")
    found = {**origin, ASKED: job.get(ASKED)} if origin else {}
    return found if all(isinstance(v, str) for v in found.values()) else {}


def _job(dst: str | os.PathLike[str]) -> Any:
    if scheme_of(os.fspath(dst)) is None:
        return read_json(state_of(Path(os.path.realpath(dst))) / JOB)
    if scheme_of(os.fspath(dst)) == HUB:
        return None
    from .stores.staging import begun

    return begun(ObjectPath.of(os.fspath(dst)))


def downloads(target: Target) -> Path | None:
    """Where downloads wait if nothing else is said: beside the target, if it is on this disk."""
    if not isinstance(target, Path):
        return None
    return target.parent / f".{target.name}.fp8convert-downloads"


def stage(target: Target, plan: Plan) -> Stage:
    """Where ``plan`` builds ``target``."""
    if isinstance(target, Path):
        return Staging(target, plan)
    from .stores.staging import ObjectStaging

    made: Stage = ObjectStaging(target, plan)
    return made
