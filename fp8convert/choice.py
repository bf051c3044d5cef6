"""Which weights are quantized: by their family's convention, by patterns, or as another has it.

Engines read what they merge (see :data:`.classes.PARTNERS`), and the routed experts of a layer,
in one precision: where one cannot be quantized, all stay as they are.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from .classes import HEAD, experts_of, group, is_embedding, left_alone, partners
from .errors import SchemeError, UsageError, listed, shown
from .schemes.weight import Weight

PLAIN = ("BF16", "F16", "F32")  # dtypes that are quantized; codes are decoded first
MOST_LINES = 16
TIED = {  # what is stored of an encoder's head, and the linear after it that may be tied
    "cls.predictions.transform.dense": "cls.predictions.decoder",
    "lm_head.dense": "lm_head.decoder",
}
UNFUSED = ("gate_proj", "up_proj", "down_proj")
ONE_PRECISION = "engines read what they fuse in one precision"
NOTHING = "no matrix is a linear of attention or an MLP by its name, or all are excluded"

Candidates = Mapping[str, Weight]
Misfit = Callable[[Weight], "str | None"]


class Choice(NamedTuple):
    """``chosen`` are names of weights. ``notes`` say what a codec cannot hold, ``warnings`` what
    engines may not read. ``kept`` are names of matrices and stacks that stay unquantized, without
    embeddings, in stored order."""

    chosen: frozenset[str]
    notes: tuple[str, ...]
    kept: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ignored(self) -> tuple[str, ...]:
        """Module names for a config's list of what is not quantized: ``kept``, and two that loaders
        ask for under names that are not stored.

        A head that is tied to the embedding is a linear of its own to transformers. vLLM asks for
        the first expert of a layer by ``UNFUSED``, however the experts are stored.
        """
        found = dict.fromkeys(name.removesuffix(".weight") for name in self.kept)
        found.update(dict.fromkeys(TIED[module] for module in TIED if module in found))
        quantized = {experts_of(name) for name in self.chosen}
        for stack in dict.fromkeys(map(experts_of, self.kept)):
            if stack is not None and stack not in quantized:
                found.update(dict.fromkeys(f"{stack}.0.{leaf}" for leaf in UNFUSED))
        if not any(left_alone(name) == HEAD for name in chain(self.kept, self.chosen)):
            found["lm_head"] = None
        return tuple(found)


def choose(
    weights: Sequence[Weight],
    include: Sequence[str],
    exclude: Sequence[str],
    like: Collection[str] | None,
    misfit: Misfit,
) -> Choice:
    """The weights to quantize: linears of attention and MLPs; or those that ``include`` matches;
    or those named in ``like``. Then without those that ``exclude`` matches.

    Patterns are shell globs over a weight's name with or without ``.weight``. ``misfit`` says why
    the target cannot hold a weight, and those stay as they are. UsageError for a pattern that
    matches nothing, SchemeError if nothing is left to quantize.
    """
    if like is not None and include:
        raise UsageError("give --like or --include, not both")
    candidates = {w.name: w for w in weights if _is_candidate(w)}
    if not candidates:
        raise SchemeError("no weight to quantize: there is no plain or coded matrix X.weight")
    wanted = _wanted(candidates, include, like)
    for pattern in exclude:
        wanted -= _matching(pattern, candidates, "--exclude")
    reasons = {n: why for n in candidates if n in wanted and (why := _why(candidates[n], misfit))}
    broken = {key for name in reasons if (key := fused(name)) is not None}
    fitting = wanted - reasons.keys()
    chosen = frozenset(n for n in fitting if fused(n) not in broken) if broken else fitting
    along = [name for name in candidates if name in fitting and name not in chosen]
    notes = (*_notes(reasons), *_along(along))
    if not chosen:
        raise SchemeError(f"no weight to quantize; {notes[0] if notes else NOTHING}")
    warnings = [*_odd(chosen, include, candidates)]
    if include or exclude or like is not None:
        warnings += _split(chosen, candidates)
    return Choice(frozenset(chosen), notes, _kept(weights, candidates, chosen), tuple(warnings))


def _is_candidate(w: Weight) -> bool:
    """Matrices, and stacks of them: those only in order to be reported."""
    named = w.name.endswith(".weight")
    if not named and experts_of(w.name) is None:
        return False
    axes = len(w.shape)
    fits = (axes == 2 and named) or axes == 3
    return fits and (w.codec.coded or w.parts[0].dtype in PLAIN)


def _wanted(
    candidates: Candidates, include: Sequence[str], like: Collection[str] | None
) -> frozenset[str]:
    if include:
        return frozenset().union(*(_matching(p, candidates, "--include") for p in include))
    if like is None:
        return frozenset(name for name in candidates if left_alone(name) is None)
    found = candidates.keys() & frozenset(like)
    if not found:
        raise UsageError(
            f"--like: of {len(like):,} weights coded there ({listed(like)}), none has the name of "
            f"one here, such as {_examples(candidates)}"
        )
    return frozenset(found)


def _matching(pattern: str, candidates: Candidates, option: str) -> frozenset[str]:
    """The candidates that ``pattern`` names."""
    named = pattern in candidates or f"{pattern}.weight" in candidates
    if not named and any(c in pattern for c in "*?["):
        match = re.compile(fnmatch.translate(pattern)).match
        found = frozenset(n for n in candidates if match(n) or match(n.removesuffix(".weight")))
    else:
        found = frozenset(n for n in (pattern, f"{pattern}.weight") if n in candidates)
    if not found:
        raise UsageError(
            f"{option} {shown(pattern)} matches none of {len(candidates):,} weights with two axes, "
            f"such as {_examples(candidates)}"
        )
    return found


def _examples(candidates: Candidates) -> str:
    """Three from first to last: neighbours are too alike to show how names are made."""
    names = list(candidates)
    return listed(names[i * (len(names) - 1) // 2] for i in range(min(3, len(names))))


def _why(w: Weight, misfit: Misfit) -> str | None:
    """Why it stays as it is, even if ``misfit`` does not look at axes."""
    stacked = f"{len(w.shape)} axes, expected two" if len(w.shape) != 2 else None
    return misfit(w) or stacked


def fused(name: str) -> str | None:
    """What stands for everything that an engine reads in one precision with ``name``."""
    return experts_of(name) or next(iter(partners(name)), None)


def _notes(reasons: Mapping[str, str]) -> Iterator[str]:
    """One line for each reason and group of tensors, the most frequent first."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        lines.setdefault((group(name), why), []).append(name)
    ranked = sorted(lines.items(), key=lambda line: -len(line[1]))
    for (of, why), names in ranked[:MOST_LINES]:
        yield f"not quantized: {_count(names, of)}: {why}"
    if rest := [name for _, names in ranked[MOST_LINES:] for name in names]:
        yield f"not quantized: {_count(rest)}: {len(ranked) - MOST_LINES:,} more reasons"


def _along(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"not quantized either: {_count(names)}: {ONE_PRECISION}"


def _odd(chosen: Collection[str], include: Sequence[str], candidates: Candidates) -> Iterator[str]:
    """What a pattern chose that engines read unquantized. (Some take a quantized head.)"""
    kinds: dict[str, list[str]] = {}
    for name in candidates if include else ():
        if name in chosen and (kind := left_alone(name)) not in (None, HEAD):
            kinds.setdefault(str(kind), []).append(name)
    for kind, names in kinds.items():
        yield f"--include chooses {_count(names, kind)}, which engines expect unquantized"


def _split(chosen: Collection[str], candidates: Candidates) -> Iterator[str]:
    """Where a choice takes some of what is fused."""
    groups: dict[str, list[str]] = {}
    for name in candidates:
        if (key := fused(name)) is not None:
            groups.setdefault(key, []).append(name)
    split = [names for names in groups.values() if 0 < sum(n in chosen for n in names) < len(names)]
    if split:
        taken = next(n for n in split[0] if n in chosen)
        left = next(n for n in split[0] if n not in chosen)
        yield (
            f"{len(split):,} group{'s' * (len(split) > 1)} of fused weights quantized in part, "
            f"such as {shown(taken)} but not {shown(left)}: {ONE_PRECISION}"
        )


def _kept(
    weights: Iterable[Weight], candidates: Candidates, chosen: Collection[str]
) -> tuple[str, ...]:
    """Every matrix that is not quantized, whatever its dtype."""
    return tuple(
        w.name
        for w in weights
        if w.name not in chosen
        and (w.name in candidates or (w.name.endswith(".weight") and len(w.shape) == 2))
        and not is_embedding(w.name)
    )


def _count(names: Sequence[str], kind: str = "") -> str:
    many = f"{len(names):,} weights{kind and f' ({kind})'}, such as "
    return f"{many if len(names) > 1 else 'weight '}{shown(names[0])}"
