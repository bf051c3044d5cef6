"""DeepSeek-V3.2: DeepSeek-V3 whose queries see their best ``index_topk`` tokens only.

Before attention an indexer, with small heads of its own, scores every token s for a query t:

    q = wq_b norm(Wqa x)                 per head, of the latent that attention's queries are of
    k = layer_norm(wk x)                 one for all heads
    score(t, s) = sum over heads of (weights_proj x)_t relu(q_t k_s), scaled

q and k are turned by position in their FIRST channels and by halves, pairs (i, i + d / 2), where
attention turns the last channels of queries and pairs (2i, 2i + 1). Scores only choose; where equal
ones compete for the last place, ``torch.topk`` decides.

The published code also multiplies q and k by a Hadamard matrix, which changes no product, and
rounds them to FP8 for a faster one, which does. Neither is done here, in no compute mode. Source:
``inference/model.py`` of deepseek-ai/DeepSeek-V3.2-Exp, as corrected on 2025-11-17 (halves).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import by_head
from .config import Config
from .deepseek_v3 import DeepSeekV3
from .groups import all_reduce
from .latent_attention import LatentAttention, Turn
from .rope import halves
from .weights import Weights

EPS = 1e-6  # of the indexer's norm


class SparseAttention(LatentAttention):
    """Latent attention to the tokens that the indexer chooses. See the module."""

    def __init__(self, config: Config, weights: Weights, absorbed: bool) -> None:
        super().__init__(config, weights, absorbed)
        config.only("indexer_rope_interleave", False)
        config.integer("q_lora_rank", least=1)  # the indexer has no other source of queries
        self.index_heads = config.integer("index_n_heads", least=1)
        self.channels = config.integer("index_head_dim", least=self.turned)
        self.best = config.integer("index_topk", least=1)

    def mask(self, at: str, x: Tensor, source: Tensor, turn: Turn) -> Tensor:
        """[b, 1, l, l], True for the best ``index_topk`` of those that a query (row) can see."""
        causal = super().mask(at, x, source, turn)
        scores = self._scores(f"{at}indexer.", x, source, turn).masked_fill(~causal, float("-inf"))
        best = scores.topk(min(self.best, x.shape[1])).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return (chosen & causal)[:, None]  # an early query has less than index_topk to choose from

    def _scores(self, at: str, x: Tensor, source: Tensor, turn: Turn) -> Tensor:
        """[b, l, l] of queries (rows) and tokens. A rank may have some of the heads, or all."""
        q = by_head(self.w, source, f"{at}wq_b", self.index_heads, self.channels)
        k = self._keys(at, x)[:, None]
        q, k = self._turned(q, turn).float(), self._turned(k, turn).float()
        each = (q @ k.transpose(-1, -2) * self.channels**-0.5).relu()  # [b, n, l, l]
        shape = (q.shape[1], self.hidden)
        weights = x.float() @ self.w.get(f"{at}weights_proj.weight", shape, exact=True).T
        scores = torch.einsum("bln,bnls->bls", weights * self.index_heads**-0.5, each)
        return all_reduce(scores, self.w.group) if q.shape[1] < self.index_heads else scores

    def _keys(self, at: str, x: Tensor) -> Tensor:
        """[b, l, d]."""
        size = (self.channels,)
        k = self.w.linear(x, f"{at}wk", rows=self.channels, bias=False).float()
        weight, bias = (self.w.get(f"{at}k_norm.{part}", size) for part in ("weight", "bias"))
        return torch.nn.functional.layer_norm(k, size, weight, bias, EPS).to(x.dtype)

    def _turned(self, x: Tensor, turn: Turn) -> Tensor:
        first = halves(x[..., : self.turned], turn)
        return torch.cat([first, x[..., self.turned :]], -1)


class DeepSeekV32(DeepSeekV3):
    """See the module."""

    attention = SparseAttention
