"""Tools that are broken on purpose, that the tables of bad files must find out."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _made(path: Path) -> None:
    """A folder that is there already is as bad."""
    path.mkdir(exist_ok=True)


def careless(how: str) -> None:
    """A tampering: a broken tool, that the tests must find out."""
    from fp8convert import convert, folder, header, listing

    opened = convert.catalogue_of
    resolved = lambda self, name, why: Path(os.path.realpath(self.root / name))  # noqa: E731
    broken: dict[str, tuple[object, str, object]] = {
        "follows links": (folder.Folder, "_resolved", resolved),
        "believes offsets": (header, "_check_tiling", lambda *args: None),
        "believes indexes": (listing.Listing, "check", lambda *args: []),
        "says names raw": (header, "shown", lambda text: f"'{text}'"),
        "leaves a folder": (
            convert, "catalogue_of", lambda at: (_made(Path(sys.argv[3])), opened(at))[1]
        ),
    }  # fmt: skip
    setattr(*broken[how])
