"""Ranks cut by our rules run in transformers: what their blocks compute adds up to the whole's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fp8convert.layouts.parallel import Parallel

from .sharded import tiny
from .sharded.tiny import Tensors

PER_RANK = (
    "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "moe_intermediate_size", "shared_expert_intermediate_size",
)  # fmt: skip
OVER_ALL_HEADS = ("minimax_m2",)  # whose norms of q and k need the other ranks' sums
IDS = torch.tensor([[5, 17, 2, 9, 11, 3, 8, 20]])

Call = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], torch.Tensor]


def rank_config(config: dict[str, Any], ranks: int) -> dict[str, Any]:
    """A model of one rank's size. KV heads do not become fewer than one."""
    return config | {f: max(1, config[f] // ranks) for f in PER_RANK if config.get(f)}


def rank_tensors(layout: Parallel, tensors: Tensors, rank: int, ranks: int) -> Tensors:
    """What one rank has; what is added once only is zero on all others."""
    mine: Tensors = {}
    for name, tensor in tensors.items():
        share = layout.share(name, tuple(tensor.shape))
        assert share is not None
        axis = share.axis or 0
        found = share.range(tensor.shape[axis], rank, ranks)
        assert found is not None
        mine[name] = tensor.narrow(axis, found[0], found[1] - found[0]).contiguous()
        if layout.adds(name) and rank:
            mine[name] = torch.zeros_like(mine[name])
    return mine


def load(folder: Path, config: dict[str, Any], tensors: Tensors) -> Any:
    """The model, in which every tensor must have found its place, with its shape."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model, said = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(said.values()), said
    return model.eval()


def calls(model: Any) -> list[Call]:
    """What the attention and the MLP of each layer were called with and gave, in one run."""
    found: list[Call] = []

    def note(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        found.append((module, args, kwargs, first(out)))

    for module in blocks(model):
        module.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(IDS, use_cache=False)
    assert [c[0] for c in found] == blocks(model)
    return found


def blocks(model: Any) -> list[Any]:
    layers = model.model.layers
    return [b for layer in layers for b in (layer.self_attn, layer.mlp)]


def first(out: Any) -> torch.Tensor:
    """Attention gives weights, too, and gpt-oss' MLP the router's scores."""
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("ranks", [2, 4])  # 4: more than there are KV heads
@pytest.mark.parametrize("model", tiny.MODELS)
def test_what_ranks_compute_adds_up(model: str, ranks: int, tmp_path: Path) -> None:
    config, tensors = tiny.write(model, tmp_path / "written")
    layout = Parallel.of(config, "cut")
    small = rank_config(config, ranks)
    parts = [
        load(tmp_path / f"rank{r}", small, rank_tensors(layout, tensors, r, ranks))
        for r in range(ranks)
    ]
    expected = calls(load(tmp_path / "whole", config, tensors))
    for n, (_, args, kwargs, out) in enumerate(expected):
        if model in OVER_ALL_HEADS and n % 2 == 0:
            continue
        with torch.no_grad():
            found = [first(blocks(part)[n](*args, **kwargs)) for part in parts]
        torch.testing.assert_close(sum(found), out, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0], out, rtol=1e-2, atol=1e-3)  # a part is not the whole


@pytest.mark.parametrize("model", tiny.MODELS)
def test_tables_put_together_are_the_whole(model: str, tmp_path: Path) -> None:
    config, tensors = tiny.write(model, tmp_path / "written")
    layout = Parallel.of(config, "cut")
    ranks = [rank_tensors(layout, tensors, r, 2) for r in range(2)]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert ranks[0][name].shape[0] == 48
        assert torch.equal(torch.cat([r[name] for r in ranks]), tensors[name])
