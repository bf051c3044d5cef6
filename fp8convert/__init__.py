"""Convert block-scaled checkpoints at disk speed, in bounded memory, resumably.

``to_bf16(src, dst, **options)`` and ``quantize(src, dst, scheme, **options)`` convert;
``shard_for_tp(src, dst, tp, **options)`` cuts for tensor-parallel ranks, ``unshard(src, dst)`` puts
them together; ``open_checkpoint(path)`` gives decoded arrays by name. Nothing heavy is imported
until one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import Fp8ConvertError
from .version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, TensorSpec, open_checkpoint
    from .convert import Manifest, quantize, shard_for_tp, to_bf16, unshard
    from .origin import Scratch

_HOMES = {
    "Checkpoint": "checkpoint",
    "Manifest": "convert",
    "Scratch": "origin",
    "TensorSpec": "checkpoint",
    "open_checkpoint": "checkpoint",
    "quantize": "convert",
    "shard_for_tp": "convert",
    "to_bf16": "convert",
    "unshard": "convert",
}

__all__ = [
    "Checkpoint",
    "Fp8ConvertError",
    "Manifest",
    "Scratch",
    "TensorSpec",
    "__version__",
    "open_checkpoint",
    "quantize",
    "shard_for_tp",
    "to_bf16",
    "unshard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
