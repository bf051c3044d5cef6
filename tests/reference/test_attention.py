"""Attention: torch's own, and sums written out."""

from __future__ import annotations

import pytest
import torch

from fp8convert.errors import FormatError
from fp8convert.reference.attention import attend, by_head, causal_mask
from fp8convert.reference.groups import Threads

from .held import random, weights


@pytest.mark.parametrize("window", [0, 1, 3, 5, 9])
def test_a_query_sees_itself_and_what_is_before_it(window: int) -> None:
    mask = causal_mask(5, window)
    for row in range(5):
        seen = [column for column in range(5) if mask[row, column]]
        assert seen == list(range(max(0, row - window + 1) if window else 0, row + 1))


@pytest.mark.parametrize("heads", [1, 2, 4])  # of keys, for 4 of queries
@pytest.mark.parametrize("window", [0, 2])
def test_attention_is_that_of_torch(heads: int, window: int) -> None:
    q, k, v = random(2, 4, 6, 8), random(2, heads, 6, 8, seed=1), random(2, heads, 6, 5, seed=2)
    mask = causal_mask(6, window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(attend(q, k, v, mask, 0.7), expected)


def test_a_sink_takes_its_share_and_gives_nothing() -> None:
    """As a key with that logit, whose value is zero."""
    q, k, v, sink = random(1, 2, 3, 4), random(1, 2, 3, 4), random(1, 2, 3, 4), random(2)
    mask = causal_mask(3)
    found = attend(q, k, v, mask, 0.5, sink)
    for head in range(2):
        for row in range(3):
            logits = [0.5 * float(q[0, head, row] @ k[0, head, c]) for c in range(row + 1)]
            shares = torch.tensor([*logits, float(sink[head])]).softmax(0)[:-1]
            expected = sum(s * v[0, head, c] for c, s in enumerate(shares))
            torch.testing.assert_close(found[0, head, row], expected)


def test_it_is_rounded_once() -> None:
    q, k, v = (random(1, 2, 6, 8, seed=n).bfloat16() for n in range(3))
    mask = causal_mask(6)
    exact = attend(q.float(), k.float(), v.float(), mask, 1.0)
    found = attend(q, k, v, mask, 1.0)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize(("heads", "keys"), [(4, 3), (2, 4)])
def test_a_head_of_keys_is_shared_by_whole_heads_of_queries(heads: int, keys: int) -> None:
    q, k = random(1, heads, 3, 4), random(1, keys, 3, 4)
    with pytest.raises(FormatError, match=f"{heads} heads of queries and {keys} of keys"):
        attend(q, k, k, causal_mask(3), 1.0)


def test_a_rank_has_whole_heads() -> None:
    """Of 4 heads of 6 channels, two ranks; more rows than a share are not wrong by themselves."""
    x, group = random(1, 3, 8), Threads(2)
    for rows, heads in ((12, 2), (18, 3), (24, 4)):
        w = weights({"q.weight": random(rows, 8)}, group=group.member(0))
        assert by_head(w, x, "q", 4, 6).shape == (1, heads, 3, 6)
    w = weights({"q.weight": random(20, 8)}, group=group.member(0))
    with pytest.raises(FormatError, match=r"'q.weight' has 20 rows .* expected whole heads of 6"):
        by_head(w, x, "q", 4, 6)
