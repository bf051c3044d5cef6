"""What a branch may hold already: anything but weights, unless this very plan has made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..companions import NEVER
from ..errors import FormatError, TargetError, listed
from ..seal import unsealed
from ..target import MANIFEST, MAX_RECORD, refuse_other
from .branch import Branch, Head

if TYPE_CHECKING:
    from ..job import Job

ELSEWHERE = "name another --revision, or another repository"


def refuse_foreign(branch: Branch, head: Head, job: Job) -> None:
    """TargetError if something there is of another plan: its weights would lie among ours.

    Other files stay, or are replaced by ours of the same names; the history keeps them.
    """
    place = branch.push.place
    if MANIFEST not in head.files:
        if weights := sorted(n for n in head.files if n.lower().endswith(NEVER)):
            raise TargetError(f"{place} holds {listed(weights)}, not of this plan: {ELSEWHERE}")
        return
    try:
        manifest, damage = unsealed(branch.read(head, MANIFEST, MAX_RECORD), MANIFEST)[0], ""
    except FormatError as e:
        manifest, damage = None, f": {e}"
    try:
        refuse_other(place, manifest, damage, job.plan.identity, job.catalogue.fingerprint)
    except TargetError as e:
        raise TargetError(f"{e}\nFor this one {ELSEWHERE}") from None
