"""Every command of docs/hub.md, as it is written."""

from __future__ import annotations

from pathlib import Path

from .walking import walk


def test_page(tiny_fp8: Path, tmp_path: Path) -> None:
    walk("hub.md", tiny_fp8, tmp_path)
