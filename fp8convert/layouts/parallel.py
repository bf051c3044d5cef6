"""The cuts of rank layout ``hf``: Hugging Face's names, weights cut by the tables of families."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from ..declared import Config, mapping
from ..errors import SchemeError, shown
from ..strictjson import brief
from .base import RankLayout
from .families import FAMILIES, HEADS
from .rules import BEYOND, IN, OUT, Family, Table, Unit
from .shares import WHOLE, Share

OWNER = "owner"  # how routed experts are divided: each is whole on one rank
TEXT = "text_config"
# The text part of a model may be all of it, or one of several.
ALONE = r"(?:model\.)?"
AMONG = r"(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)?"
REST = r"(?:(?P<kind>layers|mtp)\.(?P<n>[0-9]{1,6})\.)?(?P<path>.+)"
NAMES = tuple(re.compile(text + REST, re.DOTALL) for text in (ALONE, AMONG))
OTHERS = {  # the other parts, and what joins them to the text
    "vision_tower", "vision_model", "visual", "vision_encoder", "vision_adapter",
    "vision_language_adapter", "audio_tower", "audio_model", "audio_encoder",
    "multi_modal_projector", "mm_projector", "audio_projector", "patch_merger",
}  # fmt: skip
# Another field that says the same, or says it where there is none.
ALIASES = {
    "n_routed_experts": ("num_local_experts", "num_experts"),
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "num_key_value_heads": ("num_attention_heads",),
}
HEAD_DIM, HIDDEN = "head_dim", "hidden_size"
ANY = "*"  # the number of an expert, in the tables


def fields(config: Config) -> Config:
    """The fields of the text model: those of ``text_config`` before those beside it."""
    inner = {k: v for k, v in mapping(config.get(TEXT)).items() if v is not None}
    return {**config, **inner}


@dataclass(frozen=True, eq=False)
class Parallel(RankLayout):
    """How a model's weights are cut. ``wrapped``: it has parts other than text, which are whole."""

    config: Config
    family: Family
    owned: bool
    layers: int
    wrapped: bool = False
    _found: dict[tuple[str, str, tuple[int, ...]], Share | None] = field(default_factory=dict)
    _experts: dict[int, Share] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, experts: str) -> Parallel:
        """By ``model_type``; ``experts`` is ``owner`` or ``cut``. SchemeError if it is unknown."""
        said = [place.get("model_type") for place in (config, mapping(config.get(TEXT)))]
        for wrapped, model in enumerate(said):
            if isinstance(model, str) and model in FAMILIES:
                text = fields(config)
                _, layers = _number(text, "num_hidden_layers", "MTP layers come after them")
                return cls(text, FAMILIES[model], experts == OWNER, layers, bool(wrapped))
        found = " and ".join(shown(model) for model in said if model is not None)
        raise SchemeError(
            f"config.json: model_type is {found or 'missing'}: how its weights are cut is not "
            f"known, expected one of {', '.join(FAMILIES)}"
        )

    def share(self, name: str, shape: tuple[int, ...]) -> Share | None:
        """What ranks get of a weight of that name and decoded shape; None if it is not known.

        SchemeError where the shape and the config disagree.
        """
        place, path, expert = self._place(name)
        key = place, path, shape
        if key in self._found:
            found = self._found[key]
        else:
            found = self._found[key] = self._share(name, place, path, shape)
        if found is None or found.expert is None:
            return found
        return self._experts.get(expert) or self._expert(name, expert)

    def adds(self, name: str) -> bool:
        """Whether ranks that all have it must add it once only, to the sum of what they compute."""
        place, path, _ = self._place(name)
        rule = self._table(place).get(path)
        return rule is not None and rule.adds and not self._is_owned(path)

    def _place(self, name: str) -> tuple[str, str, int]:
        """Which table, the name in there, and the number of the expert (or -1)."""
        found = NAMES[self.wrapped].fullmatch(name)
        if found is None or ANY in name:
            return OUT, name, -1
        kind, number, path = found.groups()
        if kind is None:
            return OUT, path, -1
        if kind == IN and int(number) >= self.layers:
            kind = BEYOND
        module = self.family.experts
        if module and path.startswith(module):
            number, dot, rest = path[len(module) + 1 :].partition(".")
            if dot and number.isascii() and number.isdigit() and len(number) < 7:
                return kind, f"{module}.{ANY}.{rest}", int(number)
        return kind, path, -1

    def _table(self, place: str) -> Table:
        return self.family.tables.get(place, {})

    def _is_owned(self, path: str) -> bool:
        module = self.family.experts
        return self.owned and bool(module) and path.startswith(f"{module}.")

    def _is_one(self, path: str) -> bool:
        """Whether it is of one expert that is not cut."""
        return self._is_owned(path) and path.startswith(f"{self.family.experts}.{ANY}.")

    def _share(self, name: str, place: str, path: str, shape: tuple[int, ...]) -> Share | None:
        """The same for all names of that kind and shape: an expert is the first."""
        rule = self._table(place).get(path)
        if rule is None and not self._is_scalar(place, path, shape):
            return WHOLE if self._is_other(place, path) else None
        if self._is_one(path):
            return Share(expert=0)
        if rule is not None and self._is_owned(path):  # a stack of them
            return self._cut(name, shape, 0, self.family.each)
        unit = rule and rule.unit
        return self._cut(name, shape, rule.axis, unit) if rule and unit else WHOLE

    def _is_scalar(self, place: str, path: str, shape: tuple[int, ...]) -> bool:
        """One number in a module that is known: the scale of an activation or of the KV cache."""
        module = path.rpartition(".")[0]
        known = any(listed.startswith(f"{module}.") for listed in self._table(place))
        return bool(module) and known and math.prod(shape) <= 1

    def _is_other(self, place: str, path: str) -> bool:
        return self.wrapped and place == OUT and path.partition(".")[0] in OTHERS

    def _cut(self, name: str, shape: tuple[int, ...], axis: int, unit: Unit) -> Share:
        why = f"tensor {shown(name)} {list(shape)} is cut by it"
        of, count = _number(self.config, unit.of, why)
        said = {of: count}
        if unit.times:
            said |= [_number(self.config, unit.times, why)]
        units = math.prod(said.values())
        long = dict(self._length(part, why) for part in unit.long)
        size = units * (sum(long.values()) or unit.width)
        if axis >= len(shape) or shape[axis] != size:
            facts = ", ".join(f"{field} is {n}" for field, n in (said | long).items())
            raise SchemeError(
                f"tensor {shown(name)} is {list(shape)}, expected {size} along axis {axis}: {facts}"
            )
        return Share(axis, units, of, unit.repeat)

    def _length(self, name: str, why: str) -> tuple[str, int]:
        if name != HEAD_DIM or self.config.get(name) is not None:
            return _number(self.config, name, why)
        hidden, heads = (_number(self.config, of, why) for of in (HIDDEN, HEADS.of))
        return f"{HIDDEN} / {heads[0]}", hidden[1] // heads[1]

    def _expert(self, name: str, expert: int) -> Share:
        of, count = _number(self.config, self.family.each.of, f"{shown(name)} is one of them")
        if expert >= count:
            raise SchemeError(f"tensor {shown(name)}: expected an expert below {of}, {count}")
        return self._experts.setdefault(expert, Share(None, count, of, expert=expert))


def _number(config: Config, name: str, why: str) -> tuple[str, int]:
    """The field that has it, and the number; SchemeError if there is none."""
    for said in (name, *ALIASES.get(name, ())):
        if (value := config.get(said)) is None:
            continue
        if type(value) is not int or value <= 0:
            raise SchemeError(
                f"config.json: {said} is {brief(value)}, expected a positive integer: {why}"
            )
        return said, value
    raise SchemeError(f"config.json has no {name}: {why}")
