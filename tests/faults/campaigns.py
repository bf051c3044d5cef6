"""Every class of faults, in the order of the table. A campaign is a module; its line is here."""

from __future__ import annotations

from . import (
    errors,
    flips,
    fuzzing,
    hostile,
    kills,
    memory,
    power,
    powercache,
    shrinking,
    signals,
    space,
    terminal,
    together,
    transfers,
)
from .properties import campaign as random_checkpoints
from .tally import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *kills.CAMPAIGNS,
    signals.CAMPAIGN,
    terminal.CAMPAIGN,
    together.CAMPAIGN,
    *flips.CAMPAIGNS,
    power.CAMPAIGN,
    powercache.CAMPAIGN,
    random_checkpoints.CAMPAIGN,
    hostile.CAMPAIGN,
    fuzzing.CAMPAIGN,
    space.CAMPAIGN,
    errors.CAMPAIGN,
    transfers.CAMPAIGN,
    shrinking.CAMPAIGN,
    memory.CAMPAIGN,
)
