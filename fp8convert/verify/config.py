"""Check ``config``: config.json, and what lies beside it, agrees with the tensors.

Each rule is a function of the :class:`Facts` that yields :class:`Wrong` findings; those not
``serious`` are warnings: doubtful, but read by the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..codecs.base import Stored
from ..companions import DECLARATIONS
from ..configout import DTYPE_KEYS, QUANTIZATION_KEYS
from ..declared import KEY, Declared, mapping
from ..dtypes import CODED_FLOATS, DTYPES
from ..errors import listed, shown
from ..header import numel
from ..schemes.weight import Tensors, Weight
from ..strictjson import brief
from .report import Check

NAME = "config"
TAGS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
WIDE = ("F32", "F64")


class Wrong(NamedTuple):
    """One finding."""

    text: str
    serious: bool = True


@dataclass(frozen=True)
class Facts:
    """What rules look at. ``tensors`` are whole ones, by their names in the checkpoint.

    ``weights`` are those that schemes found, empty if none could be read; ``stale`` is said of a
    declaration without codes; ``uneven`` of scales that are no powers of two; ``beside`` are names
    of files, ``metadata`` that of each safetensors file, ``home`` the folder of config.json.
    """

    declared: Declared
    tensors: Tensors
    weights: list[Weight]
    stale: str
    uneven: list[str]
    beside: list[str]
    metadata: Mapping[str, Mapping[str, str]]
    home: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.declared.config

    def places(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects that describe the model of text, and their names for a message."""
        yield f"{self.home}config.json: ", self.config
        if text := mapping(self.config.get("text_config")):
            yield f"{self.home}config.json: text_config.", text

    def integer(self, *keys: str) -> tuple[str, int] | None:
        """The first of ``keys`` that is an integer somewhere: its place, and the number."""
        for where, place in self.places():
            for key in keys:
                if type(found := place.get(key)) is int:
                    return where + key, found
        return None

    @property
    def coded(self) -> list[str]:
        """Names of what is coded."""
        found = [w.name for w in self.weights if w.codec.coded]
        return found or [t.name for t in self.tensors.values() if t.dtype in CODED_FLOATS]

    def plain(self) -> Iterator[Stored]:
        """Stored tensors that are no part of a coded weight."""
        parts = {p.name for w in self.weights if w.codec.coded for p in (*w.parts, *w.dropped)}
        return (t for t in self.tensors.values() if t.name not in parts)


Rule = Callable[[Facts], Iterator[Wrong]]


def check_config(facts: Facts, rules: tuple[Rule, ...], known: Sequence[str] = ()) -> Check:
    """All ``rules``, and problems that are ``known`` already."""
    found = [wrong for rule in rules for wrong in rule(facts)]
    problems = [*known, *(w.text for w in found if w.serious)]
    said = facts.declared
    detail = f"{said.where} says {shown(said.method)}" if said.quantization else "nothing declared"
    if not said.quantization and said.ranks:
        detail = f"{said.ranks} rank files of DeepSeek's own layout, which declare nothing"
    return Check.of(NAME, detail, problems, [w.text for w in found if not w.serious])


def declared_iff_coded(facts: Facts) -> Iterator[Wrong]:
    """Engines adopt any declaration they find: a stale one makes garbage of plain weights."""
    coded = facts.coded
    if coded:
        if facts.declared.quantization is None and not facts.declared.ranks:
            yield Wrong(
                f"{len(coded):,} tensors are coded, {shown(coded[0])} the first, but no "
                f"{KEY} in {facts.home}config.json declares it"
            )
        return
    if facts.stale:
        yield Wrong(f"{facts.declared.where}: {facts.stale}")
    elif facts.declared.quantization is None:
        for where, place in facts.places():
            for key in QUANTIZATION_KEYS:
                if place.get(key) is not None:
                    yield Wrong(f"{where}{key} declares codes, but no tensor is coded")
    if files := [n for n in facts.beside if n in DECLARATIONS and facts.weights]:
        yield Wrong(f"{listed(files)} declares codes, but no tensor is coded: engines adopt it")


def dtype(facts: Facts) -> Iterator[Wrong]:
    """That of most elements of the matrices that are not coded.

    Another one that some of them have, or that holds all their numbers, is only a warning.
    """
    counts: dict[str, int] = {}
    for t in facts.plain():
        if len(t.shape) > 1 and DTYPES[t.dtype].is_float and t.dtype not in CODED_FLOATS:
            counts[t.dtype] = counts.get(t.dtype, 0) + numel(t.shape)
    if not counts:
        return
    most = max(counts, key=counts.__getitem__)
    for where, place in facts.places():
        for key in DTYPE_KEYS:
            said = str(place.get(key)).removeprefix("torch.")
            if said in TAGS and TAGS[said] != most:
                yield Wrong(
                    f"{where}{key} is {shown(said)}, but {most} is the dtype of most elements of "
                    "matrices that are not coded",
                    TAGS[said] not in (*counts, *WIDE),
                )


def powers_of_two(facts: Facts) -> Iterator[Wrong]:
    """``scale_fmt: ue8m0`` promises scales without mantissa."""
    said = mapping(facts.declared.quantization).get("scale_fmt")
    if said == "ue8m0" and facts.uneven:
        more = f", and more in {len(facts.uneven) - 1:,} bands" if len(facts.uneven) > 1 else ""
        yield Wrong(
            f"{facts.declared.where}.scale_fmt is ue8m0, but {facts.uneven[0]} is no power of "
            f"two{more}"
        )


def native_fields(facts: Facts) -> Iterator[Wrong]:
    """What SGLang and vLLM demand of ``quant_method: fp8`` with blocks, and who takes which."""
    said, where = mapping(facts.declared.quantization), facts.declared.where
    block = said.get("weight_block_size")
    if facts.declared.method != "fp8" or not block:
        return
    if said.get("activation_scheme") != "dynamic":
        found = brief(said.get("activation_scheme"))
        yield Wrong(f"{where}.activation_scheme is {found}: SGLang, vLLM expect dynamic", False)
    if block not in ([128, 128], [1, 32]):
        found = brief(block)
        yield Wrong(f"{where}.weight_block_size is {found}: TensorRT-LLM, LMDeploy take 128 x 128",
                    False)  # fmt: skip
    hidden = [p.name for w in facts.weights if w.codec.coded for p in w.parts[1:]
              if p.dtype == "U8" and p.name.endswith("_scale_inv")]  # fmt: skip
    if hidden and block != [1, 32]:
        yield Wrong(f"{listed(hidden)}: exponents in U8, which engines read as numbers", False)


def router_bias(facts: Facts) -> Iterator[Wrong]:
    """Chosen experts hang on its last bits."""
    for t in facts.tensors.values():
        if t.name.endswith(("e_score_correction_bias", "ffn.gate.bias")) and t.dtype != "F32":
            yield Wrong(f"tensor {shown(t.name)} is {t.dtype}, expected F32: engines keep it so")


def metadata(facts: Facts) -> Iterator[Wrong]:
    """Older transformers fail without ``{"format": "pt"}``."""
    bare = sorted(f for f, found in facts.metadata.items() if found.get("format") != "pt")
    if bare:
        yield Wrong(f"{listed(bare)}: no metadata {{'format': 'pt'}} in the header", False)


def tokenizer(facts: Facts) -> Iterator[Wrong]:
    """Loaders look for it in the same folder."""
    if not any("tokenizer" in n or n in ("vocab.json", "tekken.json") or n.endswith(".model")
               for n in facts.beside):  # fmt: skip
        yield Wrong("no tokenizer file in the folder", False)
