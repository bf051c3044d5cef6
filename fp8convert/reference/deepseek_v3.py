"""DeepSeek-V3, R1 and Kimi K2: latent attention, many small experts, a head for one token more.

    x = embed(token)
    for each layer:
        x = x + attention(norm(x))       .latent_attention
        x = x + mlp(norm(x))             in the first layers, or
        x = x + experts(norm(x))         those of .deepseek_router by their shares, and shared ones
    logits = head(norm(x))

The MTP layer, number ``num_hidden_layers``, predicts the token after the next from the next and
from h, what the model had for the last:

    x = layer(eh_proj [norm(embed(next)), norm(h)])
    logits = shared_head(norm(x))

h is the state after ``model.norm``: the published ``modeling_deepseek.py`` hands that on, and so do
vLLM, SGLang and transformers (``MtpModel``); in all of them the embedding comes first. vLLM has
zeros for the embedding at position 0; here, as in SGLang and transformers, it is used. The layer's
tables are copies of the model's (README_WEIGHTS.md); where they are not stored, it uses those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import FormatError, listed
from ..strictjson import brief
from .config import Config
from .deepseek_router import Router
from .latent_attention import LatentAttention
from .moe import Names, mlp, routed
from .numerics import rms_norm
from .weights import Weights


class DeepSeekV3:
    """See the module. State between layers is x [b, l, h]; ``absorbed``: the form of attention."""

    attention = LatentAttention

    def __init__(self, config: Config, weights: Weights, absorbed: bool = False) -> None:
        config.only("hidden_act", "silu")
        self.config, self.w = config, weights
        self.layers = config.layers()
        self.vocabulary = config.integer("vocab_size", least=1)
        self.hidden = config.integer("hidden_size", least=1)
        self.width = config.integer("intermediate_size", least=1)
        self.expert_width = config.integer("moe_intermediate_size", least=1)
        self.shared = config.integer("n_shared_experts", 0)
        self.eps = config.positive("rms_norm_eps", 1e-6)
        self._kind = _kinds(config, self.layers)
        self.route = Router(config, weights)
        self.attend = self.attention(config, weights, absorbed)
        stored = config.integer("num_nextn_predict_layers", 0)
        self.mtp = stored if self._has_mtp(f"model.layers.{self.layers}.") else 0

    def kind(self, n: int) -> str:
        """Of layer ``n``: dense or moe. The MTP layer is moe."""
        return self._kind(n) if n < self.layers else "moe"

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, l] to x [b, l, h]."""
        return self.w.embed("model.embed_tokens.weight", tokens, self.vocabulary)

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """Layer ``n`` of x [b, l, h]."""
        at = f"model.layers.{n}."
        x = x + self.attend(f"{at}self_attn.", self._norm(x, f"{at}input_layernorm"))
        normed = self._norm(x, f"{at}post_attention_layernorm")
        if self.kind(n) == "dense":
            return x + mlp(self.w, normed, _names(f"{at}mlp."), self.width, bias=False)
        return x + self._experts(f"{at}mlp.", normed)

    def logits(self, x: Tensor) -> Tensor:
        """x [b, l, h] to logits [b, l, v]."""
        return self.w.logits(self._norm(x, "model.norm"), self._head(), self.vocabulary)

    def predict(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The first MTP layer, of x after the last layer: its state [b, l - 1, h], and logits
        [b, l - 1, v] of the token after the next."""
        at, following = f"model.layers.{self.layers}.", tokens[:, 1:]
        table = self._or(f"{at}embed_tokens.weight", "model.embed_tokens.weight")
        e = self._norm(self.w.embed(table, following, self.vocabulary), f"{at}enorm")
        h = self._norm(self._norm(x[:, :-1], "model.norm"), f"{at}hnorm")
        x = self.w.linear(torch.cat([e, h], -1), f"{at}eh_proj", rows=self.hidden, bias=False)
        x = self.layer(self.layers, x, following)
        head = self._or(f"{at}shared_head.head.weight", self._head())
        return x, self.w.logits(self._norm(x, f"{at}shared_head.norm"), head, self.vocabulary)

    def _experts(self, at: str, x: Tensor) -> Tensor:
        """Of x [b, l, h]: those that each token goes to, and those that all go to."""
        flat = x.flatten(0, 1)  # [t, h]
        chosen, share = self.route(at, flat)
        width = self.expert_width
        out = routed(self.w, flat, chosen, share, lambda e: _names(f"{at}experts.{e}."), width)
        if self.shared:
            names = _names(f"{at}shared_experts.")
            out = out + mlp(self.w, flat, names, width * self.shared, bias=False).float()
        return out.to(x.dtype).view(x.shape)

    def _has_mtp(self, at: str) -> bool:
        """Whether any of it is stored: what is missing then is named when it is used."""
        own = ("eh_proj", "enorm", "hnorm", "input_layernorm", "shared_head.norm")
        return any(self.w.has(f"{at}{module}.weight") for module in own)

    def _head(self) -> str:
        tied = self.config.flag("tie_word_embeddings", False)
        return self._or("lm_head.weight", "model.embed_tokens.weight") if tied else "lm_head.weight"

    def _or(self, name: str, other: str) -> str:
        return name if self.w.has(name) else other

    def _norm(self, x: Tensor, module: str) -> Tensor:
        return rms_norm(x, self.w.get(f"{module}.weight", (self.hidden,)), self.eps)


def _kinds(config: Config, layers: int) -> Callable[[int], str]:
    """Of a layer, in either form: transformers has a list, the published config two numbers."""
    if said := config.items("mlp_layer_types", []):
        known = {"dense": "dense", "sparse": "moe"}
        if len(said) != layers or not all(kind in known for kind in said):
            raise FormatError(
                f"{config.where}: mlp_layer_types is {brief(said)}, expected {layers} of "
                f"{listed(known)}"
            )
        return lambda n: known[said[n]]
    first = config.integer("first_k_dense_replace", 0)
    every = config.integer("moe_layer_freq", 1, least=1)
    return lambda n: "moe" if n >= first and n % every == 0 else "dense"


def _names(at: str) -> Names:
    return f"{at}gate_proj", f"{at}up_proj", f"{at}down_proj"
