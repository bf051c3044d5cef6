"""What goes wrong with an object store, in words and classes of this library.

The stores' libraries raise OSError, and classes of botocore, aiohttp and google.auth, one often
wrapped in another. They are known by their names and by the HTTP status they carry: none of those
libraries is imported here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ..errors import Fp8ConvertError, ResumableError, shown

LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google",
             "requests", "s3fs", "urllib3")  # fmt: skip
MISSING = {"FileNotFoundError"}  # a key, a bucket, an upload
DENIED = {
    "PermissionError", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
    "NoAuthTokenError", "ProfileNotFound", "SSOError", "TokenRetrievalError", "InvalidConfigError",
    "GoogleAuthError",
}  # fmt: skip
SENSELESS = {"ParamValidationError", "InvalidRegionError", "NoRegionError", "ValueError"}
NETWORK = {"TransportError"}  # of google.auth, whose other errors are not
DAMAGED_CODES = {  # on their way, or too slow: the same again may come through
    "RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
}  # fmt: skip
NO_UPLOAD = "NoSuchUpload"  # aborted, or complete already if an answer was lost
DENIED_CODES = {
    "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed", "TokenRefreshRequired",
}  # fmt: skip
AGAIN = (408, 409, 425, 429)  # what is said to be no fault of the request
NOT_OFFERED = 501
CREDENTIALS = {
    "s3": "those that AWS's tools use: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
    "~/.aws, the machine's role; FSSPEC_S3_ANON=true reads a public bucket without",
    "gs": "those that Google's tools use: GOOGLE_APPLICATION_CREDENTIALS, gcloud auth "
    "application-default login, the machine's account",
}


@contextlib.contextmanager
def told(address: str, refused: type[Fp8ConvertError]) -> Iterator[None]:
    """Errors of a call on what is at ``address``: ``refused``, or ResumableError if it may work
    when it is tried again."""
    try:
        yield
    except Fp8ConvertError:
        raise
    except Exception as e:
        if (
            not isinstance(e, (OSError, ValueError))
            and type(e).__module__.split(".")[0] not in LIBRARIES
        ):
            raise
        raise _meant(e, address, refused) from e


def _meant(error: Exception, address: str, refused: type[Fp8ConvertError]) -> Fp8ConvertError:
    names, status, code = _facts(error)
    where, words = shown(address), shown(_plain(error))
    if names & NETWORK or code in DAMAGED_CODES:
        return _passing(where, words)
    if code == NO_UPLOAD:
        return ResumableError(f"{where}: its upload is gone ({words}): run the same again")
    if names & DENIED or status in (401, 403) or code in DENIED_CODES or "'Forbidden" in words:
        expected = CREDENTIALS.get(address.partition("://")[0], "some that permit it")
        return refused(f"{where}: access is refused ({words}): expected credentials, {expected}")
    if names & MISSING or status == 404:
        return refused(f"{where} does not exist ({words})")
    if names & SENSELESS or status == NOT_OFFERED or (300 <= status < 500 and status not in AGAIN):
        return refused(f"{where}: the store refuses it ({words})")
    return _passing(where, words)


def _passing(where: str, words: str) -> ResumableError:
    return ResumableError(
        f"{where}: the store does not answer as it should ({words}): run the same again"
    )


def _facts(error: BaseException) -> tuple[set[str], int, str]:
    """Names of the classes of an error and its causes; the HTTP status, and S3's code, if any."""
    names: set[str] = set()
    status, code = 0, ""
    seen: BaseException | None = error
    while seen is not None:
        names |= {c.__name__ for c in type(seen).__mro__}
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict):
            status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = code or str(response.get("Error", {}).get("Code", ""))
        for name in ("code", "status"):  # gcsfs, aiohttp
            found = getattr(seen, name, None)
            status = status or (found if type(found) is int else 0)
        seen = seen.__cause__
    return names, status, code


def _plain(error: Exception) -> str:
    """What it says, without what may be a secret: users and queries of addresses."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = text or type(error).__name__
    return re.sub(r"\?[^\s\"']*", "?...", re.sub(r"://[^/@\s]*@", "://", text))
