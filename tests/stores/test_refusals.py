"""What a store refuses, and what the network does: which error it is, and what it says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import pytest
from botocore import exceptions as boto
from s3fs.errors import translate_boto_error

from fp8convert import origins, to_bf16
from fp8convert.convert import execute, prepare
from fp8convert.errors import FormatError, Fp8ConvertError, ResumableError, TargetError
from fp8convert.settings import Settings
from fp8convert.stores.refusals import told

from .emulator import ENVIRONMENT, Answer, Emulator, Place, Request

SECRET = ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
KEY = ENVIRONMENT["AWS_ACCESS_KEY_ID"]


def client_error(code: str, status: int) -> Exception:
    """As botocore has it."""
    response = {
        "Error": {"Code": code, "Message": f"{code} it is"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return boto.ClientError(response, "GetObject")  # type: ignore[arg-type]


class HttpError(Exception):
    """As gcsfs has it."""

    __module__ = "gcsfs.retry"

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


def google(name: str) -> Exception:
    """As google.auth has it."""
    words = {"__module__": "google.auth.exceptions"}
    made = type(name, (type("GoogleAuthError", (Exception,), words),), words)("says google")
    assert isinstance(made, Exception)
    return made


DENIED = (
    boto.NoCredentialsError(),
    boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    boto.ProfileNotFound(profile="x"),
    boto.TokenRetrievalError(provider="sso", error_msg="expired"),
    client_error("AccessDenied", 403),
    client_error("ExpiredToken", 400),
    client_error("InvalidToken", 400),
    client_error("SignatureDoesNotMatch", 403),
    google("DefaultCredentialsError"),
    google("RefreshError"),
    HttpError(401),
    HttpError(403),
    OSError("Forbidden: bucket/x\nthe caller does not have access"),
)
MISSING = (FileNotFoundError("x"), client_error("NoSuchKey", 404), HttpError(404),
           client_error("NoSuchBucket", 404))  # fmt: skip
SENSELESS = (
    boto.ParamValidationError(report="Invalid bucket name"),
    client_error("InvalidBucketName", 400),
    client_error("EntityTooSmall", 400),
    client_error("PermanentRedirect", 301),
    client_error("NotImplemented", 501),
    HttpError(400),
    ValueError("Bad Request: the bucket's name is invalid"),
)
PASSING = (
    boto.EndpointConnectionError(endpoint_url="http://x"),
    boto.ReadTimeoutError(endpoint_url="http://x"),
    client_error("InternalError", 500),
    client_error("SlowDown", 503),
    client_error("RequestTimeout", 400),
    client_error("TooManyRequests", 429),
    client_error("OperationAborted", 409),
    client_error("BadDigest", 400),
    client_error("IncompleteBody", 400),
    client_error("NoSuchUpload", 404),
    HttpError(503),
    google("TransportError"),
    aiohttp.ClientPayloadError("cut"),
    asyncio.TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"),
    OSError(121, "Remote I/O error"),
)


def wrapped(error: Exception) -> list[Exception]:
    """As it comes from the libraries: by itself, or as s3fs translates it."""
    return [error, translate_boto_error(error)] if isinstance(error, boto.ClientError) else [error]


def meant(error: Exception, address: str = "s3://bucket/x") -> Fp8ConvertError:
    """What becomes of it."""
    with pytest.raises(Fp8ConvertError) as found, told(address, TargetError):
        raise error
    return found.value


@pytest.mark.parametrize("error", [w for e in DENIED for w in wrapped(e)], ids=repr)
def test_access_refused(error: Exception) -> None:
    found = meant(error)
    assert type(found) is TargetError
    assert "access is refused" in str(found)
    assert "AWS_PROFILE" in str(found)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(meant(error, "gs://bucket/x"))


@pytest.mark.parametrize("error", [w for e in MISSING for w in wrapped(e)], ids=repr)
def test_not_there(error: Exception) -> None:
    found = meant(error)
    assert type(found) is TargetError
    assert "'s3://bucket/x' does not exist" in str(found)


@pytest.mark.parametrize("error", [w for e in SENSELESS for w in wrapped(e)], ids=repr)
def test_senseless(error: Exception) -> None:
    found = meant(error)
    assert type(found) is TargetError
    assert "the store refuses it" in str(found)


@pytest.mark.parametrize("error", [w for e in PASSING for w in wrapped(e)], ids=repr)
def test_it_may_pass(error: Exception) -> None:
    found = meant(error)
    assert type(found) is ResumableError
    assert "run the same again" in str(found)


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AttributeError("x")], ids=repr)
def test_our_own_mistakes_are_no_one_else_s(error: Exception) -> None:
    with pytest.raises(type(error)), told("s3://bucket/x", TargetError):
        raise error


def test_errors_of_ours_pass() -> None:
    with pytest.raises(FormatError, match="as it was"), told("s3://bucket/x", TargetError):
        raise FormatError("as it was")


def test_secrets_and_escapes_are_not_shown() -> None:
    url = "http://user:pa55word@host/bucket/x?X-Amz-Signature=5ecret&y"
    found = str(meant(boto.EndpointConnectionError(endpoint_url=url)))
    assert "host/bucket/x" in found
    for secret in ("pa55word", "user", "5ecret", "X-Amz"):
        assert secret not in found
    assert "\x1b" not in str(meant(OSError(5, "a\x1b[31mb")))


# --- From end to end


@pytest.fixture
def fresh() -> Iterator[None]:
    """No client that was made before, nor after."""
    clients = fsspec.get_filesystem_class("s3")
    clients.clear_instance_cache()
    yield
    clients.clear_instance_cache()


def refused(error: type[Fp8ConvertError], words: str, act: Any) -> None:
    """It is, with these words, and no secrets."""
    with pytest.raises(error, match=words) as found:
        act()
    chain: BaseException | None = found.value
    assert SECRET not in str(chain)
    assert KEY not in str(chain)


def test_no_such_bucket(s3: Emulator, mini: Path) -> None:
    words = "does not exist .*bucket does not exist"
    refused(FormatError, words, lambda: origins.at("s3://no-such-bucket/model"))
    refused(TargetError, words, lambda: to_bf16(mini, "s3://no-such-bucket/model"))


def test_a_name_that_no_bucket_has(s3: Emulator, mini: Path) -> None:
    refused(FormatError, "refuses it.*Invalid bucket name", lambda: origins.at("s3://No!/x"))
    refused(TargetError, "refuses it.*Invalid bucket name", lambda: to_bf16(mini, "s3://No!/x"))


def test_no_credentials(
    bucket: Place, mini: Path, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    words = "access is refused .*Unable to locate credentials.*AWS_ACCESS_KEY_ID"
    refused(FormatError, words, lambda: origins.at(bucket.at("src")))
    refused(TargetError, words, lambda: to_bf16(mini, bucket.at("dst")))


def test_a_public_bucket_is_read_without(
    bucket: Place, mini: Path, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the message says."""
    bucket.upload(mini, "src")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})
    assert origins.at(bucket.at("src")).has("config.json")


@pytest.mark.parametrize(
    "what", ["list-type", "partNumber", "uploads", "manifest.json", "job.json"]
)
def test_not_permitted(bucket: Place, s3: Emulator, mini: Path, what: str) -> None:
    denied = Answer.error("403 Forbidden", "AccessDenied")

    def before(request: Request) -> Answer | None:
        if what == "list-type" or request.method in ("PUT", "POST"):
            return denied if what in request.query or request.key.endswith(what) else None
        return None

    with s3.answering(before):
        refused(TargetError, "access is refused", lambda: to_bf16(mini, bucket.at("dst")))
    assert "manifest.json" not in bucket.files("dst")
    assert bucket.uploads() == []
    assert not to_bf16(mini, bucket.at("dst")).already_done


def test_nobody_there(
    mini: Path, s3: Emulator, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, and not listened to
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        words = "does not answer as it should .*Could not connect"
        refused(ResumableError, words, lambda: origins.at("s3://bucket/model"))


def test_a_store_that_fails_for_a_while(
    bucket: Place, s3: Emulator, mini: Path, tmp_path: Path
) -> None:
    """Too long for the library's patience: what is finished is kept, and the rest goes on."""
    address, count = bucket.upload(mini, "src"), 0

    def before(request: Request) -> Answer | None:
        nonlocal count
        count += request.method == "PUT" and "partNumber" in request.query
        broken = count > 1 and "partNumber" in request.query
        return Answer.error("500 Internal Server Error", "InternalError") if broken else None

    job = prepare(address, bucket.at("dst"))
    with s3.answering(before):
        refused(ResumableError, "InternalError", lambda: execute(job, Settings(workers=1)))
    kept = [t.file for t in job.plan.tasks if job.stage.recorded(t)]
    assert len(kept) == 1
    assert bucket.uploads() == []
    before_that = bucket.marks("dst")[kept[0]]
    execute(job)
    assert bucket.marks("dst")[kept[0]] == before_that


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Server Error"])
def test_a_store_that_fails_once(
    bucket: Place,
    s3: Emulator,
    mini: Path,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    fresh: None,
) -> None:
    """The library tries again, as it does by itself."""
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    failed: set[str] = set()

    def before(request: Request) -> Answer | None:
        if "partNumber" not in request.query or request.key in failed:
            return None
        failed.add(request.key)
        return Answer.error(status, "SlowDown" if "503" in status else "InternalError")

    with s3.answering(before):
        to_bf16(mini, bucket.at("dst"))
    assert failed
    assert bucket.uploads() == []
