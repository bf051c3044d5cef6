"""DeepSeek-V4's attention: a window of tokens, and compressed entries for all that is before it.

    low = norm(wq_a x);  q = rms(wq_b low) of each head       as MLA's queries, without a latent k
    kv = norm(wkv x)                                          one head, which is both k and v
    window  each token sees ``sliding_window`` tokens, and nothing else
    HCA     and an entry for every 128 tokens that are complete
    CSA     and the best ``index_topk`` of one entry for every 4 tokens, as an indexer scores them
    softmax over these and a sink, a logit that takes a share and gives nothing
    wo_b (wo_a of each group of heads)

An entry is a weighted mean of its tokens, each channel having weights of its own: softmax over the
window of ``wgate x + ape``. CSA's windows overlap: a token has two halves, the first goes to the
entry after its own. The last ``qk_rope_head_dim`` channels of a head are turned by position (of an
entry: of its first token). As v is k, what attention gives is turned too; it is turned back by the
query's position, and so depends on distances only.

The published inference code also rounds the keys to FP8 and the indexer's to FP4 after a Hadamard
transform, as its kernels want them. That belongs to no weight: it is left out in every compute
mode. wo_a is decoded in every mode, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FormatError, shown
from .attention import attend, by_head, causal_mask
from .config import Config
from .deepseek_v4_forms import Kind, ropes
from .groups import all_reduce
from .numerics import rms_norm
from .rope import interleaved
from .weights import Weights, copies

Turn = tuple[Tensor, Tensor]


class CompressedAttention:
    """See the module. On a rank: of its heads and groups, then summed; entries are on every one."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.w = weights
        self.hidden = config.integer("hidden_size", least=1)
        self.eps = config.positive("rms_norm_eps")
        self.heads = config.integer("num_attention_heads", least=1)
        self.turned = config.integer("qk_rope_head_dim", least=2)
        self.channels = config.integer("head_dim", least=self.turned)
        self.latent = config.integer("q_lora_rank", least=1)
        self.groups = config.integer("o_groups", least=1)
        self.rank = config.integer("o_lora_rank", least=1)
        self.window = config.integer("sliding_window", least=1)
        self.index_heads = config.integer("index_n_heads", least=1)
        self.index_channels = config.integer("index_head_dim", least=self.turned)
        self.best = config.integer("index_topk", least=1)
        self.near, self.far = ropes(config, self.turned)

    def __call__(self, x: Tensor, at: str, kind: Kind) -> Tensor:
        """Of x [b, l, h], with weights that begin with ``at``."""
        length = x.shape[1]
        turn = (self.far if kind.ratio else self.near).turn(torch.arange(length, device=x.device))
        low = self.w.linear(x, f"{at}wq_a", rows=self.latent, bias=False)
        low = self._norm(low, f"{at}q_norm")
        q = by_head(self.w, low, f"{at}wq_b", self.heads, self.channels)
        q = self._turn(rms_norm(q, None, self.eps), turn)
        kv = self.w.linear(x, f"{at}wkv", rows=self.channels, bias=False)[:, None]
        kv = self._turn(self._norm(kv, f"{at}kv_norm"), turn)  # [b, 1, l, d]
        seen = causal_mask(length, self.window, self.w.device).expand(len(x), -1, -1)
        if kind.ratio:
            entries, ready = self.entries(x, f"{at}compressor.", kind, self.channels)
            if kind.name == "csa":
                ready = self.chosen(x, low, f"{at}indexer.", kind, turn)
            kv, seen = torch.cat([kv, entries], 2), torch.cat([seen, ready], -1)
        sink = self.w.get(f"{at}attn_sink", (q.shape[1],))
        out = attend(q, kv, kv, seen[:, None], self.channels**-0.5, sink)
        return self._project(self._turn(out, turn, back=True), at)

    def entries(self, x: Tensor, at: str, kind: Kind, channels: int) -> tuple[Tensor, Tensor]:
        """Entries [b, 1, s, d] of x [b, l, h]; which are complete for each token [b, l, s]."""
        b, length, _ = x.shape
        count, ratio = length // kind.ratio, kind.ratio
        tokens = x[:, : count * ratio]
        width = channels * (2 if kind.name == "csa" else 1)
        value, gate = (
            tokens.float() @ self.w.get(f"{at}{name}.weight", (width, self.hidden), exact=True).T
            for name in ("wkv", "wgate")
        )
        value, gate = (y.view(b, count, ratio, width) for y in (value, gate))
        gate = gate + self.w.get(f"{at}ape", (ratio, width), exact=True)
        if kind.name == "csa":
            value, gate = overlapped(value, 0.0), overlapped(gate, float("-inf"))
        mean = (value * gate.softmax(2)).sum(2)[:, None]  # [b, 1, s, d]
        first = torch.arange(count, device=x.device) * ratio
        made = self._turn(self._norm(mean, f"{at}norm").to(x.dtype), self.far.turn(first))
        ready = torch.arange(length, device=x.device)[:, None] >= first + ratio - 1
        return made, ready.expand(b, -1, -1)

    def chosen(self, x: Tensor, low: Tensor, at: str, kind: Kind, turn: Turn) -> Tensor:
        """The indexer: which entries each token sees, [b, l, s].

        Entries of its own, small ones; each of its heads scores them by ``relu(q k)``, and the
        token says what each head's opinion is worth. On a rank: its heads, then summed.
        """
        keys, ready = self.entries(x, f"{at}compressor.", kind, self.index_channels)
        q = by_head(self.w, low, f"{at}wq_b", self.index_heads, self.index_channels)
        n = q.shape[1]
        opinions = self._turn(q, turn).float() @ keys.float().transpose(-1, -2)  # [b, n, l, s]
        opinions = opinions.relu() * self.index_channels**-0.5
        weight = self.w.get(f"{at}weights_proj.weight", (n, self.hidden), exact=True)
        worth = x.float() @ weight.T * self.index_heads**-0.5  # [b, l, n]
        score = torch.einsum("bnls,bln->bls", opinions, worth)
        if n < self.index_heads:
            score = all_reduce(score, self.w.group) / copies(self.w.group.size, n, self.index_heads)
        score = score.masked_fill(~ready, float("-inf"))
        best = score.topk(min(self.best, score.shape[-1])).indices
        return torch.zeros_like(ready).scatter(-1, best, True) & ready

    def _project(self, out: Tensor, at: str) -> Tensor:
        """[b, n, l, d] to [b, l, h]: each group of heads by its rows of wo_a, then all by wo_b."""
        heads = out.shape[1]
        groups = heads * self.groups // self.heads
        if not groups:
            raise FormatError(
                f"weight {shown(f'{at}wq_b.weight')} has {heads} heads, less than a group of wo_a"
            )
        shape = (groups * self.rank, heads * self.channels // groups)
        weight = self.w.get(f"{at}wo_a.weight", shape).view(groups, self.rank, -1)
        grouped = out.transpose(1, 2).reshape(*out.shape[::2], groups, -1).float()
        low = torch.einsum("blgi,gri->blgr", grouped, weight).flatten(2).to(out.dtype)
        whole = self.groups * self.rank
        return self.w.linear(low, f"{at}wo_b", whole, rows=self.hidden, bias=False)

    def _turn(self, x: Tensor, turn: Turn, back: bool = False) -> Tensor:
        """Turn the last channels of x [b, n, l, d]."""
        still, turned = x[..., : -self.turned], x[..., -self.turned :]
        return torch.cat([still, interleaved(turned, turn, back)], -1)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (x.shape[-1],)), self.eps)


def overlapped(x: Tensor, before: float) -> Tensor:
    """Windows [b, s, r, 2d] as [b, s, 2r, d]: the first halves of the window before, then the
    second halves of its own. Before the first window there is ``before``."""
    next_ones, own = x.chunk(2, -1)
    first = torch.full_like(next_ones[:, :1], before)
    return torch.cat([torch.cat([first, next_ones[:, :-1]], 1), own], 2)
