"""How DeepSeek-V3's ``convert.py`` shards: every rank's tensors in memory, then ``save_file`` each.

Written from what it is known to do: name by name, tensor by tensor, ``narrow`` along an axis, the
scale by its own size; routed experts to the rank that owns them; layer 61 (here: the MTP layer)
left out. Usage: ``python -m benchmarks.ram_shard SOURCE TARGET RANKS EXPERTS LAYERS``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

NAMES: dict[str, tuple[str, int | None]] = {
    "embed_tokens": ("embed", 0), "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None), "q_proj": ("wq", 0), "q_a_proj": ("wq_a", None),
    "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None),
    "kv_b_proj": ("wkv_b", 0), "o_proj": ("wo", 1), "gate": ("gate", None), "gate_proj": ("w1", 0),
    "down_proj": ("w2", 1), "up_proj": ("w3", 0), "norm": ("norm", None), "lm_head": ("head", 0),
}  # fmt: skip


def shard(source: Path, target: Path, ranks: int, experts: int, layers: int) -> None:
    """Write ``target``, a folder that is not there yet."""
    torch.set_num_threads(8)
    found: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt", device="cpu") as f:
            for name in f.keys():  # noqa: SIM118
                if not name.startswith(f"model.layers.{layers}."):
                    _share(name, f.get_tensor(name), found, experts)
    target.mkdir()
    for rank, tensors in enumerate(found):
        save_file(tensors, target / f"model{rank}-mp{ranks}.safetensors")
    for file in source.glob("*token*"):
        shutil.copyfile(file, target / file.name)


def _share(
    name: str, tensor: torch.Tensor, found: list[dict[str, torch.Tensor]], experts: int
) -> None:
    name = name.removeprefix("model.").replace("self_attn", "attn").replace("mlp", "ffn")
    name = name.replace("weight_scale_inv", "scale").replace("e_score_correction_bias", "bias")
    key = name.split(".")[-2]
    new, axis = NAMES[key]
    name = name.replace(key, new)
    each = experts // len(found)
    for rank, tensors in enumerate(found):
        piece = tensor
        if "experts" in name and "shared_experts" not in name:
            number = int(name.split(".")[-3])
            if not rank * each <= number < (rank + 1) * each:
                continue
        elif axis is not None:
            size = tensor.size(axis) // len(found)
            piece = tensor.narrow(axis, rank * size, size).contiguous()
        tensors[name] = piece


if __name__ == "__main__":
    shard(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
