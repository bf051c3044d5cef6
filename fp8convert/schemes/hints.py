"""Lists of modules that a config says are not quantized. Only hints: the stored dtypes decide.

Real lists mix module and tensor names, bare last names (``gate``), shell globs (ModelOpt) and
regular expressions (compressed-tensors, ``re:``).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

MOST = 64  # patterns tried; a hostile config must not buy time
QUANTIFIERS = 3  # in one regular expression; none of them on a group
SAFE = re.compile(r"[^)]*(\)(?![*+?{])[^)]*)*")


class Listed:
    """Entries of such a list. Every question is answered once for all experts of a layer."""

    def __init__(self, entries: Sequence[str]) -> None:
        texts = [e for e in entries if isinstance(e, str)]
        patterns = [e for e in texts if e.startswith("re:") or any(c in e for c in "*?[")]
        self._plain = set(texts) - set(patterns)
        self._patterns = [p for e in patterns[:MOST] if (p := _compiled(e)) is not None]
        self._known: dict[str, bool] = {}

    def names(self, tensor: str) -> bool:
        """Whether an entry names ``tensor``, its module, or a module around it."""
        module = re.sub(r"experts\.\d+", "experts.0", tensor.removesuffix(".weight"))
        if module not in self._known:
            self._known[module] = self._asked(module)
        return self._known[module]

    def _asked(self, module: str) -> bool:
        parts = module.split(".")
        around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if self._plain & (around | {parts[-1], f"{module}.weight"}):
            return True
        return len(module) <= 256 and any(p.match(module) for p in self._patterns)


def _compiled(entry: str) -> re.Pattern[str] | None:
    if not entry.startswith("re:"):
        return re.compile(fnmatch.translate(entry)) if entry.count("*") <= QUANTIFIERS else None
    text = entry.removeprefix("re:")
    costly = sum(text.count(c) for c in "*+{") > QUANTIFIERS or not SAFE.fullmatch(text)
    try:
        return None if costly or len(text) > 200 else re.compile(text)
    except re.error:
        return None
