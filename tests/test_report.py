"""What a manifest says of errors: rounding, decibels, classes; and its counts, on real files."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8convert
from fp8convert.encoding.band import Errors, joined
from fp8convert.journal import Record
from fp8convert.options import Quantize, ToBf16
from fp8convert.plan import Plan
from fp8convert.report import counts, figures, said

from .quantized import oracle, readers, sources
from .quantized.readers import parts_of

LAYER = "model.layers.3"
ATTENTION, DENSE = f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.mlp.up_proj.weight"
ROUTED = [f"{LAYER}.mlp.experts.{n}.w1.weight" for n in range(3)]
SHARED = f"{LAYER}.mlp.shared_experts.up_proj.weight"


# --- One weight


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        (Errors(), {"exact": True}),
        (Errors(0.0, 0.0, 17.5), {"exact": True}),
        (
            Errors(0.5, 0.25, 25.0),
            {"exact": False, "max_abs": 0.5, "relative_rms": 0.1, "snr_db": 20.0},
        ),
        (  # noise as loud as the signal
            Errors(3.0, 9.0, 9.0),
            {"exact": False, "max_abs": 3.0, "relative_rms": 1.0, "snr_db": 0.0},
        ),
        (  # louder
            Errors(1.0, 100.0, 1.0),
            {"exact": False, "max_abs": 1.0, "relative_rms": 10.0, "snr_db": -20.0},
        ),
        (  # five digits, and hundredths of a decibel
            Errors(1.2345678, 2.0, 3.0),
            {"exact": False, "max_abs": 1.2346, "relative_rms": 0.8165, "snr_db": 1.76},
        ),
        (
            Errors(1.00004e-30, 1e-60, 3e-50),
            {"exact": False, "max_abs": 1e-30, "relative_rms": 5.7735e-06, "snr_db": 104.77},
        ),
        (
            Errors(987654321.0, 2e17, 3e21),
            {"exact": False, "max_abs": 987650000.0, "relative_rms": 0.008165, "snr_db": 41.76},
        ),
    ],
)
def test_said(errors: Errors, words: dict[str, Any]) -> None:
    assert said(errors) == words
    assert json.loads(json.dumps(said(errors))) == words


@pytest.mark.parametrize("seed", range(5))
def test_said_of_numbers(seed: int) -> None:
    """Against the formulas, in the digits that are kept."""
    rng = np.random.default_rng(seed)
    top, squares, power = (float(10 ** rng.uniform(-20, 10)) for _ in range(3))
    found = said(Errors(top, squares, power))
    assert found["max_abs"] == pytest.approx(top, rel=5e-5)
    assert found["relative_rms"] == pytest.approx(math.sqrt(squares / power), rel=5e-5)
    assert found["snr_db"] == pytest.approx(10 * math.log10(power / squares), abs=5e-3)
    for key in ("max_abs", "relative_rms"):
        assert float(f"{found[key]:.4e}") == found[key]  # five digits, no more


def test_what_is_joined_does_not_depend_on_the_order() -> None:
    pieces = [Errors(12.0, 0.0, 1.0)] + [Errors(float(n), 0.5**n, 1e-16) for n in range(10)]
    whole = joined(pieces)
    assert whole == Errors(12.0, sum(0.5**n for n in range(10)), 1.000000000000001)
    assert joined(pieces[::-1]) == whole
    assert joined([*pieces[1::2], *pieces[::2]]) == whole
    powers = [p.power for p in pieces]
    assert sum(powers[1:], powers[0]) != sum(powers[::-1])  # the control: a plain sum does
    assert joined([]) == Errors()


# --- A plan's


def plan_of(*copied: str, options: Any = None) -> Plan:
    """One without files: what is counted comes from the records."""
    return Plan(
        command="quantize",
        options=options or Quantize(scheme="mxfp8"),
        scheme={},
        source=(),
        tasks=(),
        texts={},
        copies=(),
        not_copied=(),
        dropped=(),
        warnings=(),
        copied=copied,
    )


def record(file: str, **errors: list[float]) -> Record:
    return Record(file, 1, None, {}, errors)


RECORDS = [
    record("b", **{ROUTED[1]: [0.5, 1.0, 100.0], ATTENTION: [0.0, 0.0, 7.0]}),
    record("a", **{ROUTED[0]: [0.25, 3.0, 300.0], DENSE: [0.125, 1.0, 10_000.0]}),
    record("c"),
]


def test_by_class_adds_up() -> None:
    """Copies are exact weights of their class; errors are of all its weights together."""
    found = figures(plan_of(ROUTED[2], SHARED), RECORDS)
    assert found["scheme"] == "mxfp8"
    assert found["by_class"] == {
        "attention": {"weights": 1, "exact_weights": 1, "exact": True},
        "dense mlp": {
            "weights": 1,
            "exact_weights": 0,
            "exact": False,
            "max_abs": 0.125,
            "relative_rms": 0.01,
            "snr_db": 40.0,
        },
        "routed experts": {
            "weights": 3,
            "exact_weights": 1,
            "exact": False,
            "max_abs": 0.5,
            "relative_rms": 0.1,  # 4 of 400
            "snr_db": 20.0,
        },
        "shared experts": {"weights": 1, "exact_weights": 1, "exact": True},
    }
    assert sum(c["weights"] for c in found["by_class"].values()) == len(found["quantized"]) == 6
    exact = sum(c["exact_weights"] for c in found["by_class"].values())
    assert exact == sum(w["exact"] for w in found["quantized"].values()) == 3
    assert list(found["by_class"]) == sorted(found["by_class"])


def test_every_weight_is_listed_by_name() -> None:
    found = figures(plan_of(ROUTED[2], SHARED), RECORDS)["quantized"]
    assert list(found) == sorted([*ROUTED, ATTENTION, DENSE, SHARED])
    assert found[ROUTED[2]] == found[SHARED] == {"exact": True, "copied": True}
    assert found[ATTENTION] == {"exact": True}
    assert found[DENSE]["snr_db"] == 40.0


def test_the_order_of_records_does_not_matter() -> None:
    plan = plan_of(SHARED)
    assert json.dumps(figures(plan, RECORDS)) == json.dumps(figures(plan, RECORDS[::-1]))
    other = [RECORDS[0], record("a", **{ROUTED[0]: [0.25, 3.1, 300.0]})]
    assert figures(plan, RECORDS) != figures(plan, other)  # the control


def test_decoding_has_no_such_figures() -> None:
    plan = plan_of(options=ToBf16())
    assert figures(plan, []) == {}
    assert set(counts(plan)) == {"weights_decoded", "tensors_kept", "parts_dropped"}


# --- Of real files: against what is stored


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources.v4().write(tmp_path_factory.mktemp("report") / "src")


# By scheme: weights copied, encoded, decoded; scales dropped.
CASES: list[tuple[str, dict[str, Any], tuple[int, int, int, int]]] = [
    ("fp8-block-ue8m0", {"scale_dtype": "e8m0"}, (2, 4, 0, 0)),
    ("fp8-block", {}, (2, 4, 0, 0)),  # F32 scales: widened
    ("mxfp4", {}, (4, 2, 0, 0)),
    ("int4-group", {}, (0, 6, 0, 0)),
    ("nvfp4", {"include": ("*experts*",)}, (0, 4, 2, 2)),
    ("fp8-block", {"include": ("*wq_a*",)}, (1, 0, 5, 5)),
]


@pytest.mark.parametrize(("scheme", "options", "expected"), CASES, ids=str)
def test_counts(
    scheme: str, options: dict[str, Any], expected: tuple[int, ...], v4: Path, tmp_path: Path
) -> None:
    """Every tensor of the source is accounted for, by the tensors of the files alone."""
    data = fp8convert.quantize(v4, tmp_path / "dst", scheme, **options).data
    source, quantized = sources.v4(), data["quantized"]
    before, after = readers.stored(v4), readers.stored(tmp_path / "dst")
    done = ("weights_copied", "weights_encoded", "weights_decoded", "parts_dropped")
    assert tuple(data[key] for key in done) == expected
    copied = [name for name, found in quantized.items() if "copied" in found]
    decoded = source.values.keys() - quantized.keys()
    kept = [name for name in before if after.get(name) == before[name]]
    assert (len(copied), len(quantized) - len(copied), len(decoded)) == expected[:3]
    assert all(after[name][0] == "BF16" for name in decoded)
    assert data["tensors_kept"] == len(source.kept)
    assert set(source.kept) <= set(kept)
    classes = {name: found["weights"] for name, found in data["by_class"].items()}
    assert sum(classes.values()) == len(quantized)
    assert classes == Counter(map(class_of, quantized))


def test_figures_are_the_oracles(tmp_path: Path) -> None:
    """Of a class: from the decoded bytes of all its weights, in float64."""
    source = sources.plain("BF16")
    src = source.write(tmp_path / "src")
    data = fp8convert.quantize(src, tmp_path / "dst", "mxfp8").data
    after = readers.stored(tmp_path / "dst")
    pairs = {n: (source.values[n], oracle.decoded(parts_of(after, n))) for n in data["quantized"]}
    for name, (x, y) in pairs.items():
        close(data["quantized"][name], oracle.errors(x, y))
    groups: dict[str, list[str]] = {}
    for name in pairs:
        groups.setdefault(class_of(name), []).append(name)
    assert groups.keys() == data["by_class"].keys()
    for of, names in groups.items():
        x, y = (np.concatenate([pairs[n][k].reshape(-1) for n in names]) for k in range(2))
        found = dict(data["by_class"][of])
        assert found.pop("weights") == len(names)
        assert found.pop("exact_weights") == sum(np.array_equal(*pairs[n]) for n in names)
        close(found, oracle.errors(x, y))


def class_of(name: str) -> str:
    """As a reader of the names of this source would say."""
    if ".shared_experts." in name:
        return "shared experts"
    if ".experts." in name:
        return "routed experts"
    return "attention" if ".self_attn." in name or ".attn." in name else "dense mlp"


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal in the digits that are reported."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = {"abs": 6e-3} if key == "snr_db" else {"rel": 6e-5}
        assert found[key] == pytest.approx(value, **tolerance), key


def test_close_is_not_blind() -> None:
    right = {"exact": False, "max_abs": 0.5, "relative_rms": 0.1, "snr_db": 20.0}
    close(right, right)
    for key, wrong in (("max_abs", 0.5001), ("relative_rms", 0.10002), ("snr_db", 20.01)):
        with pytest.raises(AssertionError):
            close(right | {key: wrong}, right)
    with pytest.raises(AssertionError):
        close({"exact": True}, right)
