"""Rules of check ``config`` on what the model consists of: layers, experts, vocabulary, head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ..classes import LAYER, left_alone
from ..configout import MTP_KEYS
from ..declared import experts_in
from ..errors import listed, shown
from .config import Facts, Wrong

WRAPPERS = r"(?:(?:model|language_model|text_model|transformer)\.)*"
EMBEDDING = re.compile(rf"{WRAPPERS}(?:embed_tokens|embed|wte|tok_embeddings)\.weight")
HEAD = re.compile(rf"{WRAPPERS}(?:lm_head|head|output|embed_out)\.\w+")
EXPERT = re.compile(r"(?P<module>.*\bexperts)\.(?P<n>[0-9]{1,6})\.(?P<part>.+)")
SENSES = "vision or audio"


def layers(facts: Facts) -> Iterator[Wrong]:
    """Layers 0 to ``num_hidden_layers - 1`` are there; those beyond are for MTP, and counted."""
    said = facts.integer("num_hidden_layers")
    if said is None:
        return
    where, count = said
    own, mtp = _layers(facts)
    if not own:
        yield Wrong(f"{where} is {count}, but no name of a tensor has a layer's number", False)
        return
    last = min(max(count, 0), max(own) + 1)
    missing = [n for n in range(last) if n not in own] or ([last] if last < count else [])
    if missing:
        yield Wrong(
            f"{where} is {count}, but no tensor is in layer {missing[0]}, of layers 0 to {max(own)}"
        )
    yield from _mtp(facts, len({n for n in own if n >= count}) + mtp)


def _layers(facts: Facts) -> tuple[set[int], int]:
    """Numbers of layers of the text model, and how many are under ``mtp``."""
    own: set[int] = set()
    mtp: set[str] = set()
    for name in facts.tensors:
        found = LAYER.search(name)
        if found is None or left_alone(name[: found.start()]) == SENSES:
            continue
        if found["kind"] == "mtp" or "mtp" in name[: found.start()].split("."):
            mtp.add(found["n"])
        else:
            own.add(int(found["n"]))
    return own, len(mtp)


def _mtp(facts: Facts, found: int) -> Iterator[Wrong]:
    """vLLM and SGLang look for as many as are declared, once speculation is asked for.

    Only a warning where there are none: transformers leaves them out and keeps the count. And for
    keys other than DeepSeek's, whose publishers do the same.
    """
    said = facts.integer(*MTP_KEYS)
    if said is None:
        if found:
            yield Wrong(f"{found} MTP layers, but none of {', '.join(MTP_KEYS)} says so", False)
        return
    where, count = said
    if count != found:
        serious = found > 0 and where.endswith(MTP_KEYS[0])
        yield Wrong(f"{where} is {count}, found {found} MTP layers", serious)


def experts(facts: Facts) -> Iterator[Wrong]:
    """Every layer has all routed experts, and each of them the same weights.

    No engine notices one that is missing.
    """
    key, count = experts_in(facts.config)
    parts: dict[str, dict[int, set[str]]] = {}
    for name in [w.name for w in facts.weights] or facts.tensors:
        if found := EXPERT.fullmatch(name):
            held = parts.setdefault(found["module"], {})
            held.setdefault(int(found["n"]), set()).add(found["part"])
    for module, held in parts.items():
        # Never a loop to the number that the config says: it may say anything.
        if key and (missing := count - sum(n < count for n in held)):
            first = next(n for n in range(count) if n not in held)
            yield Wrong(
                f"{key} is {count}, but {shown(module)} lacks {missing:,}, number {first} the first"
            )
        usual, _ = Counter(map(frozenset, held.values())).most_common(1)[0]
        for number, has in held.items():
            if has < usual:
                yield Wrong(f"{shown(f'{module}.{number}')} lacks {listed(sorted(usual - has))}")


def vocabulary(facts: Facts) -> Iterator[Wrong]:
    """Rows of the embedding."""
    said = facts.integer("vocab_size")
    for t in facts.tensors.values():
        if said and len(t.shape) == 2 and EMBEDDING.fullmatch(t.name) and t.shape[0] != said[1]:
            yield Wrong(f"{said[0]} is {said[1]}, but {shown(t.name)} has {t.shape[0]} rows")


def head(facts: Facts) -> Iterator[Wrong]:
    """Without tied embeddings there is one."""
    for where, place in facts.places():
        causal = "ForCausalLM" in str(facts.config.get("architectures"))
        if place.get("tie_word_embeddings") is False and causal:
            if not any(HEAD.fullmatch(name) for name in facts.tensors):
                yield Wrong(f"{where}tie_word_embeddings is false, but there is no lm_head")
            return
