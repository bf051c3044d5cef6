"""Routed experts: only those that a token goes to are read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import FormatError, SchemeError, shown
from .groups import all_reduce, check_same
from .numerics import swiglu
from .weights import Weights, copies

Names = tuple[str, str, str]  # modules of gate, up, down


def mlp(
    w: Weights, x: Tensor, names: Names, width: int, limit: float = 0.0, bias: bool | None = None
) -> Tensor:
    """``down(silu(gate x) * up x)`` [..., h]; ``width`` is the inner one on all ranks."""
    inner = _inner(w, x, names, width, limit, bias)
    return w.linear(inner, names[2], whole=width, rows=x.shape[-1], bias=bias)


def routed(
    w: Weights,
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    names: Callable[[int], Names],
    width: int,
    limit: float = 0.0,
) -> Tensor:
    """The sum [t, h], float32, over a token's experts ``chosen`` [t, k] by their ``share`` [t, k].

    A rank adds what its experts, or its columns of experts, give; then all ranks are summed.
    """
    check_same(chosen, w.group, "experts that tokens are routed to")
    out = torch.zeros(x.shape, device=x.device)
    experts = torch.unique(chosen).tolist()
    for expert, holders in zip(experts, _holders(w, experts, names), strict=True):
        gate, _, down = names(expert)
        if not w.has(f"{gate}.weight"):
            continue
        here = chosen == expert  # [t, k]; hash tables may have an expert twice for a token
        tokens = here.any(-1).nonzero().squeeze(-1)
        inner = _inner(w, x[tokens], names(expert), width, limit, bias=False)
        w.check_rows(f"{down}.weight", x.shape[-1])
        given = w.product(inner, f"{down}.weight") / copies(holders, inner.shape[-1], width)
        out[tokens] += given * (share * here).sum(-1)[tokens, None]
    return all_reduce(out, w.group)


def _inner(
    w: Weights, x: Tensor, names: Names, width: int, limit: float, bias: bool | None
) -> Tensor:
    """``silu(gate x) * up x`` of what this rank has of both; FormatError unless that is as much."""
    gate, up = (w.linear(x, name, rows=width, bias=bias) for name in names[:2])
    if gate.shape != up.shape:
        raise FormatError(
            f"weight {shown(names[0] + '.weight')} has {gate.shape[-1]} rows, "
            f"{shown(names[1] + '.weight')} {up.shape[-1]}, expected as many on a rank"
        )
    return swiglu(gate, up, limit)


def _holders(w: Weights, experts: list[int], names: Callable[[int], Names]) -> list[int]:
    """On how many ranks each expert is; SchemeError if one is nowhere."""
    here = torch.tensor([w.has(f"{names(expert)[0]}.weight") for expert in experts])
    found: list[int] = all_reduce(here.long(), w.group).tolist()
    if 0 in found:
        missing = f"{names(experts[found.index(0)])[0]}.weight"
        raise SchemeError(f"weight {shown(missing)} is missing, a token is routed to it")
    return found
