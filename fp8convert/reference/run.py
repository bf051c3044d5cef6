"""From a checkpoint folder to logits, a layer at a time."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..checkpoint import open_checkpoint
from ..errors import SchemeError, UsageError
from ..strictjson import brief
from .config import Config
from .source import Named
from .weights import Weights

# model_type -> module and class
ARCHITECTURES = {
    "deepseek_v3": "deepseek_v3:DeepSeekV3",
    "deepseek_v32": "deepseek_v32:DeepSeekV32",
    "deepseek_v4": "deepseek_v4:DeepSeekV4",
    "kimi_k2": "deepseek_v3:DeepSeekV3",
    "llama": "dense:Dense",
    "ministral3": "dense:Dense",
    "mistral": "dense:Dense",
    "qwen2": "dense:Dense",
    "qwen3": "dense:Dense",
    "qwen3_moe": "qwen3_moe:Qwen3Moe",
}


class Model(Protocol):
    """One architecture over the weights of a checkpoint, or of one rank of it.

    The state between layers is a tensor [b, l, ...] that only the model knows the rest of.
    A model with ``mtp`` (layers that predict the token after the next) has ``predict``, too.
    """

    config: Config
    w: Weights
    layers: int
    vocabulary: int
    mtp: int

    def kind(self, n: int) -> str: ...

    def embed(self, tokens: Tensor) -> Tensor: ...

    def layer(self, n: int, x: Tensor, tokens: Tensor) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...


class Step(NamedTuple):
    """After a layer: its number, "dense" or "moe" ..., the state."""

    layer: int
    kind: str
    state: Tensor


def architecture(config: dict[str, Any]) -> str:
    """The model_type of a config that can be run; SchemeError lists those that can."""
    found = config.get("model_type")
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise SchemeError(
            f"config.json: model_type is {brief(found)}, the reference model has: "
            f"{', '.join(ARCHITECTURES)}; `fp8convert verify` checks any without running it"
        )
    return found


def build(config: dict[str, Any], weights: Weights) -> Model:
    """The model that ``config`` declares, over ``weights``. FormatError or SchemeError where the
    config asks for what the reference model does not have."""
    module, _, name = ARCHITECTURES[architecture(config)].partition(":")
    made: Model = getattr(importlib.import_module(f".{module}", __package__), name)(
        Config(config), weights
    )
    return made


def power_of_two(config: dict[str, Any]) -> bool:
    """Whether activations in FP8 have scales that are powers of two."""
    said = config.get("quantization_config")
    return isinstance(said, dict) and said.get("scale_fmt") == "ue8m0"


def open_model(path: str | os.PathLike[str], compute: str = "bf16", device: str = "cpu") -> Model:
    """The checkpoint folder ``path`` as a model on one device; a rank set is read as the whole.

    ``compute`` is one of COMPUTES, ``device`` one of DEVICES: UsageError for others, and for cuda
    where there is none. How many threads torch uses is left as it is.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    weights = Weights(Named(checkpoint), compute, device, power_of_two=power_of_two(config))
    return build(config, weights)


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """UsageError unless tokens are integers [b, l], at least one, and ids of the vocabulary."""
    if tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
        found = f"{str(tokens.dtype)[6:]} {list(tokens.shape)}"
        raise UsageError(f"tokens are {found}, expected integers [batch, length], at least one")
    bad = ((tokens < 0) | (tokens >= vocabulary)).nonzero()
    if len(bad):
        b, at = bad[0].tolist()
        raise UsageError(
            f"token {int(tokens[b, at])} (sequence {b}, position {at}) is out of range: "
            f"vocab_size is {vocabulary}"
        )


def check_layers(layers: Sequence[int], count: int) -> None:
    """UsageError unless each is the number of one of ``count`` layers."""
    if bad := [n for n in layers if not 0 <= n < count]:
        raise UsageError(f"layer {bad[0]} is out of range: the model has 0 to {count - 1}")


@torch.no_grad()
def steps(model: Model, tokens: Tensor, layers: Sequence[int] | None = None) -> Iterator[Step]:
    """The state after each layer, in order; with ``layers`` after these, which alone are run.

    UsageError if a token or a layer is out of range.
    """
    check_tokens(tokens, model.vocabulary)
    check_layers(layers or (), model.layers)
    tokens = tokens.to(model.w.device)
    x = model.embed(tokens)
    for n in range(model.layers) if layers is None else layers:
        x = model.layer(n, x, tokens)
        yield Step(n, model.kind(n), x)


@torch.no_grad()
def logits_of(model: Model, tokens: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """Logits [b, l, v], float32, of tokens [b, l]. Errors as :func:`steps`."""
    x = None
    for step in steps(model, tokens, layers):
        x = step.state
    if x is None:
        raise UsageError("no layer to run, expected at least one")
    return model.logits(x)
