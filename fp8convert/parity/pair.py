"""Two models that are run in step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ..errors import FormatError
from .sides import blamed
from .walk import Walk

T = TypeVar("T")


class Pair:
    """Two walks in step: each method does it on the first, then on the second."""

    def __init__(self, reference: Walk, candidate: Walk) -> None:
        self.walks = (reference, candidate)
        self._spent = [0.0, 0.0]

    def begin(self) -> None:
        """As :class:`Walk`."""
        self._both(Walk.begin)

    def layer(self, n: int) -> tuple[Tensor, Tensor]:
        """States [b, l, ...]. FormatError if they are of different shapes."""
        return _alike(self._both(lambda walk: walk.layer(n)), f"the state after layer {n}")

    def logits(self) -> tuple[Tensor, Tensor]:
        """Logits [b, l, v]; FormatError as above."""
        return _alike(self._both(Walk.logits), "the logits")

    def predict(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """States and logits of the MTP layer; FormatError as above."""
        (state, logits), (other, found) = self._both(Walk.predict)
        return (
            _alike((state, other), "the state after the MTP layer"),
            _alike((logits, found), "the MTP logits"),
        )

    def seconds(self) -> dict[str, float]:
        """That each side took."""
        return dict(zip(("reference", "candidate"), self._spent, strict=True))

    def _both(self, step: Callable[[Walk], T]) -> tuple[T, T]:
        found = []
        for n, (side, walk) in enumerate(zip(("REF", "CANDIDATE"), self.walks, strict=True)):
            begun = time.monotonic()
            with blamed(side):
                found.append(step(walk))
            self._spent[n] += time.monotonic() - begun
        return found[0], found[1]


def _alike(found: tuple[Tensor, Tensor], what: str) -> tuple[Tensor, Tensor]:
    a, b = (list(x.shape) for x in found)
    if a != b:
        raise FormatError(f"{what} is {a} of REF and {b} of CANDIDATE, expected the same shape")
    return found
