"""Options of the converting commands for what is beyond this machine: the hub, other machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8convert.executors import NAMES

from .sizes import Size

if TYPE_CHECKING:
    from fp8convert.hub.push import Push
    from fp8convert.origin import Scratch

SCRATCH_OPTIONS = (
    click.option("--scratch", type=click.Path(file_okay=False), metavar="DIR",
                 help="Where shards of the hub wait to be converted.  [default: beside DST]"),
    click.option("--scratch-size", type=Size(),
                 help="Bound on their bytes there.  [default: a few shards]"),
    click.option("--keep-downloads", is_flag=True, help="Leave all of them there, for later runs."),
)  # fmt: skip
PUSH_OPTIONS = (
    click.option("--push-to-hub", metavar="ORG/NAME", help="Upload DST to the hub as well."),
    click.option("--private", is_flag=True,
                 help="With --push-to-hub: to a private repository, made so if it is new."),
    click.option("--revision", metavar="BRANCH",
                 help="With --push-to-hub: made if it is not there.  [default: main]"),
    click.option("--drop-uploaded", is_flag=True,
                 help="With --push-to-hub: remove each shard here once it is there."),
    click.option("--parity-report", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                 help="With --push-to-hub: what parity --json said of DST, for the model card."),
)  # fmt: skip
PUSH_NAMES = ("push_to_hub", "private", "revision", "drop_uploaded", "parity_report")
EXECUTOR_OPTIONS = (
    click.option("--executor", type=click.Choice(NAMES), default=NAMES[0],
                 show_default=True, help="ray: a Ray task for each file; needs fp8convert[ray]."),
)  # fmt: skip


def scratch_of(scratch: str | None, scratch_size: int | None, keep_downloads: bool) -> Scratch:
    """Where downloads wait."""
    from fp8convert.origin import Scratch

    return Scratch(None if scratch is None else Path(scratch), scratch_size, keep_downloads)


def push_of(
    push_to_hub: str | None, private: bool, revision: str | None, drop_uploaded: bool,
    parity_report: str | None, progress: Callable[[int, int], None] | None = None,
) -> Push | None:  # fmt: skip
    """Where to upload to; a usage error if only the rest is given."""
    if push_to_hub is None:
        if private or revision is not None or drop_uploaded or parity_report is not None:
            raise click.UsageError(
                "--private, --revision, --drop-uploaded, --parity-report go with --push-to-hub"
            )
        return None
    from fp8convert.hub.push import Push

    report = None if parity_report is None else Path(parity_report)
    return Push(push_to_hub, private, revision, drop_uploaded, report, progress)


def taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options of these names, removed from ``options``."""
    return {name: options.pop(name) for name in names}
