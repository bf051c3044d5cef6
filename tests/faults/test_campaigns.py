"""A slice of every class of faults; ``make torture`` injects them all."""

from __future__ import annotations

import pytest

from .campaigns import CAMPAIGNS
from .lab import Lab
from .tally import Campaign


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda c: c.name)
def test_nothing_is_lost(campaign: Campaign, made: Lab) -> None:
    if why := campaign.missing():
        pytest.skip(why)
    tally = campaign.run(made, campaign.slice, 0)
    assert tally.losses == []
    assert tally.injected == tally.survived == tally.identical
    assert tally.injected >= campaign.slice // 2  # the rest may have struck nothing


def test_names_are_different() -> None:
    names = [c.name for c in CAMPAIGNS]
    assert len(set(names)) == len(names) > 0
