"""How a body goes over the wire, in pieces: what cuts it, flips a byte of it, holds it back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .faults import BODY, Fault, Rate
from .replies import Span
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub

PIECE = 1 << 20  # bytes at once


@dataclass(frozen=True)
class Piece:
    """The next bytes of a body."""

    at: int  # bytes of the body before it
    length: int  # at most so many
    flips: tuple[int, ...]  # offsets in the piece of bytes that are to be others


class Pieces:
    """A body of ``length`` bytes, piece by piece; :meth:`done` says how much of a piece went."""

    def __init__(
        self, hub: Hub, request: Request, length: int, *, start: int = 0, receives: bool = False
    ) -> None:
        self._hub, self._request, self._receives = hub, request, receives
        self._at = 0

        def would(fault: Fault) -> bool:
            if fault.kind == "cut":
                # A request's body is cut, or else the answer's; never both.
                both = receives or not request.received
                return both and fault.cut is not None and fault.cut < length
            if fault.kind == "flip":
                return not receives and fault.flip is not None and 0 <= fault.flip - start < length
            return True

        struck = hub.faults.strike(request, BODY, would)
        cuts = [f.cut for f in struck if f.cut is not None]
        self.cut = bool(cuts)
        self._end = min([length, *cuts])
        self._flips = [f.flip - start for f in struck if f.flip is not None]
        self._rates = [Rate(f.rate, hub.closing) for f in struck if f.rate is not None]
        self._marks = [m for m in hub.traffic.marks(request) if m <= length]

    def __iter__(self) -> Iterator[Piece]:
        while self._at < self._end:
            rates = [*self._rates, *self._hub.rates()]
            stops = [self._end, self._at + PIECE, *(m for m in self._marks if m > self._at)]
            length = min([min(stops) - self._at, *(rate.piece for rate in rates)])
            for rate in rates:
                rate.wait(length)
            flips = tuple(f - self._at for f in self._flips if 0 <= f - self._at < length)
            yield Piece(self._at, length, flips)

    def done(self, count: int) -> None:
        """``count`` bytes of the piece went."""
        before, self._at = self._at, self._at + count
        if self._receives:
            self._request.received += count
        else:
            self._request.sent += count
        for mark in self._marks:
            if before < mark <= self._at:
                self._hub.traffic.reached(self._request, mark)


def send_body(connection: socket.socket, body: bytes | Span, pieces: Pieces) -> None:
    """All of it; a range of a file doesn't pass through this process."""
    if isinstance(body, bytes):
        for piece in pieces:
            data = body[piece.at : piece.at + piece.length]
            connection.sendall(_flipped(data, piece.flips))
            pieces.done(piece.length)
        return
    with open(body.path, "rb", buffering=0) as file:
        for piece in pieces:
            at = body.start + piece.at
            if not piece.flips:
                count = os.sendfile(connection.fileno(), file.fileno(), at, piece.length)
            else:
                data = os.pread(file.fileno(), piece.length, at)
                connection.sendall(_flipped(data, piece.flips))
                count = len(data)
            if not count:
                raise OSError(f"{body.path} is shorter than it was when the hub took it in")
            pieces.done(count)


def _flipped(data: bytes, offsets: tuple[int, ...]) -> bytes:
    changed = bytearray(data)
    for at in offsets:
        changed[at] ^= 1
    return bytes(changed)
