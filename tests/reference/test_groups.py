"""Ranks as threads and as processes: order, errors, and that nobody waits for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fp8convert.errors import DataError, FormatError
from fp8convert.reference.groups import Alone, Group, Threads, all_reduce, check_same

from .held import random

ROOT = Path(__file__).parents[2]
# Sums that are not the same in another order.
PARTS = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8]), torch.tensor([1.0])]


def run(size: int, call: Callable[[Group], object]) -> list[object]:
    threads = Threads(size)
    return threads.run(lambda rank: call(threads.member(rank)))


def test_alone_it_is_what_it_is() -> None:
    x = random(3)
    assert all_reduce(x, Alone()) is x
    check_same(x, Alone(), "x")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_everyone_gets_all_in_order_again_and_again(size: int) -> None:
    def call(group: Group) -> list[list[int]]:
        found = []
        for turn in range(50):
            if (turn + group.rank) % 3 == 0:
                time.sleep(0.0005)  # so that ranks come in another order each time
            parts = group.gather(torch.tensor([turn * 10 + group.rank]))
            found.append([int(part) for part in parts])
        return found

    expected = [[turn * 10 + rank for rank in range(size)] for turn in range(50)]
    assert run(size, call) == [expected] * size


def test_sums_are_in_the_order_of_ranks() -> None:
    found = run(4, lambda group: all_reduce(PARTS[group.rank], group))
    left_to_right = ((PARTS[0] + PARTS[1]) + PARTS[2]) + PARTS[3]
    assert [float(x) for x in found] == [float(left_to_right)] * 4  # type: ignore[arg-type]
    assert float(left_to_right) == 1.0  # 0 or 2 in another order


def test_ranks_run_at_once() -> None:
    both = threading.Barrier(2)
    run(2, lambda group: both.wait(timeout=10))


def test_an_error_of_one_ends_all_and_the_group_can_be_used_again() -> None:
    threads = Threads(3)

    def call(rank: int) -> Tensor:
        group = threads.member(rank)
        group.gather(torch.zeros(1))
        if rank == 1:
            raise DataError("of rank 1")
        return torch.cat(list(group.gather(torch.ones(1))))

    with pytest.raises(DataError, match="of rank 1"):
        threads.run(call)
    again = threads.run(lambda rank: all_reduce(torch.ones(1), threads.member(rank)))
    assert [float(x) for x in again] == [3.0] * 3


def test_of_several_errors_it_is_the_first_ranks() -> None:
    threads = Threads(3)
    all_there = threading.Barrier(3)

    def call(rank: int) -> None:
        all_there.wait()
        time.sleep(0.02 * (3 - rank))  # the last rank is the first to fail
        raise DataError(f"of rank {rank}")

    with pytest.raises(DataError, match="of rank 0"):
        threads.run(call)


def test_a_rank_that_is_done_early_is_an_error() -> None:
    def call(group: Group) -> None:
        if group.rank:
            group.gather(torch.zeros(2, 3))

    with pytest.raises(FormatError, match=r"rank 0 exchanges nothing, as it is done while rank 1 "
                       r"exchanges float32 \[2, 3\]"):  # fmt: skip
        run(2, call)


def test_other_shapes_or_types_are_an_error() -> None:
    forms = [torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 3)]
    with pytest.raises(FormatError, match=r"float32 \[2, 3\] while rank 2 exchanges float32 \[3"):
        run(3, lambda group: group.gather(forms[group.rank]))
    types = [torch.zeros(2), torch.zeros(2).long()]
    with pytest.raises(FormatError, match="rank 1 exchanges int64"):
        run(2, lambda group: group.gather(types[group.rank]))


def test_an_interrupt_ends_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, turns = Threads(2), 0
    real = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise KeyboardInterrupt
        real(self, timeout)

    def endless(rank: int) -> None:
        while True:
            threads.member(rank).gather(torch.zeros(1))

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads.run(endless)
    assert threading.active_count() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_the_same_bits_are_checked(dtype: torch.dtype) -> None:
    same = random(3, 4).to(dtype)
    run(3, lambda group: check_same(same, group, "state"))
    other = same.clone()
    other[2, 3] += 1
    held = [same, other, same]
    with pytest.raises(DataError, match="state: rank 0 and rank 1 have different values"):
        run(3, lambda group: check_same(held[group.rank], group, "state"))


PROCESS = """
import sys
import torch
import torch.distributed as dist
from fp8convert.reference.groups import Gloo, all_reduce
dist.init_process_group("gloo")
group = Gloo()
part = torch.load(sys.argv[1])[group.rank]
gathered = group.gather(torch.tensor([[group.rank, 7]]))
assert [x.tolist() for x in gathered] == [[[0, 7]], [[1, 7]]], gathered
assert group.gather(part.T)[0].shape == part.T.shape
torch.save(all_reduce(part, group), f"{sys.argv[1]}.{group.rank}")
dist.destroy_process_group()
"""


def test_two_processes_give_the_bits_of_two_threads(tmp_path: Path) -> None:
    parts = [random(5, 7) * 1e3, random(5, 7, seed=1)]
    path = tmp_path / "parts"
    torch.save(parts, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    words = [sys.executable, "-c", PROCESS, str(path)]
    started = [
        subprocess.Popen(words, cwd=ROOT, env={**shared, "RANK": str(r), "OMP_NUM_THREADS": "1"})
        for r in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    expected = run(2, lambda group: all_reduce(parts[group.rank], group))
    for rank in range(2):
        assert torch.equal(torch.load(f"{path}.{rank}"), expected[rank])  # type: ignore[arg-type]
