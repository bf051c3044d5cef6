"""Which layers of a model are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UsageError

Progress = Callable[[int, int], None]  # layers done, of how many


def unseen(done: int, total: int) -> None:
    """Nobody watches."""


def layers_of(model: Any, wanted: Sequence[int] | None) -> tuple[list[int], bool]:
    """Layers to run, and whether the MTP layer, which is the number after the last.

    All by default. UsageError unless ``wanted`` are layers of the model, in order.
    """
    count = model.layers
    if wanted is None:
        return list(range(count)), True
    found, most = list(wanted), count if model.mtp else count - 1
    inside = all(0 <= n <= most for n in found)
    if not inside or sorted(set(found)) != found or found[:1] in ([], [count]):
        mtp = f", {count} is the MTP layer" if model.mtp else ""
        raise UsageError(
            f"layers {', '.join(map(str, found)) or 'none'}: expected some of 0 to {count - 1}, "
            f"in order{mtp}"
        )
    return [n for n in found if n < count], count in found
