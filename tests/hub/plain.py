"""A client with no cleverness of its own: what the hub really sends."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

from .server import Hub


@dataclass(frozen=True)
class Answer:
    """What came back; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool  # whether the body was as long as it was said to be


def ask(
    hub: Hub, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> Answer:
    """One request, redirects not followed. ``path`` may be a whole address; ``if_range`` is the
    header If-Range.

    Raises:
        OSError: refused, or closed without an answer.
    """
    parts = urlsplit(path if path.startswith("http") else hub.endpoint + path)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    try:
        target = parts.path + ("?" + parts.query if parts.query else "")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, named)
        response = connection.getresponse()
        try:
            content, whole = response.read(), True
        except http.client.IncompleteRead as e:
            content, whole = e.partial, False
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, content, whole)
    finally:
        connection.close()
