"""Elements and tables of a page, with everything from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

TALL = 20  # rows of a table above which it scrolls
LONGEST = 1000  # characters of one text: a checkpoint may hold a name of megabytes


def escaped(value: object) -> str:
    """Text from anywhere, safe as text and as an attribute: the unprintable is spelled out."""
    return escape(printable(str(value)[:LONGEST]))


def printable(words: str) -> str:
    """One line of text, with the escapes of what would not show, or would do something else."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def tag(name: str, *body: str, **attributes: object) -> str:
    """An element. ``body`` is markup; attributes are escaped, not cut; ``aria_label`` is
    ``aria-label``."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(plain(value))))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{said}>{''.join(body)}</{name}>"


def plain(value: object) -> object:
    """A float with two decimals at most: enough for a position in a picture."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def cell(words: object) -> str:
    """A cell of a table with any text."""
    return tag("td", escaped(words))


def short(words: object) -> str:
    """A cell with text that stays on one line."""
    return tag("td", escaped(words), class_="short")


def code(words: object) -> str:
    """A cell with a name or a path."""
    return tag("td", tag("code", escaped(words)))


def num(words: str) -> str:
    """A cell with a number."""
    return tag("td", escaped(words), class_="num")


def fails(words: str) -> str:
    """A cell that calls for attention."""
    return tag("td", escaped(words), class_="fails")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of cells under heads; the head of a column of numbers begins with ``#``."""
    first = (
        tag("th", escaped(h[1:]), class_="num") if h.startswith("#") else tag("th", escaped(h))
        for h in heads
    )
    lines = "\n".join(tag("tr", *row) for row in rows)
    body = tag("table", tag("thead", tag("tr", *first)), "\n", tag("tbody", lines))
    if lines.count("\n") < TALL:
        return tag("div", body, class_="wide")
    return tag("div", body, class_="tall", tabindex=0)  # keys scroll what has the focus
