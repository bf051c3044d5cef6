"""What a checkpoint says of its codes: the config, and the files that stand in for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import shown

Config = dict[str, Any]
KEY = "quantization_config"
DEPTH = 3  # objects named ...config within each other, as models of several parts have them

# Files beside config.json that declare instead of it, and the field that holds the declaration.
SIDECARS = {"hf_quant_config.json": "quantization", "quantize_config.json": None}


@dataclass(frozen=True)
class Declared:
    """``quantization`` is the declaration, or None; ``where`` names its place for messages.

    ``ranks`` is the number of tensor-parallel ranks whose files were joined, 0 if there were none.
    ``others`` are further declarations of the same checkpoint.
    """

    config: Config = field(default_factory=dict)
    quantization: Config | None = None
    where: str = "config.json: quantization_config"
    ranks: int = 0
    others: tuple[Declared, ...] = ()

    @property
    def method(self) -> Any:
        """``quant_method``, whatever it holds."""
        return (self.quantization or {}).get("quant_method")

    def places(self) -> Iterator[tuple[str, Config]]:
        """Every object that may speak of the codes, and its path for a message."""
        yield "config.json: ", self.config
        yield "config.json: text_config.", mapping(self.config.get("text_config"))
        if self.quantization is not None:
            yield f"{self.where}.", self.quantization


def mapping(value: Any) -> Config:
    """``value`` if it is an object, else an empty one: a config may hold anything."""
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> tuple[str, ...]:
    """The strings of ``value`` if it is a list."""
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()


EXPERT_FIELDS = ("n_routed_experts", "num_experts", "num_local_experts")


def experts_in(config: Config) -> tuple[str, int]:
    """How many routed experts a layer has, and the field that says so; ("", 0) if none does."""
    for place in (mapping(config.get("text_config")), config):
        for field_ in EXPERT_FIELDS:
            if type(found := place.get(field_)) is int and found > 0:
                return field_, found
    return "", 0


def layers_of(config: Config) -> int | None:
    """``num_hidden_layers``, of the model or its text part."""
    for place in (config, mapping(config.get("text_config"))):
        if type(found := place.get("num_hidden_layers")) is int:
            return found
    return None


def declared(config: Config, sidecars: dict[str, Config], ranks: int = 0) -> Declared:
    """The declaration in ``config``, at any depth a model of several parts has, or in a sidecar.

    If there are several, the first; the others are kept to be held against it.
    """
    found = list(_inside(config, "", DEPTH))
    for name, inside in SIDECARS.items():
        said = sidecars.get(name, {}).get(inside) if inside else sidecars.get(name)
        if isinstance(said, dict):
            producer = sidecars[name].get("producer")
            more = {} if producer is None else {"producer": producer}
            found.append((f"{name}: {inside or 'top level'}", {**said, **more}))
    if not found:
        return Declared(config, ranks=ranks)
    (where, first), *others = found
    rest = tuple(Declared(config, q, w, ranks) for w, q in others)
    return Declared(config, first, where, ranks, rest)


def _inside(place: Config, path: str, depth: int) -> Iterator[tuple[str, Config]]:
    said = place.get(KEY)
    if said is not None:
        yield f"config.json: {path}{KEY}", mapping(said) or {"quant_method": said}
    for key, value in place.items():
        if depth and key != KEY and isinstance(value, dict) and key.endswith("config"):
            yield from _inside(value, f"{path}{shown(key)[1:-1]}.", depth - 1)
