"""Fields of config.json that a model needs, each of its type; rotary settings in either form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..strictjson import brief

_MISSING = object()


class Config:
    """config.json, or an object inside it; ``where`` names it in messages."""

    def __init__(self, found: Mapping[str, Any], where: str = "config.json") -> None:
        self.found, self.where = found, where

    def integer(self, field: str, default: Any = _MISSING) -> int:
        """A whole number; ``default`` where the field is absent or null. FormatError otherwise."""
        value: int = self._get(field, (int,), default, "an integer")
        return value

    def number(self, field: str, default: Any = _MISSING) -> float:
        """A number, as :meth:`integer`."""
        return float(self._get(field, (int, float), default, "a number"))

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
            known = ", ".join(brief(a) for a in allowed)
            raise FormatError(f"{self.where}: {field} is {brief(value)}, supported: {known}")

    def _get(self, field: str, kinds: tuple[type, ...], default: Any, expected: str) -> Any:
        value = self.found.get(field)
        if value is None and default is not _MISSING:
            return default
        if type(value) not in kinds:
            raise FormatError(f"{self.where}: {field} is {brief(value)}, expected {expected}")
        return value
