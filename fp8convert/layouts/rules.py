"""What the tables of :mod:`.families` are made of: rules by which a tensor is cut or is whole."""

from __future__ import annotations

from typing import NamedTuple

# Places: outside of layers, in one, in one that comes after the model's own, in one called ``mtp``.
OUT, IN, BEYOND, MTP = "", "layers", "beyond", "mtp"


class Unit(NamedTuple):
    """What an axis is divided into: as many as the config's ``of`` says, times ``times`` of it.

    Each is ``width`` elements, or as many as the fields ``long`` have together. ``repeat``: there
    may be more ranks than units.
    """

    of: str
    long: tuple[str, ...] = ()
    width: int = 1
    times: str = ""
    repeat: bool = False


class Rule(NamedTuple):
    """The axis that is cut, of the decoded weight, and its units; without them the weight is whole.

    ``adds``: it is added to a sum over ranks, so only one of them may add it.
    """

    axis: int = 0
    unit: Unit | None = None
    adds: bool = False


Table = dict[str, Rule]


def cut(axis: int, unit: Unit, *names: str) -> Table:
    """Tensors that are cut."""
    return {name: Rule(axis, unit) for name in names}


def whole(*names: str) -> Table:
    """Tensors that every rank has."""
    return {name: Rule() for name in names}


def columns(unit: Unit, *linears: str) -> Table:
    """Linears whose outputs are cut."""
    return {f"{m}.{leaf}": Rule(0, unit) for m in linears for leaf in ("weight", "bias")}


def rows(unit: Unit, *linears: str) -> Table:
    """Linears whose inputs are cut: the sum of the ranks' outputs is the output."""
    weights = {f"{m}.weight": Rule(1, unit) for m in linears}
    return weights | {f"{m}.bias": Rule(adds=True) for m in linears}


def replicated(*linears: str) -> Table:
    """Linears that every rank has."""
    return whole(*(f"{m}.{leaf}" for m in linears for leaf in ("weight", "bias")))


def norms(*modules: str) -> Table:
    """Weights of norms, of all channels or of one head."""
    return whole(*(f"{m}.weight" for m in modules))


def within(module: str, *tables: Table) -> Table:
    """``tables`` of what is in a module."""
    return {f"{module}.{name}": rule for table in tables for name, rule in table.items()}


def mlp(unit: Unit, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Table:
    """The three linears of a gated MLP, which is ``unit`` wide."""
    return columns(unit, gate, up) | rows(unit, down)


class Family(NamedTuple):
    """The tables of an architecture by the place of a tensor, one of OUT, IN, BEYOND and MTP.

    ``experts`` is the module of the routed experts, and ``each`` counts them.
    """

    tables: dict[str, Table]
    experts: str = ""
    each: Unit = Unit("")
