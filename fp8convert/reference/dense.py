"""Llama, Mistral, Qwen2 and Qwen3: grouped-query attention and a SwiGLU MLP.

    x = embed(token)
    for each layer:
        x = x + attention(norm(x))       q, k, v = W x; q and k turned by position; softmax(q k) v
        x = x + mlp(norm(x))             down(silu(gate x) * up x)
    logits = head(norm(x))

They differ in little: Qwen2 has biases on q, k and v, Qwen3 norms each head of q and k, Mistral and
Qwen2 may see a window only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attend, causal_mask
from .config import Config
from .moe import mlp
from .numerics import rms_norm
from .rope import halves, rope_of
from .weights import Weights


class Dense:
    """See the module. State between layers is x [b, l, h]."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config, self.w = config, weights
        config.only("hidden_act", "silu")
        self.layers = config.integer("num_hidden_layers")
        self.vocabulary = config.integer("vocab_size")
        self.hidden = config.integer("hidden_size")
        self.heads = config.integer("num_attention_heads")
        self.channels = config.integer("head_dim", self.hidden // self.heads)
        self.width = config.integer("intermediate_size")
        self.eps = config.number("rms_norm_eps", 1e-6)
        self.rope = rope_of(config, self.channels)
        self.mtp = 0

    def kind(self, n: int) -> str:
        """Of layer ``n``: dense or moe."""
        return "dense"

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, l] to x [b, l, h]."""
        return self.w.embed("model.embed_tokens.weight", tokens, self.vocabulary)

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """Layer ``n`` of x [b, l, h]."""
        at = f"model.layers.{n}."
        x = x + self.attention(n, f"{at}self_attn.", self._norm(x, f"{at}input_layernorm"))
        return x + self.feed_forward(n, f"{at}mlp.", self._norm(x, f"{at}post_attention_layernorm"))

    def logits(self, x: Tensor) -> Tensor:
        """x [b, l, h] to logits [b, l, v]."""
        tied = self.config.flag("tie_word_embeddings", False) and not self.w.has("lm_head.weight")
        table = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self.w.logits(self._norm(x, "model.norm"), table, self.vocabulary)

    def attention(self, n: int, at: str, x: Tensor) -> Tensor:
        """Of layer ``n``, whose weights begin with ``at``. On a rank: of its heads, then summed."""
        q, k, v = (self._heads(self.w.linear(x, f"{at}{name}_proj")) for name in "qkv")
        q, k = self._head_norm(q, f"{at}q_norm"), self._head_norm(k, f"{at}k_norm")
        length = x.shape[1]
        turn = self.rope.turn(torch.arange(length, device=x.device))
        mask = causal_mask(length, self.window(n), self.w.device)
        out = attend(halves(q, turn), halves(k, turn), v, mask, self.channels**-0.5)
        joined = out.transpose(1, 2).flatten(2)  # [b, l, n d]
        return self.w.linear(joined, f"{at}o_proj", whole=self.heads * self.channels)

    def feed_forward(self, n: int, at: str, x: Tensor) -> Tensor:
        """The MLP of layer ``n``."""
        return mlp(self.w, x, (f"{at}gate_proj", f"{at}up_proj", f"{at}down_proj"), self.width)

    def window(self, n: int) -> int:
        """How many tokens layer ``n`` sees, 0 for all: by ``layer_types``, or the older fields."""
        window = self.config.integer("sliding_window", 0)
        kinds = self.config.items("layer_types", [])
        if kinds:
            return window if kinds[n] == "sliding_attention" else 0
        if self.config.text("model_type") != "mistral":
            first = self.config.integer("max_window_layers", 28)  # Qwen: layers below it see all
            window = window if self.config.flag("use_sliding_window", False) and n >= first else 0
        return window

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.channels).transpose(1, 2)  # [b, n, l, d]

    def _head_norm(self, x: Tensor, module: str) -> Tensor:
        weight = self.w.maybe(f"{module}.weight")
        return x if weight is None else rms_norm(x, weight, self.eps)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (self.hidden,)), self.eps)
