"""A port of the hub, and the connections to it."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from .connection import Connection

if TYPE_CHECKING:
    from .server import Hub

LOCAL = "127.0.0.1"


class Listener(ThreadingHTTPServer):
    """One port. Connections are served by threads of their own, and can be ended."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, hub: Hub, host: str, port: int) -> None:
        self.hub, self.host = hub, host
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        super().__init__((LOCAL, port), Connection)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note a connection before its thread starts."""
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection has ended."""
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away between two requests is none."""

    def stop(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):  # it was ended from the other side
                    connection.shutdown(socket.SHUT_RDWR)

    def gone(self, seconds: float) -> bool:
        """Whether all connections have ended, after so many seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)
