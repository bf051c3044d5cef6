"""Models that transformers makes at random and runs: what the reference models must equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fp8convert.reference.run import Model, steps

from ..sharded.tiny import BASE

Config = dict[str, Any]
LENGTH = 9


class Run(NamedTuple):
    """Hidden states [b, l, h] after each layer but the last, and logits [b, l, v]; float32."""

    hidden: list[Tensor]
    logits: Tensor


def write(folder: Path, model: str, seed: int = 5, bf16: bool = False, **fields: Any) -> Path:
    """A tiny model with these fields in its config. Every weight is drawn anew: none is 0 or 1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model, **{**BASE, **fields})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, *((0.0, 0.2) if parameter.dim() > 1 else (0.5, 0.3)))
    made.to(torch.bfloat16 if bf16 else torch.float32).save_pretrained(folder)
    return folder


def config_of(folder: Path) -> Config:
    """config.json."""
    found: Config = json.loads((folder / "config.json").read_text())
    return found


def change(folder: Path, **fields: Any) -> Path:
    """Other values in config.json; None takes a field away."""
    new = {k: v for k, v in {**config_of(folder), **fields}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(new))
    return folder


def published(folder: Path) -> Path:
    """config.json in the form that was published before transformers 5."""
    said = dict(config_of(folder)["rope_parameters"])
    theta = said.pop("rope_theta")
    scaling = said if said.get("rope_type", "default") != "default" else None
    return change(folder, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)


def tokens(seed: int = 1, length: int = LENGTH) -> Tensor:
    """Ids [2, l] of the tiny vocabulary."""
    return torch.randint(
        0, BASE["vocab_size"], (2, length), generator=torch.Generator().manual_seed(seed)
    )


def theirs(folder: Path, ids: Tensor, dtype: torch.dtype = torch.float32) -> Run:
    """What transformers computes. Every weight must have found its place."""
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(said.values()), said
    with torch.no_grad():
        out = model.eval()(ids, use_cache=False, output_hidden_states=True)
    return Run([h.float() for h in out.hidden_states[1:-1]], out.logits.float())


def ours(model: Model, ids: Tensor) -> Run:
    """What the reference model computes."""
    states = [step.state for step in steps(model, ids)]
    with torch.no_grad():
        return Run([x.float() for x in states[:-1]], model.logits(states[-1]))


def relative(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())


@contextmanager
def outputs(*modules: torch.nn.Module) -> Iterator[list[Any]]:
    """What these modules give while it is open, in order."""
    found: list[Any] = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: found.append(out)) for m in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
