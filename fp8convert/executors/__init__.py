"""Where the tasks of a plan run: in this process, or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError, shown

if TYPE_CHECKING:
    from ..hub.push import Push
    from ..job import Job, Manifest
    from ..settings import Settings

NAMES = ("local", "ray")


def run(
    name: str, job: Job, settings: Settings | None = None, push: Push | None = None
) -> Manifest:
    """As :func:`~fp8convert.convert.execute`, on the executor of that name."""
    from ..convert import execute

    if name not in NAMES:
        raise UsageError(f"executor {shown(name)}, expected one of {', '.join(NAMES)}")
    if name == "local":
        return execute(job, settings, push)
    from .on_ray import run as on_ray

    if push is None:
        return on_ray(job, settings)
    from ..hub.shipper import check, deliver

    done = check(job, push)  # before the work; workers have no part in uploading
    return deliver(job, done or on_ray(job, settings), push)
