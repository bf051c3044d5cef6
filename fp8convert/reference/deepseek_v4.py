"""DeepSeek-V4: hyper-connections, attention with compressed entries, experts by hash or by router.

    x = N streams, each embed(token)
    for each layer:
        x = around(x, attention)         .hyper_connections; .compressed_attention: window, CSA, HCA
        x = around(x, experts)
    logits = head(norm(joined x))

Experts: ``s = sqrt(softplus(gate x))``; the k best of ``s + bias``, but in the first layers those
that a table has for the token's id; their shares are ``s``, divided by its sum, times a factor; and
one expert that every token goes to. An expert cuts what goes into its SwiGLU by a limit.
The MTP layer reads ``e_proj(norm(embed(next token))) + h_proj(norm(x))`` of every stream and is a
layer as the others, with a way of its own to join the streams; it predicts the token after next.

The router is float32 in every compute mode, as in the published inference code (transformers has it
in the dtype of the model).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, FormatError, shown
from .compressed_attention import CompressedAttention
from .config import Config
from .deepseek_v4_forms import Kind, Saved, hashed, kinds, saved_by_transformers, supported
from .hyper_connections import HyperConnections
from .moe import Names, mlp, routed
from .numerics import rms_norm
from .weights import Weights

MTP = ("e_proj", "h_proj", "enorm", "hnorm", "norm")  # what other layers do not have


class DeepSeekV4:
    """See the module. State between layers is x [b, l, N, h], N streams."""

    def __init__(self, config: Config, weights: Weights) -> None:
        supported(config)
        if saved_by_transformers(weights.source):
            weights.source = Saved(weights.source)
        self.config, self.w = config, weights
        self.layers = config.layers()
        self.vocabulary = config.integer("vocab_size", least=1)
        self.hidden = config.integer("hidden_size", least=1)
        self.eps = config.positive("rms_norm_eps")
        self.width = config.integer("moe_intermediate_size", least=1)
        self.experts = config.integer("n_routed_experts", least=1)
        self.each = config.integer("num_experts_per_tok", least=1)
        if self.each > self.experts:
            raise FormatError(
                f"{config.where}: num_experts_per_tok is {self.each}, expected at most "
                f"n_routed_experts, {self.experts}"
            )
        self.scaling = config.number("routed_scaling_factor")
        self.limit = config.positive("swiglu_limit")
        self.kinds, self.hashed = kinds(config, self.layers), hashed(config, self.layers)
        stored = any(weights.has(f"mtp.0.{name}.weight") for name in MTP)
        self.mtp = config.integer("num_nextn_predict_layers", 0) if stored else 0
        self.connections = HyperConnections(config, weights)
        self.attention = CompressedAttention(config, weights)

    def kind(self, n: int) -> str:
        """Of layer ``n``: window, csa or hca, and whether it routes by hash. MTP's are last."""
        return self.kinds[n].name + (" hash" if self.hashed[n] else "")

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, l] to x [b, l, N, h]."""
        return self.connections.spread(self._table(tokens))

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """Layer ``n`` of x [b, l, N, h]."""
        return self._block(x, f"layers.{n}.", self.kinds[n], tokens if self.hashed[n] else None)

    def logits(self, x: Tensor) -> Tensor:
        """x [b, l, N, h] to logits [b, l, v]."""
        return self._logits(x, "")

    def predict(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The first MTP layer, of x after the last layer: its state [b, l - 1, N, h], and logits
        [b, l - 1, v] of the token after the next."""
        at = "mtp.0."
        after = self._norm(self._table(tokens[:, 1:]), f"{at}enorm")
        before = self._norm(x[:, :-1], f"{at}hnorm")
        e = self.w.linear(after, f"{at}e_proj", rows=self.hidden, bias=False)
        h = self.w.linear(before, f"{at}h_proj", rows=self.hidden, bias=False)
        x = (e.float()[:, :, None] + h.float()).to(h.dtype)
        x = self._block(x, at, self.kinds[self.layers], None)
        return x, self._logits(x, at)

    def _block(self, x: Tensor, at: str, kind: Kind, ids: Tensor | None) -> Tensor:
        """Attention and experts; with ``ids`` [b, l] experts are chosen by them."""

        def attend(y: Tensor) -> Tensor:
            return self.attention(self._norm(y, f"{at}attn_norm"), f"{at}attn.", kind)

        def experts(y: Tensor) -> Tensor:
            return self._feed_forward(self._norm(y, f"{at}ffn_norm"), f"{at}ffn.", ids)

        x = self.connections.around(x, f"{at}hc_attn", attend)
        return self.connections.around(x, f"{at}hc_ffn", experts)

    def _feed_forward(self, x: Tensor, at: str, ids: Tensor | None) -> Tensor:
        """The experts of x [b, l, h], and the shared one, which every rank has whole."""

        def names(expert: int) -> Names:
            return swiglu_names(f"{at}experts.{expert}.")

        flat = x.flatten(0, 1)
        chosen, share = self._route(flat, at, ids)
        given = routed(self.w, flat, chosen, share, names, self.width, self.limit)
        own = swiglu_names(f"{at}shared_experts.")
        shared = mlp(self.w, flat, own, self.width, self.limit, bias=False)
        return (given + shared.float()).to(x.dtype).view(x.shape)

    def _route(self, x: Tensor, at: str, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Experts and their shares [t, k] of x [t, h]; see the module."""
        gate = self.w.get(f"{at}gate.weight", (self.experts, self.hidden), exact=True)
        score = torch.nn.functional.softplus(x.float() @ gate.T).sqrt()  # [t, e]
        if ids is None:
            bias = self.w.get(f"{at}gate.bias", (self.experts,))
            chosen = (score + bias).topk(self.each).indices
        else:
            chosen = self._looked_up(ids.flatten(), f"{at}gate.tid2eid")
        share = score.gather(1, chosen)
        return chosen, share / (share.sum(-1, keepdim=True) + 1e-20) * self.scaling

    def _looked_up(self, ids: Tensor, name: str) -> Tensor:
        """Experts [t, k] of token ids [t]."""
        table = self.w.get(name, (self.vocabulary, self.each))
        if bad := table[(table < 0) | (table >= self.experts)].tolist():
            raise DataError(
                f"weight {shown(name)} has {bad[0]:g}, expected 0 to {self.experts - 1}"
            )
        return table[ids].long()

    def _logits(self, x: Tensor, at: str) -> Tensor:
        joined = self.connections.join(x, f"{at}hc_head")
        return self.w.logits(self._norm(joined, f"{at}norm"), "head.weight", self.vocabulary)

    def _table(self, tokens: Tensor) -> Tensor:
        return self.w.embed("embed.weight", tokens, self.vocabulary)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (self.hidden,)), self.eps)


def swiglu_names(at: str) -> Names:
    """Of gate, up and down."""
    return f"{at}w1", f"{at}w3", f"{at}w2"
