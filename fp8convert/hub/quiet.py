"""huggingface_hub without what it would write over our progress, or into a log of ours."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

_SIGNED = re.compile(r"(https?://[^\s?]+)\?\S+")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Until the end of it: no progress bars, no signed links, which whoever reads them may use, in
    what it says of an attempt that has failed, and no word on why Xet is not used."""
    with _without_bars(), contextlib.ExitStack() as stack:
        for name, kept in (("utils._http", _unsigned), ("_commit_api", _other)):
            log = logging.getLogger(f"huggingface_hub.{name}")
            log.addFilter(kept)
            stack.callback(log.removeFilter, kept)
        yield


def _other(record: logging.LogRecord) -> bool:
    return "not supported by Xet" not in record.getMessage()


def _unsigned(record: logging.LogRecord) -> bool:
    record.msg, record.args = _SIGNED.sub(r"\1?...", record.getMessage()), ()
    return True


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Where a user has asked for bars, or for none, that is left alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
