"""A model that is run a layer at a time, and whose last layer can be run again with a fault.

Under ``torchrun`` each process walks with its rank of the model; process 0 says what comes next,
the others :func:`follow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError
from ..reference.groups import Group
from ..reference.source import Named
from ..reference.weights import Fault, Weights

STEPS = ("begin", "layer", "logits", "predict", "again", "end")
BLOCK = 128  # rows and columns that a fault changes
OUTPUTS = ("o_proj.weight", "wo_b.weight", "wo.weight")  # of attention, by any family's names
Tell = Callable[[str, int, int], None]


def _alone(step: str, n: int, factor: int) -> None:
    """Nobody follows."""


class Walk:
    """``model`` (see run.Model) over tokens [b, l]: two states, before and after the last layer."""

    def __init__(self, model: Any, tokens: Tensor, tell: Tell = _alone) -> None:
        self.model, self._tell = model, tell
        self.tokens = tokens.to(ranks(model)[0].device)
        self._before = self._after = torch.empty(0)
        self._last: set[str] = set()  # weights that the last layer used

    @torch.no_grad()
    def begin(self) -> None:
        """To the state before the first layer."""
        self._tell("begin", 0, 0)
        self._after = self.model.embed(self.tokens)

    @torch.no_grad()
    def layer(self, n: int) -> Tensor:
        """Run layer ``n``; the state after it, [b, l, ...]."""
        self._tell("layer", n, 0)
        own = ranks(self.model)
        before = [w.used for w in own]
        for w in own:
            w.used = set()
        self._before, self._after = self._after, self.model.layer(n, self._after, self.tokens)
        self._last = set(own[0].used)
        for w, names in zip(own, before, strict=True):
            w.used |= names
        return self._after

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[b, l, v], float32."""
        self._tell("logits", 0, 0)
        found: Tensor = self.model.logits(self._after)
        return found

    @torch.no_grad()
    def predict(self) -> tuple[Tensor, Tensor]:
        """State after the first MTP layer [b, l - 1, ...] and its logits [b, l - 1, v]."""
        self._tell("predict", 0, 0)
        state, logits = self.model.predict(self._after, self.tokens)
        return state, logits

    @torch.no_grad()
    def again(self, n: int, factor: int) -> Tensor:
        """Logits [b, l, v] once layer ``n``, the last, was run again from the state before it, with
        :meth:`fault` in its weights."""
        self._tell("again", n, factor)
        fault = self.fault(factor)
        try:
            for w in ranks(self.model):
                w.fault = fault
            found: Tensor = self.model.logits(self.model.layer(n, self._before, self.tokens))
        finally:
            for w in ranks(self.model):
                w.fault = None
        return found

    def fault(self, factor: int) -> Fault:
        """The first block of the last layer's attention output, times ``factor``.

        On ranks it is the first block of each one's part. FormatError if there is no such matrix.
        """
        w = ranks(self.model)[0]
        matrices = sorted(name for name in self._last if len(w.shape(name)) == 2)
        found = [name for end in OUTPUTS for name in matrices if name.endswith(end)]
        if not found:
            raise FormatError(f"the last layer has no {' or '.join(OUTPUTS)} to put a fault in")
        rows, columns = (min(BLOCK, size) for size in w.shape(found[0]))
        return Fault(found[0], (0, rows), (0, columns), float(factor))

    def end(self, code: int) -> None:
        """Send those who follow home, with the number that they return."""
        self._tell("end", code, 0)


def ranks(model: Any) -> list[Weights]:
    """The weights of a model: one, or those of each rank in this process."""
    return list(getattr(model.w, "ranks", [model.w]))


def used(model: Any) -> set[str]:
    """Names of weights that it read so far, on any rank of this process."""
    return set().union(*(w.used for w in ranks(model)))


def bytes_read(model: Any) -> int:
    """What was read from files for it so far."""
    sources = (w.source for w in ranks(model))
    return sum(s.checkpoint.bytes_read for s in sources if isinstance(s, Named))


def telling(group: Group) -> Tell:
    """How process 0 tells the others a step."""

    def tell(step: str, n: int, factor: int) -> None:
        group.gather(torch.tensor([STEPS.index(step), n, factor]))

    return tell


def follow(model: Any, tokens: Tensor, group: Group) -> int:
    """Do the steps that process 0 tells, until the end; the number it ends with."""
    walk = Walk(model, tokens)
    while True:
        step, n, factor = group.gather(torch.zeros(3, dtype=torch.long))[0].tolist()
        name = STEPS[step]
        if name == "end":
            return int(n)
        numbers = {"layer": (n,), "again": (n, factor)}.get(name, ())
        getattr(walk, name)(*numbers)
