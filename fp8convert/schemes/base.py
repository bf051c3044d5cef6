"""The contract of a scheme: how a family of checkpoints declares its codecs. Opens no file.

A scheme says, for one stored tensor that may hold codes, which weight it is and which other tensors
are parts of it; pairing, what is left over, and what a part without its weight means are the same
for all and live here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..codecs.base import Stored
from ..codecs.raw import Raw
from ..declared import Declared
from ..dtypes import CODED_FLOATS
from ..errors import shown
from .hints import contradictions
from .leftovers import Leftovers
from .weight import Tensors, Weight


@dataclass(frozen=True, slots=True)
class Reading:
    """Stored tensors understood as weights, in stored order.

    ``problems`` bar a conversion, ``warnings`` do not; ``dropped`` are scales of what is not a
    weight (the KV cache), without meaning in a checkpoint that is not quantized.
    """

    weights: tuple[Weight, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    dropped: tuple[Stored, ...] = ()


# Dtypes that may hold codes; no other tensor is asked about.
CODE_DTYPES = CODED_FLOATS | {"I8", "U8", "I32"}


class Scheme(ABC):
    """One way of declaring codecs. Recognised by config and dtypes, never by a name alone.

    Subclasses are frozen dataclasses without slots (slots make a second, registered class).
    """

    name: ClassVar[str]
    declared_as: ClassVar[str]  # what a config says, for the message that lists the known ones

    @classmethod
    @abstractmethod
    def recognise(cls, declared: Declared, tensors: Tensors) -> Scheme | str | None:
        """An instance if this is what the config declares; None if it is something else.

        A string says why it nearly is but is not read: shown if no other scheme takes it.
        """

    @abstractmethod
    def claim(self, t: Stored, tensors: Tensors) -> Weight | str | None:
        """The coded weight whose codes ``t`` holds; why it cannot be one; None if it holds none."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The scheme as JSON, for ``inspect`` and the manifest."""

    def hints(self) -> Sequence[str]:
        """What the config says is not coded: modules, patterns."""
        return ()

    def read(self, tensors: Tensors, shards: Sequence[str]) -> Reading:
        """Pair stored tensors into weights. ``shards`` are file names, for messages."""
        claims: dict[str, Weight | str] = {}
        for t in tensors.values():
            if t.dtype in CODE_DTYPES and (claim := self.claim(t, tensors)) is not None:
                claims[t.name] = claim
        rest = Leftovers(tensors, claims)
        weights: list[Weight] = []
        problems: list[str] = []
        dropped: list[Stored] = []
        for t in tensors.values():
            claim = claims.get(t.name)
            wrong = claim if isinstance(claim, str) else None
            if isinstance(claim, Weight):
                wrong = claim.codec.check(claim.parts)
                if wrong is None:
                    weights.append(claim)
                    continue
            elif claim is None:
                if t.name in rest.used:
                    continue
                if rest.means_nothing(t):
                    dropped.append(t)
                    continue
                wrong = rest.problem(t)
            weights.append(Weight(t.name, Raw(), (t,)))
            if wrong:
                problems.append(f"{shards[t.shard]}: weight {shown(t.name)}: {wrong}")
        if not claims and not problems:
            problems.append(self.nothing_coded())
        (twice, count), *_ = [*Counter(w.name for w in weights).most_common(1), ("", 0)]
        if count > 1:
            problems.append(f"weight {shown(twice)} is there twice: coded, and under its own name")
        coded = [w.name for w in weights if w.codec.coded]
        warnings = (*contradictions(coded, self.hints()), *rest.bystanders())
        return Reading(tuple(weights), tuple(problems), warnings, tuple(dropped))

    def nothing_coded(self) -> str:
        """The problem of a declaration without codes."""
        return (
            f"the config declares {self.declared_as.partition(' ')[0]}, but no tensor is coded: "
            "already converted, with a stale config? Remove its quantization_config if so"
        )
