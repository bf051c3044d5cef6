"""The models of all ranks as one, in one process: a thread each, which exchange sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from .groups import Threads, check_same
from .run import Model
from .weights import Weights

T = TypeVar("T")


class Agreed:
    """One rank's model, which checks that all ranks have the same state after every step."""

    def __init__(self, model: Model) -> None:
        self.w, self.config = model.w, model.config
        self.model: Any = model  # ``predict`` is of those with MTP layers only
        self.layers, self.vocabulary, self.mtp = model.layers, model.vocabulary, model.mtp
        self.kind = model.kind

    def embed(self, tokens: Tensor) -> Tensor:
        """As every model; DataError names the ranks that have another state than the others."""
        return self._same(self.model.embed(tokens), "embedding")

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """As :meth:`embed`."""
        return self._same(self.model.layer(n, x, tokens), f"layer {n}")

    def logits(self, x: Tensor) -> Tensor:
        """As :meth:`embed`."""
        return self._same(self.model.logits(x), "logits")

    def predict(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`embed`."""
        state, logits = self.model.predict(x, tokens)
        return self._same(state, "MTP layer"), self._same(logits, "MTP logits")

    def _same(self, x: Tensor, what: str) -> Tensor:
        check_same(x, self.w.group, what)
        return x


class Ranked:
    """All ranks as one model (see run.Model), in one process. What ranks share is rank 0's."""

    def __init__(self, ranks: Sequence[Model], threads: Threads) -> None:
        self.ranks, self._threads = [Agreed(model) for model in ranks], threads
        first = ranks[0]
        self.config, self.layers, self.vocabulary = first.config, first.layers, first.vocabulary
        self.mtp, self.kind = first.mtp, first.kind
        self.w = RankedWeights([model.w for model in ranks])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [b, l] to the state [b, l, ...], the same on all ranks."""
        return self._all(lambda model: model.embed(tokens))

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor:
        """Layer ``n``; DataError names the ranks whose state is not that of the others."""
        return self._all(lambda model: model.layer(n, x, tokens))

    def logits(self, x: Tensor) -> Tensor:
        """The state after the last layer to logits [b, l, v]."""
        return self._all(lambda model: model.logits(x))

    def predict(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of the state after the last layer: the MTP layer's, and its logits [b, l - 1, v]."""
        return self._all(lambda model: model.predict(x, tokens))

    def _all(self, step: Callable[[Agreed], T]) -> T:
        def one(rank: int) -> T:
            with torch.no_grad():  # which is the caller's alone, as it is a thread's
                return step(self.ranks[rank])

        with one_thread():
            return self._threads.run(one)[0]


class RankedWeights:
    """What was read for all ranks. ``ranks`` are the weights of each."""

    def __init__(self, ranks: Sequence[Weights]) -> None:
        self.ranks, self.device = ranks, ranks[0].device

    @property
    def used(self) -> set[str]:
        """Names, by the model's."""
        return set().union(*(w.used for w in self.ranks))

    @property
    def largest_band(self) -> int:
        """Bytes; each rank may hold as much at the same time."""
        return max(w.largest_band for w in self.ranks)

    @property
    def bytes_decoded(self) -> int:
        """Of all ranks."""
        return sum(w.bytes_decoded for w in self.ranks)


@contextmanager
def one_thread() -> Iterator[None]:
    """Ranks share the cores, and bits of a product depend on how many threads compute it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
