"""Rotary embedding: frequencies of transformers' functions, rotation by complex numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from fp8convert.errors import FormatError
from fp8convert.reference.config import Config
from fp8convert.reference.rope import halves, interleaved, rope_of

from .held import random

CHANNELS = 64
BASE = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEEPSEEK = {
    "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
OLD = {"original_max_position_embeddings": 512}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("linear", {"factor": 2.5}),
    ("llama3", {**LLAMA3, **OLD}),
    ("llama3", {**LLAMA3, "high_freq_factor": 1.5, "original_max_position_embeddings": 8192}),
    ("yarn", {"factor": 4.0, **OLD}),
    ("yarn", {"factor": 4.0}),  # of max_position_embeddings
    ("yarn", {"factor": 0.5, **OLD}),
    ("yarn", {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5, **OLD}),
    ("yarn", {"factor": 4.0, "truncate": False, **OLD}),
    ("yarn", {"factor": 4.0, "attention_factor": 1.5, **OLD}),
    ("yarn", {"factor": 16.0, "mscale": 0.7, "mscale_all_dim": 0.0, **OLD}),
    ("yarn", {"factor": 16.0, "mscale": 0.7, "mscale_all_dim": 1.2, **OLD}),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 6}),  # low and high meet
    ("yarn", DEEPSEEK),
]  # fmt: skip


def published(kind: str, theta: float, settings: dict[str, Any], key: str = "type") -> Config:
    scaling = None if kind == "default" else {key: kind, **settings}
    return Config({**BASE, "rope_theta": theta, "rope_scaling": scaling})


def saved(kind: str, theta: float, settings: dict[str, Any]) -> Config:
    return Config({**BASE, "rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}})


def theirs(kind: str, theta: float, settings: dict[str, Any]) -> tuple[Tensor, float]:
    said = {"rope_type": kind, "rope_theta": theta, **settings}
    config = LlamaConfig(**BASE, rope_parameters=said)
    if kind == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_frequencies_are_those_of_transformers(
    kind: str, settings: dict[str, Any], theta: float
) -> None:
    expected, factor = theirs(kind, theta, settings)
    forms = [
        published(kind, theta, settings),
        published(kind, theta, settings, "rope_type"),
        saved(kind, theta, settings),
    ]
    for config in forms:
        rope = rope_of(config, CHANNELS)
        torch.testing.assert_close(rope.frequencies, expected, rtol=2e-6, atol=0)
        assert rope.factor == pytest.approx(factor, rel=1e-7)


@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 2048}])
def test_the_trained_length_may_be_beside_the_settings(inside: dict[str, Any]) -> None:
    said = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, **inside}
    config = LlamaConfig(**BASE, rope_parameters=dict(said), **OLD)
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](config)
    rope = rope_of(Config({**BASE, **OLD, "rope_parameters": said}), CHANNELS)
    torch.testing.assert_close(rope.frequencies, expected, rtol=2e-6, atol=0)


def test_without_settings_it_is_plain() -> None:
    expected, _ = theirs("default", 1e4, {})
    for empty in ({}, {"rope_scaling": None}, {"rope_parameters": {}}):
        torch.testing.assert_close(rope_of(Config(empty), CHANNELS).frequencies, expected)


def test_settings_may_be_given_apart() -> None:
    """Where a config has several; theta comes from them first."""
    config = Config({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 9.0}})
    rope = rope_of(config, CHANNELS, Config({"rope_theta": 100.0}))
    torch.testing.assert_close(rope.frequencies, theirs("default", 100.0, {})[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (saved("dynamic", 1e4, {"factor": 2.0}), "rope_parameters: rope_type is 'dynamic', supp"),
        (published("longrope", 1e4, {}), "rope_scaling: rope_type is 'longrope', supported: def"),
        (published("yarn", 1e4, OLD), "rope_scaling: factor is missing"),
        (published("linear", 1e4, {"factor": 0}), "factor is '0', expected a number above 0"),
        (published("yarn", 1e4, {"factor": 4.0, "beta_fast": -1}), "beta_fast is '-1', expected"),
        (published("llama3", 1e4, {"factor": 4.0, **OLD}), "low_freq_factor is missing"),
        (
            saved("llama3", 1e4, {**LLAMA3, "low_freq_factor": 4.0, **OLD}),
            "low_freq_factor is 4, expected less than high_freq_factor, 4",
        ),
        (Config({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "max_position_embeddings is m"),
        (saved("default", 1.0, {}), "rope_theta is 1, expected more than 1"),
        (
            Config({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "rope_parameters has settings for 'full_attention' each, supported: one for all",
        ),
        (Config({"partial_rotary_factor": 0.5}), "partial_rotary_factor is '0.5', supported: '1'"),
        (saved("default", 1e4, {"partial_rotary_factor": 0.5}), "rope_parameters: partial_rotary"),
    ],
)
def test_what_is_not_supported_is_named(config: Config, message: str) -> None:
    with pytest.raises(FormatError, match=f"^config.json.*{message}"):
        rope_of(config, CHANNELS)


@pytest.mark.parametrize("channels", [7, 1 << 50])
def test_channels_are_pairs_and_not_too_many(channels: int) -> None:
    with pytest.raises(FormatError, match=f"{channels} rotary channels, expected an even number"):
        rope_of(Config({}), channels)


def turned(x: Tensor, config: Config) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Each pair (2i, 2i + 1) as a complex number times e^(i position frequency)."""
    rope = rope_of(config, x.shape[-1])
    positions = torch.arange(x.shape[-2])
    angles = torch.outer(positions.double(), rope.frequencies.double())
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * torch.polar(torch.full_like(angles, rope.factor), angles))
    return expected.flatten(-2).float(), rope.turn(positions)


@pytest.mark.parametrize("settings", [None, DEEPSEEK | {"mscale": 2.0}])
def test_interleaved_pairs_turn_as_complex_numbers(settings: dict[str, Any] | None) -> None:
    x = random(2, 3, 7, CHANNELS)
    config = published("yarn" if settings else "default", 1e4, settings or {})
    expected, turn = turned(x, config)
    torch.testing.assert_close(interleaved(x, turn), expected, rtol=1e-5, atol=1e-5)


def test_back_is_the_other_way() -> None:
    x = random(2, 3, 7, CHANNELS)
    turn = rope_of(Config({}), CHANNELS).turn(torch.arange(7))
    there = interleaved(x, turn)
    assert not torch.allclose(there, x, atol=0.1)
    torch.testing.assert_close(interleaved(there, turn, back=True), x)


def test_halves_turn_as_in_transformers() -> None:
    q = random(2, 3, 7, CHANNELS)
    cos, sin = rope_of(Config({}), CHANNELS).turn(torch.arange(7))
    expected, _ = apply_rotary_pos_emb(
        q, q, torch.cat([cos, cos], -1)[None], torch.cat([sin, sin], -1)[None]
    )
    torch.testing.assert_close(halves(q, (cos, sin)), expected)
    assert halves(q.bfloat16(), (cos, sin)).dtype == torch.bfloat16
