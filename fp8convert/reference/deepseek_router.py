"""Which experts a token goes to in DeepSeek-V3: ``noaux_tc``.

    s = sigmoid(Wg x)                    of every expert
    b = s + bias                         for choosing only: it balances the load
    groups = the best ``topk_group`` of ``n_group`` groups, by the sum of their two best b
    chosen = the best ``num_experts_per_tok`` b in these groups
    share = s / (sum of s of the chosen) * routed_scaling_factor

All in float32, in every compute mode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FormatError
from .config import Config
from .weights import Weights


class Router:
    """See the module."""

    def __init__(self, config: Config, weights: Weights) -> None:
        config.only("topk_method", "noaux_tc")
        config.only("scoring_func", "sigmoid")
        self.w = weights
        self.hidden = config.integer("hidden_size", least=1)
        self.experts = config.integer("n_routed_experts", least=1)
        self.groups = config.integer("n_group", 1, least=1)
        self.kept = config.integer("topk_group", 1, least=1)
        self.each = config.integer("num_experts_per_tok", least=1)
        self.normed = config.flag("norm_topk_prob", True)
        self.scaling = config.number("routed_scaling_factor", 1.0)
        _check(config, self)

    def __call__(self, at: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x [t, h]: the experts [t, k] and their shares [t, k]."""
        gate = self.w.get(f"{at}gate.weight", (self.experts, self.hidden), exact=True)
        scores = (x.float() @ gate.T).sigmoid()  # [t, e]
        biased = scores + self.w.get(f"{at}gate.e_score_correction_bias", (self.experts,))
        groups = biased.view(len(x), self.groups, self.experts // self.groups)
        best = groups.topk(2).values.sum(-1).topk(self.kept).indices
        others = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
        within = groups.masked_fill(others[..., None], float("-inf")).flatten(1)
        chosen = within.topk(self.each).indices
        share = scores.gather(1, chosen)
        if self.normed:
            share = share / (share.sum(-1, keepdim=True) + 1e-20)
        return chosen, share * self.scaling


def _check(config: Config, router: Router) -> None:
    """FormatError unless groups are whole, of two or more, and have as many as are chosen."""
    size = router.experts // router.groups
    fits = size * router.groups == router.experts and size >= 2 and router.kept <= router.groups
    if not fits or router.each > size * router.kept:
        raise FormatError(
            f"{config.where}: n_routed_experts is {router.experts}, n_group {router.groups}, "
            f"topk_group {router.kept}, num_experts_per_tok {router.each}: expected groups of two "
            "or more, all of one size, and as many experts in the best of them as are chosen"
        )
