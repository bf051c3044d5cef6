"""huggingface_hub without what it would write over our progress, or into a log of ours."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

_SIGNED = re.compile(r"(https?://[^\s?]+)\?\S+")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Until the end of it: no progress bars, and no word on why Xet is not used. And no signed
    links, see :func:`unsigned`."""
    unsigned()
    log = logging.getLogger("huggingface_hub._commit_api")
    with _without_bars(), contextlib.ExitStack() as stack:
        log.addFilter(_other)
        stack.callback(log.removeFilter, _other)
        yield


def unsigned() -> None:
    """From now on: no signed links, which whoever reads them may use, in what it says of an
    attempt that has failed. For good: its threads may speak after we have ended."""
    for name in ("utils._http", "file_download"):
        logging.getLogger(f"huggingface_hub.{name}").addFilter(_unsigned)


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
