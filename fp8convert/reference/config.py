"""Fields of config.json that a model needs, each of its type; an error names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..strictjson import brief

_MISSING = object()
_MOST, _LEAST = 2.0**53, 2.0**-126  # JSON has 1e999, and integers of any length
_MOST_LAYERS = 100_000  # lists have an entry for each: a config may say any number


class Config:
    """config.json, or an object inside it; ``where`` names it in messages."""

    def __init__(self, found: Mapping[str, Any], where: str = "config.json") -> None:
        self.found, self.where = found, where

    def integer(self, field: str, default: Any = _MISSING, least: int = 0) -> int:
        """A whole number; ``default`` where the field is absent or null. FormatError otherwise."""
        value: int = self._get(field, (int,), default, f"an integer of at least {least}", least)
        return value

    def layers(self) -> int:
        """``num_hidden_layers``."""
        count = self.integer("num_hidden_layers", least=1)
        if count > _MOST_LAYERS:
            raise FormatError(
                f"{self.where}: num_hidden_layers is {count}, expected at most {_MOST_LAYERS:,}"
            )
        return count

    def number(self, field: str, default: Any = _MISSING) -> float:
        """A number, as :meth:`integer`."""
        return float(self._get(field, (int, float), default, "a number", -_MOST))

    def positive(self, field: str, default: Any = _MISSING) -> float:
        """A number above 0, as :meth:`integer`."""
        return float(self._get(field, (int, float), default, "a number above 0", _LEAST))

    def flag(self, field: str, default: Any = _MISSING) -> bool:
        """True or false, as :meth:`integer`."""
        value: bool = self._get(field, (bool,), default, "true or false")
        return value

    def text(self, field: str, default: Any = _MISSING) -> str:
        """A string, as :meth:`integer`."""
        value: str = self._get(field, (str,), default, "a string")
        return value

    def items(self, field: str, default: Any = _MISSING) -> list[Any]:
        """A list, as :meth:`integer`."""
        value: list[Any] = self._get(field, (list,), default, "a list")
        return value

    def within(self, field: str) -> Config | None:
        """The object in ``field``, if there is one."""
        value = self._get(field, (dict,), None, "an object")
        return None if value is None else Config(value, f"{self.where}: {field}")

    def only(self, field: str, *allowed: Any) -> None:
        """FormatError unless ``field`` is absent, null, or one of ``allowed``."""
        value = self.found.get(field)
        if value is not None and value not in allowed:
            known = ", ".join(brief(a) for a in allowed) or "no such field"
            raise FormatError(f"{self.where}: {field} is {brief(value)}, supported: {known}")

    def _get(
        self, field: str, kinds: tuple[type, ...], default: Any, expected: str, least: float = 0
    ) -> Any:
        value = self.found.get(field)
        if value is None and default is not _MISSING:
            return default
        fits = type(value) in kinds  # True is an int, too
        if not fits or (isinstance(value, (int, float)) and not least <= value <= _MOST):
            found = "missing" if value is None else brief(value)
            raise FormatError(f"{self.where}: {field} is {found}, expected {expected}")
        return value
