"""Softmax attention, written out, and the heads it is of."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FormatError, shown
from .weights import Weights


def causal_mask(length: int, window: int = 0, device: str = "cpu") -> Tensor:
    """[l, l], True where query (row) sees key (column): itself and before, ``window`` at most."""
    row = torch.arange(length, device=device)[:, None]
    column = torch.arange(length, device=device)
    seen = column <= row
    return seen & (column > row - window) if window else seen


def by_head(
    w: Weights, x: Tensor, module: str, heads: int, channels: int, here: int = 0, bias: bool = False
) -> Tensor:
    """``module`` of x [b, l, i], which gives ``heads`` on all ranks: [b, n, l, channels].

    FormatError unless a rank has whole heads, as many as are ``here`` if that is known.
    """
    out = w.linear(x, module, rows=heads * channels, bias=bias)
    n, rest = divmod(out.shape[-1], channels)
    if rest or n != (here or n):
        raise FormatError(
            f"weight {shown(module + '.weight')} has {out.shape[-1]} rows on a rank, expected "
            f"{here or 'whole'} heads of {channels}"
        )
    return out.view(*x.shape[:2], n, channels).transpose(1, 2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, sink: Tensor | None = None
) -> Tensor:
    """Of queries [b, n, l, d], keys [b, m, s, d], values [b, m, s, d'] and mask [..., l, s]:
    [b, n, l, d'].

    ``n / m`` heads of queries share a head of keys. A ``sink`` [n] is a logit of each head that
    takes its share of the softmax and gives nothing. Float32 within.
    """
    shared, rest = divmod(q.shape[1], k.shape[1])
    if rest:
        raise FormatError(
            f"a rank has {q.shape[1]} heads of queries and {k.shape[1]} of keys, expected as many "
            "queries for each key"
        )
    keys, values = (x.float().repeat_interleave(shared, 1) for x in (k, v))
    scores = q.float() @ keys.transpose(-1, -2) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights @ values).to(q.dtype)
