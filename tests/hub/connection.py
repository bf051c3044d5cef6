"""One connection: requests are read, logged, disturbed, handed to a route, and answered."""

from __future__ import annotations

import contextlib
import socket
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from .faults import ARRIVAL, Fault
from .replies import RefusedError, Reply, Span
from .routes import find
from .sending import Pieces, send_body
from .traffic import Request

if TYPE_CHECKING:
    from .listener import Listener

CHUNK = 1 << 20


class HangUpError(Exception):
    """The connection is to end now, without another byte."""


class Connection(BaseHTTPRequestHandler):
    """Serves the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def do_any(self) -> None:
        """One request, of any method."""
        self.request_now = self._request()
        self.left = int(self.headers.get("Content-Length") or 0)  # bytes of its body to be read
        with self.server.hub.traffic.serving(self.request_now):
            try:
                self._serve()
            except (HangUpError, ConnectionError):
                self._hang_up()
            except Exception as e:
                traceback.print_exc()
                self.server.hub.errors.append(e)
                self._hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(
            self.server.host, self.command, unquote(parts.path), parts.query,
            headers.get("range"), headers.get("authorization"), headers,
        )  # fmt: skip

    def _serve(self) -> None:
        hub, request = self.server.hub, self.request_now
        hub.traffic.arrived(request)
        try:
            for fault in hub.faults.strike(request, ARRIVAL):
                self._disturb(fault)
            if "chunked" in request.headers.get("transfer-encoding", ""):
                self.close_connection = True
                raise RefusedError(411, "the length of the body has to be said beforehand")
            route = find(self.server.host, self.command, urlsplit(self.path).path)
            reply = route.answer(hub, request, self.body(), *route.words)
        except RefusedError as e:
            reply = e.reply()
        for _ in self.body():  # what nobody wanted: the next request comes behind it
            pass
        self._answer(reply)

    def _disturb(self, fault: Fault) -> None:
        if fault.delay is not None:
            self.server.hub.closing.wait(fault.delay)
        if fault.drop:
            raise HangUpError
        if fault.status is not None:
            headers = dict(fault.headers)
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            raise RefusedError(fault.status, fault.message, fault.code, headers)

    def body(self) -> Iterator[memoryview]:
        """The request's, piece by piece; a piece is good until the next is asked for."""
        if not self.left:
            return
        hub, request = self.server.hub, self.request_now
        pieces = Pieces(hub, request, self.left, receives=True)
        space = memoryview(bytearray(min(CHUNK, self.left)))
        for piece in pieces:
            count = self.rfile.readinto(space[: piece.length])
            if not count:
                raise HangUpError
            self.left -= count
            pieces.done(count)
            yield space[:count]
        if pieces.cut:
            raise HangUpError

    def _answer(self, reply: Reply) -> None:
        request = self.request_now
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(reply.length), **reply.headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD" or not reply.length:
            return
        start = reply.body.start if isinstance(reply.body, Span) else 0
        pieces = Pieces(self.server.hub, request, reply.length, start=start)
        send_body(self.connection, reply.body, pieces)
        if pieces.cut:
            raise HangUpError

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client was first
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal: the hub has its own log."""
