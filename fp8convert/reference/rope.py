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

from ..errors import FormatError
from .config import Config

THETA = 10000.0
KINDS = ("default", "linear", "llama3", "yarn")


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
    said = said or config.within("rope_parameters") or config.within("rope_scaling")
    theta = config.number("rope_theta", THETA)
    if said is None:
        return Rope(_plain(theta, channels))
    theta = said.number("rope_theta", theta)
    kind = said.text("rope_type", said.text("type", "default"))
    if kind not in KINDS:
        raise FormatError(f"{said.where}: {kind!r}, supported: {', '.join(KINDS)}")
    plain = _plain(theta, channels)
    if kind == "linear":
        return Rope(plain / said.number("factor"), said=said)
    if kind == "llama3":
        return Rope(_llama3(plain, said), said=said)
    if kind == "yarn":
        return Rope(_yarn(plain, said, config, theta), _yarn_factor(said), said)
    return Rope(plain, said=said)


def interleaved(x: Tensor, turn: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) of x [b, n, l, d]; ``back`` rotates the other way."""
    cos, sin = turn
    sin = -sin if back else sin
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
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


def _plain(theta: float, channels: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, channels, 2).float() / channels)


def _llama3(plain: Tensor, said: Config) -> Tensor:
    """Long wavelengths divided by ``factor``, short ones kept, a ramp between."""
    low, high = said.number("low_freq_factor"), said.number("high_freq_factor")
    turns = said.number("original_max_position_embeddings") * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / said.number("factor") * (1 - kept)


def _yarn(plain: Tensor, said: Config, config: Config, theta: float) -> Tensor:
    """As :func:`_llama3`, the ramp being linear in the number of the channel."""
    size = 2 * len(plain)
    length = said.number(
        "original_max_position_embeddings", config.number("max_position_embeddings", None or 0)
    )

    def channel(turns: float) -> float:
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(said.number("beta_fast", 32)), channel(said.number("beta_slow", 1))
    if said.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(len(plain)).float() - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain * kept + plain / said.number("factor") * (1 - kept)


def _yarn_factor(said: Config) -> float:
    """What cos and sin are multiplied by."""
    given = said.number("attention_factor", 0)
    factor = said.number("factor")
    if given:
        return given
    one, every = said.number("mscale", 0), said.number("mscale_all_dim", 0)
    return mscale(factor, one) / mscale(factor, every) if one and every else mscale(factor, 1)
