"""Every error this library raises on purpose, and the exit code each one means.

A message says what was expected, what was found, and in which file, tensor and field. Text that
comes from a checkpoint (names, fields) passes through :func:`shown` first: it may hold terminal
escapes or be megabytes long.
"""

from __future__ import annotations

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_DIFFERENT = 3  # verify, parity: what was compared is not as it should be
EXIT_RESUMABLE = 75

SHOWN_CHARS = 160


class Fp8ConvertError(Exception):
    """Base class: refused or failed, exit code 1. Nothing stands under a final name."""

    exit_code = EXIT_REFUSED


class FormatError(Fp8ConvertError):
    """A file or field of the checkpoint is not what the format says it must be."""


class SchemeError(Fp8ConvertError):
    """The tensors and the config disagree on how the weights are encoded."""


class DataError(Fp8ConvertError):
    """Tensor bytes hold values that no correct checkpoint has (a NaN scale, a NaN code)."""


class TargetError(Fp8ConvertError):
    """The target cannot be used: not empty, locked, or begun by a different plan."""


class UsageError(Fp8ConvertError):
    """An option has no sensible meaning: exit code 2."""

    exit_code = EXIT_USAGE


class ResumableError(Fp8ConvertError):
    """Stopped by a signal or a lack of resources: run the same command again (exit code 75)."""

    exit_code = EXIT_RESUMABLE


def shown(text: object) -> str:
    """Untrusted text made safe for one line of a message: quoted, escaped, cut to a sane length."""
    whole = str(text)
    kept = whole[:SHOWN_CHARS]
    body = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in kept)
    return f"'{body}'" if len(whole) <= SHOWN_CHARS else f"'{body}...' ({len(whole)} characters)"


def listed(names: object, limit: int = 3) -> str:
    """A few of many names for a message: ``'a', 'b', 'c' and 39 more``."""
    every = list(names)  # type: ignore[call-overload]
    head = ", ".join(shown(n) for n in every[:limit])
    return head if len(every) <= limit else f"{head} and {len(every) - limit} more"
