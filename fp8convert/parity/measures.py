"""How far two tensors of logits or hidden states are apart. Sums are taken in float64.

    max abs        max |c - r|
    relative RMS   sqrt(sum (c - r)^2 / sum r^2)
    KL             sum p log(p / q) of p = softmax(r), q = softmax(c), of each position, in nats
    top-k          share of the k best tokens that both have, the mean over positions

0 and -0 are the same here. Equal logits leave the best k open; it counts as agreement where both
sides can choose the same ones, since tables have rows that are equal, such as those of padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements in float64 at once
PAIRS = 2000


class Difference(NamedTuple):
    """Of two tensors; ``reference_rms`` is the root mean square of the first."""

    max_abs: float
    relative_rms: float
    reference_rms: float


class Sums:
    """A :class:`Difference` of tensors that come in parts."""

    def __init__(self) -> None:
        self.top = self.squares = self.power = 0.0
        self.count = 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """A part of both, of one shape; NaN in either stays in all that follows."""
        for r, c in zip(_parts(reference), _parts(candidate), strict=True):
            apart = c - r
            self.top = _larger(self.top, float(apart.abs().max()))
            self.squares += float(apart.pow(2).sum())
            self.power += float(r.pow(2).sum())
            self.count += len(r)

    def difference(self) -> Difference:
        """Of all parts together; relative to zeros a difference is infinite."""
        rms = math.sqrt(self.power / self.count) if self.count else 0.0
        if not self.power:
            ratio = math.inf if self.squares else self.squares
        else:
            ratio = math.sqrt(self.squares / self.power)
        return Difference(self.top, ratio, rms)


def difference(reference: Tensor, candidate: Tensor) -> Difference:
    """Of two tensors of one shape and any dtype."""
    sums = Sums()
    sums.add(reference, candidate)
    return sums.difference()


def head(name: str, reference: Tensor, candidate: Tensor) -> dict[str, Any]:
    """The measures of logits [b, l, v] against the reference's, as JSON has them.

    With NaN or infinity on either side, ``finite`` is False and every measure is NaN.
    """
    finite = all(bool(x.isfinite().all()) for x in (reference, candidate))
    keys = ("max_abs", "relative_rms", "kl_mean", "kl_max", "top1", "top5")
    if not finite:
        return {"name": name, **dict.fromkeys(keys, math.nan), "finite": False}
    apart = difference(reference, candidate)
    rows = list(_rows(reference, candidate))
    kl = torch.cat([divergence(r, c) for r, c in rows])
    best = [torch.cat([overlap(r, c, k) for r, c in rows]) for k in (1, 5)]
    means = [float(x.mean()) for x in (kl, *best)]
    values = (apart.max_abs, apart.relative_rms, means[0], float(kl.max()), *means[1:])
    return {"name": name, **dict(zip(keys, values, strict=True)), "finite": True}


def divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL [p] in nats of logits [p, v], float64."""
    log_p, log_q = reference.log_softmax(-1), candidate.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # rounding may leave -1e-17


def overlap(reference: Tensor, candidate: Tensor, k: int) -> Tensor:
    """Share [p] of the ``k`` best of logits [p, v] that both can have."""
    k = min(k, reference.shape[-1])
    above_r, tied_r, open_r = _best(reference, k)
    above_c, tied_c, open_c = _best(candidate, k)
    both = (above_r & above_c).sum(-1)
    into_c = torch.minimum((above_r & tied_c).sum(-1), open_c)  # ties that take what is surely best
    into_r = torch.minimum((above_c & tied_r).sum(-1), open_r)
    left = torch.minimum(open_c - into_c, open_r - into_r)
    either = torch.minimum((tied_r & tied_c).sum(-1), left)
    return (both + into_c + into_r + either).double() / k


def nonfinite(side: str, logits: Tensor) -> str | None:
    """Where logits [b, l, v] are NaN or infinite: how many, and the first; None if they are not."""
    bad = (~logits.isfinite()).nonzero()
    if not len(bad):
        return None
    b, at, token = bad[0].tolist()
    return (
        f"{len(bad):,} of {logits.numel():,} logits of {side} are NaN or infinite, the first is "
        f"{float(logits[b, at, token])} (sequence {b}, position {at}, token {token})"
    )


def scatter(name: str, reference: Tensor, candidate: Tensor) -> dict[str, Any]:
    """At most PAIRS pairs of logits, the same ones each time, to draw."""
    count = reference.numel()
    some = torch.arange(count)
    if count > PAIRS:
        some = torch.randint(count, (PAIRS,), generator=torch.Generator().manual_seed(0))
    pairs = (x.flatten()[some.to(x.device)].tolist() for x in (reference, candidate))
    return {"head": name, **dict(zip(("reference", "candidate"), pairs, strict=True))}


def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks [p, v] of what is above the k-th best and of what equals it; how many of these fit."""
    least = logits.topk(k, -1).values[:, -1:]
    above = logits > least
    return above, logits == least, k - above.sum(-1)


def _parts(x: Tensor) -> Iterator[Tensor]:
    return (part.double() for part in torch.split(x.reshape(-1), CHUNK) if len(part))


def _rows(reference: Tensor, candidate: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions [p, v] of both, in float64."""
    width = reference.shape[-1]
    count = max(1, CHUNK // width)
    flat = (torch.split(x.reshape(-1, width), count) for x in (reference, candidate))
    return ((r.double(), c.double()) for r, c in zip(*flat, strict=True))


def _larger(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a
