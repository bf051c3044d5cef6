"""The two models of a comparison: opened, and whether they can be compared at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import Fp8ConvertError, SchemeError, UsageError
from ..reference.groups import Gloo
from ..reference.ranks import open_any
from ..reference.source import Named
from ..strictjson import brief
from . import weighing
from .walk import ranks

# What both configs must say alike. Other fields may differ: what they change shows in the logits.
SAME = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True)
class Side:
    """A checkpoint as a model: run.Model of ``count`` ranks (those of other processes, too)."""

    path: str
    model: Any
    count: int

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of a run has it."""
        source = ranks(self.model)[0].source
        whole = self.count == 1 and isinstance(source, Named)
        scheme = _scheme(source.checkpoint) if whole and isinstance(source, Named) else "ranks"
        return {
            "path": self.path,
            "architecture": str(self.model.config.found["model_type"]),
            "ranks": self.count,
            "scheme": scheme,
        }

    def bits(self) -> int:
        """Of an element of the weights that have fewest; 16 if none is coded."""
        own = (w.source for w in ranks(self.model))
        return min(_bits(s.checkpoint) for s in own if isinstance(s, Named))

    def bands(self) -> weighing.Bands:
        """Its weights to be looked at; those of ranks are put together for it. Fp8ConvertError
        where they cannot be: scales of each rank's own, or no record of the cuts."""
        own = ranks(self.model)[0]
        if self.count == 1 and isinstance(own.source, Named):
            return weighing.opened(own.source, own)
        return weighing.opened(Named(open_checkpoint(self.path)), own)


def _bits(checkpoint: Checkpoint) -> int:
    codecs = (checkpoint.spec(name).codec for name in checkpoint.names())
    return min((_bits_of(codec) for codec in codecs), default=16)


def _bits_of(codec: Mapping[str, Any]) -> int:
    said = codec.get("of", codec)  # of one that is turned or cut
    known = {"raw": 16, "fp8-block": 8, "int8-block": 8}
    return int(said.get("bits", known.get(said["codec"], 4)))


def _scheme(checkpoint: Checkpoint) -> str:
    return str(checkpoint.scheme.to_dict()["scheme"])


def open_side(
    path: str | os.PathLike[str],
    compute: str,
    device: str,
    config: dict[str, Any] | None = None,
    group: Gloo | None = None,
) -> Side:
    """The checkpoint or rank set ``path``; ``config`` is for one without its own. With ``group``
    this process has one rank of it."""
    model = open_any(path, compute, device, config, group)
    return Side(os.fspath(path), model, ranks(model)[0].group.size)


@contextmanager
def blamed(side: str) -> Iterator[None]:
    """Errors of a checkpoint say which of the two it is: REF or CANDIDATE."""
    try:
        yield
    except UsageError:
        raise
    except Fp8ConvertError as e:
        raise type(e)(f"{side}: {e}") from e


def check_same(reference: dict[str, Any], candidate: dict[str, Any]) -> None:
    """SchemeError names the first field that makes two configs those of different models."""
    for field in SAME:
        a, b = reference.get(field), candidate.get(field)
        if a != b:
            raise SchemeError(
                f"config.json: {field} is {brief(a)} in REF and {brief(b)} in CANDIDATE: they are "
                "different models, expected the same"
            )
