"""Attention: torch's own, and sums written out."""

from __future__ import annotations

import pytest
import torch

from fp8convert.reference.attention import attend, causal_mask

from .held import random


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
