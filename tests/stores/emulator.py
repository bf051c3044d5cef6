"""moto's S3 in a thread of this process: what it was asked, and answers that it is made to give."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import fsspec
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "very-secret-testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Request(NamedTuple):
    """``key`` begins with the bucket; ``query`` as S3 has it (``partNumber``, ``uploads`` ...)."""

    method: str
    key: str
    query: dict[str, str]
    range: str

    @property
    def asked(self) -> int:
        """Bytes of its range."""
        begin, _, end = self.range.removeprefix("bytes=").partition("-")
        return int(end) - int(begin) + 1


class Answer(NamedTuple):
    """One that is given in the store's stead."""

    status: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def error(cls, status: str, code: str) -> Answer:
        """As S3 words it."""
        body = f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>"
        return cls(status, body.encode(), (("Content-Type", "application/xml"),))


Before = Callable[[Request], Answer | None]


class Emulator:
    """The store; ``url`` is its endpoint. ``before`` is asked before each request is answered."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.requests: list[Request] = []
        self.before: Before | None = None
        self._lock = threading.Lock()
        made: Any = self._server._server
        self._app = made.app
        made.app = self._asked

    def _asked(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        request = Request(
            environ["REQUEST_METHOD"],
            unquote(environ["PATH_INFO"]).lstrip("/"),
            {key: values[0] for key, values in query.items()},
            environ.get("HTTP_RANGE", ""),
        )
        with self._lock:
            self.requests.append(request)
            answer = self.before(request) if self.before else None
        answer = answer or _no_such_upload(request)
        if answer is None:
            found: Iterable[bytes] = self._app(environ, start)
            return found
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(answer.status, [*answer.headers, ("Content-Length", str(len(answer.body)))])
        return [answer.body]

    @contextlib.contextmanager
    def answering(self, before: Before) -> Iterator[None]:
        """Some requests are answered by ``before``, or something happens before they are."""
        self.before = before
        try:
            yield
        finally:
            self.before = None

    def asked(self, method: str, word: str = "") -> list[Request]:
        """Requests of a method, and with a word in the query if one is given."""
        return [r for r in self.requests if r.method == method and (not word or word in r.query)]

    def stop(self) -> None:
        """End it."""
        self._server.stop()


def _no_such_upload(request: Request) -> Answer | None:
    """What S3 says of an upload that was aborted; moto has an error of its own."""
    bucket = s3_backends["123456789012"]["aws"].buckets.get(request.key.partition("/")[0])
    if bucket is None or request.query.get("uploadId", "") in ("", *bucket.multiparts):
        return None
    return Answer.error("404 Not Found", "NoSuchUpload")


class Place:
    """Where a test puts objects: ``address`` is s3://... or memory://..., and empty at first."""

    def __init__(self, scheme: str) -> None:
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self.scheme, self.address = scheme, f"{scheme}://{self.bucket}"
        self.fs = fsspec.filesystem(scheme, use_listings_cache=False)
        if scheme == "s3":
            self.fs.call_s3("create_bucket", Bucket=self.bucket)

    def at(self, name: str) -> str:
        """The address of something in it."""
        return f"{self.address}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        self.fs.pipe_file(f"{self.bucket}/{name}", data)

    def upload(self, folder: Any, name: str) -> str:
        """Copy a folder; the address of the copy."""
        for path in (p for p in folder.rglob("*") if p.is_file()):
            self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return self.at(name)

    def files(self, name: str) -> dict[str, bytes]:
        """Every object below a name, by the rest of its own."""
        above = f"{self.bucket}/{name}/"
        keys = [key.lstrip("/") for key in self.fs.find(above)]
        return {key.removeprefix(above): self.fs.cat_file(key) for key in sorted(keys)}

    def marks(self, name: str) -> dict[str, tuple[Any, ...]]:
        """Of every object below a name, what changes when it is written again."""
        above = f"{self.bucket}/{name}/"
        return {
            key.lstrip("/").removeprefix(above): (
                found["size"], found.get("ETag"), found.get("LastModified"), found.get("created")
            )
            for key, found in self.fs.find(above, detail=True).items()
        }  # fmt: skip

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.fs.rm_file(f"{self.bucket}/{name}")

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that are neither completed nor aborted."""
        found = self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket)
        return [one["Key"] for one in found.get("Uploads", [])]
