"""Random models to cut for ranks: small dims of two architectures, blocks that cuts part or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...quantized import oracle as quantizing
from ...quantized.readers import Stored
from ...sharded import coding, oracle, rules
from ...sharded.deepseek import deepseek
from ...sharded.families import MOE, qwen_mlp
from ...sharded.forms import CHANNEL, Form, bf16, blocks, channel, fp8_config
from ...sharded.model import Builder, Source, config_of
from .checkpoints import Checkpoint, Layout, layouts
from .ways import WAYS, Way

RANKS = st.sampled_from([1, 2, 2, 3, 4, 4, 6, 8])


@dataclass(frozen=True)
class Sharding:
    """A model, how it lies in files, and how it is cut."""

    source: Source
    layout: Layout
    tp: int
    options: dict[str, Any]
    again: int  # ranks to cut it for anew
    way: Way

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        """Without the numbers."""
        dims = {k: v for k, v in self.source.config.items() if type(v) is int}
        said = self.source.config.get("quantization_config", {})
        return (f"<{self.source.id} {dims} block {said.get('weight_block_size')} tp {self.tp} "
                f"{self.options} again {self.again} {self.way}>")  # fmt: skip

    @property
    def written(self) -> Checkpoint:
        """As files are made of it."""
        return Checkpoint(self.source.id, self.source.config, self.source.tensors, self.layout)


@st.composite
def _quantizations(draw: st.DrawFn) -> tuple[Form, dict[str, Any] | None]:
    kind = draw(st.sampled_from(["blocks", "blocks", "blocks", "channel", "bf16"]))
    if kind == "channel":
        return channel, CHANNEL
    if kind == "bf16":
        return bf16, None
    block = draw(st.sampled_from([8, 16, 32, 64, 128, 128]))
    return blocks(block, draw(st.sampled_from(["F32", "BF16"]))), fp8_config(block, fmt="e4m3")


@st.composite
def qwens(draw: st.DrawFn) -> Source:
    """Qwen3-MoE: a dense layer, a layer of experts."""
    form, said = draw(_quantizations())
    kv = draw(st.sampled_from([1, 2, 3, 4]))
    c = config_of(
        "qwen3_moe", "Qwen3Moe", MOE, mlp_only_layers=[0], decoder_sparse_step=1,
        head_dim=draw(st.sampled_from([8, 16, 32])), num_key_value_heads=kv,
        num_attention_heads=kv * draw(st.sampled_from([1, 2, 4])),
        hidden_size=draw(st.sampled_from([16, 40, 72])),
        intermediate_size=draw(st.sampled_from([24, 48, 64, 96, 128])),
        moe_intermediate_size=draw(st.sampled_from([8, 24, 32, 64])),
        num_experts=draw(st.sampled_from([2, 4, 6])),
        vocab_size=draw(st.sampled_from([12, 24, 30])),
        tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip
    if said:
        c["quantization_config"] = said
    made = Builder(form)
    made.tables(c)
    for n in range(2):
        at = f"model.layers.{n}"
        made.norms(at, c["hidden_size"])
        made.attention(f"{at}.self_attn", c)
        qwen_mlp(made, f"{at}.mlp", c, routed=n > 0)
    return Source("qwen3_moe", c, made.tensors, files={})


ALIGNED = {
    "qk_nope_head_dim": [64], "qk_rope_head_dim": [64], "v_head_dim": [64, 128],
    "num_attention_heads": [4, 8], "intermediate_size": [256, 512],
    "moe_intermediate_size": [64, 128], "n_shared_experts": [4],
}  # fmt: skip
ODD = {
    "qk_nope_head_dim": [8, 24, 32], "qk_rope_head_dim": [8], "v_head_dim": [8, 32],
    "num_attention_heads": [2, 4, 6], "intermediate_size": [48, 64, 128],
    "moe_intermediate_size": [16, 24, 64], "n_shared_experts": [1, 2],
}  # fmt: skip


@st.composite
def deepseeks(draw: st.DrawFn) -> Source:
    """DeepSeek-V3: a dense layer, an MoE layer, an MTP layer."""
    form, said = draw(_quantizations().filter(lambda f: f[0] is not channel))
    dims = draw(st.sampled_from([ALIGNED, ODD]))
    made = {name: draw(st.sampled_from(some)) for name, some in dims.items()}
    source = deepseek(
        "deepseek_v3", form, said, hidden_size=draw(st.sampled_from([16, 24])), kv_lora_rank=16,
        q_lora_rank=24, n_routed_experts=draw(st.sampled_from([2, 4, 6])), n_group=1, topk_group=1,
        num_key_value_heads=made["num_attention_heads"], vocab_size=draw(st.sampled_from([12, 24])),
        **made,
    )  # fmt: skip
    return replace(source, files={})


# By the plain rule


class Refused(Exception):  # noqa: N818
    """The plain rule cannot do it either."""


def ranks_of(tensors: Stored, config: Any, ranks: int, options: dict[str, Any]) -> list[Stored]:
    """The files of every rank; Refused where a cut parts something."""
    own = {k: options[k] for k in ("mtp", "experts", "pad_vocab") if k in options}
    weights = options.get("weights", "keep")
    if weights == "fp8-block":
        tensors, config = encoded(tensors, config, options["block"])
    elif weights != "keep":
        tensors = coding.decoded(tensors, config, "BF16" if weights == "bf16" else "F32")
    try:
        if options["layout"] == "hf":
            return oracle.hf_ranks(dict(tensors), config, ranks, **own)
        return oracle.deepseek_ranks(dict(tensors), config, ranks, mtp=own["mtp"])
    except (oracle.Misaligned, rules.Unfit) as e:
        raise Refused(str(e)) from e


def encoded(tensors: Stored, config: Any, block: tuple[int, int]) -> tuple[Stored, Any]:
    """A BF16 model, its linears in FP8 by the plain rule."""
    out = dict(tensors)
    for name, stored in tensors.items():
        if name.endswith(("_proj.weight", "_mqa.weight")) and "eh_proj" not in name:
            x = np.asarray(quantizing.array(stored), np.float32)
            made = quantizing.quantized(x, "fp8-block", "BF16", block=block)
            out |= {name.removesuffix("weight") + leaf: p for leaf, p in made.items()}
    return out, {**config, "quantization_config": fp8_config(None) | {"weight_block_size": block}}


@st.composite
def shardings(draw: st.DrawFn) -> Sharding:
    """Any model in a layout that knows it, for any number of ranks, legal or not."""
    source = draw(qwens() | deepseeks())
    ranks = draw(RANKS)
    layout = "hf"
    said = source.config.get("quantization_config", {}).get("weight_block_size", [128])
    if source.id == "deepseek_v3" and said[0] == 128:  # that layout knows no other blocks
        layout = draw(st.sampled_from(["hf", "deepseek", "deepseek"]))
    options: dict[str, Any] = {"layout": layout, "mtp": draw(st.sampled_from(["keep", "drop"]))}
    if layout == "hf":
        options["experts"] = draw(st.sampled_from(["owner", "cut"]))
        options["pad_vocab"] = draw(st.sampled_from([None, None, 16, 24]))
    options["misaligned"] = draw(
        st.sampled_from(["error", "error", "bf16", "requantize", "reblock"])
    )
    if options["misaligned"] == "error":
        coded = "quantization_config" in source.config
        some = ["keep", "keep", "bf16", "float32"] if coded else ["keep", "fp8-block"]
        options["weights"] = draw(st.sampled_from(some))
    if options.get("weights") == "fp8-block":
        sizes = [128] if layout == "deepseek" else [8, 16, 32, 128]
        options["block"] = (draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes)))
    if draw(st.integers(0, 2)):
        ranks = draw(st.sampled_from(legal(source, options)))
    names = list(source.tensors)
    return Sharding(source, draw(layouts(names)), ranks, options, draw(RANKS), draw(WAYS))


def legal(source: Source, options: dict[str, Any]) -> list[int]:
    """Numbers of ranks that can share it; 1 only if no other can."""
    found = []
    for ranks in (2, 3, 4, 6, 8):
        with contextlib.suppress(Refused):
            ranks_of(source.tensors, source.config, ranks, options)
            found.append(ranks)
    return found or [1]
