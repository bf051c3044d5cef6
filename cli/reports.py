"""Small files that a command writes beside its output: JUnit, HTML."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fp8convert.errors import Fp8ConvertError


def check_place(option: str, file: str | None) -> Path | None:
    """Before the work, whether its outcome can be written; None if none is asked for.

    A device or a pipe is refused: it would be replaced by a file.
    """
    if file is None:
        return None
    path = Path(file)
    odd = os.path.exists(path) and not os.path.isfile(path)
    if not path.name or odd or not path.absolute().parent.is_dir():
        raise click.UsageError(f"{option}: {file} is not a file in a folder that is there")
    return path


def write(option: str, file: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except OSError as e:
        raise Fp8ConvertError(f"{option}: {e}") from e
    finally:
        temporary.unlink(missing_ok=True)
