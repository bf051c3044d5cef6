"""``against: config``: what describes the function is the same, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fp8convert.verify import verify
from fp8convert.verify.described import check_configs

from .damage import config
from .made import Made

YARN = {"type": "yarn", "factor": 40, "mscale": 1.0}
PUBLISHED: dict[str, Any] = {
    "model_type": "deepseek_v3", "rms_norm_eps": 1e-06, "rope_theta": 10000, "rope_scaling": YARN,
    "num_nextn_predict_layers": 1, "sliding_window": None, "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "quantization_config": {"quant_method": "fp8"},
    "text_config": {"hidden_act": "silu", "torch_dtype": "bfloat16"}, "eos_token_id": [1, 2],
}  # fmt: skip
ANEW = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 40.0, "mscale": 1.0}


def without(*keys: str, **fields: Any) -> dict[str, Any]:
    return {k: v for k, v in PUBLISHED.items() if k not in keys} | fields


RIGHT = {
    "the same": PUBLISHED,
    "decoded": without("quantization_config", "torch_dtype", dtype="float32"),
    "without MTP layers": without(num_nextn_predict_layers=0),
    "MTP layers not counted": without("num_nextn_predict_layers"),
    "null or absent": without("sliding_window"),
    "integers as floats": without(rope_theta=1e4),
    "another dtype of the text part": without(text_config={"hidden_act": "silu"}),
}
ROPE_5 = ("rope_theta", "rope_scaling")
WRITTEN_ANEW = {
    "rope in one object": without(*ROPE_5, rope_parameters=ANEW, transformers_version="5.0.0"),
    "rope in one object, by the same version": without(*ROPE_5, rope_parameters=ANEW),
    "defaults added": without(transformers_version="5.0.0", head_dim=64, rope_interleave=True),
    "a field renamed": without("eos_token_id", transformers_version="5.0.0", eos=[1, 2]),
    "rope of each kind of layer": without(
        *ROPE_5, rope_parameters={"main": ANEW, "compress": ANEW}, transformers_version="5.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    check = check_configs(RIGHT[name], PUBLISHED)
    assert (check.passed, check.problems, check.warnings) == (True, (), ())
    assert check.counts["fields"] == 9


@pytest.mark.parametrize("name", WRITTEN_ANEW)
def test_written_anew_by_another_version(name: str) -> None:
    check = check_configs(WRITTEN_ANEW[name], PUBLISHED)
    assert check.passed, check.problems
    assert bool(check.warnings) is not name.startswith("rope in")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (without(rms_norm_eps=1e-5), "rms_norm_eps is '1e-05', expected '1e-06'"),
        (without("rope_scaling"), "rope_scaling is missing, expected '{'factor': 40, "),
        (without(rope_scaling=YARN | {"factor": 4}), "rope_scaling.factor is '4', expected '40'"),
        (without(rope_scaling={"type": "yarn", "factor": 40}), "rope_scaling.mscale is missing"),
        (without(rope_theta=5), "rope_theta is '5', expected '10000'"),
        (without("rms_norm_eps"), "rms_norm_eps is missing, expected '1e-06'"),
        (without("rms_norm_eps", "transformers_version"), "rms_norm_eps is missing"),
        (without(text_config={"hidden_act": "gelu"}), "text_config.hidden_act is 'gelu'"),
        (without(text_config=5), "text_config is '5', expected '{"),
        (without(eos_token_id=[1]), "eos_token_id is '[1]', expected '[1, 2]'"),
        (without(num_nextn_predict_layers=2), "num_nextn_predict_layers is '2', expected '1'"),
        (without(*ROPE_5, rope_parameters=ANEW | {"factor": 4.0}, transformers_version="5.0.0"),
         "rope_parameters.factor is '4.0', expected '40'"),
        (without(*ROPE_5, rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
                 transformers_version="5.0.0"),
         "rope_parameters.rope_type is 'default', expected 'yarn'"),
        (without(transformers_version="5.0.0", rms_norm_eps=1), "rms_norm_eps is '1'"),
        ({}, "model_type is missing"),
    ],
)  # fmt: skip
def test_wrong(found: dict[str, Any], words: str) -> None:
    check = check_configs(found, PUBLISHED)
    assert not check.passed
    assert check.problems[0].startswith(f"config.json: {words}")


def test_names_of_fields_hold_no_terminal_escapes() -> None:
    odd = PUBLISHED | {"a\x1b[2J": 1}
    assert check_configs(PUBLISHED, odd).problems == (
        r"config.json: a\x1b[2J is missing, expected '1'",
    )
    (warning,) = check_configs(odd, PUBLISHED).warnings
    assert "\x1b" not in warning


def test_rank_files_without_a_config_are_not_checked() -> None:
    assert not check_configs(None, PUBLISHED).checked


def no_manifest(right: Made, name: str) -> Callable[..., list[str]]:
    """Problems of a copy, changed, against its source."""

    def problems(**fields: Any) -> list[str]:
        folder = right.copied(f"bare {name}")
        config(**fields)(folder)
        checks = verify(folder, right.output("v3"), workers=2).checks
        return [f"{c.name}: {p}" for c in checks for p in c.problems]

    return problems


@pytest.mark.parametrize("name", ["bf16", "v3", "ds2"])
def test_of_checkpoints(name: str, right: Made) -> None:
    problems = no_manifest(right, name)
    assert problems() == []
    assert problems(routed_scaling_factor=7.0) == [
        "against: config: config.json: routed_scaling_factor is '7.0', expected '2.5'"
    ]
