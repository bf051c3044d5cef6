"""Tensor-parallel ranks that exchange tensors: alone, as threads of one process, as processes.

All sum in the order of ranks, so each way gives the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Group(Protocol):
    """``rank`` of ``size``; :meth:`gather` gives every rank all ranks' tensors, in order."""

    rank: int
    size: int

    def gather(self, x: Tensor) -> Sequence[Tensor]: ...


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The float32 sum of every rank's ``x``, in the order of ranks."""
    total, *rest = group.gather(x)
    for part in rest:
        total = total + part
    return total


class Alone:
    """One rank has everything."""

    rank, size = 0, 1

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        """Its own."""
        return (x,)


class Threads:
    """``size`` ranks in one process, which run in step: a thread each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._slots: list[Tensor] = [torch.empty(0)] * size

    def member(self, rank: int) -> Group:
        """The group as ``rank`` sees it."""
        return _Member(self, rank)

    def exchange(self, rank: int, x: Tensor) -> Sequence[Tensor]:
        """Wait until every rank has put its tensor, and take all."""
        self._slots[rank] = x
        self._barrier.wait()
        found = tuple(self._slots)
        self._barrier.wait()  # or a fast rank would put its next one before a slow one has read
        return found

    def run(self, call: Callable[[int], T]) -> list[T]:
        """``call(rank)`` of all ranks at once; the first error of any is raised."""
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                results[rank] = call(rank)
            except threading.BrokenBarrierError:
                pass  # another rank failed, and says why
            except BaseException as e:
                errors.append(e)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            self._barrier.reset()
            raise errors[0]
        return [results[rank] for rank in range(self.size)]


class _Member:
    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self.rank, self.size = threads, rank, threads.size

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        return self._threads.exchange(self.rank, x)


class Gloo:
    """Real processes, as ``torchrun`` starts them: needs an initialised process group."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        """Of float32 or integer tensors of the same shape on every rank."""
        import torch.distributed as dist

        mine = x.contiguous().cpu()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [part.to(x.device) for part in found]
