"""One file per scheme. A new one is a module here with a ``Scheme`` subclass: it registers itself.

See :mod:`.base` for the contract.
"""

from __future__ import annotations

import importlib
import pkgutil

from ..declared import Declared
from ..errors import SchemeError
from ..strictjson import brief
from .base import Scheme
from .weight import Tensors


def known() -> tuple[type[Scheme], ...]:
    """Every scheme in this package, by module name."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return tuple(s for s in Scheme.__subclasses__() if s.__module__.rpartition(".")[0] == __name__)


def detect(declared: Declared, tensors: Tensors) -> Scheme:
    """The scheme that is declared and that ``tensors`` follow; SchemeError if none is known."""
    answers = [scheme.recognise(declared, tensors) for scheme in known()]
    for answer in answers:
        if isinstance(answer, Scheme):
            _agree(answer, declared, tensors)
            return answer
    reasons = [a for a in answers if isinstance(a, str)]
    if not reasons:
        reasons = [
            f"{declared.where}.quant_method is {brief(declared.method)}; known: "
            + "; ".join(scheme.declared_as for scheme in known())
        ]
    raise SchemeError("\n".join(reasons))


def _agree(scheme: Scheme, declared: Declared, tensors: Tensors) -> None:
    """Refuse a second declaration of the same kind that says something else than the first."""
    for other in declared.others:
        answer = type(scheme).recognise(other, tensors)
        if isinstance(answer, Scheme) and answer.to_dict() != scheme.to_dict():
            raise SchemeError(
                f"{declared.where} and {other.where} disagree: "
                f"{brief(scheme.to_dict())}, {brief(answer.to_dict())}"
            )
