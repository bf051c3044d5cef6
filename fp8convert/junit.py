"""Test results as JUnit XML, which CI systems show beside a build."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

# What XML 1.0 has no way to write, not even as a reference: control characters, lone surrogates,
# and two that are not characters. C1 controls may be written, but terminals act on them.
ILLEGAL = re.compile("[^\t\n\r -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One test: passed unless ``failed`` or ``skipped`` say why it did not, or was not run."""

    name: str
    failed: str | None = None
    skipped: str | None = None
    detail: str = ""
    seconds: float = 0.0


def junit(suite: str, cases: Sequence[Case]) -> str:
    """The XML text of one test suite. Characters that XML cannot hold are shown escaped."""
    head = (
        f"name={_attribute(suite)} tests={quoteattr(str(len(cases)))} "
        f'failures="{sum(c.failed is not None for c in cases)}" errors="0" '
        f'skipped="{sum(c.skipped is not None for c in cases)}" '
        f'time="{sum(c.seconds for c in cases):.3f}"'
    )
    body = "\n".join(_case(suite, c) for c in cases)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites>\n<testsuite {head}>\n{body}\n'
        "</testsuite>\n</testsuites>\n"
    )


def _case(suite: str, case: Case) -> str:
    inside = []
    if case.failed is not None:
        first = case.failed.split("\n", 1)[0]
        inside.append(f"<failure message={_attribute(first)}>{_text(case.failed)}</failure>")
    elif case.skipped is not None:
        inside.append(f"<skipped message={_attribute(case.skipped)}/>")
    if case.detail:
        inside.append(f"<system-out>{_text(case.detail)}</system-out>")
    return (
        f"<testcase classname={_attribute(suite)} name={_attribute(case.name)} "
        f'time="{case.seconds:.3f}">{"".join(inside)}</testcase>'
    )


def _text(found: str) -> str:
    return escape(_legal(found), {"\r": "&#13;"})


def _attribute(found: str) -> str:
    return quoteattr(_legal(found))  # newlines and tabs as references: else they become spaces


def _legal(found: str) -> str:
    return ILLEGAL.sub(lambda c: ascii(c[0])[1:-1], found)
