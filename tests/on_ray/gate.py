"""The gate that workers' writes pass; ``site/sitecustomize.py`` is its other side."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SITE = Path(__file__).with_name("site")
VARIABLE = "FP8CONVERT_TEST_GATE"
MOST_SECONDS = 60.0


class Gate:
    """Open, unless it is said to be :meth:`shut`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        """Forget what was."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nobody writes meanwhile."""
        (self.folder / "shut").touch()
        try:
            yield
        finally:
            (self.folder / "shut").unlink()

    def waiting(self, count: int) -> list[int]:
        """The processes that wait, as soon as they are so many."""
        until = time.monotonic() + MOST_SECONDS
        while time.monotonic() < until:
            found = [int(p.suffix[1:]) for p in self.folder.glob("waits.*")]
            if len(found) >= count:
                return sorted(found)
            time.sleep(0.01)
        raise AssertionError(f"expected {count} processes at the gate, found {found}")

    def begun(self) -> Counter[str]:
        """How often each file of tensors was begun, under whatever temporary name."""
        path = self.folder / "begun"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(n for line in lines if (n := line.rsplit(".", 2)[0])[-12:] == ".safetensors")
