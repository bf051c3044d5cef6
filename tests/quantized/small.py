"""Small llama-like sources, as raw bytes, and what tests of a running conversion need."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fp8convert.convert import prepare
from fp8convert.errors import UsageError
from fp8convert.options import Quantize
from fp8convert.settings import Settings

from ..mini import Tensor, write_shards

MIB = 1 << 20

ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
SHAPES = {
    f"{ATTENTION}.q_proj": (512, 1024),
    f"{ATTENTION}.k_proj": (128, 1024),
    f"{ATTENTION}.v_proj": (128, 1024),
    f"{ATTENTION}.o_proj": (1000, 513),  # fits no scheme of groups
    f"{MLP}.gate_proj": (700, 1024),
    f"{MLP}.up_proj": (700, 1024),
    f"{MLP}.down_proj": (300, 736),
}
SMALL = {name: (rows // 4, columns // 4) for name, (rows, columns) in SHAPES.items()}
TAGS = {"BF16": 2, "F32": 4}


def values(name: str, dtype: str, *shape: int) -> Tensor:
    """Numbers like a weight's, the same every time."""
    rng = np.random.default_rng(len(name) * 7919 + shape[0])
    x = (rng.standard_normal(shape, np.float32) * np.float32(0.02)).view(np.uint32)
    raw = x.tobytes() if dtype == "F32" else (x >> 16).astype(np.uint16).tobytes()
    return dtype, shape, raw


def write(folder: Path, shards: list[dict[str, Tensor]]) -> Path:
    """A checkpoint of these shards."""
    config = {"model_type": "llama", "torch_dtype": "bfloat16"}
    return write_shards(folder, shards, config)


def tensors_of(shapes: dict[str, tuple[int, int]], dtype: str = "BF16") -> dict[str, Tensor]:
    made = {f"{name}.weight": values(name, dtype, *shape) for name, shape in shapes.items()}
    made["model.embed_tokens.weight"] = values("embed", dtype, 60, 128)
    made["model.norm.weight"] = values("norm", "BF16", 129)
    return made


def dealt(tensors: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Names in turn: what is fused lies in different shards."""
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[n::count]} for n in range(count)]


def make_big(folder: Path) -> Path:
    """5 MB, so that the least of memory cuts it into many tiles."""
    return write(folder, dealt(tensors_of(SHAPES), 3))


def make_small(folder: Path) -> Path:
    """300 kB."""
    return write(folder, dealt(tensors_of(SMALL), 2))


def tight(src: Path, scheme: str, way: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``way``, in the least of memory that its workers can do with."""
    if "spare" not in way:
        return way
    needs = prepare(src, src.parent / "dst", Quantize(scheme=scheme, **options)).plan.needs
    workers, spare, rest = way["workers"], way["spare"], {"io": way.get("io", "auto")}
    for mib in itertools.count(225):
        with contextlib.suppress(UsageError):
            fitted = Settings(workers=workers, memory=mib * MIB).fitted(needs)
            if fitted.threads == workers:
                return {"workers": workers, "memory": (mib + spare) * MIB, **rest}
    raise AssertionError


def in_time(work: Callable[[], object], seconds: float = 60) -> None:
    """Run ``work`` and raise what it raises; a failure, not a hang, if it does not end."""
    errors: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]
