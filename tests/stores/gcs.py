"""Google's object store in a thread of this process: its JSON API, as far as gcsfs and we use it.

Written after Google's public description of the API. Objects are in memory; whatever is asked is
noted; answers may be given in the store's stead, lost, or cut off.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

from .emulator import Place

PAGE = 4  # entries of a listing: more come on further pages
UNIT = 256 << 10  # what is not the end of an upload is a multiple of it
ENVIRONMENT = {"NO_GCE_CHECK": "true", "FSSPEC_GS_TOKEN": "anon"}
ROUTES = [  # kind, method, path, a word of the query
    ("bucket", "GET", r"/storage/v1/b/([^/]+)", ""),
    ("list", "GET", r"/storage/v1/b/([^/]+)/o", ""),
    ("look", "GET", r"/storage/v1/b/([^/]+)/o/([^/]+)", ""),
    ("get", "GET", r"/download/storage/v1/b/([^/]+)/o/([^/]+)", ""),
    ("remove", "DELETE", r"/storage/v1/b/([^/]+)/o/([^/]+)", ""),
    ("put", "POST", r"/upload/storage/v1/b/([^/]+)/o", "multipart"),
    ("begin", "POST", r"/upload/storage/v1/b/([^/]+)/o", "resumable"),
    ("chunk", "PUT", r"/upload/storage/v1/b/([^/]+)/o", "resumable"),
    ("cancel", "DELETE", r"/upload/storage/v1/b/([^/]+)/o", "resumable"),
]


class Request(NamedTuple):
    """``kind`` is one of ROUTES; ``name`` the object's, of an upload's chunks too."""

    kind: str
    bucket: str
    name: str
    query: dict[str, str]
    range: str  # of the object's bytes


class Answer(NamedTuple):
    """One to a request."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, value: Any) -> Answer:
        """A resource."""
        return cls(200, json.dumps(value).encode(), (("Content-Type", "application/json"),))

    @classmethod
    def error(cls, status: int, words: str = "says the test") -> Answer:
        """As Google words it."""
        value = {"error": {"code": status, "message": words, "errors": [{"message": words}]}}
        return cls.of(value)._replace(status=status)


LOST = Answer(-1)  # it is done, and nobody hears of it
CUT = Answer(-2)  # it is not even read to its end
Before = Callable[[Request], "Answer | None"]


def at(kind: str, answer: Answer, first: int = 1, last: int = 1 << 30, name: str = "") -> Before:
    """That answer to the requests of a kind from the first to the last, counted from 1."""
    count = 0

    def before(request: Request) -> Answer | None:
        nonlocal count
        if request.kind != kind or name not in request.name:
            return None
        count += 1
        return answer if first <= count <= last else None

    return before


@dataclass
class Stored:
    """An object."""

    data: bytes
    generation: int
    created: str
    updated: str = ""  # when it was labelled, if it was

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """What is told of it."""
        crc = google_crc32c.value(self.data).to_bytes(4, "big")
        return {
            "kind": "storage#object", "id": f"{bucket}/{name}/{self.generation}", "name": name,
            "bucket": bucket, "generation": str(self.generation), "metageneration": "1",
            "size": str(len(self.data)), "timeCreated": self.created,
            "updated": self.updated or self.created,
            "contentType": "application/octet-stream", "storageClass": "STANDARD",
            "md5Hash": base64.b64encode(hashlib.md5(self.data).digest()).decode(),
            "crc32c": base64.b64encode(crc).decode(), "etag": f"C{self.generation}=",
        }  # fmt: skip


@dataclass
class Upload:
    """A resumable one: ``made`` is its object once that is whole."""

    bucket: str
    name: str
    data: bytearray
    made: Stored | None = None
    cancelled: bool = False


class Google:
    """The store; ``url`` is its address. ``before`` is asked before each request is answered."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, Upload] = {}
        self.requests: list[Request] = []
        self.before: Before | None = None
        self.takes: Callable[[bytes], bytes] = bytes  # of a chunk, or damaged on its way
        self.lock = threading.RLock()
        self.open: set[socket.socket] = set()
        self._count = 1_700_000_000_000_000
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"store": self}))
        self._server.daemon_threads, self._server.block_on_close = True, False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def answering(self, before: Before) -> Iterator[None]:
        """Some requests are answered by ``before``, or something happens before they are."""
        self.before = before
        try:
            yield
        finally:
            self.before = None

    def asked(self, kind: str) -> list[Request]:
        """Requests of a kind."""
        return [r for r in self.requests if r.kind == kind]

    def stored(self, bucket: str, name: str, data: bytes) -> Stored:
        """Write an object."""
        with self.lock:
            self._count += 1000
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
            made = Stored(data, self._count, now.replace("+00:00", "Z"))
            self.buckets[bucket][name] = made
        return made

    def stop(self) -> None:
        """End it, and its connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # --- What is answered, by the kind of request

    def answer(self, request: Request, body: bytes) -> Answer:
        """Do what is asked."""
        objects = self.buckets.get(request.bucket)
        if objects is None or (request.kind in ("look", "get", "remove") and (
            request.name not in objects
        )):  # fmt: skip
            return Answer.error(404, "Not Found")
        found: Answer = getattr(self, f"_{request.kind}")(request, objects, body)
        return found

    def _bucket(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        return Answer.of({"kind": "storage#bucket", "name": request.bucket})

    def _list(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        prefix, cut = request.query.get("prefix", ""), request.query.get("delimiter", "")
        entries: dict[str, bool] = {}  # name, or what several begin with; is it a name?
        for name in objects:
            if name.startswith(prefix):
                rest, found, _ = name[len(prefix) :].partition(cut) if cut else (name, "", "")
                entries[prefix + rest + cut if found else name] = not found
        count = min(int(request.query.get("maxResults", PAGE)), PAGE)
        after = sorted(e for e in entries if e > request.query.get("pageToken", ""))
        page = after[:count]
        value: dict[str, Any] = {"kind": "storage#objects"}
        if items := [n for n in page if entries[n]]:
            value["items"] = [objects[n].resource(request.bucket, n) for n in items]
        if prefixes := [n for n in page if not entries[n]]:
            value["prefixes"] = prefixes
        if after[count:]:
            value["nextPageToken"] = page[-1]
        return Answer.of(value)

    def _look(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        return Answer.of(objects[request.name].resource(request.bucket, request.name))

    def _get(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        data = objects[request.name].data
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range)
        if match is None:
            return Answer(200, data)
        begin, end = int(match[1]), min(int(match[2]) + 1, len(data))
        if begin >= len(data):
            return Answer.error(416, "The requested range cannot be satisfied.")
        there = ("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        return Answer(206, data[begin:end], (there,))

    def _remove(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        del objects[request.name]
        return Answer(204)

    def _put(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        _, first, second, _ = body.split(b"--==0==")
        name = json.loads(first.partition(b"\n\n")[2])["name"]
        made = self.stored(request.bucket, name, second.partition(b"\n\n")[2][:-1])
        return Answer.of(made.resource(request.bucket, name))

    def _begin(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        key = uuid.uuid4().hex
        self.uploads[key] = Upload(request.bucket, request.name, bytearray())
        where = f"{self.url}/upload/storage/v1/b/{request.bucket}/o?uploadType=resumable"
        return Answer(200, b"", (("Location", f"{where}&upload_id={key}"),))

    def _chunk(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        upload = self.uploads.get(request.query["upload_id"])
        if upload is None or upload.cancelled:
            return Answer.error(499 if upload else 404, "no such upload")
        if upload.made is None:
            match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.range)
            assert match, request
            begin = int(match[1]) if match[1] else len(upload.data)
            body = self.takes(body)
            if begin > len(upload.data) or (match[3] == "*" and len(body) % UNIT):
                return Answer.error(400, "not where the upload is")
            upload.data += body[len(upload.data) - begin :]  # what it has it does not take again
            if match[3] != str(len(upload.data)):
                have = (("Range", f"bytes=0-{len(upload.data) - 1}"),) if upload.data else ()
                return Answer(308, b"", have)
            upload.made = self.stored(upload.bucket, upload.name, bytes(upload.data))
        return Answer.of(upload.made.resource(upload.bucket, upload.name))

    def _cancel(self, request: Request, objects: dict[str, Stored], body: bytes) -> Answer:
        upload = self.uploads.get(request.query["upload_id"])
        if upload is None or upload.made:
            return Answer.error(404, "no such upload")
        upload.cancelled = True
        return Answer(499)


class Handler(BaseHTTPRequestHandler):
    """A connection."""

    store: Google
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        """Begin."""
        super().setup()
        self.store.open.add(self.connection)

    def finish(self) -> None:
        """End."""
        self.store.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        """Requests, until whoever asks goes, or is killed."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _asked(self) -> None:
        request = self._request()
        with self.store.lock:
            self.store.requests.append(request)
        answer = self.store.before(request) if self.store.before else None
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length // 2 if answer is CUT else length)
        if answer in (None, LOST):
            with self.store.lock:
                done = self.store.answer(request, body)
            answer = answer or done
        if answer.status < 0:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for header in answer.headers:
            self.send_header(*header)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = _asked  # noqa: N815

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        asked = self.command, query.get("uploadType", "")
        found = [
            (kind, match)
            for kind, method, path, word in ROUTES
            if (method, word) == asked and (match := re.fullmatch(path, parts.path))
        ]
        assert len(found) == 1, f"nothing here answers {self.command} {self.path}"
        ((kind, match),) = found
        name = unquote(match[2]) if match.lastindex == 2 else query.get("name", "")
        upload = self.store.uploads.get(query.get("upload_id", ""))
        ranges = self.headers.get("Content-Range" if kind == "chunk" else "Range", "")
        return Request(kind, unquote(match[1]), upload.name if upload else name, query, ranges)


class Bucket(Place):
    """A bucket of one test alone, seen from within the store: gcsfs is not asked."""

    def __init__(self, google: Google) -> None:
        self.google, self.scheme = google, "gs"
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self.address = f"gs://{self.bucket}"
        self.objects: dict[str, Stored] = {}
        google.buckets[self.bucket] = self.objects

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        self.google.stored(self.bucket, name, data)

    def files(self, name: str) -> dict[str, bytes]:
        """Every object below a name, by the rest of its own."""
        above, found = f"{name}/", sorted(self.objects.items())
        return {n.removeprefix(above): o.data for n, o in found if n.startswith(above)}

    def marks(self, name: str) -> dict[str, tuple[Any, ...]]:
        """Of every object below a name, what changes when it is written again."""
        above = f"{name}/"
        return {
            n.removeprefix(above): (len(o.data), str(o.generation), o.created, None)
            for n, o in self.objects.items()
            if n.startswith(above)
        }

    def remove(self, name: str) -> None:
        """Remove an object."""
        del self.objects[name]

    def uploads(self) -> list[str]:
        """Names of uploads that are neither complete nor cancelled."""
        every = self.google.uploads.values()
        return [u.name for u in every if u.bucket == self.bucket and not (u.made or u.cancelled)]
