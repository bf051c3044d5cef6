"""The summary and the test cases of a parity run."""

from __future__ import annotations

from typing import Any

import pytest

from fp8convert.junit import Case
from fp8convert.parity.summary import cases, lines

from . import results

SAME = """\
reference: '/m/ref' (deepseek_v3, fp8-block, 1 rank)
candidate: '/m/cand' (deepseek_v3, bf16, 1 rank)
computed: bf16 on cpu, tokens 2 x 16, seed 0, layers 0 to 2

head    measure             measured  limit
logits  max abs difference         0  at most 0   ok
logits  relative RMS               0  not judged
logits  KL max (nats)              0  not judged
logits  KL mean (nats)             0  not judged
logits  top-1 agreement            1  not judged
logits  top-5 agreement            1  not judged
logits  finite logits            yes  required    ok

no layer's hidden state differs
layer    kind   relative RMS  max abs
layer 0  dense             0        0
layer 1  dense             0        0
layer 2  moe               0        0
control: rows 0 to 127, columns 128 to 255 of 'model.layers.2.self_attn.o_proj.weight' times 2: \
detected (max_abs 0.75, at most 0.0)
memory: peak RSS 1.2 GiB, at most 32 MiB of a weight decoded at once, 1.3 GB read
verdict: PASS (identical)"""


def of(found: list[Case], name: str) -> Case:
    (case,) = [c for c in found if c.name == name]
    return case


def test_a_run_without_difference() -> None:
    assert "\n".join(lines(results.same())) == SAME


def test_a_failure_has_its_reasons_before_the_verdict() -> None:
    found = lines(results.failing())
    assert found[-3:] == [
        "fails: logits: kl_max 0.31, at most 0.1",
        "fails: mtp: top1 0.85, at least 0.9",
        "verdict: FAIL (requantized)",
    ]
    failing = [line.split() for line in found if line.endswith("FAILS")]
    assert [words[0] for words in failing] == ["logits", "mtp"]
    assert "the hidden state is first beyond the limit at layer 54, relative RMS 0.1031" in found


def layers(result: dict[str, Any]) -> list[str]:
    found = lines(result)
    first = next(i for i, line in enumerate(found) if line.startswith("layer "))
    last = next(i for i, line in enumerate(found) if line.startswith("control"))
    return found[first + 1 : last]


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([0.0] * 13, [0, 12]),
        ([0.0] * 5 + [0.5] + [0.25] * 7, [0, 5, 12]),
        ([0.0] * 7 + [float("nan")] + [float("inf")] * 6, [0, 7, 13]),
        ([0.0] * 7 + [0.5, float("inf")] + [0.5] * 4, [0, 8, 12]),
        ([0.5] * 12, list(range(12))),
        ([0.5], [0]),
    ],
    ids=["zero", "worst", "nan", "inf", "twelve", "one"],
)
def test_of_many_layers_the_first_the_worst_and_the_last(
    errors: list[float], chosen: list[int]
) -> None:
    hidden = [results.layer(f"layer {i}", "moe", e) for i, e in enumerate(errors)]
    found = layers(results.same(hidden=hidden))
    left = len(errors) - len(chosen)
    assert [line.split()[1] for line in found[: len(chosen)]] == [str(i) for i in chosen]
    more = [f"({left} more layers; these are the first, the worst and the last)"] if left else []
    assert found[len(chosen) :] == more


def test_notes_are_said() -> None:
    found = lines(results.same(notes=["only the reference has an MTP head"]))
    assert "note: only the reference has an MTP head" in found


def test_no_layers_and_no_weights() -> None:
    found = lines(results.same(hidden=[], weights=[]))
    assert not [line for line in found if line.startswith("layer")]
    assert found[-1] == "verdict: PASS (identical)"


def test_what_is_not_finite_is_said() -> None:
    found = lines(results.broken())
    assert "logits  max abs difference       NaN  at most 0   FAILS" in found
    assert "logits  finite logits             no  required    FAILS" in found
    assert "layer 2  moe             NaN      NaN" in found
    assert "layer 3  moe             inf      inf" in found


def test_nothing_from_outside_reaches_a_terminal() -> None:
    found = lines(results.broken())
    assert all(line.isprintable() for line in found)
    assert [line for line in found if line.startswith("candidate") and "\\x1b[2J" in line]


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_an_undetected_control_is_loud_and_never_a_pass(verdict: str) -> None:
    result = results.same(control=results.control(detected=False, failed=[]), verdict=verdict)
    (line,) = [line for line in lines(result) if line.startswith("control")]
    assert line.endswith("times 2: NOT DETECTED, so this comparison proves nothing")
    assert lines(result)[-1] == "verdict: FAIL (identical)"
    assert of(cases(result), "control").failed == line
    assert of(cases(result), "verdict").failed == line


# --- Cases


def test_cases_of_a_pass() -> None:
    found = cases(results.same())
    assert [c.name for c in found] == [
        "logits: max_abs",
        "logits: finite",
        "weights",
        "control",
        "verdict",
    ]
    assert not [c for c in found if c.failed or c.skipped]
    assert [c.seconds for c in found] == [0.0, 0.0, 0.0, 1.125, 5.75]
    assert "layer 2  moe               0        0" in of(found, "verdict").detail.split("\n")


def test_cases_of_a_failure() -> None:
    found = cases(results.failing())
    judged = ("relative_rms", "kl_max", "kl_mean", "top1")
    names = [f"{head}: {key}" for head in ("logits", "mtp") for key in judged]
    assert [c.name for c in found[:8]] == names
    assert {c.name: c.failed for c in found if c.failed} == {
        "logits: kl_max": "KL max (nats): 0.31, at most 0.1",
        "mtp: top1": "top-1 agreement: 0.85, at least 0.9",
        "verdict": "logits: kl_max 0.31, at most 0.1; mtp: top1 0.85, at least 0.9",
    }
    assert "beyond the limit at layer 54" in of(found, "verdict").detail


def test_cases_fail_on_what_is_not_finite() -> None:
    found = cases(results.broken())
    assert of(found, "logits: max_abs").failed == "max abs difference: NaN, at most 0"
    assert of(found, "logits: finite").failed == "NaN or infinite logits"


@pytest.mark.parametrize("value", [float("nan"), "nan", 0.5, "inf"])
@pytest.mark.parametrize(
    ("key", "limit"),
    [("max_abs", "max_abs"), ("relative_rms", "max_rms"), ("kl_max", "max_kl"),
     ("kl_mean", "max_kl_mean")],
)  # fmt: skip
def test_each_measure_has_its_own_limit(key: str, limit: str, value: Any) -> None:
    heads = [results.head(**{key: value})]
    beyond = cases(results.same(heads=heads, thresholds={**results.NONE, limit: 0.25}))
    assert of(beyond, f"logits: {key}").failed
    fine = cases(results.same(thresholds={**results.NONE, limit: 0.25}))
    assert [c.name for c in fine if c.name.startswith("logits")] == [
        f"logits: {key}", "logits: finite",
    ]  # fmt: skip
    assert not of(fine, f"logits: {key}").failed


@pytest.mark.parametrize(("key", "limit"), [("top1", "min_top1"), ("top5", "min_top5")])
@pytest.mark.parametrize(("value", "fails"), [(0.5, False), (0.49, True), (float("nan"), True)])
def test_agreement_has_a_least_value(key: str, limit: str, value: float, fails: bool) -> None:
    heads = [results.head(**{key: value})]
    found = cases(results.same(heads=heads, thresholds={**results.NONE, limit: 0.5}))
    assert (of(found, f"logits: {key}").failed is not None) is fails
