"""docs/reliability.md and docs/security.md: every promise has a link to a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .campaigns import CAMPAIGNS

ROOT = Path(__file__).parents[2]
PAGES = ("reliability.md", "security.md")
LINK = re.compile(r"\[`(?P<file>[\w/]+\.py)(?:::(?P<name>\w+))?`\]\((?P<path>[\w./]+)\)")


def rows(page: str) -> list[str]:
    """The rows of the page's tables of promises, which say so in their head."""
    found, within = [], False
    for line in (ROOT / "docs" / page).read_text().splitlines():
        within = line.startswith("|") and (within or line.startswith("| promise"))
        if within and not line.startswith(("| promise", "|---")):
            found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_has_its_test(page: str) -> None:
    promises = rows(page)
    assert len(promises) > 5
    assert [row for row in promises if not LINK.search(row)] == []
    for row in promises:
        for link in LINK.finditer(row):
            path = (ROOT / "docs" / link["path"]).resolve()
            assert path == ROOT / "tests" / link["file"], row
            assert path.is_file(), row
            if link["name"]:
                assert f"def {link['name']}(" in path.read_text(), row


def test_every_class_of_faults_is_on_the_page() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    assert [c.name for c in CAMPAIGNS if f"`{c.name}`" not in text] == []


def test_a_promise_without_a_test_is_seen() -> None:
    """The control."""
    assert not LINK.search("| nothing is lost | by faith |")
    assert LINK.search("| x | y | [`faults/kills.py`](../tests/faults/kills.py) |")
