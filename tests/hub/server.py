"""A Hugging Face hub on this machine, as far as models are up- and downloaded: :class:`Hub`."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .faults import Faults, Rate
from .listener import LOCAL, Listener
from .repositories import Repositories
from .traffic import Callback, Request, Traffic
from .uploading import Upload


class Hub(Repositories):
    """A hub for tests: a context manager. All it keeps is below ``root`` and outlives it.

    Args:
        root: a folder; one that a hub has left is served again.
        port: where to listen; 0: anywhere free.
        cdn: whether LFS files are redirected to another address, as the hub does it.
        rate: bytes a second over all connections; :attr:`rate` may be changed at any time.
    """

    def __init__(
        self, root: Path | str, *, port: int = 0, cdn: bool = True, rate: float | None = None
    ) -> None:
        super().__init__(Path(root).absolute())
        self.cdn = cdn
        self.part_size = 64 << 20  # larger objects are uploaded in parts of this size, bytes
        self.page_size = 1000  # entries of a listing at once
        self.read_only: set[str] = set()  # tokens that may not write
        self.faults = Faults()
        self.traffic = Traffic()
        self.uploads: dict[str, Upload] = {}
        self.errors: list[Exception] = []  # of this code, and of what tests hooked in
        self.closing = threading.Event()
        self._ports = (port, 0)
        self._switch = threading.Lock()
        self._listeners: list[Listener] = []
        self._rate: Rate | None = None
        self.rate = rate

    def __enter__(self) -> Hub:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        listeners = list(self._listeners)
        self.closing.set()
        self.down()
        if not all(listener.gone(10) for listener in listeners):
            raise RuntimeError("a request is still being served")
        if self.errors:
            raise self.errors[0]

    def up(self) -> None:
        """Listen, on the ports of before."""
        with self._switch:
            if not self._listeners:
                pairs = zip(("hub", "cdn"), self._ports, strict=True)
                self._listeners = [Listener(self, host, port) for host, port in pairs]
                self._ports = (self._listeners[0].port, self._listeners[1].port)

    def down(self) -> None:
        """Refuse connections, and end those that there are, until :meth:`up`."""
        with self._switch:
            for listener in self._listeners:
                listener.stop()
            self._listeners = []

    @property
    def endpoint(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://{LOCAL}:{self._ports[0]}"

    @property
    def cdn_endpoint(self) -> str:
        """Where LFS content comes from and goes to."""
        return f"http://{LOCAL}:{self._ports[1]}"

    @property
    def home(self) -> Path:
        """For ``HF_HOME``."""
        return self.root / "home"

    @property
    def settings(self) -> dict[str, str]:
        """The variables that make huggingface_hub talk to this hub, and to no other."""
        on = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS", "DISABLE_UPDATE_CHECK")
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "NO_PROXY": LOCAL,
            "no_proxy": LOCAL,
            **{f"HF_HUB_{name}": "1" for name in on},
        }

    @property
    def env(self) -> dict[str, str]:
        """A whole environment: this process's, without its own hub, tokens and proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
        }
        return {**kept, **self.settings}

    @property
    def rate(self) -> float | None:
        """Bytes a second over all connections; None: as fast as it goes."""
        return self._rate.per_second if self._rate is not None else None

    @rate.setter
    def rate(self, per_second: float | None) -> None:
        self._rate = Rate(per_second, self.closing) if per_second else None

    def rates(self) -> list[Rate]:
        """What everything sent has to wait for."""
        return [self._rate] if self._rate is not None else []

    @property
    def log(self) -> list[Request]:
        """All requests so far, in the order in which they came; see :meth:`Traffic.log`."""
        return self.traffic.log()

    def on(
        self, path: str, callback: Callback, *, method: str = "", at: int | None = None,
        times: int | None = 1,
    ) -> None:  # fmt: skip
        """Call ``callback(request)`` in the thread that serves a request, which waits for it.

        Args:
            path: a regular expression that is found in the path.
            at: not when the request comes, but when so many bytes of its body, or of the
                answer's, have gone over the wire.
            times: how often; None: always.
        """
        self.traffic.on(path, callback, method, at, times)
