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
    return tuple(Scheme.__subclasses__())


def detect(config: Config, tensors: Mapping[str, Stored]) -> Scheme:
    """The scheme that ``config`` declares and ``tensors`` follow; SchemeError if none is known."""
    for scheme in known():
        found = scheme.recognise(config, tensors)
        if found is not None:
            return found
    declared = (quantization_config(config) or {}).get("quant_method")
    raise SchemeError(
        f"config.json: quantization_config.quant_method is {brief(declared)}; known: fp8 "
        "(with weight_block_size), or no quantization_config at all"
    )
