"""Llama, Mistral, Ministral 3, Qwen2 and Qwen3: grouped-query attention and a SwiGLU MLP.

    x = embed(token)
    for each layer:
        x = x + attention(norm(x))       q, k, v = W x; q and k turned by position; softmax(q k) v
        x = x + mlp(norm(x))             down(silu(gate x) * up x)
    logits = head(norm(x))

They differ in little: Qwen2 has biases on q, k and v, Llama may have more; Qwen3 norms each head of
q and k; Mistral and Qwen may see a window only; Ministral 3 scales q beyond the trained length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FormatError
from ..strictjson import brief
from .attention import attend, by_head, causal_mask
from .config import Config
from .moe import mlp
from .numerics import rms_norm
from .rope import halves, rope_of
from .weights import Weights

LLAMA, MINISTRAL3, QWEN2, QWEN3, QWEN3_MOE = "llama", "ministral3", "qwen2", "qwen3", "qwen3_moe"
FULL, SLIDING = "full_attention", "sliding_attention"


class Dense:
    """See the module. State between layers is x [b, l, h]."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config, self.w = config, weights
        self.model = config.text("model_type")
        config.only("hidden_act", "silu")
        self.layers = config.layers()
        self.vocabulary = config.integer("vocab_size", least=1)
        self.hidden = config.integer("hidden_size", least=1)
        self.width = config.integer("intermediate_size", least=1)
        self.eps = config.positive("rms_norm_eps")
        self.tied = config.flag("tie_word_embeddings", False)
        self.mtp = 0
        self.heads = config.integer("num_attention_heads", least=1)
        self.kv_heads = config.integer("num_key_value_heads", self.heads, least=1)
        if self.heads % self.kv_heads:
            raise FormatError(
                f"{config.where}: num_key_value_heads is {self.kv_heads}, expected to divide "
                f"num_attention_heads, {self.heads}"
            )
        usual = 128 if self.model in (QWEN3, MINISTRAL3) else self.hidden // self.heads
        self.channels = config.integer("head_dim", usual, least=1)
        self.head_norms = self.model in (QWEN3, QWEN3_MOE)
        given = config.flag("attention_bias", False) and (self.head_norms or self.model == LLAMA)
        self.biases = self.model == QWEN2 or given, given  # of q, k, v; of o
        self.mlp_bias = config.flag("mlp_bias", False) and self.model == LLAMA
        weights.shape(f"model.layers.{self.layers - 1}.input_layernorm.weight")  # are there so many
        self.windows = _windows(config, self.model, self.layers)
        self.rope = rope_of(config, self.channels)
        self.longer = self._longer()

    def kind(self, n: int) -> str:
        """Of layer ``n``: dense or moe."""
        return "dense"

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, l] to x [b, l, h]."""
        return self.w.embed("model.embed_tokens.weight", tokens, self.vocabulary, self.hidden)

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """Layer ``n`` of x [b, l, h]."""
        at = f"model.layers.{n}."
        x = x + self.attention(n, f"{at}self_attn.", self._norm(x, f"{at}input_layernorm"))
        return x + self.feed_forward(n, f"{at}mlp.", self._norm(x, f"{at}post_attention_layernorm"))

    def logits(self, x: Tensor) -> Tensor:
        """x [b, l, h] to logits [b, l, v]."""
        tied = self.tied and not self.w.has("lm_head.weight")
        table = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self.w.logits(self._norm(x, "model.norm"), table, self.vocabulary)

    def attention(self, n: int, at: str, x: Tensor) -> Tensor:
        """Of layer ``n``, whose weights begin with ``at``. On a rank: of its heads, then summed."""
        q = self._heads(x, f"{at}q_proj", self.heads)
        k, v = (self._heads(x, f"{at}{name}_proj", self.kv_heads) for name in "kv")
        if self.head_norms:
            q, k = self._head_norm(q, f"{at}q_norm"), self._head_norm(k, f"{at}k_norm")
        positions = torch.arange(x.shape[1], device=x.device)
        turn = self.rope.turn(positions)
        q, k = self._lengthened(halves(q, turn), positions), halves(k, turn)
        mask = causal_mask(len(positions), self.windows[n], self.w.device)
        joined = attend(q, k, v, mask, self.channels**-0.5).transpose(1, 2).flatten(2)  # [b, l, nd]
        whole = self.heads * self.channels
        return self.w.linear(joined, f"{at}o_proj", whole, self.hidden, self.biases[1])

    def feed_forward(self, n: int, at: str, x: Tensor) -> Tensor:
        """The MLP of layer ``n``."""
        names = (f"{at}gate_proj", f"{at}up_proj", f"{at}down_proj")
        return mlp(self.w, x, names, self.width, bias=self.mlp_bias)

    def _heads(self, x: Tensor, module: str, count: int) -> Tensor:
        """x [b, l, h] to [b, n, l, d]."""
        return by_head(self.w, x, module, count, self.channels, bias=self.biases[0])

    def _head_norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (self.channels,)), self.eps)

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (self.hidden,)), self.eps)

    def _longer(self) -> tuple[float, int] | None:
        """What scales q beyond the trained length, which is the other number."""
        said = self.rope.said
        if self.model != MINISTRAL3:
            said.only("llama_4_scaling_beta", 0)
        elif not said.found:  # transformers would take YaRN, and this scaling, of its own
            raise FormatError(f"{said.where}: rope_parameters is missing, expected an object")
        beta = said.number("llama_4_scaling_beta", 0)
        return (beta, said.integer("original_max_position_embeddings", least=1)) if beta else None

    def _lengthened(self, q: Tensor, positions: Tensor) -> Tensor:
        if self.longer is None:
            return q
        beta, trained = self.longer
        scale = 1 + beta * torch.log1p(positions // trained)  # [l]
        return (q.float() * scale[:, None]).to(q.dtype)


def _windows(config: Config, model: str, layers: int) -> list[int]:
    """How many tokens each layer sees, 0 for all. FormatError where ``layer_types`` says what the
    model has not."""
    window = config.integer("sliding_window", 0, least=1)
    qwen = model in (QWEN2, QWEN3, QWEN3_MOE)
    if model == LLAMA or (qwen and not config.flag("use_sliding_window", False)):
        window = 0
    first = config.integer("max_window_layers", 28) if model in (QWEN2, QWEN3) else 0
    kinds = [SLIDING if window and n >= first else FULL for n in range(layers)]
    said = config.items("layer_types", kinds)
    known = all(kind in (FULL, SLIDING) for kind in said) and len(said) == layers
    if said != kinds and not (known and window and model in (QWEN2, QWEN3)):
        raise FormatError(
            f"{config.where}: layer_types is {brief(said)}, expected {brief(kinds)} by the other "
            f"fields of a {model}"
        )
    return [window if kind == SLIDING else 0 for kind in said]
