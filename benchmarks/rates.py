"""Throughput of calls from memory to memory on one core."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from .common import Env, Values, alternate

SPAN = 0.1  # seconds a turn, at least
TURNS = 7
Side = Callable[[], object]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one core, as each of our workers does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rates(env: Env, sides: Mapping[str, tuple[Side, int]]) -> list[Values]:
    """G elements/s of each side (a call, and the elements it decodes), taking turns."""
    for side, _ in sides.values():
        side()  # compile, fault memory in
    turns = {name: lambda s=s, n=n: _rate(s, n) for name, (s, n) in sides.items()}
    found = alternate(turns, env.repeats if env.quick else max(TURNS, env.repeats))
    return [Values(name, values, "G elements/s") for name, values in found.items()]


def _rate(side: Side, elements: int) -> float:
    begun, calls = time.perf_counter(), 0
    while (now := time.perf_counter()) - begun < SPAN or not calls:
        side()
        calls += 1
    return calls * elements / (now - begun) / 1e9
