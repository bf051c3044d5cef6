"""Logits of one checkpoint, as a file of safetensors."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calls import naming, sync
from ..durable import sync_folder
from ..errors import DataError, TargetError, shown
from ..version import VERSION
from . import measures
from .depth import Progress, layers_of, unseen
from .memory import enough, peak_rss
from .sides import open_side
from .tokens import Wanted
from .walk import Walk, bytes_read

FORMAT = 1


def write_logits(
    checkpoint: str | os.PathLike[str],
    wanted: Wanted,
    out: str | os.PathLike[str],
    compute: str = "bf16",
    device: str = "cpu",
    layers: Sequence[int] | None = None,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Run ``checkpoint`` on the ``wanted`` tokens; what was done, as JSON.

    The new file ``out`` holds ``tokens`` I64 [b, l] and ``logits`` F32 [b, l, v], and appears
    whole. DataError, and no file, if a logit is NaN or infinite; TargetError if ``out`` exists.
    """
    file = Path(out)
    _check_target(file, Path(checkpoint))
    begun = time.monotonic()
    side = open_side(checkpoint, compute, device)
    numbers, _ = layers_of(side.model, layers)
    with enough():
        tokens = wanted.tokens(side.path, side.model.vocabulary)
        walk = Walk(side.model, tokens.ids)
        walk.begin()
        for done, n in enumerate(numbers, 1):
            walk.layer(n)
            progress(done, len(numbers))
        found = walk.logits()
    if strange := measures.nonfinite(side.path, found):
        raise DataError(f"{strange}; nothing was written")
    _write(file, {"tokens": tokens.ids, "logits": found})
    return {
        "format": FORMAT,
        "tool": f"fp8convert {VERSION}",
        "source": side.to_dict(),
        "compute": compute,
        "device": device,
        "tokens": tokens.to_dict(),
        "layers": numbers,
        "out": str(file),
        "shape": list(found.shape),
        "memory": {
            "peak_rss_bytes": peak_rss(),
            "largest_band_bytes": side.model.w.largest_band,
            "read_bytes": bytes_read(side.model),
        },
        "seconds": time.monotonic() - begun,
    }


def _check_target(file: Path, checkpoint: Path) -> None:
    """Before the work, whether its outcome can be written."""
    if os.path.lexists(file):
        raise TargetError(f"{shown(file)} exists, expected the name of a new file")
    if not file.name or not file.absolute().parent.is_dir():
        raise TargetError(f"{shown(file)} is not a file in a folder that is there")
    if file.resolve().is_relative_to(checkpoint.resolve()):
        raise TargetError(f"{shown(file)} is inside the checkpoint, which its own files are in")


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    mode = os.fstat(fd).st_mode & 0o777  # as the umask has it; the library would say 0600
    os.close(fd)
    try:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as f, naming(file.name):
            sync(f.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(file.absolute().parent)
