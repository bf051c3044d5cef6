"""What a checkpoint says of its codes: the config, and the files that stand in for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

# Files beside config.json that declare instead of it, and the field that holds the declaration.
SIDECARS = {"hf_quant_config.json": "quantization", "quantize_config.json": None}


@dataclass(frozen=True)
class Declared:
    """``quantization`` is the declaration, or None; ``where`` names its place for messages.

    ``ranks`` is the number of tensor-parallel ranks whose files were joined, 0 if there were none.
    """

    config: Config = field(default_factory=dict)
    quantization: Config | None = None
    where: str = "config.json: quantization_config"
    ranks: int = 0

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


def declared(config: Config, sidecars: dict[str, Config], ranks: int = 0) -> Declared:
    """The declaration in ``config``, at top level or in ``text_config``, or else in a sidecar."""
    for path, place in (("", config), ("text_config.", config.get("text_config"))):
        if (found := mapping(place).get("quantization_config")) is not None:
            found = found if isinstance(found, dict) else {"quant_method": found}
            return Declared(config, found, f"config.json: {path}quantization_config", ranks)
    for name, inside in SIDECARS.items():
        found = sidecars.get(name, {}).get(inside) if inside else sidecars.get(name)
        if isinstance(found, dict):
            producer = sidecars[name].get("producer")
            more = {} if producer is None else {"producer": producer}
            return Declared(config, {**found, **more}, f"{name}: {inside or 'top level'}", ranks)
    return Declared(config, ranks=ranks)
