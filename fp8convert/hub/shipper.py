"""One upload of one target, beside the run that makes the target or after it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ResumableError, UsageError, shown
from ..job import Job, Manifest
from ..origin import Feed
from .branch import Branch
from .delivery import Delivery
from .paced import Paced, most_at_once
from .push import Push, Pushed
from .quiet import quiet
from .shipped import Shipped
from .uploads import Uploads


def uploadable(job: Job, push: Push) -> Path:
    """The target; UsageError if it is none that can be uploaded so. Asks nobody."""
    if not isinstance(job.target, Path):
        raise UsageError(f"--push-to-hub needs a folder here, not {shown(job.target)}")
    if push.drop and job.plan.options.checksum == "none":
        raise UsageError("--drop-uploaded needs checksums: what the hub has is known by them")
    return job.target


class Shipper:
    """A run with it builds in its ``stage``, and takes its feed ``paced``. Use :func:`shipping`."""

    def __init__(self, job: Job, push: Push) -> None:
        self.job, self.push, self.target = job, push, uploadable(job, push)
        self.pushed: Pushed | None = None
        self._checked = False
        self._uploads = Uploads(Branch(push, threading.Event()))
        self._delivery = Delivery(job, push, self.target, self._uploads)

    def stop(self) -> None:
        """Nothing more is sent."""
        self._uploads.stop()

    @property
    def stage(self) -> Shipped:
        """Where the target is built."""
        return Shipped(
            self.target, self.job.plan, self._uploads, self.push.drop,
            self.check, lambda: self._uploads.settle(self.push.progress), self._deliver,
        )  # fmt: skip

    @property
    def most(self) -> int | None:
        """Bytes that are on the disk at once, if that is not all of them."""
        return most_at_once(self.job.plan) if self.push.drop else None

    def paced(self, feed: Feed) -> Feed:
        """``feed``, of which no more is asked while too much waits to be sent."""
        return Paced(feed, self._uploads)

    def check(self) -> None:
        """Whether it can be done at all; before any work."""
        if not self._checked:
            self._delivery.check()
        self._checked = True

    def delivered(self, manifest: Manifest) -> Manifest:
        """The whole of a finished target is on the hub, and here only what is to stay."""
        try:
            self.check()
            if self.pushed is None:
                self._deliver(self.target, manifest.data)
        except ResumableError as e:
            raise ResumableError(f"{e}\n{shown(self.target)} is finished, its upload is not") from e
        assert self.pushed
        files = [self.target / task.file for task in self.job.plan.tasks]
        if self.push.drop:
            for path in files:
                path.unlink(missing_ok=True)
        gone = sum(not path.exists() for path in files)
        return replace(manifest, pushed=replace(self.pushed, dropped=gone))

    def _deliver(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.pushed = self._delivery.deliver(folder, manifest)


@contextlib.contextmanager
def shipping(job: Job, push: Push) -> Iterator[Shipper]:
    """A :class:`Shipper`, until the end of the run."""
    with quiet():
        shipper = Shipper(job, push)
        try:
            yield shipper
        finally:
            shipper.stop()


def check(job: Job, push: Push) -> Manifest | None:
    """Before a run elsewhere whose target is to be uploaded: whether that can be done.

    The manifest if there is nothing to run: weights of a finished target may be on the hub only.
    """
    with shipping(job, push) as shipper:
        data = shipper.stage.finished(job.catalogue.fingerprint)
        shipper.check()
    return None if data is None else Manifest(job.target, data, already_done=True)


def deliver(job: Job, manifest: Manifest, push: Push) -> Manifest:
    """Upload a finished target; see :class:`Push`."""
    with shipping(job, push) as shipper:
        return shipper.delivered(manifest)
