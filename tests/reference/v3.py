"""Tiny random DeepSeek-V3 and V3.2 models on disk, and transformers' view of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, DeepseekV32ForCausalLM
from transformers.modeling_layers import MtpLayer

from fp8convert.checkpoint import open_checkpoint
from fp8convert.layouts.parallel import Parallel
from fp8convert.reference.groups import Threads
from fp8convert.reference.run import build, steps
from fp8convert.reference.source import Named
from fp8convert.reference.weights import Weights

from ..checkpoints import write
from .hf import outputs

YARN: dict[str, Any] = {
    "beta_fast": 4,
    "beta_slow": 1,
    "factor": 8,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,  # not mscale: cos and sin have a factor, too
    "original_max_position_embeddings": 16,
    "type": "yarn",
}
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 40,
    "kv_lora_rank": 20,
    "max_position_embeddings": 128,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 24,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-3,  # not that of the norms inside attention
    "rope_scaling": YARN,
    "rope_theta": 1000,
    "routed_scaling_factor": 1.7,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "float32",
    "v_head_dim": 14,
    "vocab_size": 96,
}
V32 = V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 16,
    "index_n_heads": 8,
    "index_topk": 6,
    "model_type": "deepseek_v32",
}
CLASSES = {
    "deepseek_v3": DeepseekV3ForCausalLM,
    "deepseek_v32": DeepseekV32ForCausalLM,
    "kimi_k2": DeepseekV3ForCausalLM,
}
TOKENS = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """A checkpoint in the published form, its tensors, and transformers' model of it in float32."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    oracle: Any
    beyond: Any  # transformers' decoder layer with the weights of the MTP layer


def case(
    folder: Path,
    config: dict[str, Any],
    seed: int = 0,
    change: Callable[[str, Tensor], Tensor] = lambda _, t: t,
) -> Case:
    """Made by transformers as a model of one layer more, which the MTP layer is."""
    torch.manual_seed(seed)
    made = _empty(config, config["num_hidden_layers"] + config["num_nextn_predict_layers"])
    with torch.no_grad():
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            if "inv_freq" not in name:
                tensor.copy_(change(name, _random(name, tensor)))
    made.save_pretrained(folder / "made")
    tensors = load_file(folder / "made" / "model.safetensors")
    if config["num_nextn_predict_layers"]:
        tensors |= {k: change(k, _random(k, t)) for k, t in _joining(config).items()}
    write(folder / "published", [tensors], config)
    beyond = made.model.layers[-1] if config["num_nextn_predict_layers"] else None
    return Case(folder / "published", config, tensors, transformers(folder / "published"), beyond)


def transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What transformers loads, with its own code in every part."""
    fields = json.loads((folder / "config.json").read_text())
    fields.pop("quantization_config", None)
    made = CLASSES[fields.pop("model_type")]
    model, said = made.from_pretrained(
        folder, config=made.config_class(**fields), dtype=dtype, attn_implementation="eager",
        experts_implementation="eager", output_loading_info=True,
    )  # fmt: skip
    assert not said["missing_keys"]
    assert not said["mismatched_keys"]
    mtp = f"model.layers.{fields['num_hidden_layers']}."
    assert all(key.startswith(mtp) for key in said["unexpected_keys"])
    return model.eval()


def opened(case: Case, compute: str = "fp32", without: str = "$^", **fields: Any) -> Any:
    """Our model of it with these fields, without weights whose names match a pattern."""
    source = Hiding(open_checkpoint(case.folder), without)
    return build(case.config | fields, Weights(source, compute))


def absorbed(model: Any) -> Any:
    """The same model in the other form of attention."""
    return type(model)(model.config, model.w, absorbed=True)


class Hiding(Named):
    """A checkpoint that lacks the weights whose names match a pattern."""

    def __init__(self, checkpoint: Any, without: str) -> None:
        super().__init__(checkpoint)
        self.without = without

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) and not re.search(self.without, name)


class Memory:
    """Tensors as a source of weights. See weights.Source."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def coded(self, name: str) -> bool:
        return False

    def read(self, name: str, rows: slice | None = None) -> Any:
        return self.tensors[name][rows if rows is not None else ...].numpy()

    def blocks(self, name: str, rows: slice) -> None:
        return None


@torch.no_grad()
def expected(model: Any, tokens: Tensor = TOKENS) -> list[Tensor]:
    """transformers' state after every layer, and its logits."""
    with outputs(*model.model.layers) as states:
        logits = model(tokens, use_cache=False).logits
    return [*states, logits]


@torch.no_grad()
def given(model: Any, tokens: Tensor = TOKENS) -> list[Tensor]:
    """Our state after every layer, and logits; with an MTP layer its state and logits, too."""
    states = [step.state for step in steps(model, tokens)]
    found = [*states, model.logits(states[-1])]
    return found + list(model.predict(states[-1], tokens)) if model.mtp else found


@torch.no_grad()
def expected_mtp(case: Case, tokens: Tensor = TOKENS) -> list[Tensor]:
    """transformers' state after the MTP layer, and its logits: its own MtpLayer, our loading."""
    model, at = case.oracle, f"model.layers.{case.config['num_hidden_layers']}."
    layer = MtpLayer(model.config, type(case.beyond), type(model.model.norm), 0)
    layer.mtp_block = case.beyond
    for module, name in ((layer.enorm, "enorm"), (layer.hnorm, "hnorm"), (layer.eh_proj, "eh_proj"),
                         (layer.post_norm, "shared_head.norm")):  # fmt: skip
        module.weight.copy_(case.tensors[f"{at}{name}.weight"])
    last = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
    following = model.model.embed_tokens(tokens[:, 1:])
    length = following.shape[1]
    places = torch.arange(1, length + 1)[None]  # those of the tokens it reads; ours begin at 0
    with outputs(case.beyond) as states:
        normed = layer(
            following,
            last,
            position_embeddings=model.model.rotary_emb(following, places),
            attention_mask=_causal(length),
            position_ids=places,
            cache=None,
        )
    return [states[0], model.lm_head(normed)]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, by the norm of what is wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def rank_tensors(case: Case, rank: int, ranks: int, experts: str) -> dict[str, Tensor]:
    """What one rank has, by the rules that cut rank files (checked elsewhere), biases whole."""
    layout = Parallel.of(case.config, experts)
    mine: dict[str, Tensor] = {}
    for name, tensor in case.tensors.items():
        share = layout.share(name, tuple(tensor.shape))
        assert share is not None
        if share.expert is not None:
            if share.expert * ranks // case.config["n_routed_experts"] == rank:
                mine[name] = tensor
            continue
        axis = share.axis or 0
        cut = share.range(tensor.shape[axis], rank, ranks)
        assert cut is not None
        mine[name] = tensor.narrow(axis, cut[0], cut[1] - cut[0]).contiguous()
    return mine


def on_ranks(
    case: Case, parts: list[dict[str, Tensor]], compute: str = "fp32"
) -> list[list[Tensor]]:
    """What :func:`given` gives on every rank."""
    group = Threads(len(parts))

    def one(rank: int) -> list[Tensor]:
        weights = Weights(Memory(parts[rank]), compute, group=group.member(rank))
        return given(build(case.config, weights))

    return group.run(one)


@torch.no_grad()
def router_scores(model: Any, tokens: Tensor = TOKENS) -> list[tuple[Any, Tensor]]:
    """transformers' routers, and their scores [t, e], with the bias."""
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    with outputs(*gates) as found:
        model(tokens, use_cache=False)
    pairs = zip(gates, found, strict=True)
    return [(gate, out[0].sigmoid() + gate.e_score_correction_bias) for gate, out in pairs]


def router_margin(scored: list[tuple[Any, Tensor]]) -> float:
    """How far all scores may move before another group or another expert is chosen."""
    gaps = []
    for gate, scores in scored:
        groups = scores.view(len(scores), gate.num_group, -1)
        by_group = groups.topk(2).values.sum(-1)
        if gate.topk_group < gate.num_group:
            gaps.append(_gap(by_group, gate.topk_group) / 4)  # two sums of two scores
        kept = by_group >= by_group.topk(gate.topk_group).values[:, -1:]
        within = groups.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        gaps.append(_gap(within, gate.top_k) / 2)
    return min(gaps)


@torch.no_grad()
def index_scores(run: Callable[[Tensor], Any], tokens: Tensor = TOKENS) -> list[Tensor]:
    """What [b, l, l] a run, of transformers' V3.2 or of ours, has its best taken of, by layer."""
    found: list[Tensor] = []
    real, length = torch.Tensor.topk, tokens.shape[1]

    def topk(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.shape[1:] == (length, length):
            found.append(self)
        return real(self, *args, **kwargs)

    with patch.object(torch.Tensor, "topk", topk):
        run(tokens)
    return found


def index_safety(scores: list[Tensor], rounded: list[Tensor], best: int) -> float:
    """By how much what is chosen is further from what is not, than rounding moves scores: of the
    queries that see more than ``best`` tokens that for which it is least."""
    found = []
    for exact, other in zip(scores, rounded, strict=True):
        for t in range(best, exact.shape[1]):
            noise = (other[:, t, : t + 1] - exact[:, t, : t + 1]).abs().max()
            found.append(float(_gap(exact[:, t, : t + 1], best) / (2 * noise)))
    return min(found)


def _gap(scores: Tensor, best: int) -> float:
    """Of the last of the ``best`` from the first that is not."""
    ordered = scores.sort(-1, descending=True).values
    return float((ordered[..., best - 1] - ordered[..., best]).min())


def moved(found: list[Tensor], wanted: list[Tensor]) -> float:
    """How far a score is from what it should be, at most, where it is not masked."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b)[b > -1e30].abs().max()) for a, b in pairs)


def check(found: list[Tensor], wanted: list[Tensor], bound: float) -> None:
    """Every state and the logits are within ``bound``, relative."""
    errors = [relative(a, b) for a, b in zip(found, wanted, strict=True)]
    assert max(errors) < bound, errors


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def as_bf16(name: str, tensor: Tensor) -> Tensor:
    """Values that BF16 holds; routers that rounding moves little, their choices further apart."""
    if name.endswith("e_score_correction_bias"):
        return tensor * 6
    return (tensor / 4 if name.endswith("gate.weight") else tensor).bfloat16().float()


def _empty(config: dict[str, Any], layers: int) -> Any:
    fields = {k: v for k, v in config.items() if k not in ("model_type", "num_hidden_layers")}
    made = CLASSES[config["model_type"]]
    return made._from_config(
        made.config_class(num_hidden_layers=layers, **fields), dtype=torch.float32
    )


def _joining(config: dict[str, Any]) -> dict[str, Tensor]:
    """What an MTP layer has beside a decoder layer's; no tables of its own."""
    at, hidden = f"model.layers.{config['num_hidden_layers']}.", config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,),
        "shared_head.norm": (hidden,),
    }  # fmt: skip
    return {f"{at}{name}.weight": torch.empty(shape) for name, shape in shapes.items()}


def _random(name: str, like: Tensor) -> Tensor:
    """As large as makes it matter; nothing is 0 or 1."""
    if "norm" in name and name.endswith("weight"):
        return torch.rand(like.shape) + 0.5
    if name.endswith("bias"):
        return torch.randn(like.shape) * 0.3
    return torch.randn(like.shape) * like.shape[-1] ** -0.5 * 1.5


def _causal(length: int) -> Tensor:
    """As transformers' eager attention takes it."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)[
        None, None
    ]
