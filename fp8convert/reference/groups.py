"""Tensor-parallel ranks that exchange tensors: alone, as threads of one process, as processes.

All sum in the order of ranks, so each way gives the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import DataError, FormatError, shown

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


def check_same(x: Tensor, group: Group, what: str) -> None:
    """DataError, on every rank, unless all have the same bits of ``x`` [..., c]."""
    if group.size == 1:
        return
    first, *rest = group.gather(x.contiguous().view(torch.uint8))
    others = [rank for rank, bits in enumerate(rest, 1) if not torch.equal(bits, first)]
    if others:
        raise DataError(
            f"{what}: rank 0 and rank {', '.join(map(str, others))} have different values, "
            "expected the same on every rank"
        )


class Alone:
    """One rank has everything."""

    rank, size = 0, 1

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        """Its own."""
        return (x,)


class Threads:
    """``size`` ranks in one process, which run in step: a thread each.

    Gradients are a thread's own setting in torch: a caller's ``no_grad`` does not reach the ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._slots: list[Tensor | None] = [None] * size

    def member(self, rank: int) -> Group:
        """The group as ``rank`` sees it."""
        return _Member(self, rank)

    def exchange(self, rank: int, x: Tensor) -> Sequence[Tensor]:
        """Wait until every rank has put its tensor, and take all. FormatError if they differ in
        shape: the ranks do not have parts of the same model."""
        found = self._swap(rank, x)
        forms = [None if f is None else (f.dtype, tuple(f.shape)) for f in found]
        if other := next((r for r, form in enumerate(forms) if form != forms[0]), 0):
            raise FormatError(
                f"rank 0 exchanges {_form(found[0])} while rank {other} exchanges "
                f"{_form(found[other])}, expected the same shape of both"
            )
        return [f for f in found if f is not None]

    def run(self, call: Callable[[int], T]) -> list[T]:
        """``call(rank)`` of all ranks at once. An error of one ends all; the first rank's is
        raised."""
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}

        def one(rank: int) -> None:
            try:
                results[rank] = call(rank)
                self._swap(rank, None)  # or a rank that goes on would wait for ever
            except threading.BrokenBarrierError:
                pass  # another rank failed, and says why
            except BaseException as e:
                errors[rank] = e
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        try:
            for thread in threads:
                thread.start()
            _join(threads)
        except BaseException:  # Ctrl-C, while waiting
            self._barrier.abort()
            _join(threads)
            raise
        finally:
            self._barrier.reset()
            self._slots = [None] * self.size
        if errors:
            raise errors[min(errors)]
        return [results[rank] for rank in range(self.size)]

    def _swap(self, rank: int, x: Tensor | None) -> Sequence[Tensor | None]:
        self._slots[rank] = x
        self._barrier.wait()
        found = tuple(self._slots)
        self._barrier.wait()  # or a fast rank would put its next one before a slow one has read
        return found


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        if thread.ident is not None:
            thread.join()


def _form(x: Tensor | None) -> str:
    return "nothing, as it is done" if x is None else f"{str(x.dtype)[6:]} {list(x.shape)}"


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
        """Of float32 or integer tensors of the same shape on every rank; DataError where one
        has stopped."""
        import torch.distributed as dist

        mine = x.contiguous().cpu()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(found, mine)
        except RuntimeError as e:  # a connection was closed
            raise DataError(f"rank {self.rank}: another rank has stopped ({shown(e)})") from None
        return [part.to(x.device) for part in found]
