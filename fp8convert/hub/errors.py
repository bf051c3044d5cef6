"""What huggingface_hub raises, as errors of this library: what happened, and what to do.

Messages of HTTP errors hold URLs, and those of signed links are secrets: they are never shown, only
the status, what the hub says, and what it was about.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..errors import FormatError, Fp8ConvertError, ResumableError, UsageError, shown

T = TypeVar("T")
LOG = logging.getLogger(__name__)  # whoever wants to hear of what is tried again: level INFO
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries, of what a network or a server refuses
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
BUSY = (408, 429)  # what may go well later, beside 5xx
_TOKEN = re.compile(r"\bhf_\w+")
_SIGNED = re.compile(r"[?&][\w.%-]+=[^\s)'\"]*")
_NEVER = ("UnsupportedProtocol", "InvalidURL", "TooManyRedirects", "LocalProtocolError")


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Errors of huggingface_hub become ours, with a message that begins with ``what``.

    FormatError for what will not go well another time (no such repository, no access), or
    ResumableError. Errors of the disk stay as they are.
    """
    try:
        yield
    except Fp8ConvertError:
        raise
    except Exception as e:
        ours = explained(e, what)
        if ours is None:
            raise
        raise ours from e


def patiently(call: Callable[[], T], what: str, pause: Callable[[float], object] = time.sleep) -> T:
    """What ``call`` returns; tried again, after ``pause``, as long as that may help and is not too
    often. Each time that is told to the log."""
    for left, wait in zip(range(len(WAITS), 0, -1), WAITS, strict=True):
        try:
            with naming(what):
                return call()
        except ResumableError as e:
            LOG.info("%s; next try in %g s, %d left", e, wait, left)
            pause(wait)
    with naming(what):
        return call()


def explained(error: BaseException, what: str) -> Fp8ConvertError | None:
    """``error`` as one of ours; None if it is not of the hub or the way there."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return FormatError(f"{what}: HF_HUB_OFFLINE forbids to ask the hub: unset it")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ and (found := explained(error.__cause__, what)):
            return found  # the news is what it wraps
        return FormatError(f"{what}: not, or not all of it, in the cache of huggingface_hub")
    if isinstance(error, errors.HfHubHTTPError):
        return _of_status(error, what)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{what}: {_said(error)}")
    if isinstance(error, errors.FileMetadataError):
        return FormatError(f"{what}: the answer is not a hub's; is HF_ENDPOINT right?")
    if type(error).__name__ == "LocalProtocolError" and "Content-Length" in str(error):
        return ResumableError(f"{what}: what was sent was to go elsewhere, said the hub after it")
    if isinstance(error, UnicodeEncodeError) and error.encoding == "ascii":  # of a header
        return FormatError(f"{what}: the token is not ASCII: {LOGIN}")
    if type(error).__name__ in _NEVER:
        return FormatError(f"{what}: {_said(error)}; is HF_ENDPOINT right?")
    if isinstance(error, _network()):
        return ResumableError(f"{what}: the hub cannot be reached, or ended it: {_said(error)}")
    return _of_the_way(error, what)


def _of_status(error: object, what: str) -> Fp8ConvertError:
    """Of an answer with a status that is an error."""
    from huggingface_hub import errors, get_token

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    said = f": {_said(error.server_message)}" if error.server_message else ""
    if isinstance(error, errors.GatedRepoError):
        return FormatError(
            f"{what}: access is gated: accept its terms on its page on the hub; then {LOGIN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FormatError(f"{what}: no such repository, or a private one: if it is, {LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return FormatError(f"{what}: no such branch, tag or commit")
    if isinstance(error, errors.EntryNotFoundError):
        return FormatError(f"{what}: no such file there")
    if status == 401:
        has = "does not accept the token" if get_token() else "asks for a token"
        return FormatError(f"{what}: the hub {has}: {LOGIN}")
    if status == 403:
        return FormatError(f"{what}: the hub forbids it (403){said}; with another token? {LOGIN}")
    if status in BUSY or status >= 500:
        return ResumableError(f"{what}: the hub answers {status}{said}")
    end = "; is HF_ENDPOINT right?" if status == 404 else ""  # a hub says of what it is
    return FormatError(f"{what}: the hub answers {status}{said}{end}")


def _network() -> type[BaseException]:
    """The base of all errors of the HTTP library that huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(c for c in HfHubHTTPError.__bases__ if c is not OSError)


def _of_the_way(error: BaseException, what: str) -> Fp8ConvertError | None:
    """A download that came out too short; no hub's answers; what huggingface_hub's Rust raises."""
    if isinstance(error, OSError) and error.errno is None and not error.filename:
        return ResumableError(f"{what}: {_said(error)}")
    # After an error of one thread huggingface_hub closes the session, which others may be using.
    closed = isinstance(error, RuntimeError | AttributeError)
    if closed or type(error).__module__.startswith("hf_xet"):
        return ResumableError(f"{what}: {type(error).__name__}: {_said(error)}")
    if isinstance(error, ValueError | TypeError | LookupError):
        return FormatError(f"{what}: no sense in the answer: {type(error).__name__} {_said(error)}")
    return None


def _said(text: object) -> str:
    """One line of what another program says, without anything that looks like a token, or like
    what makes a link a signed one."""
    lines = str(text).strip().splitlines()
    return shown(_SIGNED.sub("?...", _TOKEN.sub("hf_...", lines[0] if lines else "")))
