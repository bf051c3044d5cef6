"""Memory for parts of objects, used again and again; and the threads that send them."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from ..fileio import aligned_buffer

LANES = 6  # parts on their way at once, of all objects


class Block(io.RawIOBase):
    """Bytes that come, up to ``size`` of them, and are then read as a file is."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = memoryview(aligned_buffer(size))
        self.empty()

    def empty(self) -> None:
        """Begin again."""
        self.filled = self._at = 0

    def add(self, view: memoryview) -> int:
        """Take what there is room for; how many bytes that was."""
        part = view[: self.size - self.filled]
        self._memory[self.filled : self.filled + len(part)] = part
        self.filled += len(part)
        return len(part)

    def drop(self, count: int) -> None:
        """Forget the first bytes: there are those behind them, to be read from their beginning."""
        self._memory[: self.filled - count] = self._memory[count : self.filled]
        self.filled, self._at = self.filled - count, 0

    def close(self) -> None:
        """Stay as it is: a library that has sent it closes it, and may have to send it again."""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is: what was sent in vain is sent again."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As files do."""
        begins = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.filled}
        self._at = begins[whence] + offset
        return self._at

    def tell(self) -> int:
        """As files do."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As files do."""
        out = memoryview(buffer).cast("B")
        count = max(min(len(out), self.filled - self._at), 0)
        out[:count] = self._memory[self._at : self._at + count]
        self._at += count
        return count


class Lanes:
    """Threads that send blocks. What waits for one waits in :meth:`send`: nothing piles up."""

    def __init__(self, count: int = LANES) -> None:
        self._count, self._free = count, threading.BoundedSemaphore(count)
        self._spare: list[Block] = []

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, "parts")

    def block(self, size: int) -> Block:
        """An empty block; one that was sent, if there is one."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while (block := self._spare.pop()).size != size:
                pass
            block.empty()
            return block
        return Block(size)

    def send(self, block: Block, call: Callable[[Block], Any]) -> Future[Any]:
        """Have a thread call it with the block, when one is free."""
        self._free.acquire()
        try:
            return self._pool.submit(self._sent, block, call)
        except BaseException:
            self._free.release()
            raise

    def _sent(self, block: Block, call: Callable[[Block], Any]) -> Any:
        try:
            return call(block)
        finally:
            self._spare.append(block)
            self._free.release()

    def close(self) -> None:
        """Wait for all. More may be sent afterwards."""
        self._spare.clear()
        if pool := self.__dict__.pop("_pool", None):
            pool.shutdown()
