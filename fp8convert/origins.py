"""The source at an address: a folder; ``hf://org/name[@revision]``; ``s3://``, ``gs://``, ``memory://``."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .folder import Folder
from .hub import address
from .origin import Origin
from .stores.address import HUB, ObjectPath, scheme_of

NOTHING: Mapping[str, str] = {}


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`at` asks the hub for it; what is found there may be another thing tomorrow."""
    text = os.fspath(path)
    scheme = scheme_of(text)
    return scheme == HUB or (scheme is None and address.bare(text) is not None)


def at(path: str | os.PathLike[str], before: Mapping[str, str] = NOTHING) -> Origin:
    """The source at ``path``; FormatError, or UsageError, if there is none.

    ``org/name`` that is no folder here is one of the hub. ``before``: what an unfinished run for
    the same target reads (see :func:`.stages.begun`), whose commit is read again.
    """
    text = os.fspath(path)
    scheme = scheme_of(text)
    if scheme == HUB:
        from .hub import repo

        return repo.at(address.Address.of(text), before)
    if scheme is not None:
        from .stores.origin import ObjectOrigin

        return ObjectOrigin.at(ObjectPath.of(text))
    if (bare := address.bare(text)) is not None:
        from .hub import repo

        return repo.at(bare, before, text)
    return Folder.at(path)
