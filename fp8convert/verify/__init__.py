"""``verify``: whether an output is what it should be, by ways of its own.

The safetensors library reads, the published formats say what is sound. Nothing that writes a
checkpoint is asked, but for two questions: what codes and scales belong together (``schemes``), and
which ranks make one tensor (``ranksets``).
"""

from __future__ import annotations

import os

from ..errors import FormatError, ResumableError, UsageError
from ..folder import Folder
from .mapped import Watch
from .parallel import Progress, cores
from .report import Check, Report
from .run import Run
from .survey import survey

__all__ = ["Check", "Progress", "Report", "verify"]

Path = str | os.PathLike[str]


def verify(
    dst: Path,
    against: Path | None = None,
    sample: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the checkpoint folder ``dst`` on its own, and against its source ``against`` if given.

    ``sample`` is the fraction of rows, above 0 and at most 1, whose values are read, drawn by
    ``seed``; sums are of whole files. ``progress`` is told, by any thread, what is read, the bytes
    so far and the bytes in all. What is wrong with ``dst`` is in the report. Raises FormatError if
    it is no checkpoint folder, or one whose files change meanwhile, Fp8ConvertError if ``against``
    cannot be read, ResumableError if memory runs out. Files are mapped: one that is cut short
    meanwhile is a SIGBUS to the process (the command makes an error of it, see
    :func:`.mapped.watched`).
    """
    if not 0 < sample <= 1:
        raise UsageError(f"sample {sample:g}, expected a fraction above 0 and at most 1")
    try:
        folder = Folder.at(dst)
        watch = Watch([dst] if against is None else [dst, against])
        run = Run(survey(folder), sample, seed, workers or cores(), progress)
        checks = tuple(run.all(against))
        watch.check()
    except OSError as e:
        raise FormatError(f"cannot be read: {e}") from e
    except MemoryError as e:
        raise ResumableError("out of memory: free some, or use fewer workers") from e
    return Report(str(folder.root), None if against is None else os.fspath(against), checks)
