"""A page read as a browser reads it: its elements, texts, tables and pictures. Not our own code."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta"}


class Page(HTMLParser):
    """``tags`` with attributes; ``tables`` of rows of texts; ``text`` without the style."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert not self._open
        found = re.findall("<svg.*?</svg>", markup, re.DOTALL)
        self.pictures = [Picture(ElementTree.fromstring(svg)) for svg in found]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # every element is closed, in order

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def table(self, *heads: str) -> list[list[str]]:
        """The rows of the one table that begins with these heads."""
        (found,) = [t for t in self.tables if tuple(t[0][: len(heads)]) == heads]
        return found[1:]


class Picture:
    """What is drawn where, in the units of the picture."""

    def __init__(self, root: ElementTree.Element) -> None:
        self.root = root
        self.width, self.height = map(float, root.attrib["viewBox"].split()[2:])
        self.label = root.attrib["aria-label"]

    def texts(self) -> list[tuple[float, float, str, str]]:
        """x, y, words and anchor of all texts."""
        return [
            (float(t.attrib["x"]), float(t.attrib["y"]), t.text or "", t.attrib["text-anchor"])
            for t in self.root.iter(SVG + "text")
        ]

    def marks(self, kind: str = "") -> list[tuple[float, float, str, str]]:
        """x, y, tooltip and outline of the marks that have a tooltip, in the order drawn."""
        found = []
        for path in self.root.iter(SVG + "path"):
            title = path.find(SVG + "title")
            place = re.fullmatch(r"translate\((\S+) (\S+)\)", path.attrib.get("transform", ""))
            if title is None or not place:
                continue
            if kind in ("", *path.attrib["class"].split()[1:]):
                words = title.text or ""
                found.append((float(place[1]), float(place[2]), words, path.attrib["d"]))
        return found

    def path(self, kind: str) -> str:
        """The outline of the one path of a class."""
        found = [p for p in self.root.iter(SVG + "path") if p.attrib["class"] == kind]
        return found[0].attrib["d"] if len(found) == 1 else ""

    def lines(self, kind: str) -> list[tuple[float, float, float, float]]:
        """x1, y1, x2, y2 of the lines of a class."""
        ends = ("x1", "y1", "x2", "y2")
        found = [e.attrib for e in self.root.iter(SVG + "line") if e.attrib["class"] == kind]
        return [tuple(float(a[end]) for end in ends) for a in found]  # type: ignore[misc]
