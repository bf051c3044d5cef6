"""Every published checkpoint that we have facts of is recognised for what it is, from headers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fp8convert import schemes
from fp8convert.codecs.base import Stored
from fp8convert.configout import plain_config
from fp8convert.declared import declared
from fp8convert.errors import SchemeError
from fp8convert.schemes.base import Reading

from .recognition.catalogue import all_facts
from .recognition.facts import SHARDS, Fact, Row, stored

FACTS = all_facts()
CODED = {name: fact for name, fact in FACTS.items() if fact.coded}


def read(fact: Fact, tensors: dict[str, Stored]) -> Reading:
    said = declared(fact.config, fact.sidecars)
    return schemes.detect(said, tensors).read(tensors, SHARDS)


def without(tensors: dict[str, Stored], *names: str) -> dict[str, Stored]:
    return {name: t for name, t in tensors.items() if name not in names}


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
def test_recognised_for_what_it_is(fact: Fact) -> None:
    tensors = stored(fact.parts)
    said = declared(fact.config, fact.sidecars)
    assert said.where == fact.where
    scheme = schemes.detect(said, tensors)
    assert scheme.to_dict() == fact.scheme
    reading = scheme.read(tensors, SHARDS)
    assert reading.problems == ()
    assert len(reading.warnings) == len(fact.warnings)
    for part, warning in zip(fact.warnings, reading.warnings, strict=True):
        assert part in warning
    assert {t.name for t in reading.dropped} == {name for name, _, _ in fact.cache}
    weights = {w.name: w for w in reading.weights}
    assert len(weights) == len(reading.weights)
    assert weights.keys() == {row.name for row in fact.rows}
    for row in fact.rows:
        found = weights[row.name]
        codec: dict[str, Any] = found.codec.to_dict()
        assert codec == (row.codec or {"codec": "raw"}), row.name
        assert found.shape == row.shape, row.name
        assert [(p.name, p.dtype, p.shape) for p in found.parts] == list(row.parts)
        assert {p.name for p in found.dropped} == {name for name, _, _ in row.dropped}
        assert found.out_dtype("BF16") == ("BF16" if row.codec else row.parts[0][1])


def named(problems: tuple[str, ...], row: Row) -> bool:
    """Whether a problem names the weight, or a part of it."""
    return any(f"'{part}'" in p for p in problems for part, _, _ in row.parts) or any(
        f"'{row.name}'" in p for p in problems
    )


@pytest.mark.parametrize("fact", CODED.values(), ids=CODED)
def test_a_weight_without_one_of_its_parts_is_refused(fact: Fact) -> None:
    """Never written as raw codes, nor left out."""
    tensors = stored(fact.parts)
    for row in fact.coded:
        for name, _, _ in row.parts:
            reading = read(fact, without(tensors, name))
            assert named(reading.problems, row), name


@pytest.mark.parametrize("fact", CODED.values(), ids=CODED)
def test_a_scale_of_another_shape_is_refused(fact: Fact) -> None:
    tensors = stored(fact.parts)
    for row in fact.coded:
        name = row.parts[1][0]
        for shape in ((3, 5), (1, 3, 7)):
            wrong = tensors | {name: tensors[name]._replace(shape=shape)}
            assert named(read(fact, wrong).problems, row), (name, shape)


@pytest.mark.parametrize("fact", CODED.values(), ids=CODED)
def test_nothing_passes_as_plain_where_the_declaration_is_lost(fact: Fact) -> None:
    tensors = stored(fact.parts)
    reading = schemes.detect(declared({}, {}), tensors).read(tensors, SHARDS)
    assert [row.name for row in fact.coded if not named(reading.problems, row)] == []


@pytest.mark.parametrize("fact", CODED.values(), ids=CODED)
def test_a_declaration_that_outlived_its_codes_is_said_to_be_stale(fact: Fact) -> None:
    """Converted elsewhere, and config.json copied unchanged."""
    plain = [(row.name, "BF16", row.shape) for row in fact.rows if row.codec]
    reading = read(fact, stored(plain))
    assert len(reading.problems) == 1
    assert "already converted, with a stale config?" in reading.problems[0]


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
def test_the_config_of_the_result_declares_nothing(fact: Fact) -> None:
    plain = plain_config(fact.config, "bfloat16")
    assert "quantization_config" not in json.dumps(plain)
    assert "expert_dtype" not in json.dumps(plain)
    assert declared(plain, {}).quantization is None
    tensors = stored((row.name, "BF16", row.shape) for row in fact.rows)
    again = schemes.detect(declared(plain, {}), tensors)
    assert again.to_dict() == {"scheme": "none"}
    assert again.read(tensors, SHARDS).problems == ()


@pytest.mark.parametrize("fact", CODED.values(), ids=CODED)
def test_another_scheme_does_not_take_it(fact: Fact) -> None:
    """An unknown method is refused by name, whatever the tensors look like."""
    said = declared({"quantization_config": {"quant_method": "fp9"}}, fact.sidecars)
    with pytest.raises(SchemeError, match=r"quant_method is 'fp9'"):
        schemes.detect(said, stored(fact.parts))


def test_every_kind_of_place_and_codec_is_in_the_table() -> None:
    """So that a family cannot quietly fall out of it."""
    assert len(FACTS) >= 47
    assert {fact.where for fact in FACTS.values()} == {
        "config.json: quantization_config",
        "config.json: text_config.quantization_config",
        "hf_quant_config.json: quantization",
    }
    codecs = {str(row.codec["codec"]) for f in FACTS.values() for row in f.rows if row.codec}
    assert codecs == {"fp8-block", "fp4-block", "packed-int", "mxfp4-transposed"}
    schemes_ = {str(f.scheme["scheme"]) for f in FACTS.values()}
    assert schemes_ == {"fp8-block", "mxfp4", "compressed-tensors", "modelopt", "none"}


def test_deepseek_v4_has_as_many_tensors_as_its_layers_need() -> None:
    """One layer of each kind, at true shapes: 171 tensors of V4-Flash, 175 of V4-Pro."""
    for name, count in (("V4-Flash", 171), ("V4-Pro", 175)):
        fact = FACTS[f"deepseek-ai/DeepSeek-{name}"]
        assert len(list(fact.parts)) == count
        scales = [n for n, _, _ in fact.parts if n.endswith("_scale") and "hc_" in n]
        kept = {row.name for row in fact.rows if row.codec is None}
        assert len(scales) == 10
        assert kept.issuperset(scales)
