"""The Rust half of huggingface_hub, by which most large files come: kept within bounds.

By itself it takes gigabytes for buffers, and does not know a progress bar that raises.
"""

from __future__ import annotations

import importlib.util
import os
import sys

MB = 10**6
BASE, EACH = (
    64 * MB,
    32 * MB,
)  # bytes of buffers; the least that it chooses for itself on any machine
CHUNKS = "HF_XET_CHUNK_CACHE_SIZE_BYTES"
_BUFFER = "HF_XET_RECONSTRUCTION_DOWNLOAD_BUFFER"


def memory() -> int:
    """Bytes that it takes beside those of each download; none where it is not used."""
    from huggingface_hub import constants

    here = importlib.util.find_spec("hf_xet") is not None
    return BASE if here and not constants.HF_HUB_DISABLE_XET else 0


def tame(downloads: int) -> None:
    """Before it is first used: buffers for so many downloads, and no cache of what comes once.

    What a user has set stays.
    """
    bounds = {
        CHUNKS: 0,
        f"{_BUFFER}_SIZE": BASE,
        f"{_BUFFER}_PERFILE_SIZE": EACH,
        f"{_BUFFER}_LIMIT": BASE + downloads * EACH,
    }
    for name, value in bounds.items():
        os.environ.setdefault(name, str(value))


def abort() -> None:
    """End what it does, if it does anything: it must not be at work when the interpreter ends."""
    module = sys.modules.get("huggingface_hub.utils._xet")
    end = getattr(module, "abort_xet_session", None)
    if end is not None:
        end()
