"""One file per scheme. A new one is a module here with a ``Scheme`` subclass: it registers itself.

See :mod:`.base` for the contract.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from ..codecs.base import Stored
from ..errors import SchemeError
from ..strictjson import brief
from .base import Config, Scheme, quantization_config


def known() -> tuple[type[Scheme], ...]:
    """Every scheme in this package, by module name."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return tuple(s for s in Scheme.__subclasses__() if s.__module__.rpartition(".")[0] == __name__)


def detect(config: Config, tensors: Mapping[str, Stored]) -> Scheme:
    """The scheme that ``config`` declares and ``tensors`` follow; SchemeError if none is known."""
    answers = [scheme.recognise(config, tensors) for scheme in known()]
    for answer in answers:
        if isinstance(answer, Scheme):
            return answer
    reasons = [a for a in answers if isinstance(a, str)]
    if not reasons:
        declared = (quantization_config(config) or {}).get("quant_method")
        reasons = [
            f"config.json: quantization_config.quant_method is {brief(declared)}; known: "
            + "; ".join(scheme.declared_as for scheme in known())
        ]
    raise SchemeError("\n".join(reasons))
