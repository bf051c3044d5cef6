"""Fields of config.json: each of its type, or an error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fp8convert.errors import FormatError
from fp8convert.reference.config import Config

FOUND = Config(
    json.loads("""{
    "count": 3, "none": null, "negative": -1, "zero": 0, "long": 36893488147419103232,
    "half": 0.5, "huge": 1e999, "yes": true, "name": "silu", "list": [1], "inner": {"eps": "x"}
}""")
)

Get = Callable[[Config], Any]


@pytest.mark.parametrize(
    ("get", "expected"),
    [
        (lambda c: c.integer("count"), 3),
        (lambda c: c.integer("absent", 7), 7),
        (lambda c: c.integer("none", 7), 7),
        (lambda c: c.number("half"), 0.5),
        (lambda c: c.number("negative"), -1.0),
        (lambda c: c.number("none", 2.5), 2.5),
        (lambda c: c.positive("count"), 3.0),
        (lambda c: c.flag("yes"), True),
        (lambda c: c.flag("absent", False), False),
        (lambda c: c.text("name"), "silu"),
        (lambda c: c.items("list"), [1]),
        (lambda c: c.items("none", []), []),
        (lambda c: c.within("absent"), None),
        (lambda c: c.within("inner").found, {"eps": "x"}),
        (lambda c: c.only("name", "gelu", "silu"), None),
        (lambda c: c.only("absent", 1), None),
        (lambda c: c.only("none", 1), None),
    ],
)
def test_a_field_is_read(get: Get, expected: object) -> None:
    found = get(FOUND)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (lambda c: c.integer("absent"), "absent is missing, expected an integer of at least 0"),
        (lambda c: c.integer("none"), "none is missing, expected an integer of at least 0"),
        (lambda c: c.integer("yes"), "yes is 'True', expected an integer of at least 0"),
        (lambda c: c.integer("half"), "half is '0.5', expected an integer of at least 0"),
        (lambda c: c.integer("negative", 5), "negative is '-1', expected an integer of at least 0"),
        (lambda c: c.integer("zero", least=1), "zero is '0', expected an integer of at least 1"),
        (lambda c: c.integer("long"), "long is '36893488147419103232', expected an integer of"),
        (lambda c: c.number("huge"), "huge is 'inf', expected a number"),
        (lambda c: c.number("yes"), "yes is 'True', expected a number"),
        (lambda c: c.positive("zero"), "zero is '0', expected a number above 0"),
        (lambda c: c.flag("count"), "count is '3', expected true or false"),
        (lambda c: c.text("count"), "count is '3', expected a string"),
        (lambda c: c.items("name"), "name is 'silu', expected a list"),
        (lambda c: c.within("list"), r"list is '\[1\]', expected an object"),
        (lambda c: c.only("count", 1, 2), "count is '3', supported: '1', '2'"),
        (lambda c: c.only("list"), r"list is '\[1\]', supported: no such field"),
        (lambda c: c.within("inner").number("eps"), "inner: eps is 'x', expected a number"),
    ],
)
def test_a_field_that_does_not_fit_is_named(get: Get, message: str) -> None:
    with pytest.raises(FormatError, match=f"^config.json: {message}"):
        get(FOUND)
