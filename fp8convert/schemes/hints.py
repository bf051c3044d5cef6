"""Lists of modules that a config says are not quantized. Only hints: the stored dtypes decide.

Real lists mix module and tensor names, bare last names (``gate``), shell globs (ModelOpt) and
regular expressions (compressed-tensors, ``re:``). A config is untrusted, so patterns that could
take long to match are not tried.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Iterator, Sequence

from ..errors import shown

MOST = 128  # patterns tried; the longest real list has 79
LONGEST = 256  # characters of a pattern, and of a name it is tried on
QUANTIFIERS = {"glob": 3, "re": 2}  # in one pattern
MOST_NAMES = 20_000  # modules that patterns are tried on, the experts of a layer counted once
MOST_WORK = 1 << 30  # characters looked at for one list, at the worst: two seconds
REFERRING = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")  # to a group: cubic, with two quantifiers


class Work:
    """How many characters matching may still look at. Counted, so that answers never depend on the
    machine."""

    def __init__(self, left: int = MOST_WORK) -> None:
        self.left = left

    def spent(self, steps: int) -> bool:
        """Take ``steps``; whether that was too much."""
        self.left -= steps
        return self.left < 0


class Patterns:
    """Patterns of modules' names, as many as can be tried; ``work`` is shared with others."""

    def __init__(self, entries: Sequence[str], work: Work | None = None) -> None:
        found = [(compiled(e), _quantifiers(e)) for e in entries[:MOST]]
        self._tried = [(p, max(power, 1)) for p, power in found if p is not None]
        self._all = len(self._tried) == len(entries)
        self._work = work or Work()

    def name(self, module: str) -> bool | None:
        """Whether one matches; None if that is not known, as not all were tried."""
        if not self._tried or len(module) > LONGEST:
            return False if not self._tried and self._all else None
        for pattern, power in self._tried:
            if self._work.spent(len(module) ** power):
                return None
            if pattern.match(module):
                return True
        return False if self._all else None


class Listed:
    """Entries of such a list."""

    def __init__(self, listed: Sequence[object]) -> None:
        entries = [e for e in listed if isinstance(e, str)]
        patterns = [e for e in entries if e.startswith("re:") or any(c in e for c in "*?[")]
        self._plain = set(entries) - set(patterns)
        self._patterns = Patterns(patterns)
        self._known: dict[str, bool] = {}

    def names(self, tensor: str) -> bool:
        """Whether an entry names ``tensor``, its module, or a module around it."""
        module = tensor.removesuffix(".weight")
        if len(module) > LONGEST:
            return not self._plain.isdisjoint((module, f"{module}.weight"))
        parts = module.split(".")
        around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if not self._plain.isdisjoint(around | {parts[-1], f"{module}.weight"}):
            return True
        kind = re.sub(r"experts\.\d+", "experts.0", module)  # patterns mean all experts alike
        if kind not in self._known and len(self._known) < MOST_NAMES:
            self._known[kind] = self._patterns.name(kind) is True
        return self._known.get(kind, False)


def compiled(entry: str) -> re.Pattern[str] | None:
    """The pattern, or None for one that is broken or might be slow."""
    if len(entry) > LONGEST:
        return None
    if not entry.startswith("re:"):
        cheap = entry.count("*") <= QUANTIFIERS["glob"]
        return re.compile(fnmatch.translate(entry)) if cheap else None
    text = entry.removeprefix("re:")
    many = _quantifiers(entry) > QUANTIFIERS["re"] or text.count("(") > 2
    if many or re.search(r"\)[*+?{]", text) or REFERRING.search(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that will mean something else one day
            return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None


def _quantifiers(entry: str) -> int:
    """Of a regular expression; a glob, whatever its stars, is matched without going back."""
    text = entry.removeprefix("re:")
    return sum(text.count(c) for c in "*+{?") if text != entry else 0


def contradictions(coded: Sequence[str], hints: Sequence[object]) -> Iterator[str]:
    """Where a config lists modules as not coded whose tensors are: the tensors are believed."""
    listed = Listed(hints)
    found = [name for name in coded if hints and listed.names(name)]
    if found:
        yield (
            f"config.json lists {shown(found[0])} as not quantized, and {len(found) - 1:,} more, "
            "but they have codes and scales: decoded"
        )
