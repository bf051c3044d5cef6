"""Made-up AWQ and GPTQ checkpoints: true layouts and shapes of a 70B model's layers, random codes.

Written straight with NumPy as AutoAWQ and GPTQModel store a layer, so that the sizes of the runs
that a tile gathers are real. About 1.3 GB once decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fp8convert import header

from .common import Env
from .inputs import METADATA, Tensor, begin, kept

GROUP, PER = 128, 8  # inputs that share a scale; codes in a word
LAYERS = {"q_proj": (8192, 8192), "up_proj": (8192, 28672), "down_proj": (28672, 8192)}  # in, out
TABLE: Tensor = ("model.embed_tokens.weight", "BF16", (16384, 8192))
NUMPY = {"I32": np.int32, "F16": np.float16, "BF16": np.uint16}
STEP = 1 << 22  # numbers drawn at a time
Array = NDArray[Any]


class Form(NamedTuple):
    """One of the two formats; ``shuffled``: inputs are reordered by activation."""

    name: str
    awq: bool
    shuffled: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """A config.json as the format's own tool writes it."""
        found: dict[str, Any] = {"bits": 4, "group_size": GROUP}
        if self.awq:
            found |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
        else:
            found |= {"quant_method": "gptq", "checkpoint_format": "gptq", "sym": True}
            found["desc_act"] = self.shuffled
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 8192,
            "model_type": "llama",
            "quantization_config": found,
            "torch_dtype": "float16",
        }

    def layer(self, module: str, inputs: int, outputs: int) -> Iterator[Tensor]:
        """The tensors of one linear layer, the widest elements first."""
        packed = (inputs, outputs // PER) if self.awq else (inputs // PER, outputs)
        yield f"{module}.qweight", "I32", packed
        yield f"{module}.qzeros", "I32", (inputs // GROUP, outputs // PER)
        if not self.awq:
            yield f"{module}.g_idx", "I32", (inputs,)
        yield f"{module}.scales", "F16", (inputs // GROUP, outputs)


FORMS = (Form("awq", True), Form("gptq", False), Form("gptq-shuffled", False, True))


def checkpoint(env: Env, form: Form) -> Path:
    """The checkpoint in that form."""
    return kept(env, f"{form.name}-layer", lambda to: _write(to, form))


def _write(to: Path, form: Form) -> None:
    cut = [list(form.layer(f"model.layers.0.{name}", *size)) for name, size in LAYERS.items()]
    cut[0].append(TABLE)
    source = np.random.default_rng(0)
    for name, tensors in zip(begin(to, cut, form.config), cut, strict=True):
        with (to / name).open("wb") as file:
            file.write(header.build(tensors, METADATA))
            for tensor in tensors:
                for piece in _values(tensor, form, source):
                    file.write(piece.data)


def _values(tensor: Tensor, form: Form, source: np.random.Generator) -> Iterator[Array]:
    name, dtype, shape = tensor
    count, leaf = header.numel(shape), name.rpartition(".")[2]
    if leaf == "g_idx":
        groups = np.arange(count, dtype=np.int32) // np.int32(GROUP)
        yield source.permutation(groups) if form.shuffled else groups
        return
    draw: dict[str, Callable[[int], Array]] = {
        "qzeros": lambda n: source.integers(0, 1 << 32, n, np.uint32),
        "scales": lambda n: source.uniform(1e-3, 1e-2, n),
        "weight": lambda n: source.integers(0x3A00, 0x3F00, n, np.uint16),
    }
    draw["qweight"] = draw["qzeros"]
    if leaf == "qzeros" and not form.awq:
        draw["qzeros"] = lambda n: np.full(n, 0x77777777)  # symmetric: 8, stored less one
    for at in range(0, count, STEP):
        found = draw[leaf](min(STEP, count - at))
        kind = NUMPY[dtype]
        yield found.view(kind) if found.dtype == np.uint32 else found.astype(kind)
