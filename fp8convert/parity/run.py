"""One comparison, from two opened models to its result: see :mod:`.compare`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import DataError, Fp8ConvertError, UsageError
from ..version import VERSION
from . import measures, profiles, weighing
from .control import control
from .depth import Progress, layers_of, unseen
from .memory import peak_rss
from .notes import SIDES, notes
from .pair import Pair
from .sides import Side
from .tokens import Tokens, Wanted
from .walk import Walk, bytes_read, used

FORMAT = 1


@dataclass(frozen=True)
class Options:
    """How to compare; docs/parity.md says what each means.

    ``layers`` None is all of them, ``profile`` None is by the number of ranks. ``own`` thresholds
    replace the profile's where they are not None.
    """

    wanted: Wanted
    compute: str = "bf16"
    device: str = "cpu"
    layers: Sequence[int] | None = None
    profile: str | None = None
    own: Mapping[str, float | None] = field(default_factory=dict)
    progress: Progress = unseen


class Run:
    """One comparison; :meth:`result` does it."""

    def __init__(self, ref: Side, other: Side, tokens: Tokens, options: Options) -> None:
        self.sides, self.tokens, self.options = (ref, other), tokens, options
        self.layers, self.mtp = layers_of(ref.model, options.layers)
        if options.layers is not None and self.mtp and not other.model.mtp:
            raise UsageError(
                f"layer {ref.model.layers} is the MTP layer, which CANDIDATE does not have"
            )
        several = max(ref.count, other.count) > 1
        self.profile = options.profile or ("reduction-order" if several else "identical")
        bits = min(ref.bits(), other.bits())
        self.limits = profiles.limits(self.profile, options.compute, bits, options.own)
        self.reference, self.candidate = (Walk(s.model, tokens.ids) for s in self.sides)
        self.hidden: list[dict[str, Any]] = []
        self.heads: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.weights: list[dict[str, Any]] = []

    def result(self) -> dict[str, Any]:
        """Run it all."""
        both = Pair(self.reference, self.candidate)
        self._layers(both)
        expected, found = both.logits()
        self._judge("logits", expected, found)
        have = all(s.model.mtp for s in self.sides)
        if self.mtp and have and self.tokens.ids.shape[1] > 1:  # it predicts from two tokens
            states, logits = both.predict()
            self._state("mtp", "mtp", *states)
            self._judge("mtp", *logits)
        begun = time.monotonic()
        seen = control(
            self.candidate, self.layers[-1], lambda x: self._measured("logits", expected, x)[1]
        )
        if not seen["detected"]:
            self.reasons.append(
                "control not detected: thresholds that let this fault pass prove nothing"
            )
        seconds = {**both.seconds(), "control": time.monotonic() - begun}
        self.notes += notes(self.sides, self.tokens.ids.shape[1], self.mtp, self.options.compute)
        self._weigh()
        return self._said(measures.scatter("logits", expected, found), seen, seconds)

    def _layers(self, both: Pair) -> None:
        both.begin()
        for done, n in enumerate(self.layers, 1):
            self._state(f"layer {n}", self.sides[0].model.kind(n), *both.layer(n))
            self.options.progress(done, len(self.layers))

    def _state(self, name: str, kind: str, reference: Tensor, candidate: Tensor) -> None:
        apart = measures.difference(reference, candidate)
        self.hidden.append(
            {
                "name": name,
                "kind": kind,
                "max_abs": apart.max_abs,
                "relative_rms": apart.relative_rms,
                "ref_rms": apart.reference_rms,
            }
        )

    def _judge(self, name: str, expected: Tensor, found: Tensor) -> None:
        head, failed = self._measured(name, expected, found)
        self.heads.append({**head, "failed": failed})
        self.reasons += [f"{name}: {reason}" for reason in failed]

    def _measured(self, name: str, *logits: Tensor) -> tuple[dict[str, Any], list[str]]:
        """Of the reference's and the candidate's logits; and what is wrong with them."""
        head = measures.head(name, *logits)
        strange = [measures.nonfinite(f"the {s}", x) for s, x in zip(SIDES, logits, strict=True)]
        beyond = profiles.failures(head, self.limits)
        return head, [*(words for words in strange if words), *beyond]

    def _starts(self) -> str | None:
        """The first layer whose state is beyond the limit of logits, or differs at all."""
        limit = self.limits["max_rms"] or 0.0
        beyond = (h["name"] for h in self.hidden if not h["relative_rms"] <= limit)
        return next(beyond, None)

    def _weigh(self) -> None:
        model = self.sides[0].model
        try:
            reference, candidate = (s.bands() for s in self.sides)
            names = weighing.with_experts(used(model), model.config.found)
            self.weights = weighing.by_class(reference, candidate, names)
        except DataError as e:  # ranks that disagree
            self.reasons.append(f"weights: {e}")
        except Fp8ConvertError as e:
            self.notes.append(f"weights were not compared: {e}")
        self.reasons += profiles.differing(self.weights, self.limits)

    def _said(self, scatter: Any, seen: Any, seconds: Any) -> dict[str, Any]:
        models = [s.model for s in self.sides]
        return {
            "format": FORMAT,
            "tool": f"fp8convert {VERSION}",
            **{name: s.to_dict() for name, s in zip(SIDES, self.sides, strict=True)},
            "compute": self.options.compute,
            "device": self.options.device,
            "tokens": self.tokens.to_dict(),
            "layers": list(self.layers),
            "profile": self.profile,
            "thresholds": self.limits,
            "heads": self.heads,
            "hidden": self.hidden,
            "starts": self._starts(),
            "weights": self.weights,
            "scatter": scatter,
            "control": seen,
            "memory": {
                "peak_rss_bytes": peak_rss(),
                "largest_band_bytes": max(m.w.largest_band for m in models),
                "read_bytes": sum(map(bytes_read, models)),
            },
            "seconds": seconds,
            "notes": self.notes,
            "verdict": "fail" if self.reasons else "pass",
            "reasons": self.reasons,
        }
