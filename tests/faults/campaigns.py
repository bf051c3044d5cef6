"""Every class of faults, in the order of the table. A campaign is a module; its line is here."""

from __future__ import annotations

from .tally import Campaign

CAMPAIGNS: tuple[Campaign, ...] = ()
