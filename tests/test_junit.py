"""JUnit XML, read back by another parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fp8convert.junit import Case, junit

NASTY = [
    "plain",
    "<b>&amp; \"quotes\" 'both'",
    "]]>",
    "tab\tnew\nline\rreturn",
    "\u00e9\u4e2d\U0001f600",
]
ILLEGAL = {
    "\x1b[31mred": r"\x1b[31mred",
    "nul\x00nul": r"nul\x00nul",
    "\ud800 lone": r"\ud800 lone",
    "\ufffe\uffff": r"\ufffe\uffff",
    "\x7f\x85\x9b": r"\x7f\x85\x9b",
}


def parsed(text: str) -> ET.Element:
    """The suite. As bytes, as a CI system reads the file."""
    (suite,) = ET.fromstring(text.encode("utf-8"))
    assert suite.tag == "testsuite"
    return suite


def test_counts_and_results() -> None:
    cases = [
        Case("right", detail="all of it", seconds=1.5),
        Case("wrong", failed="first line\nsecond line", detail="how", seconds=0.25),
        Case("not run", skipped="no reason"),
    ]
    suite = parsed(junit("suite", cases))
    counts = ("name", "tests", "failures", "errors", "skipped", "time")
    assert [suite.get(k) for k in counts] == ["suite", "3", "1", "0", "1", "1.750"]
    right, wrong, skipped = suite
    assert [c.get("name") for c in suite] == ["right", "wrong", "not run"]
    assert {c.get("classname") for c in suite} == {"suite"}
    assert [c.tag for c in right] == ["system-out"]
    assert right.findtext("system-out") == "all of it"
    failure = wrong.find("failure")
    assert failure is not None
    assert failure.get("message") == "first line"
    assert failure.text == "first line\nsecond line"
    reason = skipped.find("skipped")
    assert reason is not None
    assert reason.get("message") == "no reason"


def test_no_cases() -> None:
    assert parsed(junit("empty", [])).get("tests") == "0"


@pytest.mark.parametrize(("text", "read"), [*((t, t) for t in NASTY), *ILLEGAL.items()])
def test_any_text_is_legal_xml(text: str, read: str) -> None:
    suite = parsed(junit(text, [Case(text, failed=text, detail=text), Case("x", skipped=text)]))
    assert suite.get("name") == read
    failed, skipped = suite
    assert failed.get("name") == read
    found = failed.find("failure")
    assert found is not None
    assert found.text == read
    assert found.get("message") == read.split("\n")[0]
    assert failed.findtext("system-out") == read
    reason = skipped.find("skipped")
    assert reason is not None
    assert reason.get("message") == read


def test_every_character_up_to_the_surrogates() -> None:
    text = "".join(map(chr, range(0x3000)))
    assert parsed(junit("all", [Case("x", failed=text)])) is not None
