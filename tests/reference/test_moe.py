"""Experts: a plain sum over tokens, whoever of the ranks has which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fp8convert.errors import DataError, FormatError, SchemeError
from fp8convert.reference.groups import Threads
from fp8convert.reference.moe import Names, mlp, routed
from fp8convert.reference.weights import Weights

from .held import Held, random, weights

TOKENS, HIDDEN, WIDTH, EXPERTS = 5, 6, 8, 4
CHOSEN = torch.tensor([[0, 2], [2, 0], [2, 1], [1, 2], [0, 2]])  # nobody goes to 3
SHARE = random(TOKENS, 2, seed=9).abs()
TENSORS = {
    f"{expert}.{name}.weight": random(*shape, seed=10 * expert + n)
    for expert in range(EXPERTS)
    for n, (name, shape) in enumerate(
        [("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))]
    )
}
X = random(TOKENS, HIDDEN)


def names(expert: int) -> Names:
    return f"{expert}.gate", f"{expert}.up", f"{expert}.down"


def one(expert: int, x: Tensor, limit: float = 0.0) -> Tensor:
    """An expert of one token, from its formula."""
    gate, up, down = (TENSORS[f"{module}.weight"].double() for module in names(expert))
    g, u = gate @ x.double(), up @ x.double()
    if limit:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    return down @ (g * torch.sigmoid(g) * u)


def expected(limit: float = 0.0, chosen: Tensor = CHOSEN) -> Tensor:
    rows = [
        sum(SHARE[t, k] * one(int(chosen[t, k]), X[t], limit) for k in range(2))
        for t in range(TOKENS)
    ]
    return torch.stack(rows).float()  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_it_is_the_sum_over_the_experts_of_a_token(limit: float) -> None:
    found = routed(weights(TENSORS), X, CHOSEN, SHARE, names, WIDTH, limit)
    torch.testing.assert_close(found, expected(limit))


def test_only_experts_that_a_token_goes_to_are_read() -> None:
    source = Held(TENSORS)
    routed(Weights(source, "fp32"), X, CHOSEN, SHARE, names, WIDTH)
    assert {name.partition(".")[0] for name, _ in source.reads} == {"0", "1", "2"}


def test_an_expert_twice_for_a_token_counts_twice() -> None:
    """As in a hash table that has it so."""
    chosen = CHOSEN.clone()
    chosen[1] = 2
    found = routed(weights(TENSORS), X, chosen, SHARE, names, WIDTH)
    torch.testing.assert_close(found, expected(chosen=chosen))


def owned(rank: int) -> dict[str, Tensor]:
    return {n: t for n, t in TENSORS.items() if int(n.partition(".")[0]) // 2 == rank}


def cut(rank: int) -> dict[str, Tensor]:
    half = slice(rank * WIDTH // 2, (rank + 1) * WIDTH // 2)
    return {n: t[:, half] if ".down" in n else t[half] for n, t in TENSORS.items()}


def copied(rank: int) -> dict[str, Tensor]:
    return TENSORS


def over(place: object, chosen: list[Tensor], share: Tensor = SHARE) -> list[Tensor]:
    group = Threads(2)
    made = [weights(place(n), group=group.member(n)) for n in range(2)]  # type: ignore[operator]
    return group.run(lambda n: routed(made[n], X, chosen[n], share, names, WIDTH))


@pytest.mark.parametrize("place", [owned, cut, copied])
def test_ranks_give_the_same_wherever_experts_are(place: object) -> None:
    first, second = over(place, [CHOSEN, CHOSEN])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected())


def test_ranks_that_route_otherwise_are_found() -> None:
    other = CHOSEN.clone()
    other[0, 0] = 1
    with pytest.raises(DataError, match="experts that tokens are routed to: rank 0 and rank 1"):
        over(owned, [CHOSEN, other])


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_expert_that_is_nowhere_is_named(ranks: int) -> None:
    held = {n: t for n, t in TENSORS.items() if not n.startswith("1.")}
    group = Threads(ranks)
    made = [weights(held, group=group.member(n)) for n in range(ranks)]
    with pytest.raises(SchemeError, match=r"'1.gate.weight' is missing, a token is routed to it"):
        group.run(lambda n: routed(made[n], X, CHOSEN, SHARE, names, WIDTH))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("2.gate.weight", (WIDTH - 1, HIDDEN), "expected 8 rows"),
        ("2.up.weight", (WIDTH, HIDDEN + 1), "expected 6 columns"),
        ("2.down.weight", (1, WIDTH), "expected 6 rows"),
        ("2.down.weight", (HIDDEN, WIDTH - 1), "expected 8 columns"),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, int], message: str) -> None:
    w = weights({**TENSORS, name: random(*shape)})
    with pytest.raises(FormatError, match=f"'{name}' is .*{message}"):
        routed(w, X, CHOSEN, SHARE, names, WIDTH)


def test_a_rank_has_as_much_of_gate_as_of_up() -> None:
    """Both are a share of the rows, and one is more."""
    held = {**cut(0), "1.up.weight": TENSORS["1.up.weight"][: WIDTH // 2 + 1]}
    w = weights(held, group=Threads(2).member(0))
    with pytest.raises(FormatError, match=r"'1.gate.weight' has 4 rows, '1.up.weight' 5"):
        mlp(w, X[None], names(1), WIDTH)


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_an_mlp_is_an_expert_of_every_token(limit: float) -> None:
    found = mlp(weights(TENSORS), X[None], names(1), WIDTH, limit)
    assert found.shape == (1, TOKENS, HIDDEN)
    torch.testing.assert_close(found[0], torch.stack([one(1, x, limit) for x in X]).float())


def test_an_mlps_biases_are_added() -> None:
    biases = {f"1.{n}.bias": random(s) for n, s in (("gate", 8), ("up", 8), ("down", 6))}
    w = weights({**TENSORS, **biases})
    gate, up, down = (TENSORS[f"{module}.weight"] for module in names(1))
    g, u = X @ gate.T + biases["1.gate.bias"], X @ up.T + biases["1.up.bias"]
    right = (torch.nn.functional.silu(g) * u) @ down.T + biases["1.down.bias"]
    torch.testing.assert_close(mlp(w, X, names(1), WIDTH, bias=True), right)
    with pytest.raises(SchemeError, match="the model has no such bias"):
        mlp(w, X, names(1), WIDTH, bias=False)
    with pytest.raises(SchemeError, match=r"'0.gate.bias' is missing"):
        mlp(w, X, names(0), WIDTH, bias=True)
