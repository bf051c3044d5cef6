"""What ``plan``, ``run-task`` and ``finalize`` take over from the converting commands."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from fp8convert.planfile import COMMANDS

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest

__all__ = ["COMMANDS", "PLAN_ARGUMENT", "command_of", "params_of", "summary_of"]

PLAN_ARGUMENT = click.argument("plan", metavar="PLAN.json", type=click.Path())


def command_of(name: str) -> click.Command:
    """The converting command of that name."""
    found: click.Command = getattr(_module(name), f"{name.replace('-', '_')}_command")
    return found


def summary_of(name: str) -> Callable[[Job, Manifest], None]:
    """What it prints when it is done."""
    found: Callable[[Job, Manifest], None] = _module(name).summary
    return found


def params_of(
    name: str, kept: Collection[str], required: Collection[str] = ()
) -> list[click.Parameter]:
    """Its arguments and options of those names, in its order; copies of them."""
    found = [copy.copy(p) for p in command_of(name).params if p.name in kept]
    for param in found:
        param.required = param.required or param.name in required
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)
