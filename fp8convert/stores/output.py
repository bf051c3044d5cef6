"""One file of a target in an object store: hashed and sent in order, as tiles are not made."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

from ..errors import Fp8ConvertError
from ..fileio import Turns
from .uploads import Upload


class ObjectOutput:
    """A file of ``size`` bytes under its final name, not there until it is installed."""

    def __init__(
        self,
        name: str,
        size: int,
        upload: Upload,
        checksum: bool,
        install: Callable[[Upload], None],
    ) -> None:
        self._name, self._size, self._upload, self._install = name, size, upload, install
        self._sha = hashlib.sha256() if checksum else None
        self._turns = Turns()
        self._sent = 0

    def write(self, view: memoryview, begin: int) -> None:
        """Nothing yet: a store takes bytes in order, see :meth:`hash`."""

    def hash(self, view: memoryview, begin: int) -> None:
        """Feed ``view`` to the checksum and the upload, when everything before it has been."""
        with self._turns.turn(begin, len(view)):
            if self._sha:
                self._sha.update(view)
            self._upload.write(view)
            self._sent += len(view)

    def stop(self) -> None:
        """Wake every thread that waits for its turn, with an error."""
        self._turns.stop()

    def finish(self) -> str | None:
        """All of it is in the store, unseen; its SHA-256, if one was asked for."""
        if self._sent != self._size:
            raise Fp8ConvertError(f"{self._name}: sent {self._sent:,} of {self._size:,} bytes")
        self._upload.finish()
        return self._sha.hexdigest() if self._sha else None

    def install(self) -> None:
        """Make it appear."""
        self._install(self._upload)

    def abandon(self) -> None:
        """Leave nothing of it behind, as far as that is possible."""
        with contextlib.suppress(Fp8ConvertError):
            self._upload.discard()
