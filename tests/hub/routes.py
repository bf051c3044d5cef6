"""Which path goes where. Words of a path are unquoted one by one: a branch may have a slash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from . import changing, listing, resolving, uploading
from .replies import RefusedError, Reply

Answer = Callable[..., Reply]  # (hub, request, body, *words of the path)

_REPO = r"([^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"
_WORD = r"([^/]+)"

# host, method, path, who answers. GET's also answer HEAD.
ROUTES: tuple[tuple[str, str, str, Answer], ...] = (
    ("hub", "GET", rf"/{_REPO}/resolve/{_WORD}/(.+)", resolving.resolve),
    ("cdn", "GET", rf"/cdn/{_REPO}/resolve/{_WORD}/(.+)", resolving.content),
    ("hub", "GET", _API, listing.info),
    ("hub", "GET", rf"{_API}/revision/{_WORD}", listing.info),
    ("hub", "GET", rf"{_API}/tree/{_WORD}", listing.tree),
    ("hub", "GET", rf"{_API}/tree/{_WORD}/(.+)", listing.tree),
    ("hub", "POST", rf"{_API}/paths-info/{_WORD}", listing.paths_info),
    ("hub", "GET", rf"{_API}/refs", listing.refs),
    ("hub", "GET", rf"{_API}/commits/{_WORD}", listing.commits),
    ("hub", "GET", rf"{_API}/auth-check", listing.auth_check),
    ("hub", "GET", "/api/whoami-v2", listing.whoami),
    ("hub", "POST", "/api/validate-yaml", listing.validate_yaml),
    ("hub", "POST", "/api/repos/create", changing.create),
    ("hub", "DELETE", "/api/repos/delete", changing.delete),
    ("hub", "PUT", rf"{_API}/settings", changing.settings),
    ("hub", "POST", rf"{_API}/branch/{_WORD}", changing.create_branch),
    ("hub", "DELETE", rf"{_API}/branch/{_WORD}", changing.delete_branch),
    ("hub", "POST", rf"{_API}/tag/{_WORD}", changing.create_tag),
    ("hub", "POST", rf"{_API}/preupload/{_WORD}", changing.preupload),
    ("hub", "POST", rf"{_API}/commit/{_WORD}", changing.commit),
    ("hub", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch", uploading.batch),
    ("hub", "POST", rf"/{_REPO}\.git/info/lfs/objects/verify", uploading.verify),
    ("hub", "POST", rf"/api/complete_multipart/{_WORD}", uploading.complete),
    ("cdn", "PUT", rf"/s3/{_WORD}", uploading.put),
    ("cdn", "PUT", rf"/s3/{_WORD}/([0-9]+)", uploading.put_part),
)
_COMPILED = [(h, m, re.compile(p), answer) for h, m, p, answer in ROUTES]


@dataclass(frozen=True)
class Route:
    """Who answers, and with what."""

    answer: Answer
    words: tuple[str, ...]


def find(host: str, method: str, path: str) -> Route:
    """Who answers a path, still quoted.

    Raises:
        RefusedError: nobody.
    """
    wanted = "GET" if method == "HEAD" else method
    for its_host, its_method, pattern, answer in _COMPILED:
        if its_host == host and its_method == wanted and (match := pattern.fullmatch(path)):
            return Route(answer, tuple(unquote(word) for word in match.groups()))
    raise RefusedError(404, f"Sorry, we can't find the page you are looking for: {method} {path}")
