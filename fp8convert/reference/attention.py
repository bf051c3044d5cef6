"""Softmax attention, written out."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(length: int, window: int = 0, device: str = "cpu") -> Tensor:
    """[l, l], True where query (row) sees key (column): itself and before, ``window`` at most."""
    row = torch.arange(length, device=device)[:, None]
    column = torch.arange(length, device=device)
    seen = column <= row
    return seen & (column > row - window) if window else seen


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, sink: Tensor | None = None
) -> Tensor:
    """Of queries [b, n, l, d], keys [b, m, s, d], values [b, m, s, d'] and mask [..., l, s]:
    [b, n, l, d'].

    ``n / m`` heads of queries share a head of keys. A ``sink`` [n] is a logit of each head that
    takes its share of the softmax and gives nothing. Float32 within.
    """
    shared = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(shared, 1) for x in (k, v))
    scores = q.float() @ keys.transpose(-1, -2) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights @ values).to(q.dtype)
