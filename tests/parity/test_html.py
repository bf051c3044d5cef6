"""The report of a parity run: what it says and draws, read back from the page itself."""

from __future__ import annotations

import copy
import json
import math
import re
from itertools import pairwise
from typing import Any

import pytest

from fp8convert.parity.html import report

from . import results
from .page import Page, Picture

NAN, INF = float("nan"), float("inf")
Result = dict[str, Any]


def page(result: Result) -> Page:
    return Page(report(result))


def pictures(result: Result) -> list[Picture]:
    """Of layers, logits and weights, as far as the run has them."""
    return page(result).pictures


EVERY = {
    "same": results.same(),
    "deep": results.deep(),
    "failing": results.failing(),
    "broken": results.broken(),
    "one layer": results.same(hidden=[results.layer("layer 0", "dense", 3e-7)]),
    "zero": results.same(hidden=[results.layer("layer 0", "dense", 0.0)]),
    "nothing": results.same(
        hidden=[], weights=[], scatter={"head": "logits", "reference": [], "candidate": []}
    ),
}


def numbered(cell: str) -> float:
    return float(cell)  # "NaN" and "inf" too


def near(cell: str, value: float) -> bool:
    """The number of a cell is the value, in the four digits it has."""
    return math.isnan(value) if cell == "NaN" else numbered(cell) == pytest.approx(value, rel=5e-4)


# --- The page


@pytest.mark.parametrize("name", EVERY)
def test_the_page_is_closed_well_formed_and_alone(name: str) -> None:
    markup = report(EVERY[name])
    found = Page(markup)  # asserts that elements close, and parses each SVG as XML
    assert len(found.pictures) == (0 if name == "nothing" else 3)
    assert set(re.findall(r"\w+://[^\"' ]*", markup)) <= {"http://www.w3.org/2000/svg"}
    assert not {"script", "link", "img", "iframe", "object", "base"} & {t for t, _ in found.tags}
    names = {key for _, attributes in found.tags for key in attributes}
    assert not names & {"src", "href", "srcset", "action"}
    assert not [key for key in names if key.startswith("on") or ":" in key]
    assert not re.search(r"url\(|@import", markup)
    policy = [a["content"] for t, a in found.tags if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("name", EVERY)
def test_the_same_result_is_the_same_bytes_from_json_too(name: str) -> None:
    def strings(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: strings(value) for key, value in found.items()}
        if isinstance(found, list):
            return [strings(value) for value in found]
        finite = not isinstance(found, float) or math.isfinite(found)
        return found if finite else str(found)

    result = EVERY[name]
    before = copy.deepcopy(result)
    first = report(result)
    assert repr(result) == repr(before)
    assert report(json.loads(json.dumps(strings(result)))) == first


def test_what_comes_from_outside_is_text() -> None:
    result = results.broken()
    markup = report(result)
    found = Page(markup)
    spelled = "</script><script>alert(1)</script>\"'&\\x1b[2J\\x00\\u202e\\udcff"
    assert [row[2] for row in found.table("", "reference", "candidate")] == [
        spelled, spelled, "2", spelled,
    ]  # fmt: skip
    assert f"128 to 255 of {spelled} of the candidate, multiplied by 64" in found.text
    assert [m for m in found.pictures[2].marks() if m[2].startswith(spelled)]
    assert markup.encode().decode() == markup
    assert all(c.isprintable() for c in markup.replace("\n", ""))


def test_a_name_of_megabytes_does_not_make_the_page_large() -> None:
    name = "w" * 5_000_000
    weights = [results.weights(name, 3, 1, 0.5)]
    long = results.same(control=results.control(weight=name), weights=weights)
    assert len(report(long)) < len(report(results.same())) + 5000


# --- The verdict


def test_a_pass_says_so() -> None:
    found = page(results.same())
    assert "✓ PASS" in found.text
    assert "✗" not in found.text
    assert "Profile identical. No layer's hidden state differs." in found.text
    assert "The broken control was detected." in found.text
    assert "max_abs 0.75, at most 0.0" in found.text


def test_a_failure_says_why_and_marks_only_what_fails() -> None:
    found = page(results.failing())
    assert "✗ FAIL" in found.text
    assert "PASS" not in found.text
    for reason in results.failing()["reasons"]:
        assert reason in found.text
    assert "The hidden state is first beyond the limit at layer 54, relative RMS 0.1" in found.text
    failed = [row[:4] for row in found.table("head", "measure") if "fails" in row[4]]
    assert failed == [
        ["logits", "KL max (nats)", "0.31", "at most 0.1"],
        ["mtp", "top-1 agreement", "0.85", "at least 0.9"],
    ]
    starts = [row[0] for row in found.table("layer", "kind") if "starts" in row[5]]
    assert starts == ["layer 54"]


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_an_undetected_control_is_loud_and_never_a_pass(verdict: str) -> None:
    seen = results.control(detected=False, failed=[], tried=[2.0, 8.0])
    found = page(results.same(control=seen, verdict=verdict))
    assert "✗ FAIL" in found.text
    assert "PASS" not in found.text
    assert "✗ NOT DETECTED." in found.text
    assert "its verdict proves nothing" in found.text
    assert "(tried: 2, 8)" in found.text


# --- The numbers


@pytest.mark.parametrize("name", EVERY)
def test_tables_hold_the_numbers_of_the_result(name: str) -> None:
    result, found = EVERY[name], page(EVERY[name])
    keys = ("max_abs", "relative_rms", "kl_max", "kl_mean", "top1", "top5")
    values = [head[key] for head in result["heads"] for key in keys]
    cells = [row[2] for row in found.table("head", "measure")]
    assert all(map(near, cells, values))
    assert cells[len(values) :] == ["yes" if h["finite"] else "no" for h in result["heads"]]
    if result["hidden"]:
        for row, of in zip(found.table("layer", "kind"), result["hidden"], strict=True):
            assert row[:2] == [of["name"], of["kind"]]
            assert all(map(near, row[2:5], (of["relative_rms"], of["max_abs"], of["ref_rms"])))
    if result["weights"]:
        for row, of in zip(found.table("class", "weights"), result["weights"], strict=True):
            assert [int(n) for n in row[1:3]] == [of["weights"], of["different"]]
            assert all(map(near, row[3:5], (of["relative_rms"], of["max_abs"])))


def test_limits_stand_beside_what_was_measured() -> None:
    rows = page(results.deep()).table("head", "measure")
    assert [row[3] for row in rows[:6]] == [
        "not judged", "at most 0.1", "at most 0.1", "at most 0.01", "at least 0.9", "not judged",
    ]  # fmt: skip
    assert [row[4] for row in rows[:6]] == ["", "✓", "✓", "✓", "✓", ""]


def test_a_value_barely_beyond_its_limit_does_not_look_like_it() -> None:
    limits = {**results.NONE, "max_rms": 0.01}
    heads = [results.head(relative_rms=0.0100000002)]
    row = page(results.same(thresholds=limits, heads=heads)).table("head", "measure")[1]
    assert row[2:] == ["0.0100000002", "at most 0.01", "✗ fails"]


def test_memory_time_tokens_and_layers() -> None:
    found = page(results.same(layers=[0, 1, 2, 60]))
    assert [row[1] for row in found.tables[-1][1:]] == [
        "1.2 GiB", "32 MiB", "1.3 GB", "2.5 s", "3.25 s", "1.125 s",
    ]  # fmt: skip
    assert "Computed in bf16 on cpu, tokens 2 x 16, seed 0, layers 0 to 2, 60." in found.text


def test_notes_are_said() -> None:
    notes = ["only the reference has an <MTP> head"]
    assert "Note: only the reference has an <MTP> head." in page(results.same(notes=notes)).text


def test_what_a_run_does_not_have_is_said() -> None:
    text = page(EVERY["nothing"]).text
    for words in ("No hidden states were", "No logits were", "No weights were"):
        assert words in text


# --- The plots, by their own ticks


def decades(ticks: list[tuple[float, str]]) -> dict[str, float]:
    """Position by label."""
    return {words: at for at, words in ticks}


def logarithmic(ticks: dict[str, float], value: float) -> float:
    """Where a value must be, by the first and the last decade that are labelled."""
    if not math.isfinite(value):
        return ticks["NaN/∞"]
    if value == 0:
        return ticks["0"]
    (low, at_low), *_, (high, at_high) = sorted(
        (int(words[2:]), at) for words, at in ticks.items() if words.startswith("1e")
    )
    return at_low + (math.log10(value) - low) / (high - low) * (at_high - at_low)


def rows_of(picture: Picture) -> dict[str, float]:
    """Positions of the ticks of an axis that goes up; a label stands 5 below its line."""
    lines = {round(y, 2) for _, y, _, _ in picture.lines("grid")}
    ticks = [(round(y - 5, 2), w) for _, y, w, anchor in picture.texts() if anchor == "end"]
    ticks = [tick for tick in ticks if tick[0] in lines]
    assert len(ticks) == len(lines)
    return decades(ticks)


def columns_of(picture: Picture) -> dict[str, float]:
    lines = {x for x, y1, _, y2 in picture.lines("grid") if y1 != y2}
    ticks = [(x, w) for x, _, w, anchor in picture.texts() if anchor == "middle" and x in lines]
    assert len(ticks) == len(lines)
    return decades(ticks)


@pytest.mark.parametrize("name", ["same", "deep", "failing", "broken", "one layer", "zero"])
def test_each_layer_is_a_point_at_its_error(name: str) -> None:
    result = EVERY[name]
    picture = pictures(result)[0]
    ticks = rows_of(picture)
    hidden = result["hidden"]
    points = picture.marks()[-len(hidden) :]  # after the legend
    assert len(picture.marks()) == len(hidden) + len({h["kind"] for h in hidden})
    for (_, y, title, _), of in zip(points, hidden, strict=True):
        assert y == pytest.approx(logarithmic(ticks, of["relative_rms"]), abs=0.02)
        assert title.startswith(f"{of['name']} ({of['kind']}): relative RMS ")
    steps = [b[0] - a[0] for a, b in pairwise(points)]
    assert all(step == pytest.approx(steps[0], abs=0.02) and step > 5 for step in steps)
    labels = {w: x for x, _, w, anchor in picture.texts() if anchor == "middle" and w != "layer"}
    assert labels[hidden[-1]["name"].removeprefix("layer ")] == points[-1][0]
    for words, x in labels.items():
        number = int(words) if words.isdigit() else len(hidden) - 1
        assert x == points[number][0]


def test_kinds_differ_by_shape_and_have_a_legend() -> None:
    picture = pictures(results.deep())[0]
    shapes = {kind: {m[3] for m in picture.marks(kind)} for kind in ("dense", "moe", "other")}
    assert all(len(of) == 1 for of in shapes.values())
    assert len(set.union(*shapes.values())) == 3
    legend = [w for _, y, w, _ in picture.texts() if y == 45]
    assert legend == ["dense", "moe", "mtp"]
    assert len(picture.marks("dense")) == 3 + 1
    assert len(picture.marks("moe")) == 58 + 1


def test_the_start_and_the_limit_are_drawn() -> None:
    picture = pictures(results.failing())[0]
    ((x, _, x2, _),) = picture.lines("start")
    assert x == x2 == picture.marks()[-61:][54][0]
    ((_, y, _, y2),) = picture.lines("limit")
    assert y == y2 == pytest.approx(logarithmic(rows_of(picture), 0.1), abs=0.02)
    words = [w for *_, w, _ in picture.texts()]
    assert {"starts at layer 54", "limit 0.1"} <= set(words)
    assert "Differences start at layer 54." in picture.label
    same = pictures(results.same())[0]
    assert not same.lines("start") + same.lines("limit")


@pytest.mark.parametrize("name", ["same", "deep", "broken"])
def test_logits_are_where_the_ticks_say(name: str) -> None:
    found = EVERY[name]["scatter"]
    picture = pictures(EVERY[name])[1]

    def read(ticks: list[tuple[float, float]], at: float) -> float:
        (p, a), *_, (q, b) = ticks
        return a + (at - p) / (q - p) * (b - a)

    lines = picture.lines("grid")
    ys = {y for _, y, _, y2 in lines if y == y2}
    up = sorted((y - 5, float(w)) for _, y, w, _ in picture.texts() if round(y - 5, 2) in ys)
    xs = {x for x, _, x2, _ in lines if x == x2}
    across = sorted((x, float(w)) for x, y, w, _ in picture.texts() if x in xs and y > max(ys))
    assert len(up) == len(ys) > 2
    assert len(across) == len(xs) > 2
    pairs = list(zip(found["reference"], found["candidate"], strict=True))
    finite = [p for p in pairs if all(map(math.isfinite, p))]
    dots = re.findall(r"M(\S+) (\S+)h0", picture.path("dots"))
    pixel = abs(up[1][1] - up[0][1]) / abs(up[1][0] - up[0][0])
    for (x, y), (a, b) in zip(dots, finite, strict=True):
        assert read(across, float(x)) == pytest.approx(a, abs=0.1 * pixel)
        assert read(up, float(y)) == pytest.approx(b, abs=0.1 * pixel)
    for x, y in (picture.lines("identity")[0][:2], picture.lines("identity")[0][2:]):
        assert read(across, x) == pytest.approx(read(up, y), abs=0.1 * pixel)


def test_the_largest_difference_and_what_is_not_finite_are_marked() -> None:
    picture = pictures(results.broken())[1]
    assert [m[2] for m in picture.marks("widest")] == [
        "largest difference of the sample: 1 became 1.5"
    ]
    crosses = {m[2]: m[:2] for m in picture.marks("strange")}
    assert list(crosses) == ["NaN became 2", "-inf became inf", "NaN became NaN"]
    (x1, y1, _, y2) = picture.lines("identity")[0]
    assert crosses["-inf became inf"] == (x1, y2)  # left and top edge
    assert crosses["NaN became NaN"] == (x1, y1)
    assert not pictures(results.same())[1].marks()
    many = {"head": "logits", "reference": [NAN] * 2000, "candidate": [1.0] * 2000}
    assert len(pictures(results.same(scatter=many))[1].marks("strange")) == 1


@pytest.mark.parametrize("name", ["same", "deep", "broken"])
def test_bars_end_at_the_error_of_their_class(name: str) -> None:
    found = EVERY[name]["weights"]
    picture = pictures(EVERY[name])[2]
    ticks = columns_of(picture)
    for (x, _, title, path), of in zip(picture.marks(), found, strict=True):
        error = of["relative_rms"]
        end = x + float(re.findall(r"H([\d.]+)V", path)[0]) if math.isfinite(error) else x
        at = logarithmic(ticks, error) + (4 if error == 0 else 0)  # 0 is a mark on the floor
        assert end == pytest.approx(at, abs=0.02)
        assert f"{of['different']} of {of['weights']} differ" in title


EXTREMES = [
    [0.0], [NAN], [INF], [5e-324], [1.7e308], [5e-324, 1.7e308], [0.0, NAN, INF, 1.0], [1.0, 1.0],
    [0.1, 0.1000001], [1e-3, 2e-3], [9.99e-4, 1.001e-3], [1e-7, 1.0], [1e-17, 3.0],
]  # fmt: skip


@pytest.mark.parametrize("errors", EXTREMES, ids=str)
def test_any_errors_make_a_picture_with_labels_apart(errors: list[float]) -> None:
    hidden = [results.layer(f"layer {i}", "moe", e) for i, e in enumerate(errors)]
    weights = [results.weights("attention", 3, 2, e) for e in errors]
    layers, _, bars = pictures(results.same(hidden=hidden, weights=weights))
    inside(layers, bars)
    ys = sorted(rows_of(layers).values())
    assert all(b - a >= 20 for a, b in pairwise(ys))
    columns = sorted((x, words) for words, x in columns_of(bars).items())
    for (a, left), (b, right) in pairwise(columns):
        assert b - a >= 4.9 * (len(left) + len(right))


@pytest.mark.parametrize(
    "values",
    [
        [0.0], [5.0], [NAN], [INF, -INF], [1.7e308, -1.7e308], [3e38, -3e38], [5e-324], [-1e-310],
        [1.0, 1.0 + 1e-15], [1e20, 1e20], [-3.0, 4.0], [12345.678, 12345.679], [-1e-40, 1e-40],
    ],
    ids=str,
)  # fmt: skip
def test_any_logits_make_a_picture(values: list[float]) -> None:
    found = {"head": "logits", "reference": values, "candidate": values[::-1]}
    picture = pictures(results.same(scatter=found))[1]
    inside(picture)
    labels = [w for _, y, w, anchor in picture.texts() if anchor == "middle" and y == 578]
    assert 2 <= len(labels) == len(set(labels)) <= 8
    dots = len(re.findall("h0", picture.path("dots")))
    assert dots or picture.marks("strange")


@pytest.mark.parametrize("layers", [1, 2, 3, 10, 11, 12, 13, 21, 32, 61, 62, 94, 126])
def test_labels_of_layers_have_room(layers: int) -> None:
    picture = pictures(results.deep(layers))[0]
    inside(picture)
    xs = sorted((x, w) for x, y, w, a in picture.texts() if a == "middle" and w != "layer")
    assert xs[-1][1] == "mtp"
    for (a, left), (b, right) in pairwise(xs):
        assert b - a >= 6 * (len(left) + len(right))  # of 12 units a letter, on a phone


def inside(*found: Picture) -> None:
    """All coordinates are numbers within the picture, and no text is cut off on a phone."""
    for picture in found:
        for x, y, words, anchor in picture.texts():
            wide = 10.5 * len(words)
            left = {"start": x, "middle": x - wide / 2, "end": x - wide}[anchor]
            assert left >= -2
            assert left + wide <= picture.width + 2
            assert 14 <= y <= picture.height - 4
        for element in picture.root.iter():
            for key in {"x1", "x2", "y1", "y2"} & element.attrib.keys():
                assert 0 <= float(element.attrib[key]) <= picture.width
            for key in {"d", "transform"} & element.attrib.keys():
                assert not re.search("nan|inf|e", element.attrib[key].replace("translate", ""))
        for x, y, _, _ in picture.marks():
            assert 0 <= x <= picture.width
            assert 0 <= y <= picture.height
