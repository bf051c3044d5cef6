"""Hyper-connections: N residual streams, which every block reads as one and writes back to all.

    f = rms_norm(all streams of a token, side by side)
    pre [N], post [N], mix [N, N] = scale * (fn f) + base, each squashed in its way
    y = sum_i pre_i x_i                          what the block reads
    x_k' = post_k block(y) + sum_j mix_jk x_j    the streams after it

``mix`` is made doubly stochastic (Sinkhorn: columns and rows are divided by their sums in turn), so
that mixing moves what the streams hold and cannot make it grow. At the end of the model one set of
``pre`` joins the streams. All of it is float32, whatever the compute mode; the streams between
blocks are of the compute dtype. Source: ``hc_pre``, ``hc_post`` and ``hc_head`` of DeepSeek-V4's
inference code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .config import Config
from .numerics import rms_norm
from .weights import Weights


class HyperConnections:
    """See the module. Weights of one connection begin with ``at``: fn, base, scale."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.w = weights
        self.streams = config.integer("hc_mult", least=1)
        self.iterations = config.integer("hc_sinkhorn_iters", least=1)
        self.eps = config.positive("hc_eps")
        self.norm_eps = config.positive("rms_norm_eps")
        weights.get("hc_head_base", (self.streams,))  # are there so many

    def spread(self, x: Tensor) -> Tensor:
        """x [b, l, h] as equal streams [b, l, N, h]."""
        return x[:, :, None].expand(-1, -1, self.streams, -1).contiguous()

    def around(self, x: Tensor, at: str, block: Callable[[Tensor], Tensor]) -> Tensor:
        """Streams [b, l, N, h] after ``block``, a function of [b, l, h]."""
        n = self.streams
        raw = self._raw(x, at, (n, n, n * n))
        post = 2 * torch.sigmoid(raw[..., n : 2 * n])
        mix = self._balanced(raw[..., 2 * n :].view(*raw.shape[:2], n, n))
        given = block(self._joined(x, raw[..., :n])).float()
        kept = mix.transpose(-1, -2) @ x.float()
        return (post[..., None] * given[:, :, None] + kept).to(x.dtype)

    def join(self, x: Tensor, at: str) -> Tensor:
        """Streams [b, l, N, h] as one [b, l, h]."""
        return self._joined(x, self._raw(x, at, (self.streams,)))

    def _raw(self, x: Tensor, at: str, sizes: tuple[int, ...]) -> Tensor:
        """``scale * (fn f) + base`` [b, l, sum of sizes]; each size has a scale of its own."""
        rows, columns = sum(sizes), self.streams * x.shape[-1]
        fn = self.w.get(f"{at}_fn", (rows, columns), exact=True)
        base = self.w.get(f"{at}_base", (rows,))
        scale = self.w.get(f"{at}_scale", (len(sizes),))
        each = scale.repeat_interleave(torch.tensor(sizes, device=scale.device))
        return rms_norm(x.float().flatten(2), None, self.norm_eps) @ fn.T * each + base

    def _joined(self, x: Tensor, raw: Tensor) -> Tensor:
        pre = torch.sigmoid(raw) + self.eps
        return (pre[..., None] * x.float()).sum(2).to(x.dtype)

    def _balanced(self, raw: Tensor) -> Tensor:
        """Positive, and by turns divided by column and by row: columns first and last."""
        mix = raw.softmax(-1) + self.eps
        mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        for _ in range(self.iterations - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + self.eps)
            mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        return mix
