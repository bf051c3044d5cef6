"""A proxy for plain HTTP: it does what it is asked by whole addresses, and remembers the hosts."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BLOCK = 1 << 16
HOP = ("connection", "proxy-connection", "keep-alive", "transfer-encoding")


class Proxy(ThreadingHTTPServer):
    """``names`` are hosts that only it knows, with where they are."""

    daemon_threads = True

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names = names
        self.asked: list[str] = []  # hosts

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _pass_on(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append(url.netloc)
        way = http.client.HTTPConnection(self.server.names.get(url.netloc, url.netloc), timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        way.request(self.command, f"{url.path}?{url.query}", body, headers)
        answer = way.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while part := answer.read(BLOCK):
            self.wfile.write(part)
        way.close()
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def proxy(names: dict[str, str]) -> Iterator[Proxy]:
    """One that serves."""
    with Proxy(names) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
