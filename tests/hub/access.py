"""Who may do what, and how the hub says no.

A token is good if it begins with ``hf_``; each is a user of its own. Who may not see a repository
is told that there is none: 401 without a token, 404 with one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .replies import RefusedError
from .store import Repo
from .traffic import Request

if TYPE_CHECKING:
    from .server import Hub


def token_of(request: Request) -> str | None:
    """The bearer token, if there is one.

    Raises:
        RefusedError: it is nobody's.
    """
    header = request.authorization
    if header is None:
        return None
    kind, _, token = header.partition(" ")
    if kind != "Bearer" or not token.startswith("hf_"):
        raise RefusedError(401, "Invalid credentials in Authorization header")
    return token


def seen(hub: Hub, request: Request, name: str) -> Repo:
    """A repository whose files may be listed."""
    token = token_of(request)
    repo = hub.found(name)
    if repo is not None:
        state = repo.state
        if not state.private or token in state.members:
            return repo
    if token is None:
        raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
    raise RefusedError(404, "Repository not found", "RepoNotFound")


def read(hub: Hub, request: Request, name: str) -> Repo:
    """A repository whose files may be read."""
    repo = seen(hub, request, name)
    state, token = repo.state, token_of(request)
    if not state.gated or token in state.accepted:
        return repo
    if token is None:
        words = "You must have access to it and be authenticated to access it. Please log in."
        raise RefusedError(401, f"Access to model {name} is restricted. {words}", "GatedRepo")
    words = "is restricted and you are not in the authorized list."
    raise RefusedError(403, f"Access to model {name} {words}", "GatedRepo")


def writer(hub: Hub, request: Request) -> str:
    """The token of somebody who may write."""
    token = token_of(request)
    if token is None:
        raise RefusedError(401, "Invalid username or password.")
    if token in hub.read_only:
        raise RefusedError(403, "You don't have the rights to write with this token")
    return token


def written(hub: Hub, request: Request, name: str) -> Repo:
    """A repository that may be written to."""
    repo = seen(hub, request, name)
    writer(hub, request)
    return repo
