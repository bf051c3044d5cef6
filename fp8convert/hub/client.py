"""The questions that are asked of the hub, with huggingface_hub's endpoint, token and session."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from ..errors import FormatError, ResumableError, shown
from ..version import VERSION
from .address import Address
from .errors import patiently
from .held import Held

LIBRARY: dict[str, Any] = {
    "library_name": "fp8convert",
    "library_version": VERSION,
}  # for the hub's statistics


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def commit_of(address: Address) -> str:
    """The commit that a revision is at now; of a commit, once it is seen that the hub has it."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi(**LIBRARY).model_info(address.repo, revision=address.revision).sha)

    found = address._replace(revision=patiently(ask, str(address)))
    if not found.pinned:  # it becomes part of the names of folders
        raise FormatError(f"{address}: the hub says that it is at {shown(found.revision)}")
    return found.revision


def listing(address: Address) -> dict[str, Held]:
    """Every file of a commit, in all folders, by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def ask() -> dict[str, Held]:
        tree = HfApi(**LIBRARY).list_repo_tree(
            address.repo, recursive=True, revision=address.revision
        )
        return {e.path: Held.of(e) for e in tree if isinstance(e, RepoFile)}

    return patiently(ask, str(address))


def fetched(address: Address, name: str, begin: int, end: int, size: int) -> bytes:
    """Bytes ``[begin, end)`` of a file of ``size`` bytes, and no others."""
    if begin >= end:
        return b""
    what = f"{shown(name)} of {address}"
    part = None if (begin, end) == (0, size) else f"bytes={begin}-{end - 1}"
    return patiently(lambda: _once(address, name, part, end - begin, what), what)


def _once(address: Address, name: str, part: str | None, nbytes: int, what: str) -> bytes:
    found = bytearray()
    with contextlib.closing(_pieces(address, name, part, what)) as pieces:
        for piece in pieces:
            found += piece
            if len(found) > nbytes:
                break
    if len(found) != nbytes:
        raise ResumableError(f"{what}: {len(found):,} bytes came, expected {nbytes:,}")
    return bytes(found)


def _pieces(
    address: Address, name: str, part: str | None, what: str
) -> Generator[bytes, None, None]:
    """What the hub sends of the range ``part``; a whole file in place of it is not taken."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(address.repo, name, revision=address.revision)
    headers: dict[str, Any] = build_hf_headers(**LIBRARY)
    headers["Accept-Encoding"] = "identity"
    if part is not None:
        headers["Range"] = part
    with http_stream_backoff(
        "GET",
        url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
        retry_on_exceptions=(),
        retry_on_status_codes=(429,),
    ) as answer:
        hf_raise_for_status(answer)
        if part is not None and answer.status_code != 206:
            raise FormatError(f"{what}: all of it came where {part} was asked for")
        yield from answer.iter_bytes()
