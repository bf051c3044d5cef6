"""Qwen3-MoE: Qwen3, whose MLPs are replaced by experts in most layers.

    p = softmax(Wg x) by expert, in float32
    x = x + sum of p_e expert_e(x) over the experts with the largest p

The chosen p are divided by their sum if ``norm_topk_prob`` says so. A layer n has experts unless it
is in ``mlp_only_layers`` or ``decoder_sparse_step`` does not divide n + 1.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import FormatError
from .config import Config
from .dense import Dense
from .moe import Names, routed
from .weights import Weights


class Qwen3Moe(Dense):
    """See the module. State between layers is x [b, l, h]."""

    def __init__(self, config: Config, weights: Weights) -> None:
        super().__init__(config, weights)
        count = "num_local_experts" if "num_local_experts" in config.found else "num_experts"
        self.experts = config.integer(count, least=1)
        self.chosen = config.integer("num_experts_per_tok", least=1)
        if self.chosen > self.experts:
            raise FormatError(
                f"{config.where}: num_experts_per_tok is {self.chosen}, expected at most "
                f"{count}, {self.experts}"
            )
        self.expert_width = config.integer("moe_intermediate_size", least=1)
        self.normed = config.flag("norm_topk_prob", False)
        self.dense_layers = config.items("mlp_only_layers", [])
        self.every = config.integer("decoder_sparse_step", 1, least=1)

    def kind(self, n: int) -> str:
        """Of layer ``n``: dense or moe."""
        return "dense" if n in self.dense_layers or (n + 1) % self.every else "moe"

    def feed_forward(self, n: int, at: str, x: Tensor) -> Tensor:
        """The experts of layer ``n``, or its MLP."""
        if self.kind(n) == "dense":
            return super().feed_forward(n, at, x)
        flat = x.flatten(0, 1)  # [t, h]
        self.w.check_rows(f"{at}gate.weight", self.experts)
        share, chosen = self.w.product(flat, f"{at}gate.weight").softmax(-1).topk(self.chosen)
        if self.normed:
            share = share / share.sum(-1, keepdim=True)

        def names(expert: int) -> Names:
            module = f"{at}experts.{expert}."
            return f"{module}gate_proj", f"{module}up_proj", f"{module}down_proj"

        out = routed(self.w, flat, chosen, share, names, self.expert_width)
        return out.to(x.dtype).view(x.shape)
