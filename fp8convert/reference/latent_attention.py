"""Multi-head latent attention (MLA) of DeepSeek-V2 and V3: a cache of one latent for all heads.

A token keeps c, of ``kv_lora_rank`` channels, and r, one key for all heads, turned by position.
A query has a plain part and a turned one:

    q = Wqb norm(Wqa x)                  per head
    c, r = Wkva x; c = norm(c)
    naive:    k, v = Wkvb c              per head; softmax(q_plain k + q_turned r) v
    absorbed: q' = Wkvb_k^T q_plain      per head; Wkvb_v softmax(q' c + q_turned r) c

Both are the same function: the first is less to compute for a prompt, the second needs c and r only
and is what servers decode with. The factor of the scores has YaRN's correction twice, for queries
and for keys. Source: ``inference/model.py`` of deepseek-ai/DeepSeek-V3, which has both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attend, by_head, causal_mask
from .config import Config
from .numerics import rms_norm
from .rope import halves, interleaved, kind_of, mscale, rope_of
from .weights import Weights

EPS = 1e-6  # of both norms, whatever rms_norm_eps is: as in the published modeling code
Turn = tuple[Tensor, Tensor]
Heads = tuple[Tensor, Tensor]  # the plain and the turned part of queries, each [b, n, l, d]


class LatentAttention:
    """See the module. A rank has some of the heads, and all of c and r."""

    def __init__(self, config: Config, weights: Weights, absorbed: bool) -> None:
        self.w, self.absorbed = weights, absorbed
        self.hidden = config.integer("hidden_size", least=1)
        self.heads = config.integer("num_attention_heads", least=1)
        config.only("num_key_value_heads", self.heads)
        self.query_latent = config.integer("q_lora_rank", 0)
        self.latent = config.integer("kv_lora_rank", least=1)
        self.plain = config.integer("qk_nope_head_dim")
        self.turned = config.integer("qk_rope_head_dim", least=2)
        self.values = config.integer("v_head_dim", least=1)
        self.bias = config.flag("attention_bias", False)
        self.rope = rope_of(config, self.turned)
        self.rotate = interleaved if config.flag("rope_interleave", True) else halves
        self.scale = (self.plain + self.turned) ** -0.5 * _correction(self.rope.said) ** 2

    def __call__(self, at: str, x: Tensor) -> Tensor:
        """Of x [b, l, h], with the weights that begin with ``at``: [b, l, h]."""
        turn = self.rope.turn(torch.arange(x.shape[1], device=x.device))
        source, q = self._queries(at, x)
        c, r = self._latents(at, x)
        q, r = (q[0], self.rotate(q[1], turn)), self.rotate(r, turn)
        mask = self.mask(at, x, source, turn)
        form = self._absorbed if self.absorbed else self._naive
        joined = form(f"{at}kv_b_proj", q, c, r, mask).transpose(1, 2).flatten(2)  # [b, l, n d]
        whole = self.heads * self.values
        return self.w.linear(joined, f"{at}o_proj", whole, rows=self.hidden, bias=self.bias)

    def mask(self, at: str, x: Tensor, source: Tensor, turn: Turn) -> Tensor:
        """[..., l, l], True where a query (row) sees a key (column). ``source``: of queries."""
        return causal_mask(x.shape[1], device=self.w.device)

    def _queries(self, at: str, x: Tensor) -> tuple[Tensor, Heads]:
        """What queries are made of, [b, l, q] or x itself if ``q_lora_rank`` is null; queries."""
        module = f"{at}q_proj"
        if self.query_latent:
            rows, module = self.query_latent, f"{at}q_b_proj"
            x = self.w.linear(x, f"{at}q_a_proj", rows=rows, bias=self.bias)
            x = self._norm(x, f"{at}q_a_layernorm")
        q = by_head(self.w, x, module, self.heads, self.plain + self.turned)
        return x, (q[..., : self.plain], q[..., self.plain :])

    def _latents(self, at: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """c and r, each [b, 1, l, d]."""
        rows = self.latent + self.turned
        both = self.w.linear(x, f"{at}kv_a_proj_with_mqa", rows=rows, bias=self.bias)[:, None]
        c = self._norm(both[..., : self.latent], f"{at}kv_a_layernorm")
        return c, both[..., self.latent :]

    def _naive(self, module: str, q: Heads, c: Tensor, r: Tensor, mask: Tensor) -> Tensor:
        """[b, n, l, d], from the keys and values of every head."""
        n, channels = q[0].shape[1], self.plain + self.values
        both = by_head(self.w, c[:, 0], module, self.heads, channels, here=n)
        k = torch.cat([both[..., : self.plain], r.expand(-1, n, -1, -1)], -1)
        return attend(torch.cat(q, -1), k, both[..., self.plain :], mask, self.scale)

    def _absorbed(self, module: str, q: Heads, c: Tensor, r: Tensor, mask: Tensor) -> Tensor:
        """The same from the latents: all heads have one key (c, r) and one value c.

        The weight is used decoded, in every compute mode, as in the published code.
        """
        n, channels = q[0].shape[1], self.plain + self.values
        each = self.w.get(f"{module}.weight", (n * channels, self.latent)).view(n, channels, -1)
        plain = (q[0].float() @ each[:, : self.plain]).to(c.dtype)  # [b, n, l, c]
        out = attend(torch.cat([plain, q[1]], -1), torch.cat([c, r], -1), c, mask, self.scale)
        return (out.float() @ each[:, self.plain :].transpose(1, 2)).to(c.dtype)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (x.shape[-1],)), EPS)


def _correction(said: Config) -> float:
    """YaRN's, of queries or of keys; where ``mscale_all_dim`` is 0 there is none."""
    if kind_of(said) == "default":
        return 1.0
    every = said.number("mscale_all_dim", 0)
    return mscale(said.positive("factor", 1), every) if every else 1.0
