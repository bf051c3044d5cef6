"""A page of docs/, every command as it is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .pages import DOCS, NAME, opened, servers

FEWEST = 5  # blocks of a page: with less it is not the page that is meant


def walk(name: str, tiny_fp8: Path, tmp_path: Path) -> None:
    """Run all blocks of the page ``name``, and see that nothing is left behind."""
    text = (DOCS / name).read_text()
    shutil.copytree(tiny_fp8, tmp_path / "work" / NAME)
    with servers(tmp_path, tiny_fp8) as environment, opened(tmp_path, environment) as page:
        assert page.run(text) >= FEWEST
    left = [n for n in os.listdir(tmp_path / "work") if n.endswith((".tmp", ".fp8convert"))]
    assert left == []  # every command was undisturbed: no state of a run is left
