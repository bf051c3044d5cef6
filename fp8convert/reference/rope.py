"""Rotary position embedding: frequencies by config, in the published form or transformers 5's.

Published: ``rope_theta`` and ``rope_scaling`` ({"type" or "rope_type": ...}). transformers 5:
``rope_parameters``, one object with ``rope_theta`` and ``rope_type``. Kinds: default, linear,
llama3, yarn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import FormatError, listed, shown
from .config import Config

THETA = 10000.0
MOST_CHANNELS = 1 << 16  # they are computed before any weight has shown how many there are


@dataclass(frozen=True)
class Rope:
    """``factor`` multiplies cos and sin (YaRN's mscale); ``said`` is where it is declared."""

    frequencies: Tensor  # [d / 2]
    factor: float = 1.0
    said: Config = field(default_factory=lambda: Config({}))

    def turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [l, d / 2] of positions [l]."""
        angles = positions.float()[:, None] * self.frequencies.to(positions.device)
        return angles.cos() * self.factor, angles.sin() * self.factor


def rope_of(config: Config, channels: int, said: Config | None = None) -> Rope:
    """The rope that ``config`` declares for ``channels`` of a head. FormatError on unknown kinds.

    ``said`` is the object to read, where a config has several.
    """
    if channels % 2 or channels > MOST_CHANNELS:
        raise FormatError(
            f"{config.where}: {channels} rotary channels, expected an even number of at most "
            f"{MOST_CHANNELS}"
        )
    said = said or _declared(config)
    theta = said.number("rope_theta", config.number("rope_theta", THETA))
    if theta <= 1:
        raise FormatError(f"{said.where}: rope_theta is {theta:g}, expected more than 1")
    plain = 1.0 / theta ** (torch.arange(0, channels, 2).float() / channels)
    kind = kind_of(said)
    if kind == "default":
        return Rope(plain, said=said)
    if kind == "linear":
        return Rope(plain / said.positive("factor"), said=said)
    if kind == "llama3":
        return Rope(_llama3(plain, said, config), said=said)
    if kind == "yarn":
        return Rope(_yarn(plain, said, config, theta), _yarn_factor(said), said)
    raise FormatError(
        f"{said.where}: rope_type is {shown(kind)}, supported: default, linear, llama3, yarn"
    )


def kind_of(said: Config) -> str:
    """Of rotary settings, in either form."""
    return said.text("rope_type", said.text("type", "default"))


def interleaved(x: Tensor, turn: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) of x [b, n, l, d]; ``back`` rotates the other way."""
    cos, sin = turn
    sin = -sin if back else sin
    even, odd = x.float().view(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return pairs.flatten(-2).to(x.dtype)


def halves(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (i, i + d / 2) of x [b, n, l, d]."""
    cos, sin = turn
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def mscale(factor: float, scale: float) -> float:
    """YaRN's correction of attention for a context ``factor`` times as long."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1


def _declared(config: Config) -> Config:
    """Where ``config`` has its rotary settings; empty if it has none. All channels are turned."""
    config.only("partial_rotary_factor", 1)
    for name in ("rope_scaling", "rope_parameters"):
        if (said := config.within(name)) and said.found:
            kinds = [key for key, value in said.found.items() if isinstance(value, dict)]
            if kinds:
                raise FormatError(
                    f"{said.where} has settings for {listed(kinds)} each, supported: one for all"
                )
            said.only("partial_rotary_factor", 1)
            return said
    return Config({}, config.where)


def _trained_length(said: Config, config: Config) -> int:
    """Of the context, before it was stretched; where two say it, transformers' choice."""
    name = "original_max_position_embeddings"
    given = config.integer(name, said.integer(name, 0, 1), 1)
    return given or config.integer("max_position_embeddings", least=1)


def _llama3(plain: Tensor, said: Config, config: Config) -> Tensor:
    """Long wavelengths divided by ``factor``, short ones kept, a ramp between."""
    low, high = said.number("low_freq_factor"), said.number("high_freq_factor")
    if low >= high:
        raise FormatError(
            f"{said.where}: low_freq_factor is {low:g}, expected less than high_freq_factor, "
            f"{high:g}"
        )
    turns = _trained_length(said, config) * plain / (2 * math.pi)
    return _mixed(plain, ((turns - low) / (high - low)).clamp(0, 1), said)


def _yarn(plain: Tensor, said: Config, config: Config, theta: float) -> Tensor:
    """As :func:`_llama3`, the ramp being linear in the number of the channel."""
    size, length = 2 * len(plain), _trained_length(said, config)

    def channel(turns: float) -> float:  # that turns so often in the trained length
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(said.positive("beta_fast", 32)), channel(said.positive("beta_slow", 1))
    if said.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # or the ramp would be divided by zero
    ramp = (torch.arange(len(plain)).float() - low) / (high - low)
    return _mixed(plain, 1 - ramp.clamp(0, 1), said)


def _mixed(plain: Tensor, kept: Tensor, said: Config) -> Tensor:
    """``kept`` of the frequencies as they are, the rest of each divided by ``factor``."""
    return plain * kept + plain / said.positive("factor") * (1 - kept)


def _yarn_factor(said: Config) -> float:
    """What cos and sin are multiplied by."""
    factor, given = said.positive("factor"), said.found.get("attention_factor")
    if given is not None:
        return said.number("attention_factor")
    one, every = said.number("mscale", 0), said.number("mscale_all_dim", 0)
    return mscale(factor, one) / mscale(factor, every) if one and every else mscale(factor, 1)
