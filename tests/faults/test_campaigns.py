"""A slice of every class of faults; ``make torture`` injects them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .campaigns import CAMPAIGNS
from .lab import Lab, lab
from .tally import Campaign


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with lab() as found:
        yield found


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda c: c.name)
def test_nothing_is_lost(campaign: Campaign, made: Lab) -> None:
    if why := campaign.missing():
        pytest.skip(why)
    tally = campaign.run(made, campaign.slice, 0)
    assert tally.losses == []
    assert tally.injected == tally.survived == tally.identical > 0


def test_names_are_different() -> None:
    names = [c.name for c in CAMPAIGNS]
    assert len(set(names)) == len(names) > 0
